"""Holders that hand many arrays to a kernel as one pointer: numba's form of `GuardLot` and
`Judging`."""

from __future__ import annotations

from numba.core.types import StructRef
from numba.experimental import structref

from streamadapt.holders import holder_of
from streamadapt.pipeline.lots.guard_loop import GuardLot, Judging

__all__ = ["guard_lot_box", "judging_box"]


@structref.register
class GuardLotType(StructRef):  # type: ignore[misc]
    """The type of a `GuardLotBox`."""


class GuardLotBox(structref.StructRefProxy):  # type: ignore[misc]
    """A `GuardLot`."""


@structref.register
class JudgingType(StructRef):  # type: ignore[misc]
    """The type of a `JudgingBox`."""


class JudgingBox(structref.StructRefProxy):  # type: ignore[misc]
    """A `Judging`."""


guard_lot_box = holder_of(GuardLot._fields, GuardLotType, GuardLotBox)
judging_box = holder_of(Judging._fields, JudgingType, JudgingBox)
