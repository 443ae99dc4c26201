"""The plainest correction: an exponentially weighted mean of what the base got wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from streamadapt.compiled import compiled
from streamadapt.learners.base import Maturity, one_or_more
from streamadapt.learners.compiled import CompiledLearner, Steps
from streamadapt.learners.probabilities import corrected
from streamadapt.models.contract import Spec
from streamadapt.records import Array

__all__ = ["Bias"]


class BiasSettings(NamedTuple):
    """`rate` is (experts,)."""

    rate: Array


class BiasState(NamedTuple):
    """`bias` is (experts, rows, columns) per key."""

    bias: Array


class BiasRoom(NamedTuple):
    """`out` is (columns,)."""

    out: Array


@compiled
def correct(c: Any, b: Any, x: Any, out: Any) -> None:
    """``out = base + b``, or the softmax of ``ln base + b``; `b` and `out` are (experts, rows,
    columns)."""
    experts, rows, _ = out.shape
    for e in range(experts):
        for h in range(rows):
            corrected(c, x.base[h], b[e, h], out[e, h])


@compiled
def move(c: Any, p: Any, b: Any, w: Any, x: Any, y: Any, h: int, share: float) -> None:
    """``b <- b + rate share error`` in the known cells of row h; `b` is (experts, rows,
    columns)."""
    for e in range(p.rate.shape[0]):
        rate = min(p.rate[e] * y.weight * y.boost, 1.0) * share
        corrected(c, x.base[h], b[e, h], w.out)
        for j in range(w.out.shape[0]):
            if y.known[h, j]:
                b[e, h, j] += rate * (y.target[h, j] - w.out[j])


@compiled
def shrink(b: Any, keep: float) -> None:
    """``b <- keep b``, (experts, rows, columns)."""
    experts, rows, columns = b.shape
    for e in range(experts):
        for h in range(rows):
            for j in range(columns):
                b[e, h, j] *= keep


@compiled
def predict(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, out: Any) -> None:
    """``out = base + b``, or the softmax of ``ln base + b``."""
    correct(c, s.bias[key], x, out)


@compiled
def learn(c: Any, p: Any, s: Any, key: int, w: Any, x: Any, y: Any) -> None:
    """``b <- b + rate error`` in the known cells."""
    for h in range(y.known.shape[0]):
        move(c, p, s.bias[key], w, x, y, h, 1.0)


@compiled
def forget(c: Any, p: Any, s: Any, key: int, w: Any, keep: float) -> None:
    """Shrink b."""
    shrink(s.bias[key], keep)


class Bias(CompiledLearner):
    """``prediction = base + b``, with ``b <- b + rate (target - base - b)`` in every cell.

    A row of a forecast is learned the moment its target is known. Costs O(rows x columns) time and
    floats per rate.

    Classification: ``prediction = softmax(ln base + b)``, with
    ``b <- b + rate (target - prediction)``, the online gradient of the log loss (target one-hot,
    base floored at 1e-6): it follows how often each class comes, the correction for a shift of the
    labels [1]_.

    Parameters
    ----------
    rate : float or sequence of floats, in (0, 1]
        Per matured example: .02 remembers about 50 of them. Several rates: one expert each.

    References
    ----------
    .. [1] Wu et al. (2021), Online adaptation to label distribution shift, NeurIPS 34.

    Examples
    --------
    >>> Bias((0.1, 0.02)).names
    ('bias-0.1', 'bias-0.02')
    """

    kind: ClassVar[str] = "bias"
    matures: ClassVar[Maturity] = "rows"
    steps = Steps(predict, learn, forget=forget)

    def __init__(self, rate: float | Sequence[float] = 0.02) -> None:
        super().__init__()
        self.rates = one_or_more("rate", rate, 0.0, 1.0)

    @property
    def names(self) -> tuple[str, ...]:
        """``bias-0.02`` and its siblings."""
        return tuple(f"{self.kind}-{rate:g}" for rate in self.rates)

    def settings(self, spec: Spec) -> BiasSettings:
        """Return the rates."""
        return BiasSettings(np.array(self.rates))

    def start(self, spec: Spec) -> BiasState:
        """Start without a correction."""
        return BiasState(np.zeros((len(self.rates), spec.rows, spec.columns)))

    def room(self, spec: Spec) -> BiasRoom:
        """Return room for a row of predictions."""
        return BiasRoom(np.zeros(spec.columns))
