"""Faults that the engine survives; see `python -m benchmarks.faults --help`."""
