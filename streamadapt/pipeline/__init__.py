"""The way of one entry, without I/O: entries in, predictions out."""
