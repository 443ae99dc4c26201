"""Holders that hand many arrays to a kernel as one pointer: numba's form of `Lot` and `Parts`."""

from __future__ import annotations

from typing import Any

from numba.core.types import StructRef
from numba.experimental import structref

from streamadapt.holders import holder_of
from streamadapt.learners.lots import Lot, Parts

__all__ = ["lot_box", "parts_box"]


@structref.register
class LotType(StructRef):  # type: ignore[misc]
    """The type of a `LotBox`."""


class LotBox(structref.StructRefProxy):  # type: ignore[misc]
    """A `Lot`."""


@structref.register
class PartsType(StructRef):  # type: ignore[misc]
    """The type of a `PartsBox`."""


class PartsBox(structref.StructRefProxy):  # type: ignore[misc]
    """A `Parts`."""


lot_box = holder_of(Lot._fields, LotType, LotBox)
_parts_box = holder_of(Parts._fields, PartsType, PartsBox)


def parts_box(parts: Parts) -> Any:
    """Return a holder of a learner's parts."""
    return _parts_box(parts, type(parts.state).__qualname__)
