"""A stream of conversions with known truth, and what is learned from it while conversions are
late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamadapt import RLS, Bias, Calibration, Entry, Label, Pipeline, River, Supervised
from streamadapt.learners import Learner

__all__ = ["MODES", "PROTOCOL", "Conversions", "learners", "run"]

Array = npt.NDArray[np.float64]

SECOND = 10**9
FEATURES = 3
MODES = ("oracle", "corrected", "naive", "waiting")

PROTOCOL = (
    "Three standard normal features, entries a second apart; a conversion has probability "
    "sigmoid(w x - 1.5), w "
    "drawn, with its intercept up by 1 after half of them; it comes after an exponential delay "
    "with a mean of 600 s "
    "and is never heard of after 3,600 s (2 in 1,000). Base, frozen: the right w, and an "
    "intercept that is 1 too low. "
    "An entry without a label is learned as a negative after 60 s. corrected: with the "
    "importance weights; naive: "
    "without; oracle: every label is known at the next entry; waiting: every label is learned "
    "after 3,600 s, when it "
    "is sure. Figures against the probabilities that the labels were drawn with: calibration is "
    "the mean prediction "
    "over the mean probability (1 is right), loss the expected log loss in nats; over the last "
    "two thirds of the "
    "first half, and (after) over the middle of the second, from one sixth to two thirds of it. "
    "Served by the default "
    "guard over bias, RLS, calibration and river's logistic regression; 3 streams, mean and "
    "standard deviation (n - "
    "1)."
)


@dataclass(frozen=True, slots=True)
class Conversions:
    """The stream.

    Attributes
    ----------
    x : ndarray, (n, FEATURES), float32
    p : ndarray, (n,)
        Probability of a conversion.
    y : ndarray, (n,)
    delay : ndarray, (n,), seconds
    w : ndarray, (FEATURES,)
    """

    x: npt.NDArray[np.float32]
    p: Array
    y: npt.NDArray[np.bool_]
    delay: Array
    w: Array

    @classmethod
    def draw(cls, n: int, seed: int, *, mean_delay: float = 600.0) -> Conversions:
        """Draw a stream."""
        rng = np.random.default_rng(seed)
        w = rng.normal(size=FEATURES)
        x = rng.normal(size=(n, FEATURES)).astype(np.float32)
        shift = np.where(np.arange(n) < n // 2, 0.0, 1.0)
        p = 1.0 / (1.0 + np.exp(-(x @ w - 1.5 + shift)))
        return cls(x, p, rng.random(n) < p, rng.exponential(mean_delay, n), w)

    def base(self, inputs: Tensor) -> Tensor:
        """The frozen model."""
        odds = inputs[-1].double() @ torch.from_numpy(self.w) - 2.5
        up = torch.sigmoid(odds).float()
        return torch.stack([1.0 - up, up]).unsqueeze(0)

    def items(self, *, labelled: str = "late", ttl: float = 3600.0) -> list[Entry | Label]:
        """Return entries, and positives as they arrive ("late"); or every label at the end of its
        ttl, or at once."""
        one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        timed: list[tuple[float, int, Entry | Label]] = []
        for t in range(len(self.x)):
            truth = one if self.y[t] else zero
            at_once = truth if labelled == "at once" else None
            timed.append((float(t), 1, Entry(self.x[t], t * SECOND, str(t), label=at_once)))
            if labelled == "late" and self.y[t] and self.delay[t] <= ttl:
                timed.append(
                    (t + self.delay[t], 0, Label(str(t), one, int((t + self.delay[t]) * SECOND)))
                )
            if labelled == "at the end":
                known = one if self.y[t] and self.delay[t] <= ttl else zero
                timed.append((t + ttl, 0, Label(str(t), known, int((t + ttl) * SECOND))))
        timed.sort(key=lambda item: item[:2])
        return [item for _, _, item in timed]


def learners() -> list[Learner]:
    """Make the experts."""
    return [
        Bias((0.05, 0.01)),
        RLS((0.99, 0.998)),
        Calibration(0.998),
        River("linear_model.LogisticRegression"),
    ]


def run(
    stream: Conversions, mode: str, chosen: Sequence[Learner], *, ttl: float = 3600.0
) -> dict[str, Array]:
    """Return every expert's probability of a conversion, (n,) each.

    Parameters
    ----------
    mode : str
        One of `MODES`.
    """
    late = mode in ("corrected", "naive")
    task = Supervised(
        classes=2,
        ttl=int((ttl + 1.0) * SECOND),
        negative_after=60 * SECOND if late else None,
        correct_negatives=mode == "corrected",
    )
    labelled = {"oracle": "at once", "waiting": "at the end"}.get(mode, "late")
    pipeline = Pipeline(task, stream.base, chosen, device="cpu")
    outputs: dict[str, list[float]] = {}
    for item in stream.items(labelled=labelled, ttl=ttl):
        for prediction in pipeline.observe([item]):
            for name, p in {**prediction.experts, "served": prediction.served}.items():
                outputs.setdefault(name, []).append(float(p[0, 1]))
    return {name: np.array(values) for name, values in outputs.items()}


def figures(stream: Conversions, outputs: Array, part: slice) -> tuple[float, float]:
    """Return calibration and expected log loss."""
    p, q = stream.p[part], np.clip(outputs[part], 1e-6, 1.0 - 1e-6)
    return float(q.mean() / p.mean()), float(-(p * np.log(q) + (1.0 - p) * np.log(1.0 - q)).mean())
