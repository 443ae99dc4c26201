"""The project's own measurements; run from the repository's root."""
