"""What the figures say, in words."""

__all__ = ["READING"]

READING = """## Which detector to use when

TODO
"""
