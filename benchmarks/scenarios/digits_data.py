"""The digits streams: scikit-learn's 8 x 8 digits, corrupted, in several orders, and the small
network that classifies them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = [
    "CORRUPTIONS",
    "UNSEEN",
    "Digits",
    "Stream",
    "as_tensor",
    "changing_stream",
    "corrupted",
    "load_digits",
    "make_net",
    "one_stream",
    "train",
]

Images = npt.NDArray[np.float32]
Corruption = Callable[[Images, np.random.Generator], npt.NDArray[np.floating]]

SOURCE = 900
SIDE = 8
CLASSES = 10


def _smooth(n: int, rng: np.random.Generator) -> Images:
    """Return a smooth random field for each image: 3 x 3 normal numbers, interpolated."""
    coarse = torch.from_numpy(rng.normal(size=(n, 1, 3, 3)).astype(np.float32))
    fine: Images = nn.functional.interpolate(
        coarse, (SIDE, SIDE), mode="bilinear", align_corners=True
    )[:, 0].numpy()
    return fine


def _motion(x: Images) -> Images:
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2)))
    moved: Images = np.mean([padded[:, :, i : i + SIDE] for i in range(5)], axis=0)
    return moved


def _zoom(x: Images) -> Images:
    """Enlarge the middle 6 x 6 pixels."""
    middle = torch.from_numpy(x[:, None, 1:-1, 1:-1])
    large: Images = nn.functional.interpolate(
        middle, (SIDE, SIDE), mode="bilinear", align_corners=True
    )[:, 0].numpy()
    return large


ROW = np.arange(SIDE, dtype=np.float32)
BOARD = ((ROW[:, None] // 2 + ROW[None] // 2) % 2).astype(np.float32)
RADIUS = ((ROW[:, None] - 3.5) ** 2 + (ROW[None] - 3.5) ** 2) / 24.5

CORRUPTIONS: dict[str, Corruption] = {
    "clean": lambda x, _: x,
    "contrast": lambda x, _: x * 0.3 + 0.5,
    "noise": lambda x, rng: x + 0.35 * rng.normal(size=x.shape),
    "invert": lambda x, _: 1.0 - x,
    "bright": lambda x, _: x + 0.6,
    "fog": lambda x, rng: 0.5 * x + 0.45 + 0.15 * _smooth(len(x), rng),
}
"""The corruptions with which the recipe was built."""

UNSEEN: dict[str, Corruption] = {
    "checkerboard": lambda x, _: np.where(BOARD > 0, 0.5, x),
    "vignette": lambda x, _: x * (1.0 - 0.8 * RADIUS),
    "quantise": lambda x, _: np.round(x * 2.0) / 2.0,
    "motion": lambda x, _: _motion(x),
    "speckle": lambda x, rng: x * (1.0 + 0.8 * rng.normal(size=x.shape)),
    "zoom": lambda x, _: _zoom(x),
    "ramp": lambda x, _: x + 0.1 * ROW,
    "stripes": lambda x, _: x + 0.5 * (ROW[:, None] % 2),
    "dusk": lambda x, rng: 0.35 * x + 0.1 * rng.normal(size=x.shape),
    "exposure": lambda x, rng: (
        x * rng.uniform(0.3, 1.5, (len(x), 1, 1)) + rng.uniform(0.0, 0.5, (len(x), 1, 1))
    ),
}
"""The corruptions for the final test, chosen before the first run."""


@dataclass(frozen=True, slots=True)
class Digits:
    """One split: 900 images to train on, 897 that stream; pixels from 0 to 1.

    Attributes
    ----------
    source, stream : ndarray, (n, 8, 8), float32
    source_labels, stream_labels : ndarray, (n,), int64
    """

    source: Images
    source_labels: npt.NDArray[np.int64]
    stream: Images
    stream_labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stream:
    """Images (n, 8, 8) in their order, with the labels."""

    images: Images
    labels: npt.NDArray[np.int64]


def load_digits(seed: int) -> Digits:
    """Return the split of a seed."""
    from sklearn.datasets import load_digits as sklearn_digits

    data = sklearn_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    images = (data.images[order] / 16.0).astype(np.float32)
    labels = data.target[order].astype(np.int64)
    return Digits(images[:SOURCE], labels[:SOURCE], images[SOURCE:], labels[SOURCE:])


SEGMENT = 150
CHANGES = (
    "clean", "contrast", "noise", "clean", "bright", "fog", "clean", "invert", "contrast", "fog",
    "noise", "clean",
)  # fmt: skip
HALVES = (
    "clean", "contrast", "clean", "noise", "clean", "bright", "clean", "fog", "clean", "invert",
    "clean", "contrast",
)  # fmt: skip


def one_stream(digits: Digits, name: str, seed: int, *, in_order: bool = False) -> Stream:
    """Return one corruption of all images, in random order or sorted by label."""
    images, labels = digits.stream, digits.stream_labels
    order = labels.argsort(kind="stable") if in_order else np.arange(len(labels))
    return Stream(corrupted(images[order], name, np.random.default_rng([seed, 1])), labels[order])


def changing_stream(
    digits: Digits, names: Sequence[str], seed: int, *, in_order: bool = False
) -> Stream:
    """Return a stream with another corruption every `SEGMENT` entries; the images are repeated as
    often as needed."""
    rng = np.random.default_rng([seed, 2])
    images, labels = [], []
    rest = np.zeros(0, np.int64)
    for name in names:
        while len(rest) < SEGMENT:
            rest = np.concatenate([rest, rng.permutation(len(digits.stream))])
        chosen, rest = rest[:SEGMENT], rest[SEGMENT:]
        if in_order:
            chosen = chosen[digits.stream_labels[chosen].argsort(kind="stable")]
        images.append(corrupted(digits.stream[chosen], name, rng))
        labels.append(digits.stream_labels[chosen])
    return Stream(np.concatenate(images), np.concatenate(labels))


def corrupted(images: Images, name: str, rng: np.random.Generator) -> Images:
    """Return the images with the corruption of that name."""
    spoil = CORRUPTIONS.get(name) or UNSEEN[name]
    return np.ascontiguousarray(spoil(images, rng), dtype=np.float32)


def make_net() -> nn.Sequential:
    """Return a small convolutional network with batch normalisation; (entries, 1, 64) -> (entries,
    10) logits."""
    return nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def train(
    digits: Digits,
    seed: int,
    *,
    epochs: int = 12,
    batch: int = 64,
    make: Callable[[], nn.Sequential] = make_net,
) -> nn.Sequential:
    """Train a network on the source images: Adam with a decreasing rate; the same seed gives the
    same bits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make()
    generator = torch.Generator().manual_seed(seed)
    images = torch.from_numpy(digits.source).flatten(1).unsqueeze(1)
    labels = torch.from_numpy(digits.source_labels)
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(images), generator=generator), batch)[
            : len(images) // batch
        ]:
            adam.zero_grad()
            nn.functional.cross_entropy(net(images[part]), labels[part]).backward()
            adam.step()
            schedule.step()
    return net.eval()


def as_tensor(images: Images) -> Tensor:
    """Flatten images to the pipeline's entries: (n, 8, 8) -> (n, 1, 64)."""
    return torch.from_numpy(images).flatten(1).unsqueeze(1)
