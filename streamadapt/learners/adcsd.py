"""ADCSD: online correction of a frozen forecaster, separately for trend and seasonal part."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner, Maturity, masked_mean, require_shape
from streamadapt.learners.optimizer import OPTIMISERS, Optimiser, OptimiserName
from streamadapt.models.contract import BaseOutput, Spec, TaskKind

__all__ = ["ADCSD"]

KERNEL = 5
HIDDEN = 128


class ADCSD(Learner):
    """Adaptive double correction by series decomposition [1]_.

    With ``y0`` the base's forecast in scaled units, (T, N): trend = moving average over `KERNEL`
    steps, the ends repeated; seasonal = y0 - trend;
    ``y = y0 + lambda_1 g_1(seasonal) + lambda_2 g_2(trend)``, each g being Linear(1, 128) ->
    LayerNorm -> exact GELU -> Linear(128, 1) on every cell. Both lambda start at zero, so the
    first forecast is the base's to the bit. One Adam step per matured forecast, on the masked
    error in original units.

    Costs per entry: O(T N 128) time; 12 T N 128 floats of state (original form), T N + 10^3 floats
    (`share_norm`).

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
    matures: ClassVar[Maturity] = "path"

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

    def allocate(self, spec: Spec) -> None:
        """Draw the linear layers as torch.nn.Linear does; lambda (and bias) start at zero."""
        generator = spec.generator()
        t, n = spec.rows, spec.columns

        def uniform(bound: float, *shape: int) -> nn.Parameter:
            numbers = (
                torch.rand(shape, generator=generator, dtype=torch.float32) * (2.0 * bound) - bound
            )
            return nn.Parameter(numbers.to(spec.device))

        def filled(value: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, value, dtype=torch.float32, device=spec.device))

        affine = (2, 1, 1, HIDDEN) if self.share_norm else (2, t, n, HIDDEN)
        # The leading 2 is the branch: seasonal, trend.
        self.weight_in = uniform(1.0, 2, 1, 1, HIDDEN)
        self.bias_in = uniform(1.0, 2, 1, 1, HIDDEN)
        self.norm_weight = filled(1.0, *affine)
        self.norm_bias = filled(0.0, *affine)
        self.weight_out = uniform(HIDDEN**-0.5, 2, 1, HIDDEN, 1)
        self.bias_out = uniform(HIDDEN**-0.5, 2, 1, 1, 1)
        self.gate = filled(0.0, 2, t if self.share_norm else 1, n)  # lambda
        if self.share_norm:
            self.shift = filled(0.0, t, n)
        self.optimiser = Optimiser(list(self.parameters()), self.optimiser_name, self.lr, {})

    def _correct(self, output: Tensor) -> Tensor:
        """(T, N) original units -> corrected (T, N), original units."""
        spec = self.spec
        scaled = (output - spec.output_loc) / spec.output_scale
        half = KERNEL // 2
        padded = torch.cat([scaled[:1].expand(half, -1), scaled, scaled[-1:].expand(half, -1)])
        trend = padded.unfold(0, KERNEL, 1).mean(-1)  # (T + 4, N) -> (T, N, 5) -> (T, N)
        parts = torch.stack([scaled - trend, trend]).unsqueeze(-1)  # (2, T, N, 1)
        hidden = parts * self.weight_in + self.bias_in  # (2, T, N, H)
        axes = (HIDDEN,) if self.share_norm else tuple(hidden.shape[1:])
        if self.share_norm:
            normed = F.layer_norm(hidden, axes)
        else:
            normed = torch.stack([F.layer_norm(branch, axes) for branch in hidden])
        active = F.gelu(torch.addcmul(self.norm_bias, normed, self.norm_weight))
        branches = (active @ self.weight_out + self.bias_out).squeeze(-1)  # (2, T, N)
        correction = (self.gate * branches).sum(0)
        if self.share_norm:
            correction = correction + self.shift
        return output + correction * spec.output_scale

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the corrected forecast."""
        del inputs
        require_shape("base.output", base.output, (self.spec.rows, self.spec.columns))
        with torch.no_grad():
            return self._correct(base.output)

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Make one step on one matured forecast."""
        del inputs
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        if not bool(mask.any()):
            return
        target = torch.where(mask, target, base.output)
        with torch.enable_grad():
            error = self._correct(base.output) - target
            if self.loss == "huber":
                scaled = error / self.spec.output_scale
                cells = (
                    F.huber_loss(scaled, torch.zeros_like(scaled), reduction="none")
                    * self.spec.output_scale
                )
            else:
                cells = error.abs()
            loss = masked_mean(cells, mask)
        self.optimiser.step(loss, self.boost)


def _short(value: float) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"
