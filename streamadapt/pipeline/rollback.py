"""Roll-back: a learner that breaks is taken out and restored from its last good snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np

from streamadapt.compiled import Kernel
from streamadapt.learners.base import Learner
from streamadapt.pipeline.faults import Faults
from streamadapt.pipeline.judging import (
    USUAL_OF,
    WINDOW,
    HealthState,
    ScoreRoom,
    empty_room,
    judge,
)
from streamadapt.records import Array

__all__ = ["Health"]

GRADIENT_RATIO = 1000.0
"""A learner is broken if its gradient is more than this number of times as long as usual, or is no
number."""
SNAPSHOT_EVERY = 500
"""Matured arrivals between snapshots of the healthy learners."""
PROBATION = 250
"""Matured arrivals that a learner must stay healthy after a snapshot before it counts as a good
one: what breaks shows only in later losses."""
UNTIL_SNAPSHOT: Final = 250
"""`Health.keep_snapshots` does something after each multiple of this number."""
ARRAYS = ("losses", "seen", "benched", "usual_norm", "steps")

T = TypeVar("T")


def _judge(state: HealthState, room: ScoreRoom) -> int:
    found: int = judge(state, 0, room)
    return found


_JUDGE: Final = Kernel(_judge, "health")


def part_of(learner: Learner) -> str:
    """Return what a learner is called among the parts: ``learner:bias-0.5 bias-0.2``."""
    return "learner:" + " ".join(learner.names)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


class Health:
    """Watches the learners of a pipeline.

    A learner is broken when it says something that is not a number, or when the mean loss of its
    predictions over the last `WINDOW` matured arrivals is more than `RATIO` times the base's, both
    over those arrivals and as it usually is (a base that happens to be nearly perfect for a while
    breaks nobody), or when the norm of its gradient is no finite number or `GRADIENT_RATIO` times
    what it usually is. It is then restored from its last good snapshot, and the base stands in for
    it over the next `WINDOW` matured arrivals, while it goes on learning. A family of experts is
    restored as a whole; the base stands in for the broken one only.

    A learner that raises an exception (`attempt`) is taken out in the same way, with all its
    experts: what it was doing may be half done. One that cannot be restored is reset; while that
    raises, too, it is lost: nothing is asked of it, and it is tried again after every `WINDOW`
    matured arrivals.

    Parameters
    ----------
    learners : sequence of Learner
        Built. Their states now are the first good snapshots.
    faults : Faults, optional
        Where exceptions are counted and logged.
    unbuilt : sequence of int
        Learners whose building raised: lost from the start.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        faults: Faults | None = None,
        unbuilt: Sequence[int] = (),
    ) -> None:
        self.learners = learners
        self.faults = faults or Faults()
        self.lost = np.zeros(len(learners), np.bool_)
        self.lost[list(unbuilt)] = True
        # expert -> its learner
        self.owner = [i for i, learner in enumerate(learners) for _ in learner.names]
        k = len(self.owner)
        self.good: list[dict[str, Any] | None] = [self.snapshot(i) for i in range(len(learners))]
        # Snapshots on probation.
        self.candidates: list[dict[str, Any] | None] = [None for _ in learners]
        whole = np.int64
        self.state = HealthState(
            np.zeros((1, WINDOW, k + 1)), np.zeros((1, k), whole), np.zeros((1, k), whole),
            np.zeros(1), np.zeros(1, whole), np.zeros(1, whole),
        )  # fmt: skip
        self.room = empty_room(k + 1, 1, 1)
        self.benched[[self.lost[owner] for owner in self.owner]] = WINDOW
        self.usual_norm = np.zeros(len(learners))  # running means of the gradients' norms
        self.steps = np.zeros(len(learners), np.int64)

    @property
    def losses(self) -> Array:
        """The mean losses of the last matured arrivals, (WINDOW, 1 + experts)."""
        losses: Array = self.state.losses[0]
        return losses

    @property
    def seen(self) -> Any:
        """Matured arrivals since each expert was taken out, (experts,), up to `WINDOW`."""
        return self.state.seen[0]

    @property
    def benched(self) -> Any:
        """Matured arrivals for which each expert still stays out, (experts,)."""
        return self.state.benched[0]

    @property
    def usual(self) -> float:
        """The running mean of the base's loss."""
        return float(self.state.usual[0])

    @usual.setter
    def usual(self, value: float) -> None:
        self.state.usual[0] = value

    @property
    def count(self) -> int:
        """Matured arrivals so far."""
        return int(self.state.count[0])

    @count.setter
    def count(self, value: int) -> None:
        self.state.count[0] = value

    @property
    def grace(self) -> int:
        """Matured arrivals that may be of predictions from before the learners were built."""
        return int(self.state.grace[0])

    @grace.setter
    def grace(self, value: int) -> None:
        self.state.grace[0] = value

    def check_predictions(self, experts: Array) -> list[int]:
        """Let the base stand in where needed; changes `experts` (1 + experts, rows, columns) in
        place.

        Returns
        -------
        list of int
            Experts (the base is 0) that were taken out just now.
        """
        broken: list[int] = []
        if not np.isfinite(experts).all():
            bad = ~np.isfinite(experts[1:]).all(axis=(1, 2)) & ~self.lost[self.owner]
            broken = [int(k) + 1 for k in np.flatnonzero(bad & (self.benched == 0))]
            for k in np.flatnonzero(bad):
                self.set_back(int(k))
        self.stand_in(experts)
        return broken

    def stand_in(self, experts: Array) -> None:
        """Put the base in place of the experts that are out or not finite, in `experts`; nothing
        else changes."""
        out = self.benched > 0
        if not np.isfinite(experts).all():
            out = out | ~np.isfinite(experts[1:]).all(axis=(1, 2))
        if out.any():
            experts[1:][out] = experts[0]

    def check_losses(self, losses: Array) -> list[int]:
        """Compare the mean losses (1 + experts,) of one matured arrival; return the experts taken
        out."""
        self.room.means[...] = losses
        _JUDGE(self.state, self.room)
        broken = [int(k) for k in np.flatnonzero(self.room.broken)]
        for k in broken:
            self.set_back(k)
        self.keep_snapshots()
        self._try_lost()
        return [k + 1 for k in broken]

    def check_gradient(self, i: int) -> list[int]:
        """Look at the gradient of the step that learner `i` has just made; return the experts
        taken out."""
        norm, out = self.attempt(i, lambda: _number(self.learners[i].take_gradient_norm()))
        if norm is None or self.is_usual(i, norm):
            return out
        return self.take_out(i)

    def is_usual(self, i: int, norm: float) -> bool:
        """Return whether a gradient of learner `i` is about as long as usual, and remember it."""
        usual, ripe = float(self.usual_norm[i]), self.steps[i] >= WINDOW
        if not np.isfinite(norm) or (ripe and usual > 0.0 and norm > GRADIENT_RATIO * usual):
            return False
        self.steps[i] += 1
        self.usual_norm[i] += (norm - usual) / min(int(self.steps[i]), USUAL_OF)
        return True

    # -- exceptions

    def attempt(self, i: int, call: Callable[[], T]) -> tuple[T | None, list[int]]:
        """Return what `call` returns, and the experts that were taken out because it raised; it is
        of learner `i`.

        Parameters
        ----------
        i : int
            A learner's place. Of one that is lost nothing is called.
        call : callable () -> T
        """
        if self.lost[i]:
            return None, []
        try:
            return call(), []
        except Exception as error:
            self.faults.note(part_of(self.learners[i]), error)
            return None, self.take_out(i)

    def _attempted(self, i: int, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except Exception as error:
            self.faults.note(part_of(self.learners[i]), error)
            return None

    def take_out(self, i: int) -> list[int]:
        """Restore learner `i` and let the base stand in for all its experts; return those that
        were not out before."""
        fresh = self.bench(i)
        self.restore(i)
        return fresh

    def bench(self, i: int) -> list[int]:
        """Let the base stand in for all experts of learner `i`; return those that were not out
        before."""
        experts = [k for k, owner in enumerate(self.owner) if owner == i]
        fresh = [k for k in experts if self.benched[k] == 0]
        for k in experts:
            self._bench(k)
        return [k + 1 for k in fresh]

    def snapshot(self, i: int) -> dict[str, Any] | None:
        """Return a snapshot of learner `i`; None where it is lost, or cannot make one."""
        return None if self.lost[i] else self._attempted(i, self.learners[i].snapshot)

    def snapshots(self) -> list[dict[str, Any] | None]:
        """Return what is to be saved of each learner; one that cannot tell its state goes back to
        its last good one."""
        found = [self.snapshot(i) for i in range(len(self.learners))]
        for i, snapshot in enumerate(found):
            if snapshot is None and not self.lost[i]:
                self.take_out(i)
                found[i] = self.good[i]
        return found

    def restore(self, i: int) -> None:
        """Bring learner `i` back to its last good snapshot, or to its start; where both raise it
        is lost."""
        learner, good = self.learners[i], self.good[i]
        self.candidates[i] = None
        if good is not None and self._done(i, lambda: learner.restore(good)):
            self.lost[i] = False
        else:
            self.lost[i] = not self._done(i, learner.reset)
            self.good[i] = self.snapshot(i)

    def _done(self, i: int, call: Callable[[], object]) -> bool:
        """Whether a call did not raise."""
        try:
            call()
        except Exception as error:
            self.faults.note(part_of(self.learners[i]), error)
            return False
        return True

    def _try_lost(self) -> None:
        for i in np.flatnonzero(self.lost):
            experts = [k for k, owner in enumerate(self.owner) if owner == i]
            if not self.benched[experts].any():
                self.take_out(int(i))

    def keep_snapshots(self) -> None:
        """Take snapshots of the healthy learners, or call the last ones good, if it is time to."""
        if self.count % SNAPSHOT_EVERY == 0:
            ill = {self.owner[k] for k in np.flatnonzero(self.benched)}
            self.candidates = [
                None if i in ill else self.snapshot(i) for i in range(len(self.learners))
            ]
        elif self.count % SNAPSHOT_EVERY == PROBATION:
            self.good = [
                c if c is not None else good
                for c, good in zip(self.candidates, self.good, strict=True)
            ]
            self.candidates = [None for _ in self.learners]

    def set_back(self, k: int) -> None:
        """Restore the learner of expert k, and let the base stand in for the expert."""
        self.restore(self.owner[k])
        self._bench(k)

    def _bench(self, k: int) -> None:
        self.benched[k] = WINDOW
        self.seen[k] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and snapshots."""
        arrays = {name: getattr(self, name).copy() for name in ARRAYS}
        snapshots = {"good": list(self.good), "candidates": list(self.candidates)}
        counts = {"count": self.count, "usual": self.usual, "grace": self.grace}
        return {**snapshots, **counts, **arrays, "lost": self.lost.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.good = list(state["good"])
        self.candidates = list(state["candidates"])
        self.count = int(state["count"])
        self.usual = float(state["usual"])
        self.grace = int(state.get("grace", 0))
        for name in ARRAYS:
            getattr(self, name)[...] = state[name]
        self.lost[...] = state.get("lost", False)  # absent in older checkpoints
