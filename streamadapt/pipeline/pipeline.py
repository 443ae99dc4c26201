"""The pipeline of one stream: task, learners, detectors, guard. No I/O: entries in, predictions
out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from streamadapt.arguments import ShowsArguments
from streamadapt.columns import Columns, PredictionColumns, RefusedItem
from streamadapt.config.durations import duration_ns
from streamadapt.drift.monitor import DriftMonitor
from streamadapt.errors import (
    CheckpointError,
    ConfigError,
    EntryError,
    Reason,
    ShapeError,
    StreamadaptError,
)
from streamadapt.guard.base import Guard, Mixture
from streamadapt.guard.two_layer import TwoLayer
from streamadapt.learners.base import Learner
from streamadapt.models.contract import Base, BaseOutput, Spec, as_base, check_probabilities
from streamadapt.models.device import is_fatal, resolve_device
from streamadapt.models.origin import agreed_origin
from streamadapt.models.own_settings import own_settings
from streamadapt.models.turns import Turn
from streamadapt.pipeline.coerce import coerced, coerced_entry
from streamadapt.pipeline.entry_labels import count_refused, without_bad_label
from streamadapt.pipeline.faults import Faults
from streamadapt.pipeline.guard_keeper import GuardKeeper
from streamadapt.pipeline.intervals import NoIntervals
from streamadapt.pipeline.label_requests import LabelRequests
from streamadapt.pipeline.lots.items import items_of, plain_items
from streamadapt.pipeline.lots.lots import Lots
from streamadapt.pipeline.lots.results import Collected, predictions_of
from streamadapt.pipeline.monitors import Monitors
from streamadapt.pipeline.origin import (
    base_inputs,
    finite_output,
    learner_inputs,
    moved_issued,
    moved_matured,
    scaled_newest,
    warn_of_rounding,
)
from streamadapt.pipeline.panel import Panel
from streamadapt.pipeline.rollback import Health, part_of
from streamadapt.pipeline.scaling import Learned, Scales
from streamadapt.pipeline.scores import Scores
from streamadapt.pipeline.screen import Screen, ScreenResult
from streamadapt.pipeline.serving import Spoken, fall_back, unjudged
from streamadapt.pipeline.shared_tensors import Lent
from streamadapt.pipeline.spec import rescaled, spec_from_state, spec_state, spec_with_scaling
from streamadapt.pipeline.stats import Stats
from streamadapt.pipeline.timing import NO_TIMING, Timing
from streamadapt.records import Array, Entry, Label, Mask, Prediction
from streamadapt.tasks import Example, Issued, Matured, Task, Window
from streamadapt.tasks.label_budget import LabelBudget

__all__ = ["Pipeline"]

Rejected = Callable[[Entry | Label, EntryError], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """The base's output for an entry that has not changed the pipeline yet.

    Attributes
    ----------
    window : Window
        A copy of the task's window with the entry appended.
    inputs : Tensor, (window, channels), float32
        The inputs of learners: without outliers, and less the origin.
    base : BaseOutput
        The base's output for the window without outliers, in original units; it may have
        non-finite numbers.
    look : ScreenResult
        The screen's result for the entry.
    raw : BaseOutput or None
        The base's output for the unchanged window, if that has outliers.
    """

    entry: Entry
    window: Window
    spec: Spec
    inputs: Tensor
    base: BaseOutput
    look: ScreenResult
    raw: BaseOutput | None


class Pipeline(ShowsArguments):
    """Predicts every entry, learns from every label, and serves a guarded mixture.

    A learner, guard, detector or reaction that raises an exception is suspended for a while: the
    fault is counted in ``stats.faults`` and logged once with its traceback, an earlier state is
    restored, and the stream continues. If the base raises, or returns no output, the entry is
    refused (`Reason.BASE_FAILED`) and nothing has changed. An error at the first full window
    (`ConfigError`, `ShapeError`) is raised.

    May be used from several threads: calls wait for each other. `observe` holds the lock for one
    item at a time, so that a concurrent `predict` sees the state between two items. A call inside
    another call on the same thread (from `on_rejected`, a learner or the base) raises `BusyError`.

    Parameters
    ----------
    task : Task
        `Forecast`, `Supervised` or `Unlabelled`. It holds state: one task, one pipeline.
    base : Base or callable
        The frozen model; `FrozenModel` describes the inputs of a callable.
    learners : sequence of Learner
        The experts beside the base; their names must differ.
    guard : Guard
        Default: `TwoLayer()`.
    drift : sequence of DriftMonitor
    device : {"auto", "cpu", "cuda"} or torch.device
        The device of base and learners.
    seed : int
        The seed of all random numbers: the same entries, settings and seed give the same bits on
        the same kind of machine.
    budget : LabelBudget, optional
        Supervised tasks: requests the most informative labels (`Prediction.ask`).
    estimate : bool
        Whether the losses of predictions are estimated before their labels come. Changes no
        prediction.
    on_rejected : callable, optional
        Called with a refused item and its `EntryError`; without it, `observe` raises the error. If
        the base failed on a row of a panel, the item is that row. If only the label inside an
        entry is invalid, the error is a `LabelError`, and the entry has been predicted without it.
    panel : Panel, optional
        Assembles records of single sensors into the entries of the task. It has state too.
    intervals : Intervals, optional
        Forecasts and regressions: a prediction has `Prediction.low` and `high`. It has state too.
    max_behind : duration
        An entry that is older than the newest entry by at most this is accepted in the order of
        arrival, with the newest time (`Prediction.time` is its own time); an older entry is
        refused (``time_backwards``).
    max_ahead : duration
        An entry further ahead than this, and than is usual for the stream, is refused
        (``bad_time``) until others agree on such a leap; see
        `streamadapt.tasks.event_clock.EventClock`.

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

    @own_settings
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
        self.faults = Faults()
        self._turn = Turn("the pipeline")
        self.names = ["base", *(name for learner in self.learners for name in learner.names)]
        if len(set(self.names) | {"served"}) != len(self.names) + 1:
            raise ConfigError(
                "learners",
                self.names,
                "names that differ from each other, from base and from served",
            )
        for learner in self.learners:
            learner.check_kind(task.kind)
        self.base.check(task.kind, task.window_length, task.rows, getattr(task, "classes", None))
        self.monitors = Monitors(drift, self.learners, task.kind)
        self.monitors.faults, self.monitors.reactor.failed = self.faults, self._reaction_failed
        self.keeper = GuardKeeper(self.guard, self.faults)
        self.panel, self.intervals = panel, intervals or NoIntervals()
        self._check_parts()
        self.label_requests = LabelRequests(task, budget, estimate=estimate)
        self._count_in(self.monitors.stats)
        self.screen = Screen(task.window_length)
        self.scales = Scales(task, self.base)
        task.set_unit(self.base.output_scale)
        self._doubted = task.kind == "classification"  # whether the base returns probabilities
        self.health: Health | None = None
        self.lots = Lots(self)
        self.spec: Spec | None = None
        # Whether the level of the outputs is unknown until the first label.
        self._level_open = task.kind == "regression" and self.base.output_loc is None

    def _check_parts(self) -> None:
        """Raise `ConfigError` if learners, guard, panel and task do not fit each other."""
        if self.panel is not None:
            self.panel.check(self.task, self.base.channels)
        self.guard.check(self.names, labelled=self.task.labelled)
        self.intervals.check(self.task)
        if not self.task.labelled:
            for i, learner in enumerate(self.learners):
                if learner.needs_labels:
                    raise ConfigError(
                        f"learners[{i}].kind",
                        learner.kind,
                        "a learner that adapts without labels: none come",
                    )

    def count_in(self, stats: Stats) -> None:
        """Count in `stats` from now on; several pipelines may share one `Stats`."""
        with self._turn:
            self._count_in(stats)

    def _count_in(self, stats: Stats) -> None:
        self.stats = self.monitors.stats = self.label_requests.stats = self.faults.stats = stats
        self.task.outcomes, self.task.clock.counts = stats.labels, stats.times
        if self.panel is not None:
            self.panel.lost = stats.rejected

    @own_settings
    def observe(self, items: Iterable[Entry | Label]) -> list[Prediction]:
        """Process entries and labels in order; return one prediction per entry once the window is
        full.

        With a `panel` there is one prediction per assembled row: several for one record, or none.
        ``observe([a, b])`` equals ``observe([a]) + observe([b])``. If two threads call it, their
        items are processed one at a time, in some order.

        Raises
        ------
        EntryError
            At the first refused item, if there is no `on_rejected`; an entry with an invalid label
            counts as one. The item has changed nothing, except that the clock remembers a time
            that later entries may agree with. If one record completes several rows of a panel, the
            other rows have been processed.
        BusyError
            If called inside another call of the same pipeline.
        """
        predictions: list[Prediction] = []
        if not isinstance(items, list | tuple):  # one that waits for its predictions, perhaps
            for item in items:
                self._observe_first([item], predictions)
            return predictions
        first = 0
        while first < len(items):
            some = items[first : first + self.lots.reach]
            first += self._observe_first(some, predictions)
        return predictions

    def _observe_first(self, given: Sequence[Entry | Label], predictions: list[Prediction]) -> int:
        """Process the first items, or one; return how many."""
        with self._turn:
            told = None
            if self.lots.ready:
                outputs = getattr(self.task, "outputs", 1)
                items, plain = plain_items(given, self.task, self.lots.channels, outputs)
                told = self.lots.take(items)
            if told is None:
                self._observe(given[0], predictions)
                self.lots.answer = None
                return 1
            predictions += predictions_of(told, plain, self.names, self.task.class_names)
            return told.count

    @own_settings
    def observe_lot(self, columns: Columns) -> PredictionColumns:
        """Process entries and labels in order, given as columns; return the predictions as
        columns.

        The same as `observe`, without an object for each item. Refused items are listed in the
        result; `on_rejected` is not called.

        Parameters
        ----------
        columns : Columns

        Raises
        ------
        ConfigError
            If the pipeline has a panel: its records are sensors, not rows.
        BusyError
            If called inside another call of the same pipeline.

        Examples
        --------
        >>> from streamadapt import Columns, Forecast, Persistence, Pipeline, Bias
        >>> pipeline = Pipeline(Forecast(window=3, horizon=1), Persistence(1), [Bias(0.1)])
        >>> found = pipeline.observe_lot(Columns([[t] for t in range(50)], times=range(50)))
        >>> found.served.shape, found.items[:3].tolist()
        ((48, 1, 1), [2, 3, 4])
        """
        if self.panel is not None:
            raise ConfigError("observe_lot", "a panel", "a pipeline without a panel")
        found, first = Collected(self.names), 0
        while first < len(columns):
            with self._turn:
                first += self._observe_some(columns, first, found)
        rows = self.task.rows
        return found.columns(rows, self.spec.columns if self.spec is not None else 1)

    def _observe_some(self, columns: Columns, first: int, found: Collected) -> int:
        """Process some items of columns from `first` on; return how many."""
        if self.lots.ready and columns.values.shape[1] == self.lots.channels:
            outputs = getattr(self.task, "outputs", 1)
            items = items_of(columns, self.task, first, self.lots.reach, outputs)
            told = self.lots.take(items)
            if told is not None:
                found.add_lot(told, first)
                return told.count
        refused: list[tuple[Entry | Label, EntryError]] = []
        predictions: list[Prediction] = []
        on_rejected, self.on_rejected = self.on_rejected, lambda *pair: refused.append(pair)
        try:
            self._observe(columns.item(first), predictions)
        finally:
            self.on_rejected, self.lots.answer = on_rejected, None
        for prediction in predictions:
            found.add(prediction, first)
        for _, error in refused:
            found.refused.append(RefusedItem(first, error.reason, error.detail))
        return 1

    @property
    def settled(self) -> bool:
        """Whether units and levels are known, so that nothing will be learned again."""
        return not (self._level_open or self._doubted or self.scales.active)

    @own_settings
    def flush(self) -> list[Prediction]:
        """Predict for the rows that wait in the panel, if there is one: the stream has ended."""
        predictions: list[Prediction] = []
        with self._turn:
            if self.panel is not None:
                self._take(self.panel.flush(), None, predictions)
        return predictions

    def _observe(self, given: Entry | Label, predictions: list[Prediction]) -> None:
        """Process one item in the caller's types; an invalid label inside an entry is refused
        alone."""
        try:
            item, fault = without_bad_label(self.task, coerced(given))
        except EntryError as error:
            self._refuse([(given, error)])
            return
        if fault is not None and self.on_rejected is None:
            self._refuse([(given, fault)])
        taken = self._take(
            (item,) if self.panel is None else self.panel.take(item), given, predictions
        )
        if fault is not None and taken:
            self._refuse([(given, fault)])

    def _take(
        self,
        rows: Iterable[Entry | Label],
        given: Entry | Label | None,
        predictions: list[Prediction],
    ) -> bool:
        """Process the rows that `given` completed; a refused row does not stop the others.

        Returns
        -------
        bool
            Whether no row was refused.
        """
        refused: list[tuple[Entry | Label, EntryError]] = []
        try:
            for row in rows:
                try:
                    predictions += filter(None, (self._step(row),))
                except EntryError as error:
                    self.task.refused(row, error.reason)
                    refused.append(
                        (row if self.panel is not None or given is None else given, error)
                    )
        except EntryError as error:  # the panel refused the item
            assert given is not None
            refused.append((given, error))
        self._refuse(refused)
        return not refused

    def _refuse(self, refused: Sequence[tuple[Entry | Label, EntryError]]) -> None:
        for item, error in refused:
            count_refused(self.stats, item, error)
        for item, error in refused:
            if self.on_rejected is None:
                raise error
            self.on_rejected(item, error)

    def _step(self, item: Entry | Label) -> Prediction | None:
        was_built = self.spec is not None
        # first: where the base fails
        look, asked = self._ask(item) if isinstance(item, Entry) else (None, None)
        self.task.absurd_values = None if look is None else look.absurd  # nothing has changed
        arrival = self.task.observe(item)  # 1. matured targets, and the window to predict from
        if look is not None and isinstance(item, Entry):
            self.stats.absurd += self.screen.take(item.values, look)
        if self._level_open and arrival.matured:
            self._settle_level(arrival.matured)
        with (
            self.timing.stage("learn"),
            torch.no_grad(),
            np.errstate(over="ignore", invalid="ignore"),
        ):
            for whole in arrival.matured:
                matured = self.judge_interval(whole)
                self._learn(matured)  # 2. every learner, in order
                # 3. drift, and the reactions to it
                self.contain("signals", self.monitors.take_in_matured, matured, self.task.loss)
                self.contain("labelling", self.label_requests.learn, matured)
                self.keeper.update(
                    matured.experts,
                    matured.aggregator_outputs,
                    matured.target,
                    matured.mask,
                    matured.weight,
                )  # 4.
        self.stats.pending = self.task.pending
        due = self.scales.learn(arrival.matured)
        if look is not None and isinstance(item, Entry):
            due |= self.scales.take(self.task.as_taken(item), look)
        if isinstance(item, Label):
            with torch.no_grad(), np.errstate(over="ignore", invalid="ignore"):
                self._look_at_scales(due)
            return None
        self.stats.entries += 1
        self.stats.last_time = self.task.last_time
        if asked is None:
            return None
        with self.timing.stage("predict"), torch.no_grad():
            issued, spoken = self._predict(asked)  # 5. the base, the learners, the guard
        self.task.remember(issued)
        self.stats.pending = self.task.pending
        with self.timing.stage("learn"), torch.no_grad():
            scores = self._adapt(issued)  # learners that need no label learn after the prediction
        prediction = self._prediction(asked, issued, spoken, scores)  # 6. the served prediction
        with (
            self.timing.stage("learn"),
            torch.no_grad(),
            np.errstate(over="ignore", invalid="ignore"),
        ):
            self._look_at_scales(due, look.hindsight if was_built and look is not None else None)
        return prediction

    @own_settings
    def predict(self, entry: Entry) -> Prediction:
        """Predict from the current window with `entry` appended, without learning and without any
        change of state.

        May be called from any thread while another thread observes: it waits for the lock, and
        sees the state between two items.

        Raises
        ------
        EntryError
            If no task accepts such an entry, or the base fails on it.
        ConfigError
            Before the first window is full.
        BusyError
            If called inside another call of the same pipeline.
        """
        with self._turn:
            entry = coerced_entry(entry)
            _, asked = self._ask(entry, commit=False) if self.spec is not None else (None, None)
            if asked is None:  # building from this entry would change the learners
                window = self.task.window
                raise ConfigError(
                    "predict", 0 if window is None else window.count, "a window that is full"
                )
            with torch.no_grad():
                issued, spoken = self._predict(asked, commit=False)
            return self._prediction(asked, issued, spoken, {}, commit=False)

    # -- the base, which is called before anything changes

    def _ask(self, entry: Entry, *, commit: bool = True) -> tuple[ScreenResult, Asked | None]:
        """Check an entry and call the base for it, without any change; the base is not called
        while the first window fills.

        Raises
        ------
        EntryError
            If no task accepts such an entry, or the base raises or returns no output.
        ShapeError, ConfigError
            If the base does not fit the task; only at the first full window.
        """
        self.task.check_entry(entry, self.base.channels, ahead=not commit)
        window = self.task.window_with(entry)
        look = self.screen.judge(entry.values, window, self.task.window)
        if not window.full:
            return look, None
        clean = look.clean or window
        spec = self.spec or self._new_spec(clean)
        inputs, base = self._ask_of(clean, entry, spec)
        raw = None if clean is window else self._ask_of(window, entry, spec)[1]
        return look, Asked(entry, window, spec, inputs, base, look, raw)

    def _ask_of(self, window: Window, entry: Entry, spec: Spec) -> tuple[Tensor, BaseOutput]:
        """Return the inputs of a window that ends with an entry, and the base's output for
        them."""
        inputs = learner_inputs(window, spec)
        try:
            with self.timing.stage("predict"), torch.no_grad():
                given = base_inputs(window, spec, self.base)
                output = self.lots.take_answer(given) or self.checked_output(
                    self.base(given), spec
                )
        except Exception as error:
            if is_fatal(error) or (self.spec is None and isinstance(error, StreamadaptError)):
                raise  # a wrong setting, or too little memory: not a fault of the entry
            self.faults.note("base", error, count=False)  # the refused entry is counted instead
            detail = f"the base raised {type(error).__name__}: {str(error)[:200]}"
            raise EntryError(Reason.BASE_FAILED, detail, entry.position) from error
        if self._doubted:
            self._doubted = not check_probabilities(output.output)
        times = torch.from_numpy(window.times.copy()).to(spec.device)
        return inputs, output._replace(times=times)

    def checked_output(self, returned: Any, spec: Spec) -> BaseOutput:
        """Return a copy of the base's output; raise `ShapeError` if it is no valid output."""
        if not isinstance(returned, BaseOutput) or not isinstance(returned.output, Tensor):
            raise ShapeError(
                f"the base must return a BaseOutput with a tensor, got {type(returned).__name__}"
            )
        output, embedding = returned.output, returned.embedding
        if tuple(output.shape) != (spec.rows, spec.columns) or output.is_complex():
            raise ShapeError(
                f"the base must return ({spec.rows}, {spec.columns}) for this task, got "
                f"{tuple(output.shape)}" + (f" of {output.dtype}" if output.is_complex() else "")
            )
        features = None if embedding is None else embedding.numel()
        if self.spec is not None and features != spec.embedding:
            raise ShapeError(
                f"the base's embedding must have {spec.embedding} features as before, got "
                f"{features}"
            )
        dtype = torch.float64 if output.dtype == torch.float64 else torch.float32
        copied = output.detach().to(spec.device, dtype, copy=True)  # the base may reuse its buffer
        if embedding is not None:
            embedding = embedding.detach().to(spec.device, torch.float32, copy=True).reshape(-1)
        return BaseOutput(copied, embedding)

    # -- building: the shapes are known when the first window is full

    def _new_spec(self, window: Window) -> Spec:
        columns = self.task.columns(window.values.shape[1])
        scale = self.base.input_scale
        if scale is not None and len(scale) != window.values.shape[1]:
            raise ConfigError(
                "base.scaling",
                len(scale),
                f"{window.values.shape[1]} channels, as the entries have",
            )
        self.base.check(self.task.kind, self.task.window_length, self.task.rows, columns)
        device = resolve_device(self.device_wanted, cells=self.task.rows * columns)
        self.base.to(device)
        self.task.device = device
        return spec_with_scaling(self.task, window, self.base, columns, device, self.seed)

    def _allocate(self, spec: Spec) -> None:
        self.spec = spec
        self.task.device = spec.device
        self.task.origin = None if spec.output_origin is None else spec.output_origin.cpu().numpy()
        self.base.to(spec.device)
        warn_of_rounding(self.base, spec)
        unbuilt = [
            i for i, learner in enumerate(self.learners) if not self._is_built(learner, spec)
        ]
        self.monitors.check_spec(spec)
        self.health = Health(self.learners, self.faults, unbuilt)
        unit = spec.output_scale.cpu().double().numpy()
        self.keeper.build(self.names, spec.rows, spec.columns, self.task.loss, unit)
        for name in (*self.names, "served"):
            self.stats.loss_sum.setdefault(name, 0.0)
            self.stats.loss_cells.setdefault(name, 0)
        self.scores = Scores(self.names, spec.rows, spec.columns, self.task.loss)
        parts = [f"detector:{m.name}" for m in self.monitors.drift_monitors]
        for part in ("guard", *map(part_of, self.learners), *parts):
            # A counter that appears with its first event would have no rate.
            self.stats.faults.setdefault(part, 0)
        for name in self.names[1:]:
            self.stats.updates.setdefault(name, Counter())

    def _is_built(self, learner: Learner, spec: Spec) -> bool:
        try:
            learner.build(spec)
        except StreamadaptError:  # a setting that does not fit
            raise
        except Exception as error:
            self.faults.note(part_of(learner), error)
            return False
        return True

    # -- scales that turn out to be wrong

    def _look_at_scales(self, due: bool, hindsight: Mask | None = None) -> None:
        """Learn the remembered items again if a scale, or one of the first entries, was wrong.

        Waiting predictions are judged as they were issued, and nothing is counted twice. Parts
        that depend on losses only (detectors, label budget, estimates, intervals) do not change.
        """
        if due and self.spec is not None:
            better = self.scales.better(self.spec, self.spec.columns)
            if hindsight is not None:  # predictions from these values are of no use,
                self.intervals.load_state_dict({})  # nor are the sizes of the first few errors
                columns: Mask = np.asarray(hindsight.any(axis=0))
                forecast = self.spec.kind == "forecast"
                self.task.unjudge_waiting(
                    columns if forecast else np.ones(self.spec.columns, np.bool_)
                )
            if better is not None or hindsight is not None:
                self._begin_again(self.spec if better is None else rescaled(self.spec, better))
        self.scales.settle()

    def _begin_again(self, spec: Spec) -> None:
        items = self.scales.cleaned()
        try:
            answers = self._ask_again(items, spec)
        except EntryError:  # the base raises now, but did not before: change nothing
            return
        now, stats = self.task.state_dict(), self.stats
        self.task.load_state_dict(self.scales.pristine)
        doubts, self.task.clock.doubts = (
            self.task.clock.doubts,
            False,
        )  # these times have been judged
        self.task.absurd_values = None
        self._count_in(Stats())
        self.monitors.begin_again()
        try:
            self._allocate(spec)
            waiting: dict[str, Issued] = {}
            for i, item in enumerate(items):
                self._repeat(item, answers.get(i), waiting)
        finally:
            self.task.load_state_dict(now)
            self.task.clock.doubts = doubts
            self._count_in(stats)
        if self.health is not None:
            self.health.grace = self.task.pending
        self.scales.spent += len(items)

    def _ask_again(
        self, items: Sequence[Entry | Learned], spec: Spec
    ) -> dict[int, tuple[Tensor, BaseOutput]]:
        """Return the base's outputs for the remembered windows, by the index of their newest
        entry."""
        window: Window | None = None
        answers = {}
        for i, item in enumerate(items):
            if isinstance(item, Entry):
                window = window or Window(self.task.window_length, len(item.values))
                window.push(item.values, item.time)
                if window.full:
                    answers[i] = self._ask_of(window, item, spec)
        return answers

    def _repeat(
        self,
        item: Entry | Learned,
        answer: tuple[Tensor, BaseOutput] | None,
        waiting: dict[str, Issued],
    ) -> None:
        """Learn an item again: the steps of `_step` that change learners and guard.

        For a supervised task, `waiting` has the predictions by id: the items say which label was
        learned when.
        """
        matured: list[Matured] = []
        if isinstance(item, Learned):
            if item.id in waiting:
                matured = [_again(item, waiting[item.id], self.task)]
        elif self.task.kind == "forecast":
            matured = self.task.observe(item).matured
        for one in matured:
            self._learn(one)
            self.keeper.update(
                one.experts, one.aggregator_outputs, one.target, one.mask, one.weight
            )
        if answer is None or not isinstance(item, Entry):
            return
        inputs, output = answer
        exact, base, silent = finite_output(output, self._built)
        experts = self._experts(inputs, exact, base, commit=True)
        own = np.array(self.keeper.mix(experts, commit=True).aggregator_outputs)
        if silent is not None:
            experts[..., silent] = own[..., silent] = np.nan
        issued = waiting[item.id] = Issued(item, inputs, base, experts, own)
        if self.task.kind == "forecast":
            self.task.remember(issued)
            waiting.clear()
        self._adapt_learners(issued)

    def _settle_level(self, matured: list[Matured]) -> None:
        """Set the origin of the outputs from the first label, before anything is learned."""
        first, spec = matured[0], self.spec
        if spec is None or not first.mask.any():
            return
        self._level_open = False
        origin = agreed_origin(
            first.experts[0], first.target, first.mask, spec.output_scale.cpu().double().numpy()
        )
        if not origin.any():
            return
        output_origin = torch.from_numpy(origin).to(spec.device)
        # An origin is the location too, so the location less the origin is 0.
        loc = (spec.output_loc.double() * (output_origin == 0.0)).float()
        self._allocate(replace(spec, output_loc=loc, output_origin=output_origin))
        self.task.move_waiting(lambda issued: moved_issued(issued, self._built))
        matured[:] = [moved_matured(one, self._built) for one in matured]

    @property
    def _built(self) -> Spec:
        assert self.spec is not None
        return self.spec

    # -- exceptions of parts

    def contain(
        self, part: str, call: Callable[..., T], *given: Any, count: bool = True
    ) -> T | None:
        """Return the result of `call`; None if it raises."""
        try:
            return call(*given)
        except Exception as error:
            self.faults.note(part, error, count=count)
            return None

    def _reaction_failed(self, reaction: str, i: int, error: Exception) -> None:
        self.faults.note(f"reaction:{reaction}", error)
        # A refit has changed the learner's replacement only.
        if reaction != "refit" and self.health is not None:
            self.count_restored(self.health.take_out(i))

    def _put_back(self, lent: Lent, learner: Learner, *, count: bool = True) -> None:
        """Undo a learner's writes to the tensors that it shares with others."""
        if lent.put_back():
            self.faults.note(
                part_of(learner),
                ValueError("it wrote into the tensors that it was given"),
                count=count,
            )

    # -- steps 2 and 3

    def judge_interval(self, matured: Matured) -> Matured:
        """Let the intervals learn; return the matured example without their rows."""
        rest = self.contain("intervals", self.intervals.learn, (matured,), self.stats)
        return (
            replace(matured, aggregator_outputs=matured.aggregator_outputs[self.intervals.kept :])
            if rest is None
            else rest[0]
        )

    def _learn(self, matured: Matured) -> None:
        assert self.health is not None
        losses = self._score(matured)
        if self.monitors.reactor.trials and matured.path is not None:
            self.contain("reaction:refit", self._compare, matured.path)
        lent = {
            id(e): Lent(e.inputs, *e.base, e.target, e.mask)
            for e in (matured.rows, matured.path)
            if e is not None
        }
        for i, learner in enumerate(self.learners):
            example = matured.rows if learner.matures == "rows" else matured.path
            if example is not None and learner.needs_labels:
                self._teach(i, learner, example, matured.weight)
                self._put_back(lent[id(example)], learner)
                self.count_restored(self.health.check_gradient(i))
        if not np.isnan(losses[0]):
            self.count_restored(self.health.check_losses(losses))

    def _teach(self, i: int, learner: Learner, example: Example, weight: float) -> None:
        assert self.health is not None
        given = (example.inputs, example.base, example.target, example.mask)

        def teach() -> bool:
            learner.boost, learner.weight = self.monitors.boost, weight
            learner.learn(*given)
            return True

        learned, taken_out = self.health.attempt(i, teach)
        self.monitors.reactor.learned(i, *given)
        for name in learner.names if learned else ():
            self.stats.updates[name]["ok"] += 1
        self.count_restored(taken_out)

    def _compare(self, path: Example) -> None:
        known = self.task.loss.known(path.mask.cpu().numpy())
        target = path.target.cpu().double().numpy()
        self.monitors.reactor.compare(path.inputs, path.base, target, known, self.task.loss)

    def count_restored(self, experts: list[int]) -> None:
        """Count experts whose learner was restored; the base is 0."""
        for k in experts:
            self.stats.updates[self.names[k]]["restored"] += 1

    def _score(self, matured: Matured) -> Array:
        if len(matured.aggregator_outputs):
            served = matured.aggregator_outputs[-1]
        else:  # a guard that keeps nothing; NaN: cells that are not judged
            served = self.keeper.mix(np.nan_to_num(matured.experts), commit=True).served
        return self.scores.add(
            self.stats, matured.experts, served, matured.target, matured.mask, matured.weight
        )

    def _adapt(self, issued: Issued) -> dict[str, float]:
        scores = self._adapt_learners(issued)
        self.stats.signals = scores
        self.contain("signals", self.monitors.take_in_scores, scores)
        self.monitors.take_in_issued(issued)
        return scores

    def _adapt_learners(self, issued: Issued) -> dict[str, float]:
        scores: dict[str, float] = {}
        assert self.health is not None
        lent = Lent(issued.inputs, *issued.base)
        for i, learner in enumerate(self.learners):
            signals, taken_out = self.health.attempt(i, partial(_adapted, learner, issued))
            self.count_restored(taken_out)
            self._put_back(lent, learner)
            if not learner.needs_labels:
                self.count_restored(self.health.check_gradient(i))
            scores |= signals or {}
        if not self.task.labelled:  # without losses, this counts the entries
            self.health.check_losses(np.zeros(len(self.names)))
        return scores

    # -- steps 5 and 6

    def _predict(self, asked: Asked, *, commit: bool = True) -> tuple[Issued, Spoken]:
        inputs, base, spec = asked.inputs, asked.base, self.spec or asked.spec
        entry = replace(asked.entry, time=int(asked.window.times[-1]))  # the time it gets here
        if self.spec is None:  # the size of the embedding is known only now
            self._allocate(
                replace(spec, embedding=None if base.embedding is None else len(base.embedding))
            )
        if commit and self.monitors.drift_monitors:
            newest = scaled_newest(inputs, spec, np.isnan(entry.values) | asked.look.absurd)
            self.contain("signals", self.monitors.take_in_entry, newest, base)
        exact, base, silent = finite_output(base, spec)
        experts = self._experts(inputs, exact, base, commit=commit)
        mixture = self.keeper.mix(experts, commit=commit)
        if silent is not None:  # NaN tells the task neither to judge nor to learn these cells
            mixture = Mixture(
                np.array(mixture.served), np.array(mixture.aggregator_outputs), mixture.weights
            )
            for predictions in (experts, mixture.aggregator_outputs, mixture.served):
                predictions[..., silent] = np.nan
        note = (
            ()
            if self.label_requests.silent
            else self._note(experts, mixture.served, commit=commit)
        )
        raw = None if asked.raw is None else finite_output(asked.raw, spec)[::2]
        mixture, spoken = fall_back(
            experts, mixture, raw, asked.look.flags, forecast=spec.kind == "forecast"
        )
        kept = self.contain("intervals", self.intervals.issue, mixture, count=commit)
        if kept is None:
            blank = np.full((self.intervals.kept, *mixture.served.shape), np.nan)
            kept = np.concatenate([blank, mixture.aggregator_outputs])
        experts, kept, spoken = unjudged(experts, kept, spoken)
        return Issued(entry, inputs, base, experts, kept, note), spoken

    def _note(self, experts: Array, served: Array, *, commit: bool) -> tuple[float, ...]:
        record = partial(self.label_requests.record, commit=commit)
        with np.errstate(over="ignore", invalid="ignore"):
            note = self.contain(
                "labelling", lambda: record(experts, served, self.keeper.scale()), count=commit
            )
        return self.label_requests.blank() if note is None else note

    def _experts(self, inputs: Tensor, exact: Array, base: BaseOutput, *, commit: bool) -> Array:
        assert self.health is not None
        outputs, lent = [base.output.unsqueeze(0)], Lent(inputs, *base)
        for i, learner in enumerate(self.learners):
            output = (
                None
                if self.health.lost[i]
                else self._output_of(learner, inputs, base, commit=commit)
            )
            if output is None:  # NaN makes health suspend the learner
                output = base.output.new_full((len(learner.names), *base.output.shape), torch.nan)
            outputs.append(output)
            self._put_back(lent, learner, count=commit)
        experts: Array = torch.cat(outputs).cpu().double().numpy()
        if self.task.origin is not None:
            experts += self.task.origin
        experts[0] = exact
        if commit:
            self.count_restored(self.health.check_predictions(experts))
        else:
            self.health.stand_in(experts)
        return experts

    def _output_of(
        self, learner: Learner, inputs: Tensor, base: BaseOutput, *, commit: bool
    ) -> Tensor | None:
        """Return a learner's predictions, (experts, rows, columns); None if it raises, or its
        output is invalid."""
        try:
            output = learner.predict(inputs, base)
            # A family of learners returns the predictions of several experts together.
            shape = (len(learner.names), *base.output.shape)
            if (
                not isinstance(output, Tensor)
                or output.is_complex()
                or output.layout != torch.strided
            ):
                raise ShapeError(
                    f"a prediction must be a tensor of numbers, got {type(output).__name__}"
                )
            if tuple(output.shape) != shape and (1, *output.shape) != shape:
                raise ShapeError(f"a prediction must be {shape}, got {tuple(output.shape)}")
            return output.detach().to(base.output.device).reshape(shape)
        except Exception as error:
            self.faults.note(part_of(learner), error, count=commit)
            return None

    def _prediction(
        self,
        asked: Asked,
        issued: Issued,
        spoken: Spoken,
        scores: dict[str, float],
        *,
        commit: bool = True,
    ) -> Prediction:
        entry = asked.entry
        shares = dict(zip(self.names, spoken.weights.tolist(), strict=True))
        experts, out = spoken.experts.copy(), spoken.served.copy()
        known = self.task.known(asked.window)
        if known is not None:
            out[:, ~known] = np.nan
            experts[:, :, ~known] = np.nan
        if commit:
            self.stats.predictions += 1
            self.stats.weights = shares
        drifts, reactions = self.monitors.drain() if commit else ((), ())
        by_name = dict(zip(self.names, experts, strict=True))
        label = self.label_requests.fields(issued.note, commit=commit)
        low, high = self.contain(
            "intervals", self.intervals.bounds, spoken.aggregator_outputs, count=commit
        ) or (None, None)
        return Prediction(
            entry.position, entry.id, entry.key, entry.time, out, experts[0], by_name, shares,
            drifts, scores, reactions, *label, () if self.panel is None else self.panel.columns,
            low, high, self.task.class_names,
        )  # fmt: skip

    # -- state

    @own_settings
    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as copies: a tree of dicts and lists with tensors, arrays,
        numbers, text and bytes."""
        with self._turn:
            return self._state()

    def _state(self) -> dict[str, Any]:
        built = self.spec is not None
        # First: taking the learners' snapshots may change the states that follow.
        learners = self.health.snapshots() if self.health is not None else None
        guard = self.keeper.state() if built else None
        return {
            "names": list(self.names),
            "spec": spec_state(self.spec) if self.spec is not None else None,
            "task": self.task.state_dict(),
            "learners": learners,
            "health": self.health.state_dict() if self.health is not None else None,
            "guard": guard,
            "guard_kept": self.keeper.state_dict() if built else None,
            "drift": self.monitors.state_dict(),
            "labelling": self.label_requests.state_dict(),
            "intervals": self.intervals.state_dict(),
            "stats": self.stats.state_dict(),
            **({"level_open": True} if self._level_open else {}),
            "screen": self.screen.state_dict(),
            "scales": self.scales.state_dict(),
            **({} if self.panel is None else {"panel": self.panel.state_dict()}),
        }

    @own_settings
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, in a new pipeline with the same settings.

        Raises
        ------
        CheckpointError
            If the state has other experts.
        """
        with self._turn:
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        if list(state["names"]) != self.names or len(state["drift"]["monitors"]) != len(
            self.monitors.drift_monitors
        ):
            raise CheckpointError(
                f"the checkpoint is of the experts {state['names']}, this pipeline has "
                f"{self.names}"
            )
        # In states of earlier versions all origins are 0.
        self._level_open = bool(state.get("level_open", False))
        if state["spec"] is not None:
            device = resolve_device(
                self.device_wanted, cells=state["spec"]["rows"] * state["spec"]["columns"]
            )
            self._allocate(spec_from_state(state["spec"], device, self.base))
            assert self.health is not None
            for learner, saved in zip(self.learners, state["learners"], strict=True):
                if saved is not None:  # None: its snapshot failed, so it starts from nothing
                    learner.load_state_dict(saved)
            self.health.load_state_dict(state["health"])
            self.keeper.load_state_dict(state["guard"], state.get("guard_kept"))
        self.task.load_state_dict(state["task"])
        self.monitors.load_state_dict(state["drift"])
        self.label_requests.load_state_dict(state["labelling"])
        self.intervals.load_state_dict(state["intervals"])
        self.stats.load_state_dict(state["stats"])
        if "screen" in state:  # absent in earlier versions: the screen starts from nothing
            self.screen.load_state_dict(state["screen"])
        self.scales.load_state_dict(state.get("scales"))
        if self.panel is not None:
            self.panel.load_state_dict(state["panel"])
        self._count_in(self.stats)


def _again(learned: Learned, issued: Issued, task: Task) -> Matured:
    """Return a remembered label as an example of the repeated prediction."""
    mask = learned.mask & ~np.isnan(issued.experts[0])
    target = np.where(mask, learned.target, np.nan_to_num(issued.experts[0]))
    known = torch.from_numpy(mask).to(task.device)
    example = Example(issued.inputs, issued.base, task.tensor(target), known)
    return Matured(
        example,
        example,
        issued.experts,
        issued.aggregator_outputs,
        target,
        mask,
        learned.weight,
        (),
        learned.id,
    )


def _adapted(learner: Learner, issued: Issued) -> dict[str, float]:
    """Let a learner take an entry in; return what it tells about it, where that is a number."""
    learner.adapt(issued.inputs, issued.base)
    told = learner.signals() if learner.signal_names else {}
    return {str(name): float(value) for name, value in told.items() if math.isfinite(value)}
