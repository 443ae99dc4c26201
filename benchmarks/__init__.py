"""What the project measures of itself; run from the repository's root."""
