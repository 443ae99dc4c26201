"""From TOML and the environment to checked tables."""
