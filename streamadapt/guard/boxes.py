"""Holders that hand many arrays to a kernel as one pointer: numba's form of `Event` and
`Parts`."""

from __future__ import annotations

from typing import Any

from numba.core.types import StructRef
from numba.experimental import structref

from streamadapt.guard.event import Event, Parts
from streamadapt.holders import holder_of

__all__ = ["event_box", "parts_box"]


@structref.register
class EventType(StructRef):  # type: ignore[misc]
    """The type of a `EventBox`."""


class EventBox(structref.StructRefProxy):  # type: ignore[misc]
    """An `Event`."""


@structref.register
class PartsType(StructRef):  # type: ignore[misc]
    """The type of a `PartsBox`."""


class PartsBox(structref.StructRefProxy):  # type: ignore[misc]
    """A guard's `Parts`."""


event_box = holder_of(Event._fields, EventType, EventBox)
_parts_box = holder_of(Parts._fields, PartsType, PartsBox)


def parts_box(parts: Parts) -> Any:
    """Return a holder of a guard's parts."""
    return _parts_box(parts, type(parts.state).__qualname__)
