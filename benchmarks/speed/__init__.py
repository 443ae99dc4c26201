"""Speed of the core against its rivals; see `python -m benchmarks.speed --help`."""
