"""The arrays of a pipeline's lots: places of predictions, and room for the events of one run."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from streamadapt.compiled import ENABLED
from streamadapt.drift.signal_kernels import SignalSettings, empty_signals, signal_room
from streamadapt.guard.compiled import CompiledGuard
from streamadapt.learners.compiled import boxed as boxed_lot
from streamadapt.learners.lots import Lot
from streamadapt.models.contract import Spec
from streamadapt.models.steps import BaseSteps
from streamadapt.pipeline.lots.guard_loop import GuardLot, Judging
from streamadapt.pipeline.lots.host import Host
from streamadapt.tasks.loss_kernels import loss_settings
from streamadapt.tasks.outlier_kernels import outlier_room
from streamadapt.tasks.places import Places

__all__ = ["Room"]

FEWEST_EVENTS: Final = 8
MOST_EVENTS: Final = 1024
MOST_BYTES: Final = 64 * 2**20
"""The events of a run take at most this much memory, or there is one of them at a time."""


class Room:
    """Places for the predictions of a pipeline, and arrays for a run of events.

    Parameters
    ----------
    pipeline : Host
        Built, with learners and a guard that are compiled.
    wanted : int
        The number of events of a lot.
    places : Places, optional
        Those of an earlier room of the same pipeline.

    Attributes
    ----------
    places : Places
    size, most : int
        The most events of a run in this room, and in a larger one.
    lot, path : Lot
        The events for learners that mature by rows, and for those that mature by paths; the same
        but for forecasts. Their outputs are shared.
    guard_lot : GuardLot
    """

    def __init__(self, pipeline: Host, wanted: int, places: Places | None = None) -> None:
        spec, guard = pipeline.spec, pipeline.guard
        assert spec is not None
        assert isinstance(guard, CompiledGuard)
        self.spec, self.guard, self.base = spec, guard, pipeline.base
        origin = spec.input_origin
        self.input_origin = np.zeros(spec.channels) if origin is None else origin.cpu().numpy()
        self.known = np.zeros(spec.channels, np.bool_)
        judged, estimate = guard.judged, pipeline.label_requests.estimate
        self.estimate_room: Any = None
        if estimate is not None:
            self.estimate_room = estimate.room(len(pipeline.names), spec.columns)
        self.signal_room = signal_room(spec.rows, judged)
        self.signals = empty_signals(judged)
        self.base_rows = np.zeros((1, spec.rows, spec.columns))
        loss = loss_settings(guard.loss)
        self.signal_settings = SignalSettings(loss, spec.kind == "classification")
        self.outlier_room = outlier_room()
        self.unit = np.zeros((1, judged))
        self.answer = np.zeros((spec.rows, spec.columns))
        self.experts = len(pipeline.names)
        self.names = [learner.names for learner in pipeline.learners]
        self.firsts = [sum(map(len, self.names[:i])) for i in range(len(self.names))]
        self.kept = pipeline.intervals.kept
        self.interval = np.zeros((self.kept, spec.rows, spec.columns))
        self.places = places or Places(
            spec.window, spec.channels, spec.rows, spec.columns, self.experts,
            self.kept + guard.n_aggregators, spec.embedding or 0,
            len(pipeline.label_requests.blank()),
        )  # fmt: skip
        cells = spec.rows * spec.columns
        each = 8 * cells * (self.experts + 8) + self.places.bytes_each
        self.most = max(1, min(MOST_EVENTS, MOST_BYTES // each))
        self.size = min(self.most, max(FEWEST_EVENTS, 2 * wanted))
        self._make_lots(spec)
        self._make_judging(pipeline)
        self._boxed_for: Any = None

    def _make_lots(self, spec: Spec) -> None:
        n, shape = self.size, (spec.rows, spec.columns)
        kinds, keys, at = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
        outputs = np.zeros((n, self.experts - 1, *shape))
        boosts, places = np.ones(n), self.places
        self._arrays = {
            name: Lot(
                kinds if name == "rows" else kinds.copy(), keys,
                at if name == "rows" else at.copy(), places.windows, places.times,
                places.embeddings, np.zeros((n, *shape)), np.zeros((n, *shape)),
                np.zeros((n, *shape), np.bool_), np.ones(n), boosts, outputs,
            )
            for name in (("rows", "path") if spec.kind == "forecast" else ("rows",))
        }  # fmt: skip
        self._guard_lot = GuardLot(
            kinds, at, np.zeros((n, spec.rows), np.int64), outputs, np.zeros((n, *shape)),
            np.zeros((n, *shape), np.bool_), np.ones(n), np.zeros((n, self.experts)),
            np.zeros((n, spec.rows, self.guard.judged)), places.experts, places.own,
        )  # fmt: skip

    def _make_judging(self, pipeline: Host) -> None:
        health, scores, spec = pipeline.health, pipeline.scores, self.spec
        assert health is not None
        origin = spec.output_origin
        self.judging = Judging(
            health.state,
            scores.room,
            np.zeros((self.experts, spec.rows, spec.columns)),
            np.zeros((self.guard.n_aggregators, spec.rows, spec.columns)),
            np.zeros(spec.columns) if origin is None else origin.cpu().numpy(),
            scores.sums,
            scores.counts,
            self.kept,
        )
        self.judging_box = boxed(self.judging)

    @property
    def lot(self) -> Lot:
        """The events for learners that mature by rows."""
        return self._arrays["rows"]

    @property
    def path(self) -> Lot:
        """The events for learners that mature by paths."""
        return self._arrays.get("path", self._arrays["rows"])

    @property
    def guard_lot(self) -> GuardLot:
        """The events for health and guard."""
        return self._guard_lot

    def base_steps(self) -> BaseSteps | None:
        """Return the base as a compiled function; None if it is none, or its `forward` was
        replaced."""
        base = self.base
        both = ("forward", "steps")
        last = next(
            kind for kind in type(base).__mro__ if any(name in vars(kind) for name in both)
        )
        own = "steps" not in vars(last) or "forward" in vars(base) or base._forward_hooks
        own = own or base._forward_pre_hooks
        return None if own else base.steps()

    def box(self) -> None:
        """Hand the arrays to the kernels; again when the places have been replaced."""
        places = self.places
        if self._boxed_for is places.experts:
            return
        for name, lot in self._arrays.items():
            self._arrays[name] = lot._replace(
                windows=places.windows, times=places.times, embeddings=places.embeddings
            )
        self._guard_lot = self._guard_lot._replace(experts=places.experts, own=places.own)
        self.lot_box = boxed_lot(self.lot)
        self.path_box = self.lot_box if self.path is self.lot else boxed_lot(self.path)
        self.guard_box = boxed(self._guard_lot)
        self._boxed_for = places.experts


def boxed(fields: GuardLot | Judging) -> Any:
    """Return numba's holder of many arrays, or the tuple itself if nothing is compiled."""
    if not ENABLED:
        return fields
    from streamadapt.pipeline.lots.boxes import guard_lot_box, judging_box

    return guard_lot_box(fields) if isinstance(fields, GuardLot) else judging_box(fields)
