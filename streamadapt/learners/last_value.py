"""The plainest predictions: the last value again, the last label again."""

from __future__ import annotations

from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.base import Maturity
from streamadapt.learners.compiled import CompiledLearner, Steps
from streamadapt.learners.lots import NEVER
from streamadapt.learners.masks import all_known
from streamadapt.models.contract import Spec
from streamadapt.records import Array

__all__ = ["LastValue"]

DISCOUNT: Final = 0.999
"""Of the counts that tell how often the class changes: about 1,000 labels are remembered."""


class NoSettings(NamedTuple):
    """There are none."""


class NoState(NamedTuple):
    """Forecasts repeat their input."""


class LabelState(NamedTuple):
    """Per key, (1, columns) each: the newest label of every output, whether there is one, and the
    event time of its entry."""

    last: Array
    seen: Array
    newest: Array


class ClassState(NamedTuple):
    """`LabelState` of a one-hot label, and the counts of changes and of labels, () per key."""

    last: Array
    seen: Array
    newest: Array
    changes: Array
    count: Array  # type: ignore[assignment]  # hides a method of tuples


@compiled
def predict_value(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = Z_t`` at every step."""
    _, rows, columns = out.shape
    newest = x.window.shape[0] - 1
    for h in range(rows):
        for j in range(columns):
            out[0, h, j] = x.window[newest, j]


@compiled
def predict_label(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out`` is the newest label; the base's output where there is none."""
    for j in range(out.shape[2]):
        out[0, 0, j] = s.last[key, 0, j] if s.seen[key, 0, j] else x.base[0, j]


@compiled
def learn_label(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Remember the known labels, but not where that of a later entry is known already."""
    timed = x.times.shape[0] > 0
    for j in range(y.known.shape[1]):
        if y.known[0, j]:
            if timed:
                time = x.times[x.times.shape[0] - 1]
                if time < s.newest[key, 0, j]:
                    continue
                s.newest[key, 0, j] = time
            s.last[key, 0, j] = y.target[0, j]
            s.seen[key, 0, j] = True


@compiled
def predict_class(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = 1 - e`` for the newest label, the other classes share e."""
    others = out.shape[2] - 1
    e = min((s.changes[key] + 1.0) / (s.count[key] + 2.0), others / (others + 1.0))
    for j in range(out.shape[2]):
        last = s.last[key, 0, j]
        again = last * (1.0 - e) + (1.0 - last) * (e / others)
        out[0, 0, j] = again if s.seen[key, 0, j] else x.base[0, j]


@compiled
def learn_class(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """Count whether the label differs from the one known before it, then remember it."""
    if not all_known(y.known):
        return
    if all_known(s.seen[key]):
        differs = largest(y.target[0]) != largest(s.last[key, 0])
        s.changes[key] = DISCOUNT * s.changes[key] + (1.0 if differs else 0.0)
        s.count[key] = DISCOUNT * s.count[key] + 1.0
    learn_label(c, p, s, key, w, x, y)


@compiled
def largest(values: Any) -> int:
    """Return the place of the largest value."""
    best = 0
    for j in range(1, values.shape[0]):
        if values[j] > values[best]:
            best = j
    return best


class LastValue(CompiledLearner):
    """What was last seen, whatever the base says; named apart from the base `Persistence`, which
    forecasts alike.

    Forecasts: the last value of every channel, at every step. Regression: the newest label known
    of each output; the base's output before the first. Classification ("no-change"): the newest
    label known, with probability ``1 - e``, the other classes sharing e evenly; e is the rate at
    which a label differed from the one known before it, Laplace-smoothed and slowly forgotten::

        changes <- .999 changes + [label differs]      count <- .999 count + 1
        e = (changes + 1) / (count + 2), at most that of the even distribution

    The newest label is that of the latest entry, not the one that arrived last. With labels that
    come many entries late e is too small, since the rate is that from label to label.

    Costs O(rows x columns) time, columns + 3 numbers.

    Examples
    --------
    >>> LastValue().names
    ('persistence',)
    """

    kind: ClassVar[str] = "persistence"
    matures: ClassVar[Maturity] = "rows"

    def steps_for(self, spec: Spec) -> Steps:
        """Return the steps of values, labels or classes."""
        if spec.kind == "forecast":
            return Steps(predict_value)  # targets are entries, which are inputs in their turn
        if spec.kind == "regression":
            return Steps(predict_label, learn_label)
        return Steps(predict_class, learn_class)

    def settings(self, spec: Spec) -> NoSettings:
        """Return nothing."""
        return NoSettings()

    def start(self, spec: Spec) -> NoState | LabelState | ClassState:
        """Start with no label known; forecasts need no state."""
        if spec.kind == "forecast":
            return NoState()
        shape = (1, spec.columns)
        labels = LabelState(np.zeros(shape), np.zeros(shape, np.bool_), np.full(shape, NEVER))
        if spec.kind == "regression":
            return labels
        return ClassState(*labels, np.zeros(()), np.zeros(()))
