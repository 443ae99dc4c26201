"""The learner ADCSD."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Final, Literal

import numpy as np
import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.adcsd import torch_form
from streamadapt.learners.adcsd.arrays import (
    HIDDEN,
    NO_STEP,
    ADCSDRoom,
    ADCSDSettings,
    ADCSDState,
    Weights,
    drawn,
    room_for,
)
from streamadapt.learners.adcsd.backward import learn
from streamadapt.learners.adcsd.forward import predict
from streamadapt.learners.base import Maturity, require_shape
from streamadapt.learners.compiled import CompiledLearner, Steps, is_as_made, with_a_key
from streamadapt.learners.optimizer import OPTIMISERS, OptimiserName
from streamadapt.models.contract import BaseOutput, Spec, TaskKind
from streamadapt.records import Array

__all__ = ["ADCSD"]

MOMENTS: Final = {
    "adam": ("exp_avg", "exp_avg_sq"),
    "sgd": (),
    "lion": ("exp_avg",),
    "adabelief": ("exp_avg", "exp_avg_var"),
}
"""What checkpoints call the moments of each optimiser."""


class ADCSD(CompiledLearner):
    """Adaptive double correction by series decomposition [1]_.

    With ``y0`` the base's forecast in scaled units, (T, N): trend = moving average over `KERNEL`
    steps, the ends repeated; seasonal = y0 - trend;
    ``y = y0 + lambda_1 g_1(seasonal) + lambda_2 g_2(trend)``, each g being Linear(1, 128) ->
    LayerNorm -> exact GELU -> Linear(128, 1) on every cell. Both lambda start at zero, so the
    first forecast is the base's to the bit. One Adam step per matured forecast, on the masked
    error in original units.

    On a CPU it is compiled, and works in float32; on a GPU, torch does the same.

    Costs per entry: O(T N 128) time; 12 T N 128 floats of state (original form),
    9 T N + 4 x 10^3 floats (`share_norm`).

    Parameters
    ----------
    lr : float, > 0
        Learning rate (of Adam: betas .9, .999; eps 1e-8). Default: 1e-4, the paper's; 1e-3 for
        `share_norm`.
    share_norm : bool
        False: the original; LayerNorm over all of (T, N, 128) with an affine of that size, lambda
        per node. True: LayerNorm over the 128 only with one affine for all cells; lambda and a
        bias per (horizon, node).
    loss : {"mae", "huber"}
        What a step reduces: the absolute error, or Huber's loss, whose threshold is one scale of
        the output.
    optimiser : {"adam", "sgd", "lion", "adabelief"}
        What makes the steps. Adam is the paper's; the default `lr` is Adam's, whichever is chosen.

    References
    ----------
    .. [1] Guo et al. (2024), Online test-time adaptation of spatial-temporal traffic flow
       forecasting, arXiv:2401.04148.

    Examples
    --------
    >>> ADCSD(share_norm=True).names
    ('adcsd-share-norm',)
    """

    kind: ClassVar[str] = "adcsd"
    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"forecast"})
    makes_gradient_steps: ClassVar[bool] = True
    matures: ClassVar[Maturity] = "path"
    steps = Steps(predict, learn)
    state: ADCSDState
    _stepped = False

    def __init__(
        self,
        lr: float | None = None,
        *,
        share_norm: bool = False,
        loss: Literal["mae", "huber"] = "mae",
        optimiser: OptimiserName = "adam",
    ) -> None:
        super().__init__()
        self.default_lr = 1e-3 if share_norm else 1e-4
        lr = self.default_lr if lr is None else lr
        if not 0.0 < lr < math.inf:
            raise ConfigError("lr", lr, "a finite number > 0")
        if loss not in ("mae", "huber"):
            raise ConfigError("loss", loss, "mae or huber")
        if optimiser not in OPTIMISERS:
            raise ConfigError("optimiser", optimiser, "one of " + ", ".join(OPTIMISERS))
        self.lr = lr
        self.share_norm = share_norm
        self.loss = loss
        self.optimiser_name = optimiser

    @property
    def names(self) -> tuple[str, ...]:
        """``adcsd`` or ``adcsd-share-norm``, then optimiser and rate where they are not the
        default: ``adcsd-1e-3``."""
        optimiser = "" if self.optimiser_name == "adam" else f"-{self.optimiser_name}"
        rate = "" if self.lr == self.default_lr else f"-{_short(self.lr)}"
        return (f"{self.kind}{'-share-norm' if self.share_norm else ''}{optimiser}{rate}",)

    def settings(self, spec: Spec) -> ADCSDSettings:
        """Return the hyper-parameters."""
        return ADCSDSettings(
            float(self.lr),
            self.share_norm,
            self.loss == "huber",
            OPTIMISERS.index(self.optimiser_name),
        )

    def start(self, spec: Spec) -> ADCSDState:
        """Draw the linear layers; the correction is zero."""
        moments = len(MOMENTS[self.optimiser_name])
        weights = drawn(spec, moments, share_norm=self.share_norm)
        return ADCSDState(weights, np.array(0, np.int64), np.array(NO_STEP))

    def room(self, spec: Spec) -> ADCSDRoom:
        """Return room for a step."""
        return room_for(spec, share_norm=self.share_norm)

    @property
    def in_torch(self) -> bool:
        """Whether it runs on another device than the CPU."""
        return self.spec.device.type != "cpu"

    def allocate(self, spec: Spec) -> None:
        """Allocate the state, on the spec's device."""
        if self.in_torch:
            torch_form.allocate(self, self._shaped(with_a_key(self.start(spec)).weights, 0))
        else:
            super().allocate(spec)

    def named_arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield the weights, and the optimiser's moments and its count of steps."""
        if self.in_torch:
            return
        optimiser, weights, steps = self.optimiser_name, self.state.weights, self.state.steps
        yield from self._shaped(weights, 0)
        for slot, name in enumerate(MOMENTS[optimiser], 1):
            for i, (_, array) in enumerate(self._shaped(weights, slot)):
                yield f"optimiser.{name}_{i}", array
        if optimiser == "adam":  # which counts the steps of each tensor
            for i, _ in enumerate(self._shaped(weights, 0)):
                yield f"optimiser.step_{i}", steps
        elif optimiser == "adabelief":
            yield "optimiser.steps", steps

    def _shaped(self, weights: Weights, slot: int) -> Iterator[tuple[str, Array]]:
        """Yield the weights, or a moment of each, with the names and shapes that checkpoints
        have."""
        rows, columns = self.spec.rows, self.spec.columns
        affine = (2, 1, 1, HIDDEN) if self.share_norm else (2, rows, columns, HIDDEN)
        shapes = {
            "weight_in": (2, 1, 1, HIDDEN),
            "bias_in": (2, 1, 1, HIDDEN),
            "norm_weight": affine,
            "norm_bias": affine,
            "weight_out": (2, 1, HIDDEN, 1),
            "bias_out": (2, 1, 1, 1),
            "gate": (2, rows if self.share_norm else 1, columns),
            "shift": (rows, columns),
        }
        for name, array in zip(Weights._fields, weights, strict=True):
            if array.size > 0:
                yield name, array[:, slot].reshape(len(array), *shapes[name])

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the corrected forecast."""
        require_shape("base.output", base.output, (self.spec.rows, self.spec.columns))
        if self.in_torch:
            with torch.no_grad():
                return torch_form.correct(self, base.output)
        return super().predict(inputs, base)

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Make one step on one matured forecast."""
        if self.in_torch:
            require_shape("target", target, (self.spec.rows, self.spec.columns))
            torch_form.learn(self, base.output, target, mask)
            return
        before = int(self.state.steps[0])
        super().learn(inputs, base, target, mask)
        self._stepped = int(self.state.steps[0]) > before

    @property
    def takes_lots(self) -> bool:
        """Whether its kernel computes what its methods do."""
        return is_as_made(self, ADCSD, ("predict", "learn", "adapt")) and not self.in_torch

    def run(self, lot: Any, start: int, stop: int, first: int) -> None:
        """Take the learner through the events [start, stop) of a lot."""
        before = int(self.state.steps[0])
        super().run(lot, start, stop, first)
        self._stepped = int(self.state.steps[0]) > before

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Take nothing in: only labels teach it."""

    def forget(self, keep: float) -> None:
        """Keep everything."""

    @property
    def gradient_norm(self) -> float | None:
        """The norm of the newest gradient; None before the first step."""
        if self.in_torch:
            return super().gradient_norm
        norm = float(self.state.norm[0])
        return None if norm == NO_STEP else norm

    def take_gradient_norm(self) -> float | None:
        """Return the norm of the gradient of a step made since the last call, or None."""
        if self.in_torch:
            return super().take_gradient_norm()
        stepped, self._stepped = self._stepped, False
        return self.gradient_norm if stepped else None


def _short(value: float) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"
