"""Recursive least squares on the window: what the base left over, relearned with forgetting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

import numpy as np

from streamadapt.config.durations import duration_ns
from streamadapt.errors import ConfigError
from streamadapt.learners.base import Maturity, one_or_more
from streamadapt.learners.compiled import CompiledLearner, Steps
from streamadapt.learners.rls.features import (
    EXTRAS,
    MOST_CHANNELS,
    Extra,
    count_features,
    lags_of,
)
from streamadapt.learners.rls.matrices import covariance_bound
from streamadapt.learners.rls.start import covariances, information_from_prior, solve_regular
from streamadapt.learners.rls.steps import (
    RLSRoom,
    RLSSettings,
    RLSState,
    adapt,
    inflate_all,
    learn,
    predict,
)
from streamadapt.learners.season import new_cycle
from streamadapt.models.contract import Spec, TaskKind
from streamadapt.records import Array

__all__ = ["RLS", "covariance_bound"]

SEASON_SLOTS: Final = 288
"""Of a period; an entry replaces the one before it in the same slot. 288 of a day are five minutes
each."""
FIRST: Final = 0.3
"""The mean innovation to begin with, in scaled units."""


class RLS(CompiledLearner):
    """Recursive least squares with forgetting, a bounded covariance and clipped innovations.

    ``prediction = base + scale * x^T v``, x as `streamadapt.learners.rls.features` has it: the
    scaled window (last value subtracted for forecasts), a 1, and what `features` adds; one v per
    channel of a forecast, one for all outputs otherwise. With the newest x, per group [1]_::

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
    brought back to the simplex by `streamadapt.learners.probabilities.clip_to_simplex`.

    Costs per entry, forgetting and group with d features: O(d^2 + d rows) time, d^2 + 3 d rows
    float64 numbers, and 2 d rows for the family. `shared`: O(d^3 + d^2 groups) time and d^2
    numbers for all groups together.

    Parameters
    ----------
    forgetting : float or sequence of floats, in (0, 1]
        Per learned example: .9995 remembers about 2,000. Several: one expert each.
    clip : float, > 0
        Innovations are clipped at this many times their running mean size; ``inf`` clips nothing.
        Not used by ``"l1"``, nor for classes.
    ridge : float, > 0
        Weight of the prior and of the leak, in squared scaled units.
    shared : bool
        Whether all channels share one set of weights. Forecasts only.
    loss : {"squared", "l1"}
        What is minimised: the squared error, or the absolute error.
    features : sequence of {"level", "calendar", "cross", "season"}
        What to use beside the window: the channel's level, the time of day, the other channels,
        the same time one `period` ago; `streamadapt.learners.rls.features` has the details. Only
        ``"calendar"`` outside forecasts. ``"season"`` keeps `SEASON_SLOTS` values of each channel.
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
    steps = Steps(predict, learn, adapt, inflate_all)
    state: RLSState

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

    def named_arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield what its form has of the state, with names."""
        missing = ["covariance" if self.shared else "information"]
        if not self._remembers_gains(self.spec):
            missing += ["past_inputs", "past_gains", "head"]
        if "season" not in self.features:
            missing += ["past_seasons", "cycle.values", "cycle.seen", "cycle.last"]
        for name, array in super().named_arrays():
            if name not in missing:
                yield name, array

    def _remembers_gains(self, spec: Spec) -> bool:
        """Other forms learn each example with its own gain at once."""
        return spec.kind == "forecast" and not self.robust

    def settings(self, spec: Spec) -> RLSSettings:
        """Return the hyper-parameters."""
        return RLSSettings(
            np.array(self.forgetting),
            float(self.clip),
            float(self.ridge),
            self.shared,
            self.robust,
            "level" in self.features and "cross" not in self.features,  # which has it already
            "calendar" in self.features,
            "cross" in self.features,
            "season" in self.features,
            np.array(lags_of(spec), np.int64),
            self.period,
        )

    def _sizes(self, spec: Spec) -> tuple[int, int, int]:
        """Return the numbers of groups, of features, and of responses of a group."""
        d = count_features(spec, self.features)
        return (spec.columns, d, spec.rows) if spec.kind == "forecast" else (1, d, spec.columns)

    def start(self, spec: Spec) -> RLSState:
        """Start from the base's own fit where it is known."""
        experts, (groups, d, responses) = len(self.forgetting), self._sizes(spec)
        information, weights = self._start(spec, 1 if self.shared else groups, d, responses)
        past = 2 * spec.rows if self._remembers_gains(spec) else 0
        none = np.zeros((0, d, d))
        slots, channels, rows = 0, 0, 0
        if "season" in self.features:
            slots, channels, rows = SEASON_SLOTS, spec.channels, spec.rows
        return RLSState(
            covariance=none if self.shared else covariances(information, self.ridge),
            information=information if self.shared else none,
            weights=weights,
            innovation=np.full((experts * groups, responses), FIRST),
            turn=np.array(0, np.int64),
            past_inputs=np.zeros((groups, d, past)),
            past_gains=np.zeros((experts, groups, d, past)),
            head=np.array(spec.rows, np.int64),
            past_seasons=np.zeros((rows, channels, rows + 1), np.float32),
            cycle=new_cycle(slots, channels),
        )

    def _start(self, spec: Spec, sets: int, d: int, responses: int) -> tuple[Array, Array]:
        """Return information matrices (experts * sets, d, d) and weights (experts * sets, d,
        responses)."""
        if spec.prior is None:
            m = np.tile(self.ridge * np.eye(d), (len(self.forgetting) * sets, 1, 1))
            return m, np.zeros((len(m), d, responses))
        # Least squares as such start from the least squares of the history, robust forms from its
        # robust sums.
        plain = self.clip == math.inf and not self.robust
        prior = spec.prior if plain else spec.prior.robust or spec.prior
        starts = [
            information_from_prior(prior, forgetting, self.ridge, d, shared=self.shared)
            for forgetting in self.forgetting
        ]
        m, right = (np.concatenate(parts) for parts in zip(*starts, strict=True))
        return m, solve_regular(m, right, self.ridge)

    def room(self, spec: Spec) -> RLSRoom:
        """Return room for an example."""
        groups, d, responses = self._sizes(spec)
        panel = 1 if spec.channels >= MOST_CHANNELS else spec.channels
        channels, rows = (spec.channels, spec.rows) if "season" in self.features else (0, 0)
        side = d if self.shared else 0
        return RLSRoom(
            scaled=np.zeros((spec.window, spec.channels), np.float32),
            panel=np.zeros((spec.window, panel), np.float32),
            season=np.zeros((channels, rows + 1), np.float32),
            x=np.zeros((groups, d)),
            left=np.zeros((groups, responses)),
            known=np.zeros((groups, responses), np.bool_),
            error=np.zeros((groups, responses)),
            root=np.zeros(groups),
            rooted=np.zeros((groups, d)),
            gain=np.zeros((groups, d)),
            column=np.zeros(d),
            upper=np.zeros((side, side)),
            solved=np.zeros((side, groups)),
        )

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go back, and learn nothing from forecasts whose gains are not those of the entries they
        were issued at."""
        super().restore(snapshot)
        self.state.past_gains.fill(0.0)
        self.state.past_seasons.fill(0.0)
