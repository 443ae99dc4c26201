"""Holders that hand many arrays to a kernel as one pointer: numba's form of `Lot` and `Parts`."""

from __future__ import annotations

from typing import Any

from numba.core.types import StructRef
from numba.experimental import structref

from streamadapt.learners.lots import Lot, Parts

__all__ = ["lot_box", "parts_box"]


@structref.register
class LotType(StructRef):  # type: ignore[misc]
    """The type of a `LotBox`."""


@structref.register
class PartsType(StructRef):  # type: ignore[misc]
    """The type of a `PartsBox`."""


class LotBox(structref.StructRefProxy):  # type: ignore[misc]
    """A `Lot`."""

    def __new__(cls, *fields: Any) -> Any:
        return structref.StructRefProxy.__new__(cls, *fields)


class PartsBox(structref.StructRefProxy):  # type: ignore[misc]
    """A `Parts`."""

    def __new__(cls, *fields: Any) -> Any:
        return structref.StructRefProxy.__new__(cls, *fields)


structref.define_proxy(LotBox, LotType, list(Lot._fields))
structref.define_proxy(PartsBox, PartsType, list(Parts._fields))


def lot_box(lot: Lot) -> Any:
    """Return a holder of a lot."""
    return LotBox(*lot)


def parts_box(parts: Parts) -> Any:
    """Return a holder of a learner's parts."""
    return PartsBox(*parts)
