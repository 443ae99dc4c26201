"""Holders that hand many arrays to a kernel as one pointer: numba's form of `Event` and
`Parts`."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba.core.types import StructRef
from numba.experimental import structref

from streamadapt.compiled import Kernel
from streamadapt.guard.event import Event, Parts

__all__ = ["event_box", "parts_box"]


@structref.register
class EventType(StructRef):  # type: ignore[misc]
    """The type of an `EventBox`."""


@structref.register
class PartsType(StructRef):  # type: ignore[misc]
    """The type of a `PartsBox`."""


class EventBox(structref.StructRefProxy):  # type: ignore[misc]
    """An `Event`."""


class PartsBox(structref.StructRefProxy):  # type: ignore[misc]
    """A guard's `Parts`."""


structref.define_proxy(EventBox, EventType, list(Event._fields))
structref.define_proxy(PartsBox, PartsType, list(Parts._fields))


@cache
def _event_maker() -> Kernel:
    def make(experts: Any, own: Any, shares: Any, target: Any, mask: Any) -> Any:
        return EventBox(experts, own, shares, target, mask)

    return Kernel(make, f"a holder of {Event._fields}")


@cache
def _parts_maker(guard: str) -> Kernel:
    def make(c: Any, p: Any, s: Any, w: Any) -> Any:
        return PartsBox(c, p, s, w)

    return Kernel(make, f"a holder of {Parts._fields} for {guard}")


def event_box(event: Event) -> Any:
    """Return a holder of an event."""
    return _event_maker().call(*event)


def parts_box(parts: Parts) -> Any:
    """Return a holder of a guard's parts: made in a kernel, since numba would compile the
    holder's constructor in each process."""
    return _parts_maker(type(parts.state).__qualname__).call(*parts)
