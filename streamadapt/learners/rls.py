"""Recursive least squares on the window: what the base left over, relearned with forgetting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.features import feature_count, linear_features
from streamadapt.learners.base import (
    INNOVATION_RATE,
    BaseOutput,
    Learner,
    Maturity,
    Prior,
    Spec,
    TaskKind,
    boosted_forgetting,
    one_or_more,
    require_shape,
)

__all__ = ["RLS", "covariance_bound"]

FEATURE_LIMIT = 1e4
"""Scaled inputs are clipped here: beyond it one outlier would leave P no digits for the other directions."""


class RLS(Learner):
    """Recursive least squares with forgetting, a bounded covariance and clipped innovations.

    ``prediction = base + scale * x^T v``, x the scaled window (last value subtracted for forecasts) and a 1; one v per
    channel of a forecast, one for all outputs otherwise. With the newest x, per group [1]_::

        P^-1 <- forgetting P^-1 + x x^T + leak,   k = P x
        v_h <- v_h + k_s clip(e_h)                e_h = target - base - scale x_s^T v_h, in scaled units

    A gain depends on the inputs only, so it is computed when the forecast is issued and kept for `rows` entries; each
    row is then learned with its own gain the moment its target is known: exact partial maturity with one matrix.
    Naive forgetting (no leak) makes P grow without bound in directions where the inputs do not vary. The leak puts back
    what forgetting takes of the prior, ``(1 - forgetting) ridge I`` per example, one coordinate at a time (every d-th
    example, d-fold), so that the update stays O(d^2): P never exceeds `covariance_bound`, and goes on forgetting in the
    directions that do vary, which a cap on P's trace would stop.
    Where the base can tell what it was fitted on (`Spec.prior`), P and v start as if that history had just been learned
    with the same forgetting; else v = 0 and P = I / `ridge`.

    Costs per entry, forgetting and group with d features: O(d^2 + d rows) time, d^2 + 2 d rows float64 numbers.

    Parameters
    ----------
    forgetting : float or sequence of floats, in (0, 1]
        Per learned example: .9995 remembers about 2,000. Several: one expert each.
    clip : float, > 0
        Innovations beyond so many times their running mean size are clipped; ``inf`` for none.
    ridge : float, > 0
        Weight of the prior and of the leak, in squared scaled units.

    References
    ----------
    .. [1] Ljung & Soderstrom (1983), Theory and practice of recursive identification, chapter 2.
    """

    kind: ClassVar[str] = "rls"
    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"forecast", "regression"})
    matures: ClassVar[Maturity] = "rows"
    covariance: Tensor
    weights: Tensor
    past: Tensor
    innovation: Tensor
    turn: Tensor

    def __init__(
        self,
        forgetting: float | Sequence[float] = 0.9995,
        *,
        clip: float = 2.0,
        ridge: float = 0.1,
    ) -> None:
        super().__init__()
        self.forgetting = one_or_more("forgetting", forgetting, 0.0, 1.0)
        for name, value in (("clip", clip), ("ridge", ridge)):
            if not value > 0.0:
                raise ConfigError(name, value, "a number > 0")
        self.clip = clip
        self.ridge = ridge

    @property
    def names(self) -> tuple[str, ...]:
        """``rls-0.9995`` and its siblings."""
        return tuple(f"{self.kind}-{forgetting:g}" for forgetting in self.forgetting)

    def allocate(self, spec: Spec) -> None:
        """Start from the base's own fit where it is known."""
        self.forecast = spec.kind == "forecast"
        v = len(self.forgetting)
        groups, responses = (spec.columns, spec.rows) if self.forecast else (1, spec.columns)
        d = feature_count(spec.window, spec.channels, forecast=self.forecast)
        identity = torch.eye(d, dtype=torch.float64)
        if spec.prior is not None:
            covariance, weights = self._from_prior(spec.prior, identity)
        else:
            covariance = (identity / self.ridge).repeat(v * groups, 1, 1)
            weights = torch.zeros(v * groups, d, responses, dtype=torch.float64)
        # The leading size of all of these is experts * groups.
        self._buffer("covariance", covariance, spec)
        self._buffer("weights", weights, spec)
        self._buffer("innovation", torch.full((v * groups, responses), 0.3, dtype=torch.float64), spec)
        self._buffer("turn", torch.zeros((), dtype=torch.int64), spec)  # whose turn the leak is
        # The last forecasts' x and gain, newest first; other tasks learn each example with its own at once.
        ring = spec.rows if self.forecast else 0
        self._buffer("past", torch.zeros(ring, 2, v * groups, d, dtype=torch.float64), spec)
        forgetting = torch.tensor(self.forgetting, dtype=torch.float64, device=spec.device)
        self._forgetting = forgetting.repeat_interleave(groups).view(-1, 1, 1)

    def _from_prior(self, prior: Prior, identity: Tensor) -> tuple[Tensor, Tensor]:
        """Start as if the fit's history had just been learned: worth no more than what each forgetting remembers."""
        gram, moment = prior.gram.cpu(), prior.moment.cpu()
        examples = gram[:, -1, -1].mean()  # the constant's square, summed
        covariances, weights = [], []
        for forgetting in self.forgetting:
            memory = 1.0 / (1.0 - forgetting) if forgetting < 1.0 else math.inf
            worth = torch.clamp(memory / examples, max=1.0)
            # A group's own history, and the mean of all groups' as its prior.
            covariance = torch.linalg.inv(worth * (gram + gram.mean(0)) + self.ridge * identity)
            covariance = (covariance + covariance.mT) / 2.0  # inv() does not return it symmetric to the last bit
            covariances.append(covariance)
            weights.append(covariance @ (worth * moment))
        return torch.cat(covariances), torch.cat(weights)

    def _buffer(self, name: str, tensor: Tensor, spec: Spec) -> None:
        self.register_buffer(name, tensor.clone().to(spec.device))

    def _features(self, inputs: Tensor) -> Tensor:
        require_shape("inputs", inputs, (self.spec.window, self.spec.channels))
        scaled = ((inputs - self.spec.input_loc) / self.spec.input_scale).clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
        return self._for_each(linear_features(scaled, forecast=self.forecast).double())  # (experts * groups, d)

    def _for_each(self, grouped: Tensor) -> Tensor:
        """(groups, n) -> (experts * groups, n): the same for every expert of the family."""
        if len(self.forgetting) == 1:
            return grouped
        # Not repeat(): it takes several times as long for tensors of this size.
        return grouped.unsqueeze(0).expand(len(self.forgetting), -1, -1).reshape(-1, grouped.shape[-1])

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the base and what was learned of its error."""
        x = self._features(inputs)
        residual = torch.bmm(x.unsqueeze(1), self.weights)  # (experts * groups, 1, responses)
        return torch.addcmul(base.output, self._as_output(residual).float(), self.spec.output_scale)

    def _as_output(self, grouped: Tensor) -> Tensor:
        """(experts * groups, 1, responses) -> (experts, rows, columns)."""
        spec = self.spec
        if self.forecast:
            return grouped.view(-1, spec.columns, spec.rows).transpose(1, 2)
        return grouped.view(-1, spec.rows, spec.columns)

    def _as_groups(self, output: Tensor) -> Tensor:
        """(rows, columns) -> (experts * groups, responses)."""
        return self._for_each(output.T if self.forecast else output)

    def _gain(self, x: Tensor) -> Tensor:
        """Update P with the newest x; return its gain, (experts * groups, d)."""
        p = self.covariance
        forgetting = boosted_forgetting(self._forgetting, self.boost)
        p.div_(forgetting)
        i = int(self.turn)
        column = p[:, :, i : i + 1].clone()  # (experts * groups, d, 1)
        leak = (1.0 - forgetting) * (self.ridge * p.shape[-1])
        # Symmetric to the last bit, as below: any asymmetry would grow by 1 / forgetting with every example.
        _subtract_square(p, column * (leak / (1.0 + leak * column[:, i : i + 1])).sqrt())
        self.turn.fill_((i + 1) % p.shape[-1])
        px = torch.bmm(p, x.unsqueeze(-1))
        size = 1.0 + torch.bmm(x.unsqueeze(1), px)
        _subtract_square(p, px / size.sqrt())
        return (px / size).squeeze(-1)

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go back, and learn nothing from forecasts whose gains are not those of the entries they were issued at."""
        super().restore(snapshot)
        self.past[:, 1].zero_()

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Learn each row that has become known, with the gain of the entry it was issued at."""
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        if not (self.forecast or bool(mask.any())):
            return  # a forecast's ring keeps step with the entries, known or not
        x = self._features(inputs)
        gain = self._gain(x)
        left = self._as_groups((target - base.output) / self.spec.output_scale).double()
        if self.forecast:
            newest = torch.stack([x, gain]).unsqueeze(0)
            self.past.copy_(torch.cat([newest, self.past[:-1]]))
            # Row h: the x and the gain of h entries ago.
            error = left - torch.einsum("hnd,ndh->nh", self.past[:, 0], self.weights)
            step = self.past[:, 1].permute(1, 2, 0)  # (experts * groups, d, rows)
        else:
            error = left - torch.bmm(x.unsqueeze(1), self.weights).squeeze(1)
            step = gain.unsqueeze(-1)
        known = self._as_groups(mask)
        error = torch.where(known, error, 0.0)
        moved = torch.lerp(self.innovation, error.abs(), INNOVATION_RATE)
        self.innovation.copy_(torch.where(known, moved, self.innovation))
        bound = self.clip * self.innovation
        self.weights.addcmul_(step, error.clamp(-bound, bound).unsqueeze(1))


def covariance_bound(forgetting: float, features: int, ridge: float) -> float:
    """Return what no eigenvalue of P exceeds: a coordinate's leak is at most a round of `features` examples old."""
    return 1.0 / (ridge * forgetting ** (features - 1))


def _subtract_square(p: Tensor, root: Tensor) -> None:
    """``p -= root root^T`` in place; (n, d, d) and (n, d, 1)."""
    p.baddbmm_(root, root.transpose(1, 2), alpha=-1.0)
