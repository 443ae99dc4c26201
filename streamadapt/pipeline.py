"""The way of one entry: task, learners, detectors, guard. No I/O: entries in, predictions out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamadapt.base import Base, as_base, without_nonfinite
from streamadapt.device import resolve_device
from streamadapt.drift import DriftMonitor
from streamadapt.durations import duration_ns
from streamadapt.entry import Entry, Label, Prediction
from streamadapt.errors import CheckpointError, ConfigError, EntryError, ShapeError
from streamadapt.guard import Guard, TwoLayer
from streamadapt.health import Health
from streamadapt.intervals import NoIntervals
from streamadapt.label_budget import LabelBudget
from streamadapt.labelling import Labelling
from streamadapt.learners.base import BaseOutput, Learner, Spec
from streamadapt.losses import Array
from streamadapt.panel import Panel
from streamadapt.spec import spec_from_state, spec_state, spec_with_scaling
from streamadapt.stats import Stats
from streamadapt.tasks import Example, Issued, Matured, Task
from streamadapt.timing import NO_TIMING, Timing
from streamadapt.watch import Watch

__all__ = ["Pipeline"]

Rejected = Callable[[Entry | Label, EntryError], None]


class Pipeline:
    """Predicts every entry, learns from every label, and serves a guarded mixture.

    Parameters
    ----------
    task : Task
        `Forecast`, `Supervised` or `Unlabelled`. It holds state: one task, one pipeline.
    base : Base or callable
        The frozen model; `FrozenModel` says what a callable is given.
    learners : sequence of Learner
        The experts beside the base; their names must differ.
    guard : Guard
        Default: `TwoLayer()`.
    drift : sequence of DriftMonitor
    device : {"auto", "cpu", "cuda"} or torch.device
        Where base and learners live.
    seed : int
        Of all random numbers: the same entries, settings and seed give the same bits on the same kind of machine.
    budget : LabelBudget, optional
        Supervised tasks: asks for the labels that tell most (`Prediction.ask`).
    estimate : bool
        Whether the losses of predictions are estimated before their labels come. Changes no prediction.
    on_rejected : callable, optional
        Called with a refused item and its `EntryError`; without one, `observe` raises it.
    panel : Panel, optional
        Assembles records of single sensors into the entries that the task sees. It holds state, too.
    intervals : Intervals, optional
        Forecasts and regressions: a prediction has `Prediction.low` and `high`. It holds state, too.
    max_behind : duration
        An entry that is older than the newest by at most so much is taken in the order of arrival, with the newest
        time (`Prediction.time` is its own); an older one is refused (``time_backwards``).
    max_ahead : duration
        An entry dated further ahead than this, and than is usual for the stream, is refused (``bad_time``) until
        others agree on such a leap; see `streamadapt.event_clock.EventClock`.

    Examples
    --------
    >>> import numpy as np
    >>> from streamadapt import Entry, Forecast, Persistence, Pipeline, Bias
    >>> pipeline = Pipeline(Forecast(window=3, horizon=2), Persistence(2), [Bias(0.1)])
    >>> for t in range(50):
    ...     predictions = pipeline.observe([Entry(np.array([t], np.float32), time=t)])
    >>> predictions[0].base.ravel().tolist(), predictions[0].served.shape
    ([49.0, 49.0], (2, 1))
    """

    def __init__(  # noqa: PLR0913 - a pipeline is put together from its parts
        self,
        task: Task,
        base: Base | Callable[..., Any],
        learners: Sequence[Learner] = (),
        guard: Guard | None = None,
        drift: Sequence[DriftMonitor] = (),
        *,
        device: str | torch.device = "auto",
        seed: int = 0,
        budget: LabelBudget | None = None,
        estimate: bool = True,
        on_rejected: Rejected | None = None,
        panel: Panel | None = None,
        intervals: NoIntervals | None = None,
        max_behind: str = "5s",
        max_ahead: str = "1d",
    ) -> None:
        self.task = task
        task.clock.max_behind_ns = duration_ns("limits.max_behind", max_behind)
        task.clock.max_ahead_ns = duration_ns("limits.max_ahead", max_ahead)
        task.clock.doubts = panel is None  # a panel judges the times of its records itself
        self.base = as_base(base)
        self.learners = list(learners)
        self.guard = guard or TwoLayer()
        self.device_wanted = device
        self.seed = seed
        self.on_rejected = on_rejected
        self.timing: Timing = NO_TIMING
        self.names = ["base", *(name for learner in self.learners for name in learner.names)]
        if len(set(self.names) | {"served"}) != len(self.names) + 1:
            raise ConfigError("learners", self.names, "names that differ from each other, from base and from served")
        for learner in self.learners:
            learner.check_kind(task.kind)
        self.base.check(task.kind, task.window_length, task.rows, getattr(task, "classes", None))
        self.watch = Watch(drift, self.learners, task.kind)
        self.panel, self.intervals = panel, intervals or NoIntervals()
        self._check_parts()
        self.labelling = Labelling(task, budget, estimate=estimate)
        self.count_in(self.watch.stats)
        self.health: Health | None = None
        self.spec: Spec | None = None

    def _check_parts(self) -> None:
        """Raise `ConfigError` where learners, guard, panel and task do not fit each other."""
        if self.panel is not None:
            self.panel.check(self.task, self.base.channels)
        self.guard.check(self.names, labelled=self.task.labelled)
        self.intervals.check(self.task)
        if not self.task.labelled:
            for i, learner in enumerate(self.learners):
                if learner.needs_labels:
                    raise ConfigError(f"learners[{i}].kind", learner.kind, "one that adapts without labels: none come")

    def count_in(self, stats: Stats) -> None:
        """Count in `stats` from now on; many pipelines may share one."""
        self.stats = self.watch.stats = self.labelling.stats = stats
        self.task.outcomes, self.task.clock.counts = stats.labels, stats.times
        if self.panel is not None:
            self.panel.lost = stats.rejected

    def observe(self, items: Iterable[Entry | Label]) -> list[Prediction]:
        """Take entries and labels in, in order; return one prediction per entry once the window is full.

        With a `panel` there is one per assembled row: several at one record, or none.
        ``observe([a, b])`` equals ``observe([a]) + observe([b])``.

        Raises
        ------
        EntryError
            At the first bad item, if there is no `on_rejected`; that item changed nothing, but that the clock
            remembers a time that later entries may agree with.
        """
        predictions: list[Prediction] = []
        for item in items:
            try:
                for row in (item,) if self.panel is None else self.panel.take(item):
                    predictions += filter(None, (self._step(row),))
            except EntryError as error:
                self.stats.rejected[error.reason.value] += 1
                self.task.refused(item, error.reason)
                if self.on_rejected is None:
                    raise
                self.on_rejected(item, error)
        return predictions

    def flush(self) -> list[Prediction]:
        """Predict for what waits in the panel, if there is one: nothing comes any more."""
        return [] if self.panel is None else [p for row in self.panel.flush() if (p := self._step(row)) is not None]

    def _step(self, item: Entry | Label) -> Prediction | None:
        self._check_width(item)
        arrival = self.task.observe(item)  # 1. what has matured, and what is to be predicted
        with self.timing.stage("learn"), torch.no_grad():
            for matured in self.intervals.learn(arrival.matured, self.stats):
                self._learn(matured)  # 2. every learner, in order
                self.watch.take_in_matured(matured, self.task.loss)  # 3. drift, and the reactions to it
                self.labelling.learn(matured)
                self.guard.update(matured.experts, matured.own, matured.target, matured.mask, matured.weight)  # 4.
        self.stats.pending = self.task.pending
        if isinstance(item, Label):
            return None
        self.stats.entries += 1
        self.stats.last_time = self.task.last_time
        if arrival.inputs is None:
            return None
        with self.timing.stage("predict"), torch.no_grad():
            issued, served, weights = self._predict(self.task.as_taken(item))  # 5. the base, the learners, the guard
        self.task.remember(issued)
        self.stats.pending = self.task.pending
        with self.timing.stage("learn"), torch.no_grad():
            scores = self._adapt(issued)  # what needs no label is learned after the prediction, too
        prediction = self._prediction(issued, served, weights, scores)  # 6. what is served
        return prediction if prediction.time == item.time else replace(prediction, time=item.time)

    def predict(self, entry: Entry) -> Prediction:
        """Predict from the current window with `entry` appended, learning and changing nothing (serving)."""
        self.task.check_entry(entry, self.base.channels, ahead=True)
        window = self.task.window
        if window is None or self.spec is None:  # building from this entry would let a question shape the learners
            raise ConfigError("predict", 0 if window is None else window.count, "a window that is full")
        saved = window.state_dict()
        window.push(entry.values, max(entry.time, self.task.last_time))
        try:
            with torch.no_grad():
                issued, served, weights = self._predict(entry, commit=False)
            return self._prediction(issued, served, weights, {}, commit=False)
        finally:
            window.load_state_dict(saved)

    # -- building: when the first window is full the shapes are known

    def _check_width(self, item: Entry | Label) -> None:
        if isinstance(item, Entry):
            self.task.check_values(item, self.base.channels)

    def _new_spec(self) -> Spec:
        assert self.task.window is not None
        columns = self.task.columns(self.task.window.values.shape[1])
        self.base.check(self.task.kind, self.task.window_length, self.task.rows, columns)
        device = resolve_device(self.device_wanted, cells=self.task.rows * columns)
        self.base.to(device)
        self.task.device = device
        return spec_with_scaling(self.task, self.base, columns, device, self.seed)

    def _allocate(self, spec: Spec) -> None:
        self.spec = spec
        self.task.device = spec.device
        self.base.to(spec.device)
        for learner in self.learners:
            learner.build(spec)
        self.watch.check_spec(spec)
        self.health = Health(self.learners)
        unit = spec.output_scale.cpu().double().numpy()
        self.guard.build(self.names, spec.rows, spec.columns, self.task.loss, unit)
        for name in (*self.names, "served"):
            self.stats.loss_sum.setdefault(name, 0.0)
            self.stats.loss_cells.setdefault(name, 0)
        for name in self.names[1:]:
            self.stats.updates.setdefault(name, Counter())

    # -- steps 2 and 3

    def _learn(self, matured: Matured) -> None:
        assert self.health is not None
        boost, reactor = self.watch.boost, self.watch.reactor
        losses = self._score(matured)
        if reactor.trials and matured.path is not None:
            self._compare(matured.path)
        for i, learner in enumerate(self.learners):
            example = matured.rows if learner.matures == "rows" else matured.path
            if example is not None and learner.needs_labels:
                learner.boost, learner.weight = boost, matured.weight
                learner.learn(example.inputs, example.base, example.target, example.mask)
                reactor.learned(i, example.inputs, example.base, example.target, example.mask)
                for name in learner.names:
                    self.stats.updates[name]["ok"] += 1
                self._count_restored(self.health.check_gradient(i))
        if not np.isnan(losses[0]):
            self._count_restored(self.health.check_losses(losses))

    def _compare(self, path: Example) -> None:
        known = self.task.loss.known(path.mask.cpu().numpy())
        target = path.target.cpu().double().numpy()
        self.watch.reactor.compare(path.inputs, path.base, target, known, self.task.loss)

    def _count_restored(self, experts: list[int]) -> None:
        for k in experts:
            self.stats.updates[self.names[k]]["restored"] += 1

    def _score(self, matured: Matured) -> Array:
        known = self.task.loss.known(matured.mask)
        cells = int(known.sum())
        if cells == 0:
            return np.full(len(self.names), np.nan)
        served = matured.own[-1:] if len(matured.own) else self.guard.mix(matured.experts).served[None]
        losses = self.task.loss.loss(np.concatenate([matured.experts, served]), matured.target)
        sums = np.where(known, losses, 0.0).sum(axis=(1, 2))
        if matured.weight != 1.0:
            sums = sums * matured.weight
        for name, total in zip((*self.names, "served"), sums.tolist(), strict=True):
            self.stats.loss_sum[name] += total
            self.stats.loss_cells[name] += cells
        means: Array = sums[:-1] / cells
        return means

    def _adapt(self, issued: Issued) -> dict[str, float]:
        scores: dict[str, float] = {}
        assert self.health is not None
        for i, learner in enumerate(self.learners):
            learner.adapt(issued.inputs, issued.base)
            if not learner.needs_labels:
                self._count_restored(self.health.check_gradient(i))
            if learner.signal_names:
                scores |= {name: value for name, value in learner.signals().items() if math.isfinite(value)}
        self.stats.signals = scores
        self.watch.take_in_scores(scores)
        self.watch.take_in_issued(issued)
        if not self.task.labelled:  # no loss will tell that time passes
            self.health.check_losses(np.zeros(len(self.names)))
        return scores

    # -- steps 5 and 6

    def _predict(self, entry: Entry, *, commit: bool = True) -> tuple[Issued, Array, Array]:
        assert self.task.window is not None
        spec = self.spec or self._new_spec()
        inputs = torch.from_numpy(self.task.window.fill_unseen(spec.input_loc.cpu().numpy())).to(spec.device)
        base = self.base(inputs)._replace(times=torch.from_numpy(self.task.window.times.copy()).to(spec.device))
        if tuple(base.output.shape) != (spec.rows, spec.columns):
            raise ShapeError(
                f"the base must return ({spec.rows}, {spec.columns}) for this task, got {tuple(base.output.shape)}"
            )
        if self.spec is None:  # what the base shows is known only now
            self._allocate(replace(spec, embedding=None if base.embedding is None else len(base.embedding)))
        if commit and self.watch.monitors:
            newest = ((inputs[-1] - spec.input_loc) / spec.input_scale).cpu().double().numpy()
            self.watch.take_in_entry(np.where(np.isnan(entry.values), np.nan, newest), base)
        base, silent = without_nonfinite(base, spec.kind, spec.output_loc)
        experts = self._experts(inputs, base, commit=commit)
        mixture = self.guard.mix(experts)
        if silent is not None:  # NaN here is what the task knows not to judge or learn from
            for said in (experts, mixture.own, mixture.served):
                said[..., silent] = np.nan
        note = () if self.labelling.silent else self._note(experts, mixture.served, commit=commit)
        own = self.intervals.issue(mixture)
        return Issued(entry, inputs, base, experts, own, note), mixture.served, mixture.weights

    def _note(self, experts: Array, served: Array, *, commit: bool) -> tuple[float, ...]:
        return self.labelling.note(experts, served, self.guard.scale(), commit=commit)

    def _experts(self, inputs: Tensor, base: BaseOutput, *, commit: bool) -> Array:
        shape = (-1, *base.output.shape)  # a family of learners offers several experts at once
        said = [base.output.unsqueeze(0), *(learner.predict(inputs, base).view(shape) for learner in self.learners)]
        experts: Array = torch.cat(said).cpu().double().numpy()
        assert self.health is not None
        if commit:
            self._count_restored(self.health.check_predictions(experts))
        else:
            self.health.stand_in(experts)
        return experts

    def _prediction(
        self, issued: Issued, served: Array, weights: Array, scores: dict[str, float], *, commit: bool = True
    ) -> Prediction:
        entry = issued.entry
        shares = dict(zip(self.names, weights.tolist(), strict=True))
        experts = issued.experts.astype(np.float32)
        out = served.astype(np.float32)
        known = self.task.known()
        if known is not None:
            out[:, ~known] = np.nan
            experts[:, :, ~known] = np.nan
        if commit:
            self.stats.predictions += 1
            self.stats.weights = shares
        fired, done = self.watch.taken() if commit else ((), ())
        by_name = dict(zip(self.names, experts, strict=True))
        asked = self.labelling.said(issued.note, commit=commit)
        return Prediction(
            entry.position, entry.id, entry.key, entry.time, out, experts[0], by_name, shares, fired, scores, done,
            *asked, () if self.panel is None else self.panel.columns, *self.intervals.bounds(issued.own),
        )  # fmt: skip

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as copies: a tree of dicts and lists with tensors, arrays, numbers, text and bytes."""
        built = self.spec is not None
        return {
            "names": list(self.names),
            "spec": spec_state(self.spec) if self.spec is not None else None,
            "task": self.task.state_dict(),
            "learners": [learner.snapshot() for learner in self.learners] if built else None,
            "health": self.health.state_dict() if self.health is not None else None,
            "guard": self.guard.state_dict() if built else None,
            "drift": self.watch.state_dict(),
            "labelling": self.labelling.state_dict(),
            "intervals": self.intervals.state_dict(),
            "stats": self.stats.state_dict(),
            **({} if self.panel is None else {"panel": self.panel.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, in a pipeline made alike and not yet used.

        Raises
        ------
        CheckpointError
            If the state is of other experts.
        """
        if list(state["names"]) != self.names or len(state["drift"]["monitors"]) != len(self.watch.monitors):
            raise CheckpointError(f"the checkpoint is of the experts {state['names']}, this pipeline has {self.names}")
        if state["spec"] is not None:
            device = resolve_device(self.device_wanted, cells=state["spec"]["rows"] * state["spec"]["columns"])
            self._allocate(spec_from_state(state["spec"], device, self.base))
            assert self.health is not None
            for learner, saved in zip(self.learners, state["learners"], strict=True):
                learner.load_state_dict(saved)
            self.health.load_state_dict(state["health"])
            self.guard.load_state_dict(state["guard"])
        self.task.load_state_dict(state["task"])
        self.watch.load_state_dict(state["drift"])
        self.labelling.load_state_dict(state["labelling"])
        self.intervals.load_state_dict(state["intervals"])
        self.stats.load_state_dict(state["stats"])
        if self.panel is not None:
            self.panel.load_state_dict(state["panel"])
        self.count_in(self.stats)
