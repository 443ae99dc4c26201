"""Faults of the guard: if it raises, or its output is not finite, the base is served and the guard
is restored."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamadapt.errors import ShapeError, StreamadaptError
from streamadapt.guard.base import Guard, Mixture
from streamadapt.pipeline.faults import Faults
from streamadapt.records import Array, Mask

__all__ = ["GuardKeeper"]

PART = "guard"
SNAPSHOT_EVERY = 500
"""Updates between two snapshots; a broken guard is restored from the newest one."""
MOST_TROUBLE = 3
"""After this number of faults since the newest snapshot the guard starts from nothing: the
snapshot itself may be broken."""


class GuardKeeper:
    """Calls the guard, and replaces its output if it is broken.

    A guard is broken if a call of it raises, or if its output has a wrong shape or is not finite.
    The base is then served for that entry, and the guard is restored from its last good snapshot;
    after `MOST_TROUBLE` faults it starts from nothing instead. Memory: one state of the guard.

    Parameters
    ----------
    guard : Guard
    faults : Faults
    """

    def __init__(self, guard: Guard, faults: Faults) -> None:
        self.guard = guard
        self.faults = faults
        self.good: dict[str, Any] | None = None
        self.count = 0  # updates since the newest snapshot
        self.trouble = 0  # faults since then
        self._arguments: tuple[Any, ...] = ()
        self._shape: tuple[int, int, int] = (0, 0, 0)  # experts, rows, columns
        self._own = 0

    def build(self, *arguments: Any) -> None:
        """Build the guard; see `Guard.build`.

        Raises
        ------
        ConfigError
            If the guard is not made for such a task. Any other exception counts as a fault.
        """
        names, rows, columns = arguments[:3]
        self._arguments = arguments
        self._shape = len(names), rows, columns
        try:
            self.guard.build(*arguments)
            self._own = int(self.guard.n_aggregators)
            self.good = self._snapshot()
        except StreamadaptError:
            raise
        except Exception as error:
            self.faults.note(PART, error)

    def mix(self, experts: Array, *, commit: bool) -> Mixture:
        """Mix the experts' predictions (experts, rows, columns), all finite; without `commit` a
        fault is neither counted nor repaired."""
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                mixture = self.guard.mix(_read_only(experts))
                self._check(mixture)
        except Exception as error:
            self.faults.note(PART, error, count=commit)
            if commit:
                self._mend()
            return self._base(experts)
        return mixture

    def _check(self, mixture: Mixture) -> None:
        experts, rows, columns = self._shape
        found = (
            np.shape(mixture.served),
            np.shape(mixture.aggregator_outputs),
            np.shape(mixture.weights),
        )
        if found != ((rows, columns), (self._own, rows, columns), (experts,)):
            raise ShapeError(f"the guard's mixture has the shapes {found}")
        fine = np.isfinite(mixture.served).all() and np.isfinite(mixture.weights).all()
        if not (fine and np.isfinite(mixture.aggregator_outputs).all()):
            raise ArithmeticError("the guard's mixture is not finite")

    def _base(self, experts: Array) -> Mixture:
        weights = np.zeros(len(experts))
        weights[0] = 1.0
        return Mixture(experts[0].copy(), np.repeat(experts[:1], self._own, axis=0), weights)

    def update(self, experts: Array, own: Array, target: Array, mask: Mask, weight: float) -> None:
        """Let the guard learn; see `Guard.update`."""
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                given = _read_only(experts), _read_only(own), _read_only(target)
                self.guard.update(*given, mask, weight)
        except Exception as error:
            self.faults.note(PART, error)
            self._mend()
            return
        self.count_updates(1)

    @property
    def until_snapshot(self) -> int:
        """The number of updates until the next snapshot is due, >= 1."""
        return max(1, SNAPSHOT_EVERY - self.count)

    def count_updates(self, count: int) -> None:
        """Count updates, at most `until_snapshot` of them, and take a snapshot if it is due."""
        self.count += count
        if count and self.count >= SNAPSHOT_EVERY:
            self._keep_snapshot()

    def scale(self) -> Array:
        """Return the guard's scale of losses, (rows, columns) or (rows, 1)."""
        return self.guard.scale()

    # -- repair

    def _keep_snapshot(self) -> None:
        try:
            snapshot = self._snapshot()
        except Exception as error:
            self.faults.note(PART, error)
            return
        if _is_finite(snapshot):
            self.good, self.count, self.trouble = snapshot, 0, 0

    def _snapshot(self) -> dict[str, Any]:
        return self.guard.state_dict()

    def _mend(self) -> None:
        self.trouble += 1
        try:
            if self.good is None or self.trouble >= MOST_TROUBLE:
                self.guard.build(*self._arguments)
                self.good, self.count, self.trouble = self._snapshot(), 0, 0
            else:
                self.guard.load_state_dict(self.good)
        except Exception as error:
            self.faults.note(PART, error)
            self.good = None  # built from nothing at the next fault

    # -- state

    def state(self) -> dict[str, Any] | None:
        """Return the guard's own state; the last good one if it raises."""
        try:
            return self._snapshot()
        except Exception as error:
            self.faults.note(PART, error)
            self._mend()
            return self.good

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshot and the counts, without the guard's own state."""
        return {"good": self.good, "count": self.count, "trouble": self.trouble}

    def load_state_dict(self, own: dict[str, Any] | None, kept: dict[str, Any] | None) -> None:
        """Take over the guard's own state, and what `state_dict` returned (None in older
        checkpoints)."""
        if own is not None:
            self.guard.load_state_dict(own)
            self.good = own
        if kept is not None:
            self.good, self.count, self.trouble = (
                kept["good"],
                int(kept["count"]),
                int(kept["trouble"]),
            )


def _read_only(values: Array) -> Array:
    """Return a view that cannot be written to: the same array is kept with the prediction."""
    view = values.view()
    view.flags.writeable = False
    return view


def _is_finite(state: Any) -> bool:
    if isinstance(state, dict):
        return all(_is_finite(part) for part in state.values())
    if isinstance(state, list | tuple):
        return all(_is_finite(part) for part in state)
    return not (isinstance(state, np.ndarray) and state.dtype.kind == "f") or bool(
        np.isfinite(state).all()
    )
