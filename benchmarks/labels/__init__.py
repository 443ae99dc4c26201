"""Labels as they really are: a budget of them, positives that come late, none at all, and bad
ones."""
