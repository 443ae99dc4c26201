"""How a state becomes bytes, and where they lie."""
