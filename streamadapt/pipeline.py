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
from streamadapt.drift import SIGNALS, DriftMonitor
from streamadapt.entry import Entry, Label, Prediction
from streamadapt.errors import CheckpointError, ConfigError, EntryError, ShapeError
from streamadapt.guard import Guard, TwoLayer
from streamadapt.health import Health
from streamadapt.learners.base import BaseOutput, Learner, Spec
from streamadapt.losses import Array
from streamadapt.spec import spec_from_state, spec_state, spec_with_scaling
from streamadapt.stats import Stats
from streamadapt.tasks import Issued, Matured, Task
from streamadapt.timing import NO_TIMING, Timing

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
    on_rejected : callable, optional
        Called with a refused item and its `EntryError`; without one, `observe` raises it.

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

    def __init__(
        self,
        task: Task,
        base: Base | Callable[..., Any],
        learners: Sequence[Learner] = (),
        guard: Guard | None = None,
        drift: Sequence[DriftMonitor] = (),
        *,
        device: str | torch.device = "auto",
        seed: int = 0,
        on_rejected: Rejected | None = None,
    ) -> None:
        self.task = task
        self.base = as_base(base)
        self.learners = list(learners)
        self.guard = guard or TwoLayer()
        self.drift = list(drift)
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
        self._check_parts()
        self.stats = Stats()
        task.outcomes = self.stats.labels
        self.health: Health | None = None
        self.spec: Spec | None = None
        self._fired: tuple[str, ...] = ()

    def _check_parts(self) -> None:
        """Raise `ConfigError` where learners, guard, detectors and task do not fit each other."""
        signals = (*SIGNALS, *(name for learner in self.learners for name in learner.signal_names))
        for i, monitor in enumerate(self.drift):
            if monitor.signal not in signals:
                raise ConfigError(f"drift[{i}].signal", monitor.signal, "one of " + ", ".join(signals))
        self.guard.check(self.names, labelled=self.task.labelled)
        if not self.task.labelled:
            for i, learner in enumerate(self.learners):
                if learner.needs_labels:
                    raise ConfigError(f"learners[{i}].kind", learner.kind, "one that adapts without labels: none come")

    def observe(self, items: Iterable[Entry | Label]) -> list[Prediction]:
        """Take entries and labels in, in order; return one prediction per entry once the window is full.

        ``observe([a, b])`` equals ``observe([a]) + observe([b])``.

        Raises
        ------
        EntryError
            At the first bad item, if there is no `on_rejected`; that item changed nothing.
        """
        predictions = []
        for item in items:
            try:
                prediction = self._step(item)
            except EntryError as error:
                self.stats.rejected[error.reason.value] += 1
                if self.on_rejected is None:
                    raise
                self.on_rejected(item, error)
            else:
                if prediction is not None:
                    predictions.append(prediction)
        return predictions

    def _step(self, item: Entry | Label) -> Prediction | None:
        self._check_width(item)
        arrival = self.task.observe(item)  # 1. what has matured, and what is to be predicted
        with self.timing.stage("learn"), torch.no_grad():
            for matured in arrival.matured:
                losses = self._learn(matured)  # 2. every learner, in order
                relative = self._relative(losses[0], matured)
                self._detect("loss", relative)  # 3. drift, and the reactions to it
                if self._watches("error"):
                    self._detect("error", self._wrong(relative, matured))
                self.guard.update(matured.experts, matured.own, matured.target, matured.mask)  # 4. the mixture
        self.stats.pending = self.task.pending
        if isinstance(item, Label):
            return None
        self.stats.entries += 1
        self.stats.last_time = item.time
        if arrival.inputs is None:
            return None
        with self.timing.stage("predict"), torch.no_grad():
            issued, served, weights = self._predict(item)  # 5. the base, the learners, the guard
        self.task.remember(issued)
        self.stats.pending = self.task.pending
        with self.timing.stage("learn"), torch.no_grad():
            scores = self._adapt(issued)  # what needs no label is learned after the prediction, too
        return self._prediction(issued, served, weights, scores)  # 6. what is served

    def predict(self, entry: Entry) -> Prediction:
        """Predict from the current window with `entry` appended, learning and changing nothing (serving)."""
        self.task.check_entry(entry, self.base.channels)
        window = self.task.window
        if window is None or self.spec is None:  # building from this entry would let a question shape the learners
            raise ConfigError("predict", 0 if window is None else window.count, "a window that is full")
        saved = window.state_dict()
        window.push(entry.values, entry.time)
        try:
            with torch.no_grad():
                issued, served, weights = self._predict(entry, commit=False)
            return self._prediction(issued, served, weights, {}, commit=False)
        finally:
            window.load_state_dict(saved)

    # -- building: when the first window is full the shapes are known

    def _check_width(self, item: Entry | Label) -> None:
        if isinstance(item, Entry):
            self.task.check_entry(item, self.base.channels)

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
        self.health = Health(self.learners)
        unit = spec.output_scale.cpu().double().numpy()
        self.guard.build(self.names, spec.rows, spec.columns, self.task.loss, unit)
        for name in (*self.names, "served"):
            self.stats.loss_sum.setdefault(name, 0.0)
            self.stats.loss_cells.setdefault(name, 0)
        for name in self.names[1:]:
            self.stats.updates.setdefault(name, Counter())

    # -- steps 2 and 3

    def _learn(self, matured: Matured) -> Array:
        """Update every learner; return the mean loss of each expert over the cells that matured."""
        assert self.health is not None
        boost = max([1.0, *(m.boost.level for m in self.drift if m.boost is not None)])
        losses = self._score(matured)
        for learner in self.learners:
            example = matured.rows if learner.matures == "rows" else matured.path
            if example is not None and learner.needs_labels:
                learner.boost = boost
                learner.learn(example.inputs, example.base, example.target, example.mask)
                for name in learner.names:
                    self.stats.updates[name]["ok"] += 1
        if not np.isnan(losses[0]):
            self._count_restored(self.health.check_losses(losses))
        return losses

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
        for name, total in zip((*self.names, "served"), sums.tolist(), strict=True):
            self.stats.loss_sum[name] += total
            self.stats.loss_cells[name] += cells
        means: Array = sums[:-1] / cells
        return means

    def _relative(self, loss: float, matured: Matured) -> float:
        """The base's loss in units of its usual one, so that one threshold suits every unit; NaN if nothing matured."""
        known = self.task.loss.known(matured.mask)
        return loss / float(self.guard.scale()[known].mean()) if known.any() else np.nan

    def _wrong(self, relative: float, matured: Matured) -> float:
        """Return 1 where the base was wrong, 0 where it was right, NaN if nothing matured."""
        if math.isnan(relative):
            return relative
        if self.task.kind == "classification":
            return float((matured.experts[0].argmax(-1) != matured.target.argmax(-1)).any())
        return float(relative > 1.0)

    def _watches(self, signal: str) -> bool:
        return any(monitor.signal == signal for monitor in self.drift)

    def _detect(self, signal: str, value: float) -> None:
        for monitor in self.drift:
            if monitor.signal == signal and monitor.update(float(value)):
                self.stats.add_drift(monitor.name, self.stats.last_time)
                self._fired = (*self._fired, monitor.name)

    def _adapt(self, issued: Issued) -> dict[str, float]:
        scores: dict[str, float] = {}
        for learner in self.learners:
            learner.adapt(issued.inputs, issued.base)
            if learner.signal_names:
                scores |= {name: value for name, value in learner.signals().items() if math.isfinite(value)}
        self.stats.signals = scores
        for name, value in scores.items():
            self._detect(name, value)
        if not self.task.labelled:  # no loss will tell that time passes
            assert self.health is not None
            self.health.check_losses(np.zeros(len(self.names)))
        return scores

    # -- steps 5 and 6

    def _predict(self, entry: Entry, *, commit: bool = True) -> tuple[Issued, Array, Array]:
        assert self.task.window is not None
        spec = self.spec or self._new_spec()
        inputs = torch.from_numpy(self.task.window.fill_unseen(spec.input_loc.cpu().numpy())).to(spec.device)
        if commit and self._watches("input"):
            newest = ((inputs[-1] - spec.input_loc) / spec.input_scale).cpu().numpy()[~np.isnan(entry.values)]
            self._detect("input", float(newest.mean()) if len(newest) else np.nan)
        base = self.base(inputs)._replace(times=torch.from_numpy(self.task.window.times.copy()).to(spec.device))
        if tuple(base.output.shape) != (spec.rows, spec.columns):
            raise ShapeError(
                f"the base must return ({spec.rows}, {spec.columns}) for this task, got {tuple(base.output.shape)}"
            )
        if self.spec is None:  # what the base shows is known only now
            self._allocate(replace(spec, embedding=None if base.embedding is None else len(base.embedding)))
        base, silent = without_nonfinite(base, spec.kind, spec.output_loc)
        experts = self._experts(inputs, base, commit=commit)
        mixture = self.guard.mix(experts)
        if silent is not None:  # NaN here is what the task knows not to judge or learn from
            for said in (experts, mixture.own, mixture.served):
                said[..., silent] = np.nan
        return Issued(entry, inputs, base, experts, mixture.own), mixture.served, mixture.weights

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
        fired, self._fired = self._fired, () if commit else self._fired
        by_name = dict(zip(self.names, experts, strict=True))
        return Prediction(
            entry.position, entry.id, entry.key, entry.time, out, experts[0], by_name, shares, fired, scores
        )

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
            "drift": [monitor.state_dict() for monitor in self.drift],
            "fired": list(self._fired),
            "stats": self.stats.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, in a pipeline made alike and not yet used.

        Raises
        ------
        CheckpointError
            If the state is of other experts.
        """
        if list(state["names"]) != self.names or len(state["drift"]) != len(self.drift):
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
        for monitor, saved in zip(self.drift, state["drift"], strict=True):
            monitor.load_state_dict(saved)
        self._fired = tuple(state["fired"])
        self.stats.load_state_dict(state["stats"])
        self.task.outcomes = self.stats.labels
