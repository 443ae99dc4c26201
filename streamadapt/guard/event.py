"""What a kernel of a guard is called with."""

from __future__ import annotations

from typing import Any, NamedTuple

from streamadapt.records import Array, Mask

__all__ = ["Event", "Parts"]


class Parts(NamedTuple):
    """All that the functions of a guard work on.

    Attributes
    ----------
    shared : Shared
    settings : NamedTuple
        Its hyper-parameters.
    state : NamedTuple
        Arrays, or NamedTuples of arrays; the first axis of each is the key.
    room : NamedTuple
        Room to work in; nothing in it lasts from one call to the next.
    """

    shared: Any
    settings: Any
    state: Any
    room: Any


class Event(NamedTuple):
    """The arrays of one call of a guard's function; see `streamadapt.guard.compiled.Steps`."""

    experts: Array
    own: Array
    shares: Array
    target: Array
    mask: Mask
