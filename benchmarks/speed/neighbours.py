"""Rivals of the exact error memory: the nearest of n embeddings, by brute force and by hnswlib."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

__all__ = ["BruteForce", "Hnsw", "installed"]

NEAREST, TAU, STRENGTH = 10, 0.1, 0.9
"""The defaults of our memory: neighbours, temperature of their weights, and strength."""


def installed(package: str) -> bool:
    """Return whether a rival's package is there."""
    return importlib.util.find_spec(package) is not None


class BruteForce:
    """Keys in one matrix of float32: a product and a top-k for each entry.

    Parameters
    ----------
    keys : Tensor, (n, features), float32
    labels : Tensor, (n, classes), float32
    """

    def __init__(self, keys: Tensor, labels: Tensor) -> None:
        self.keys, self.labels = nn.functional.normalize(keys, dim=1), labels.clone()
        self.oldest = 0

    def predict(self, embedding: Tensor, base: Tensor) -> Tensor:
        """Mix the base's probabilities with the labels of the nearest entries."""
        likeness, rows = (self.keys @ nn.functional.normalize(embedding, dim=0)).topk(NEAREST)
        return mixed(likeness, self.labels[rows], base)

    def learn(self, embedding: Tensor, label: Tensor) -> None:
        """Put an entry in the place of the oldest."""
        self.keys[self.oldest] = nn.functional.normalize(embedding, dim=0)
        self.labels[self.oldest] = label
        self.oldest = (self.oldest + 1) % len(self.keys)


class Hnsw:
    """An index of hnswlib (M 16, 100 at construction, 50 at search): neighbours are approximate.

    Parameters are those of `BruteForce`.
    """

    def __init__(self, keys: Tensor, labels: Tensor) -> None:
        import hnswlib  # a rival, not a requirement

        n, features = keys.shape
        self.index = hnswlib.Index("cosine", features)
        self.index.init_index(
            max_elements=n, M=16, ef_construction=100, allow_replace_deleted=True
        )
        self.index.set_num_threads(1)
        self.index.set_ef(50)
        self.index.add_items(keys.numpy(), range(n))
        self.labels, self.first, self.next = labels.clone(), 0, n

    def predict(self, embedding: Tensor, base: Tensor) -> Tensor:
        """Mix the base's probabilities with the labels of the nearest entries."""
        names, distances = self.index.knn_query(embedding.numpy()[None], k=NEAREST)
        rows = torch.from_numpy(names[0].astype("int64")) % len(self.labels)
        return mixed(1.0 - torch.from_numpy(distances[0]), self.labels[rows], base)

    def learn(self, embedding: Tensor, label: Tensor) -> None:
        """Put an entry in the place of the oldest."""
        self.index.mark_deleted(self.first)
        self.index.add_items(embedding.numpy()[None], [self.next], replace_deleted=True)
        self.labels[self.next % len(self.labels)] = label
        self.first, self.next = self.first + 1, self.next + 1


def mixed(likeness: Tensor, labels: Tensor, base: Tensor) -> Tensor:
    """Return the base's probabilities moved towards the labels of neighbours."""
    weights = torch.softmax(likeness / TAU, 0)
    moved = (base + STRENGTH * (weights @ labels - base)).clamp_min(0.0)
    return moved / moved.sum()
