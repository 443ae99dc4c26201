"""What survives which fault; see `python -m benchmarks.faults --help`."""
