"""The frozen model: its contract, the built-in ones, fitting and reading them."""
