"""Recursive least squares on the window: what the base left over, relearned with forgetting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from streamadapt.config.durations import duration_ns
from streamadapt.errors import ConfigError
from streamadapt.learners.base import (
    INNOVATION_RATE,
    Learner,
    Maturity,
    boosted_forgetting,
    one_or_more,
    require_shape,
)
from streamadapt.learners.rls.features import EXTRAS, Extra, Features
from streamadapt.learners.rls.steps import (
    absorb,
    covariance_bound,
    forget,
    information_from_prior,
    inverse,
    solve_information,
    solve_regular,
)
from streamadapt.learners.season import LastCycle
from streamadapt.learners.simplex import clipped
from streamadapt.models.contract import MOST_WEIGHT, BaseOutput, Spec, TaskKind

__all__ = ["RLS", "covariance_bound"]

ROBUST_RATE = 0.005
"""`INNOVATION_RATE` of the L1 form."""
SEASON_SLOTS = 288
"""Of a period; an entry replaces the one before it in the same slot. 288 of a day are five minutes
each."""
SMALLEST = 1e-6
"""Least mean innovation, in scaled units."""


class RLS(Learner):
    """Recursive least squares with forgetting, a bounded covariance and clipped innovations.

    ``prediction = base + scale * x^T v``, x as `Features` makes it: the scaled window (last value
    subtracted for forecasts), a 1, and what `features` adds; one v per channel of a forecast, one
    for all outputs otherwise. With the newest x, per group [1]_::

        P^-1 <- forgetting P^-1 + x x^T + leak,   k = P x
        v_h <- v_h + k_s clip(e_h)
        e_h = target - base - scale x_s^T v_h, in scaled units

    A gain depends on the inputs only, so it is computed when the forecast is issued and kept for
    `rows` entries; each row is then learned with its own gain the moment its target is known:
    exact partial maturity with one matrix. Naive forgetting (no leak) makes P grow without bound
    in directions where the inputs do not vary. The leak puts back what forgetting takes of the
    prior, ``(1 - forgetting) ridge I`` per example, one coordinate at a time (every d-th example,
    d-fold), so that the update stays O(d^2): P never exceeds `covariance_bound`, and goes on
    forgetting in the directions that do vary, which a cap on P's trace would stop. Where the base
    can tell what it was fitted on (`Spec.prior`), P and v start as if that history had just been
    learned with the same forgetting; else v = 0 and P = I / `ridge`.

    `shared`: one v for all channels of a forecast,
    ``P^-1 <- forgetting P^-1 + X^T X + (1 - forgetting) ridge I``, X the channels' x as rows,
    solved anew for the gains of every entry.

    ``loss="l1"``: reweighted towards the absolute error [2]_, a whole forecast when its last
    target is known::

        q = min(1 / .3, 1 / mean_h(|e_h| / m_h)),   m_h the running mean of |e_h|
        P^-1 <- forgetting P^-1 + q x x^T + leak,   v_h <- v_h + q P x e_h

    Classification: the outputs are one-hot, x also has the base's probabilities, and the sum is
    brought back to the simplex by `streamadapt.learners.simplex.clipped`.

    Costs per entry, forgetting and group with d features: O(d^2 + d rows) time, d^2 + 3 d rows
    float64 numbers, and 2 d rows for the family. `shared`: O(d^3 + d^2 groups) time and d^2
    numbers for all groups together.

    Parameters
    ----------
    forgetting : float or sequence of floats, in (0, 1]
        Per learned example: .9995 remembers about 2,000. Several: one expert each.
    clip : float, > 0
        Innovations beyond so many times their running mean are clipped; ``inf`` for none. Not used
        by ``"l1"``, nor for classes.
    ridge : float, > 0
        Weight of the prior and of the leak, in squared scaled units.
    shared : bool
        Whether all channels share one set of weights. Forecasts only.
    loss : {"squared", "l1"}
        What is minimised: the squared error, or the absolute error.
    features : sequence of {"level", "calendar", "cross", "season"}
        What to use beside the window: the channel's level, the time of day, the other channels,
        the same time one `period` ago; `Features` has the details. Only ``"calendar"`` outside
        forecasts. ``"season"`` keeps `SEASON_SLOTS` values of each channel.
    period : duration
        The length of a season, in event time, for ``"season"``.

    References
    ----------
    .. [1] Ljung & Soderstrom (1983), Theory and practice of recursive identification, chapter 2.
    .. [2] Holland & Welsch (1977), Robust regression using iteratively reweighted least squares.

    Examples
    --------
    >>> RLS((0.9995, 0.998), clip=1.0).names
    ('rls-0.9995', 'rls-0.998')
    """

    kind: ClassVar[str] = "rls"
    matures: Maturity = "rows"  # type: ignore[misc]  # the L1 form weighs a forecast as a whole
    covariance: Tensor
    information: Tensor
    weights: Tensor
    past_inputs: Tensor
    past_gains: Tensor
    past_seasons: Tensor
    cycle: LastCycle
    head: Tensor
    innovation: Tensor
    turn: Tensor

    def __init__(
        self,
        forgetting: float | Sequence[float] = 0.9995,
        *,
        clip: float = 2.0,
        ridge: float = 0.1,
        shared: bool = False,
        loss: Literal["squared", "l1"] = "squared",
        features: Sequence[Extra] = (),
        period: str = "1d",
    ) -> None:
        super().__init__()
        self.forgetting = one_or_more("forgetting", forgetting, 0.0, 1.0)
        for name, value in (("clip", clip), ("ridge", ridge)):
            if not value > 0.0:
                raise ConfigError(name, value, "a number > 0")
        if loss not in ("squared", "l1"):
            raise ConfigError("loss", loss, "squared or l1")
        if isinstance(features, str) or not set(features) <= set(EXTRAS):
            raise ConfigError("features", features, "a list of " + ", ".join(EXTRAS))
        self.period = duration_ns("period", period)
        self.clip = clip
        self.ridge = ridge
        self.shared = shared
        self.robust = loss == "l1"
        self.features = tuple(extra for extra in EXTRAS if extra in features)
        if self.robust:
            self.matures = "path"

    @property
    def names(self) -> tuple[str, ...]:
        """``rls-0.9995``, ``rls-shared-l1-cross-0.998`` and their siblings."""
        parts = ["shared"] * self.shared + ["l1"] * self.robust + list(self.features)
        kind = "-".join([self.kind, *parts])
        return tuple(f"{kind}-{forgetting:g}" for forgetting in self.forgetting)

    def check_kind(self, kind: TaskKind) -> None:
        """Refuse what only forecasts have."""
        super().check_kind(kind)
        if kind != "forecast":
            if self.shared:
                raise ConfigError(
                    "shared",
                    True,
                    f"false for a {kind} task, which has no channels to share weights",
                )
            if set(self.features) - {"calendar"}:
                raise ConfigError(
                    "features", list(self.features), f"calendar only, or none, for a {kind} task"
                )

    def allocate(self, spec: Spec) -> None:
        """Start from the base's own fit where it is known."""
        self.forecast = spec.kind == "forecast"
        self.classify = spec.kind == "classification"
        self._features = Features(spec, self.features)
        self._experts, self._groups = len(self.forgetting), spec.columns if self.forecast else 1
        responses, d = spec.rows if self.forecast else spec.columns, self._features.count
        sets = 1 if self.shared else self._groups  # of weights, per expert
        information, weights = self._start(spec, sets, d, responses)
        # The leading size of these is experts * sets, or experts * groups.
        if self.shared:
            self._buffer("information", information)
        else:
            self._buffer("covariance", self._covariances(information))
        self._buffer("weights", weights)
        self._buffer(
            "innovation",
            torch.full((self._experts * self._groups, responses), 0.3, dtype=torch.float64),
        )
        self._buffer("turn", torch.zeros((), dtype=torch.int64))  # whose turn the leak is
        # Other forms learn each example with its own gain at once.
        if self.forecast and not self.robust:
            self._allocate_past(responses, d)
        forgetting = torch.tensor(self.forgetting, dtype=torch.float64, device=spec.device)
        self._forgetting = forgetting.repeat_interleave(sets).view(-1, 1, 1)
        if "season" in self.features:
            self.cycle = LastCycle(self.period, SEASON_SLOTS, spec.channels, spec.device)
            # Of the last entries, newest first: by the time a row is known, the cycle has gone on.
            self._buffer(
                "past_seasons",
                torch.zeros(spec.rows, spec.channels, spec.rows + 1, dtype=torch.float32),
            )
        self._pace = ((1.0, self.ridge), *self._paced(self._forgetting))

    def _start(self, spec: Spec, sets: int, d: int, responses: int) -> tuple[Tensor, Tensor]:
        """Return information matrices (experts * sets, d, d) and weights (experts * sets, d,
        responses)."""
        if spec.prior is None:
            m = (self.ridge * torch.eye(d, dtype=torch.float64)).repeat(self._experts * sets, 1, 1)
            return m, torch.zeros(len(m), d, responses, dtype=torch.float64)
        # Least squares as such start from the least squares of the history, robust forms from its
        # robust sums.
        prior = (
            spec.prior
            if self.clip == math.inf and not self.robust
            else spec.prior.robust or spec.prior
        )
        starts = [
            information_from_prior(prior, forgetting, self.ridge, d, shared=self.shared)
            for forgetting in self.forgetting
        ]
        m, right = (torch.cat(parts) for parts in zip(*starts, strict=True))
        return m, solve_regular(m, right, self.ridge)

    def _covariances(self, information: Tensor) -> Tensor:
        """Return the inverses; that of the ridge alone for a matrix without one."""
        found = inverse(information, self.ridge)
        found = (found + found.mT) / 2.0  # inv() leaves it asymmetric in a bit
        plain = torch.eye(found.shape[-1], dtype=found.dtype, device=found.device) / self.ridge
        return torch.where(torch.isnan(found), plain, found)

    def _allocate_past(self, rows: int, d: int) -> None:
        # The last forecasts' x and gains, newest first from `head` on. Twice the room, and a move
        # to the back of it every `rows` entries, instead of a move by one every time.
        self._buffer("past_inputs", torch.zeros(self._groups, d, 2 * rows, dtype=torch.float64))
        self._buffer(
            "past_gains",
            torch.zeros(self._experts, self._groups, d, 2 * rows, dtype=torch.float64),
        )
        self._buffer("head", torch.tensor(rows, dtype=torch.int64))

    def _buffer(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor.clone().to(self.spec.device))

    def _paced(self, forgetting: Tensor) -> tuple[Tensor, Tensor]:
        """Return the forgetting and what leaks for it: the whole leak if `shared`, one over a
        turn's if not."""
        leak = (1.0 - forgetting) * self.ridge
        return forgetting, leak if self.shared else 1.0 / (leak * self._features.count)

    def _boosted(self) -> tuple[Tensor, Tensor]:
        if self._pace[0] != (self.boost, self.ridge):
            paced = self._paced(boosted_forgetting(self._forgetting, self.boost))
            self._pace = ((self.boost, self.ridge), *paced)
        return self._pace[1:]

    def _for_each(self, grouped: Tensor) -> Tensor:
        """(groups, d) -> (experts * groups, d): the same for every expert of the family."""
        if self._experts == 1:
            return grouped
        # Not repeat(): it takes several times as long for tensors of this size.
        return grouped.unsqueeze(0).expand(self._experts, -1, -1).reshape(-1, grouped.shape[-1])

    def _sets(self) -> Tensor:
        """The weights as (experts, groups or 1, d, responses)."""
        return self.weights.view(self._experts, -1, *self.weights.shape[1:])

    def _season(self, inputs: Tensor, base: BaseOutput) -> Tensor | None:
        """Return the newest entry's ``season`` features; None without them."""
        if "season" not in self.features:
            return None
        return self._features.season(inputs[-1], self.cycle.ago(inputs[-1], base, self.spec.rows))

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Remember the newest entry's season, and its values for the next one's."""
        season = self._season(inputs, base)
        if season is not None:
            self.past_seasons.copy_(torch.cat([season.unsqueeze(0), self.past_seasons[:-1]]))
            self.cycle.push(inputs[-1], base)

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the base and what was learned of its error."""
        spec, x = self.spec, self._features(inputs, base, self._season(inputs, base))
        if self.shared:
            # (experts, groups, responses)
            left = torch.bmm(x.expand(self._experts, -1, -1), self.weights)
        else:
            # (experts * groups, 1, responses)
            left = torch.bmm(self._for_each(x).unsqueeze(1), self.weights)
        if self.forecast:
            left = left.view(-1, spec.columns, spec.rows).transpose(1, 2)
        else:
            left = left.view(-1, spec.rows, spec.columns)
        said = torch.addcmul(base.output, left.float(), spec.output_scale)
        return clipped(said) if self.classify else said

    def _as_groups(self, output: Tensor) -> Tensor:
        """(rows, columns) -> (1, groups, responses)."""
        return (output.T if self.forecast else output).unsqueeze(0)

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go back, and learn nothing from forecasts whose gains are not those of the entries they
        were issued at."""
        super().restore(snapshot)
        if "past_gains" in snapshot:
            self.past_gains.zero_()
        if "past_seasons" in snapshot:
            self.past_seasons.zero_()

    def forget(self, keep: float) -> None:
        """Inflate the covariance: ``P^-1 <- keep P^-1 + (1 - keep) ridge I``; the weights
        themselves stay.

        A covariance without an inverse starts again at ``I / ridge``.
        """
        information = self.information if self.shared else inverse(self.covariance)
        eye = torch.eye(self._features.count, dtype=torch.float64, device=information.device)
        information = keep * information + (1.0 - keep) * self.ridge * eye
        if self.shared:
            self.information.copy_(information)
        else:
            self.covariance.copy_(self._covariances(information))

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Learn each row that has become known, with the gain of the entry it was issued at."""
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        if (self.robust or not self.forecast) and not bool(mask.any()):
            return  # else the past keeps step with the entries, known or not
        season = None
        # As it was when the newest forecast was issued, or the one now whole.
        if "season" in self.features:
            season = self.past_seasons[-1 if self.robust else 0]
        x = self._features(inputs, base, season)
        left = self._as_groups((target - base.output) / self.spec.output_scale).double()
        known = self._as_groups(mask)
        if self.robust:
            self._learn_robustly(x, left, known)
            return
        gain = self._gain(x)
        xs, gains = (
            (x.unsqueeze(-1), gain.unsqueeze(-1)) if not self.forecast else self._remember(x, gain)
        )
        weights, innovation = self._sets(), self.innovation.view(self._experts, *left.shape[1:])
        error = left - (xs * weights).sum(-2)  # (experts, groups, responses)
        if not bool(mask.all()):
            error = torch.where(known, error, 0.0)
            innovation.lerp_(error.abs(), INNOVATION_RATE * known.double())
        else:
            innovation.lerp_(error.abs(), INNOVATION_RATE)
        if not self.classify:  # where an error is at most 1, and a rare one is news
            bound = innovation * self.clip
            error = error.clamp(-bound, bound)
        if self.shared:
            weights.add_((gains * error.unsqueeze(-2)).sum(1, keepdim=True))
        else:
            weights.addcmul_(gains, error.unsqueeze(-2))

    def _gain(self, x: Tensor) -> Tensor:
        """Take the newest x (groups, d) in; return its gain, (experts, groups, d)."""
        forgetting, leak = self._boosted()
        if self.shared:
            self._inform(forgetting, leak, x.expand(self._experts, -1, -1))
            gain = solve_information(self.information, x.T.expand(self._experts, -1, -1)).mT
        else:
            self._forget(forgetting, leak)
            each = self._for_each(x).unsqueeze(-1)
            if self.weight == 1.0:
                gain = absorb(self.covariance, each)
            else:
                root = math.sqrt(self.weight)
                gain = absorb(self.covariance, each * root) * root
        return gain.view(self._experts, *x.shape) if not self.shared else gain

    def _forget(self, forgetting: Tensor, inverse_leak: Tensor) -> None:
        turn = int(self.turn)
        forget(self.covariance, forgetting, inverse_leak, turn)
        self.turn.fill_((turn + 1) % self._features.count)

    def _inform(self, forgetting: Tensor, leak: Tensor, x: Tensor) -> None:
        """``M <- forgetting M + X^T X + leak I``; x is (experts, groups, d)."""
        self.information.mul_(forgetting).baddbmm_(x.mT, x)
        self.information.diagonal(dim1=1, dim2=2).add_(leak.squeeze(-1))

    def _remember(self, x: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        """Put the newest x and gain in front; return those of the last `rows` entries along the
        last dimension."""
        rows, head = self.spec.rows, int(self.head)
        if head == 0:
            head = rows + 1
            for past in (self.past_inputs, self.past_gains):
                past[..., head:] = past[..., : rows - 1]
        head -= 1
        self.head.fill_(head)
        self.past_inputs[..., head] = x
        self.past_gains[..., head] = gain
        return self.past_inputs[..., head : head + rows], self.past_gains[..., head : head + rows]

    def _learn_robustly(self, x: Tensor, left: Tensor, known: Tensor) -> None:
        """Make one reweighted step; x is (groups, d), the others (1, groups, responses)."""
        weights = self._sets()
        innovation = self.innovation.view(self._experts, *left.shape[1:])
        error = torch.where(known, left - (x.unsqueeze(-1) * weights).sum(-2), 0.0)
        count = known.sum(-1)  # (1, groups)
        ratio = (error.abs() / innovation).sum(-1) / count.clamp_min(1)  # (experts, groups)
        weight = torch.where(
            count > 0, ratio.reciprocal().clamp_max(MOST_WEIGHT) * self.weight, 0.0
        )
        innovation.lerp_(error.abs(), ROBUST_RATE * known.double()).clamp_min_(SMALLEST)
        root = weight.sqrt().unsqueeze(-1)  # (experts, groups, 1)
        x = x * root
        forgetting, leak = self._boosted()
        if self.shared:
            self._inform(forgetting, leak, x)
            weights.add_(solve_information(self.information, (x * root).mT @ error).unsqueeze(1))
            return
        silent = weight.view(-1, 1, 1) == 0.0  # a channel without a target forgets nothing
        self._forget(forgetting.masked_fill(silent, 1.0), leak.masked_fill(silent, torch.inf))
        gain = absorb(self.covariance, x.view(-1, x.shape[-1], 1)).view(x.shape)
        weights.addcmul_((gain * root).unsqueeze(-1), error.unsqueeze(-2))
