"""Labels that cannot be right: so far from everything so far that learning them would undo months
of learning."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from streamadapt.errors import ConfigError
from streamadapt.records import Array, Mask

__all__ = ["AbsurdLabels"]

FIRST = 10
"""Labels whose medians the usual sizes start at."""
BELIEVED = 2
"""The first labels are compared with what the base says, of which alone something is known."""
YOUNG_LIMIT = 35.0
"""The limit, if that is no lower, of the first labels where the base brings a scale: little has
been learned yet."""
LEVELS = 100.0
"""Of the base's own output: how far away a first label may be, where the base brings no scale of
its outputs."""
RATE = 0.01
CLIP = 10.0
"""What is far off moves the usual sizes as if it were at most so many of them away."""
IN_A_ROW = 5
"""So many absurd labels one after the other are no mistake, but a change."""


class AbsurdLabels:
    """Tells absurd labels of values, output by output.

    A label is absurd if it is away from the base by more than `limit` times the base's usual error
    and `limit` times the labels' usual distance from their middle: a base that happens to be
    nearly perfect for a while makes none absurd. Middle and usual sizes are running means,
    clipped, that start at the medians of the first labels. Where `IN_A_ROW` would be absurd one
    after the other the world has changed (or its units): the last is believed, and everything
    starts anew. The first labels of a stream are compared with the scale that the base was fitted
    on (`unit`), or with the size of what it says where it brings none.

    Parameters
    ----------
    outputs : int
    limit : float, > CLIP
        Infinite: everything is believed.

    Attributes
    ----------
    unit : ndarray, (outputs,), or None
        The scale of the outputs that the base brings; not part of the state.
    """

    unit: Array | None = None

    def __init__(self, outputs: int, limit: float) -> None:
        if not limit > CLIP:
            raise ConfigError("task.absurd", limit, f"a number > {CLIP:g}, or inf")
        self.limit = float(limit)
        self.first: list[list[tuple[float, float]]] = [
            [] for _ in range(outputs)
        ]  # label and error of the first ones
        self.usual = [(0.0, 0.0, 0.0) for _ in range(outputs)]  # middle, distance from it, error
        self.run = [0] * outputs
        self.changed = [False] * outputs  # whether the first ones are those after a change

    def among(self, labels: Array, errors: Array, said: Array | None = None) -> Mask:
        """Return which outputs of a label are absurd, (outputs,), and follow what is usual.

        Parameters
        ----------
        labels, errors : ndarray, (outputs,)
            The error is ``|label - base|``; NaN where either says nothing.
        said : ndarray, (outputs,), optional
            The base's outputs. Without them, and without a `unit`, the first labels are believed
            whatever they say.
        """
        absurd: Mask = np.zeros(len(labels), np.bool_)
        if self.limit == np.inf:
            return absurd
        levels = np.zeros(len(labels)) if said is None else np.abs(said)
        for i, (label, error) in enumerate(zip(labels.tolist(), errors.tolist(), strict=True)):
            if error == error:
                absurd[i] = self._is_absurd(i, label, error, float(levels[i]))
        return absurd

    def _most(self, i: int, level: float) -> float:
        """Return how far from what the base says a label may be; 0 where nothing tells."""
        known, usual = len(self.first[i]), max(self.usual[i][1:])
        if self.changed[i] or known == FIRST or (known >= BELIEVED and self.unit is None):
            return self.limit * usual if known >= BELIEVED else 0.0
        if self.unit is None:
            return LEVELS * level
        return min(self.limit, YOUNG_LIMIT) * max(usual, float(self.unit[i]))

    def _is_absurd(self, i: int, label: float, error: float, level: float) -> bool:
        first, usual = self.first[i], self.usual[i]
        if error > self._most(i, level) > 0.0:
            self.run[i] += 1
            if self.run[i] < IN_A_ROW:
                return True
            first.clear()
            self.changed[i] = True
        self.run[i] = 0
        if len(first) < FIRST:
            first.append((label, error))
            middle = median(y for y, _ in first)
            self.usual[i] = (
                middle,
                median(abs(y - middle) for y, _ in first),
                median(e for _, e in first),
            )
            return False
        middle, distance, scale = usual
        away = _clipped(abs(label - middle), distance)
        middle += RATE * (away if label > middle else -away)
        self.usual[i] = (
            middle,
            distance + RATE * (away - distance),
            scale + RATE * (_clipped(error, scale) - scale),
        )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return copies."""
        first = [[list(pair) for pair in pairs] for pairs in self.first]
        return {
            "first": first,
            "usual": np.array(self.usual),
            "run": list(self.run),
            "changed": self.changed.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.first = [
            [(float(label), float(error)) for label, error in pairs] for pairs in state["first"]
        ]
        self.usual = [
            (float(m), float(d), float(e))
            for m, d, e in np.array(state["usual"], np.float64).tolist()
        ]
        self.run = [int(n) for n in state["run"]]
        self.changed = [bool(changed) for changed in state.get("changed", [True] * len(self.run))]


def _clipped(size: float, usual: float) -> float:
    return min(size, CLIP * usual) if usual > 0.0 else size
