"""The drift monitors of a pipeline: the signals of each, and the reactions of the learners."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from streamadapt.drift.compiled import CompiledDetectors
from streamadapt.drift.monitor import DriftMonitor
from streamadapt.drift.reactions import Reactor
from streamadapt.drift.signal_kernels import ERROR, LOSS, RESIDUAL
from streamadapt.drift.signals import SIGNALS, EmbeddingDistance, UsualError, confidence
from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner
from streamadapt.learners.compiled import is_as_made
from streamadapt.models.contract import BaseOutput, Spec, TaskKind
from streamadapt.pipeline.faults import Faults
from streamadapt.pipeline.stats import Stats
from streamadapt.records import Array
from streamadapt.tasks import Issued, Matured
from streamadapt.tasks.losses import Loss

__all__ = ["Monitors"]

Value = float | Array
T = TypeVar("T")
ENTRY_SIGNALS = ("input", "confidence", "embedding")


class Monitors:
    """The drift monitors of a pipeline, their signals and their reactions.

    Parameters
    ----------
    monitors : sequence of DriftMonitor
    learners : sequence of Learner
    kind : {"forecast", "regression", "classification"}
        The kind of the task.
    """

    def __init__(
        self, monitors: Sequence[DriftMonitor], learners: Sequence[Learner], kind: TaskKind
    ) -> None:
        self.drift_monitors = list(monitors)
        self.kind = kind
        self.stats = Stats()  # the pipeline puts its own here, and its faults
        self.faults = Faults()
        self.distance = EmbeddingDistance()
        self.usual = UsualError()
        self.drifts: tuple[str, ...] = ()  # since the last prediction
        self.reactions: tuple[str, ...] = ()
        self.reactor = Reactor(learners, self._on_reaction)
        self._firing = ""
        self._check(learners)

    def _check(self, learners: Sequence[Learner]) -> None:
        """Raise `ConfigError` if a monitor's signal or learners do not exist."""
        signals = (*SIGNALS, *(name for learner in learners for name in learner.signal_names))
        kinds = {learner.kind for learner in learners}
        for i, monitor in enumerate(self.drift_monitors):
            if monitor.signal not in signals:
                raise ConfigError(
                    f"drift[{i}].signal", monitor.signal, "one of " + ", ".join(signals)
                )
            if monitor.signal == "confidence" and self.kind != "classification":
                raise ConfigError(
                    f"drift[{i}].signal",
                    monitor.signal,
                    f"classification; this task is a {self.kind}",
                )
            for kind in monitor.learners or ():
                if kind not in kinds:
                    expected = "kinds of the learners: " + ", ".join(sorted(kinds))
                    raise ConfigError(f"drift[{i}].learners", kind, expected)

    def check_spec(self, spec: Spec) -> None:
        """Raise `ConfigError` if the base lacks an output that a monitor watches."""
        for i, monitor in enumerate(self.drift_monitors):
            if monitor.signal == "embedding" and spec.embedding is None:
                raise ConfigError(
                    f"drift[{i}].signal", monitor.signal, "a base that shows an embedding"
                )

    @property
    def boost(self) -> float:
        """The current factor of the learning speed."""
        return max([1.0, *(m.boost.level for m in self.drift_monitors if m.boost is not None)])

    def watches(self, signal: str) -> bool:
        """Whether a monitor watches the signal."""
        return any(monitor.signal == signal for monitor in self.drift_monitors)

    @property
    def watches_entries(self) -> bool:
        """Whether a monitor watches entries themselves, not only losses."""
        return any(monitor.signal in ENTRY_SIGNALS for monitor in self.drift_monitors)

    @property
    def feeds_back(self) -> bool:
        """Whether an alarm changes learners."""
        reacts = any(m.reaction != "alert" or m.boost is not None for m in self.drift_monitors)
        return reacts or bool(self.reactor.trials)

    def take_in_matured(self, matured: Matured, loss: Loss) -> None:
        """Update the monitors with targets that became known."""
        if not self.drift_monitors:
            return
        base, target = matured.experts[0], matured.target
        found = self.usual.signals(base, target, matured.mask, loss, self.kind)
        for _, monitor in self.alarms(*(array[None] for array in found)):
            self.alarm(monitor)

    def take_in_entry(self, newest: Array, base: BaseOutput) -> None:
        """Update the monitors with an entry: its scaled values (channels,), NaN if missing, and
        the base's output."""
        if self.watches("input"):
            self._detect("input", _mean(newest), newest)
        if self.watches("confidence"):
            self._detect("confidence", confidence(base.output))
        if self.watches("embedding") and base.embedding is not None:
            self._detect("embedding", self.distance(base.embedding))

    def take_in_scores(self, scores: Mapping[str, float]) -> None:
        """Update the monitors with the learners' signals of the newest entry."""
        for name, value in scores.items():
            self._detect(name, value)

    def take_in_issued(self, issued: Issued) -> None:
        """Let learners on trial adapt to one entry."""
        self.reactor.adapt(issued.inputs, issued.base)

    def begin_again(self) -> None:
        """End all trials and restart the monitors of signals in learners' units: these units have
        changed."""
        self.reactor.trials.clear()
        for monitor in self.drift_monitors:
            if monitor.signal == "input" or monitor.signal not in SIGNALS:
                monitor.begin_again()

    def _detect(self, signal: str, value: float, each: Array | None = None) -> None:
        for monitor in self.drift_monitors:
            if monitor.signal != signal or not self._fires(monitor, _given(monitor, value, each)):
                continue
            self.alarm(monitor)

    def alarm(self, monitor: DriftMonitor) -> None:
        """Report a drift, and carry out the monitor's reaction."""
        self.drifts = (*self.drifts, monitor.name)
        self._firing = monitor.name
        self.stats.add_drift(monitor.name, self.stats.last_time)
        if monitor.boost is not None:
            self._note("boost", "")
        self.reactor.react(
            monitor.reaction,
            monitor.learners,
            keep=monitor.keep_fraction,
            trial=monitor.refit_trial,
        )

    def alarms(self, means: Array, losses: Array, residuals: Array) -> list[tuple[int, Any]]:
        """Update the monitors of losses with many arrivals.

        Parameters
        ----------
        means : ndarray, (arrivals, 3)
            The signals ``loss``, ``error`` and ``residual``.
        losses, residuals : ndarray, (arrivals, judged)
            By column.

        Returns
        -------
        list of (int, DriftMonitor)
            The arrivals at which monitors fire; at one arrival in the order of the signals, then
            of the monitors.
        """
        found: list[tuple[int, Any]] = []
        for signal, i, each in (
            ("loss", LOSS, losses),
            ("error", ERROR, None),
            ("residual", RESIDUAL, residuals),
        ):
            for monitor in self.drift_monitors:
                if monitor.signal == signal:
                    single = each is None or not monitor.each
                    values = means[:, i : i + 1] if single else each
                    found += [(n, monitor) for n in self._firing_at(monitor, values)]
        return sorted(found, key=lambda one: one[0])

    def _firing_at(self, monitor: DriftMonitor, values: Any) -> list[int]:
        """Update a monitor with the values (arrivals, channels); return where it fires."""
        if is_as_made(monitor, DriftMonitor, ("update",)) and isinstance(
            monitor.detectors, CompiledDetectors
        ):
            flags = self._contained(monitor, lambda: monitor.update_many(values))
            return [] if flags is None else np.flatnonzero(flags).tolist()
        rows = values if monitor.each else values[:, 0].tolist()
        return [n for n, value in enumerate(rows) if self._fires(monitor, value)]

    def _fires(self, monitor: DriftMonitor, value: Value) -> bool:
        """Update a monitor with a value; return whether it fires."""
        return self._contained(monitor, lambda: bool(monitor.update(value))) or False

    def _contained(self, monitor: DriftMonitor, update: Callable[[], T]) -> T | None:
        """Return the result of an update; a monitor that raises is restarted, and the result is
        None."""
        part = f"detector:{monitor.name}"
        try:
            return update()
        except Exception as error:
            self.faults.note(part, error)
        try:
            monitor.restart()
        except Exception as error:
            self.faults.note(part, error)
        return None

    def _on_reaction(self, what: str, learner: Learner) -> None:
        self._note(what, " ".join(learner.names))

    def _note(self, what: str, whom: str) -> None:
        # A trial ends long after its alarm: only the name of the reaction is still known.
        by = f"{self._firing}>" if self._firing and not what.startswith("refit-") else ""
        self.reactions = (*self.reactions, f"{by}{what}" + (f" {whom}" if whom else ""))
        self.stats.reactions[what] += 1

    def drain(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the drifts and the reactions since the last prediction, and clear both lists."""
        drained = self.drifts, self.reactions
        self.drifts, self.reactions = (), ()
        return drained

    def state_dict(self) -> dict[str, Any]:
        """Return the state of detectors, reference and trials."""
        return {
            "monitors": [monitor.state_dict() for monitor in self.drift_monitors],
            "distance": self.distance.state_dict(),
            "usual": self.usual.state_dict(),
            "reactor": self.reactor.state_dict(),
            "fired": list(self.drifts),
            "done": list(self.reactions),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the learners must be built."""
        for monitor, saved in zip(self.drift_monitors, state["monitors"], strict=True):
            monitor.load_state_dict(saved)
        self.distance.load_state_dict(state["distance"])
        self.usual.load_state_dict(state["usual"])
        self.reactor.load_state_dict(state["reactor"])
        self.drifts, self.reactions = tuple(state["fired"]), tuple(state["done"])


def _given(monitor: DriftMonitor, value: float, each: Array | None) -> Value:
    return each if monitor.each and each is not None else value


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
