"""Sources and sinks for streamadapt: Kafka, files, and the codecs that turn their records into
entries."""
