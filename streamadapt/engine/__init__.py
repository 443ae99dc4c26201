"""The engine: from a source through pipelines to a sink, with checkpoints, metrics and
guarantees."""
