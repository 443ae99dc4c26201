"""The guard: mixes the experts into the served prediction."""
