"""The shell around the engine: command line, demo, embedded broker."""
