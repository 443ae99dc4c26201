"""Holders that hand many arrays to a kernel as one pointer: numba's form of `GuardLot` and
`Judging`."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba.core.types import StructRef
from numba.experimental import structref

from streamadapt.compiled import Kernel
from streamadapt.pipeline.lots.guard_loop import GuardLot, Judging

__all__ = ["guard_lot_box", "judging_box"]


@structref.register
class GuardLotType(StructRef):  # type: ignore[misc]
    """The type of a `GuardLotBox`."""


@structref.register
class JudgingType(StructRef):  # type: ignore[misc]
    """The type of a `JudgingBox`."""


class GuardLotBox(structref.StructRefProxy):  # type: ignore[misc]
    """A `GuardLot`."""


class JudgingBox(structref.StructRefProxy):  # type: ignore[misc]
    """A `Judging`."""


structref.define_proxy(GuardLotBox, GuardLotType, list(GuardLot._fields))
structref.define_proxy(JudgingBox, JudgingType, list(Judging._fields))


@cache
def _guard_lot_maker() -> Kernel:
    def make(k: Any, at: Any, rows: Any, out: Any, y: Any, known: Any, weights: Any,  # noqa: PLR0913
             shares: Any, scales: Any, experts: Any, own: Any) -> Any:  # fmt: skip
        return GuardLotBox(k, at, rows, out, y, known, weights, shares, scales, experts, own)

    return Kernel(make, f"a holder of {GuardLot._fields}")


@cache
def _judging_maker() -> Kernel:
    def make(h: Any, room: Any, e: Any, own: Any, o: Any, sums: Any, n: Any,
             kept: Any) -> Any:  # fmt: skip
        return JudgingBox(h, room, e, own, o, sums, n, kept)

    return Kernel(make, f"a holder of {Judging._fields}")


def guard_lot_box(lot: GuardLot) -> Any:
    """Return a holder of a lot."""
    return _guard_lot_maker().call(*lot)


def judging_box(judging: Judging) -> Any:
    """Return a holder of what the loop over a lot needs beside the guard's parts."""
    return _judging_maker().call(*judging)
