"""Labels that are known and not yet learned: later labels of the same entry are merged into
them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamadapt.records import FloatArray

__all__ = ["PendingLabel", "PendingLabels", "Queue"]

UNKNOWN = -(2**63)


@dataclass(slots=True)
class PendingLabel:
    """A label of one entry that is known, in whole or in part, and not yet learned.

    Attributes
    ----------
    value : ndarray, (outputs,), float64
        NaN for an output that is not known.
    times : ndarray, (outputs,), int64, ns
        The time of the label that gave each value; of two labels the later one counts, in whatever
        order they arrive. `UNKNOWN` for an output that is not known.
    due : int, ns
        The event time at which the label is learned.
    """

    value: FloatArray
    times: npt.NDArray[np.int64]
    due: int

    @classmethod
    def of(cls, value: FloatArray, time: int, due: int) -> PendingLabel:
        """Return the pending label of an entry's first label."""
        return cls(
            value.astype(np.float64),
            np.where(np.isnan(value), UNKNOWN, time).astype(np.int64),
            due,
        )

    def changed_outputs(self, value: FloatArray, time: int) -> npt.NDArray[np.bool_]:
        """Return which outputs a further label would change, (outputs,)."""
        newer: npt.NDArray[np.bool_] = (
            ~np.isnan(value) & (time >= self.times) & (value != self.value)
        )
        return newer

    def merge(self, value: FloatArray, time: int, due: int) -> bool:
        """Merge a further label; return whether the two labels differ in a known output."""
        newer = self.changed_outputs(value, time)
        differs = bool((~np.isnan(value) & ~np.isnan(self.value) & (value != self.value)).any())
        self.value = np.where(newer, value, self.value)
        self.times = np.where(newer, time, self.times)
        self.due = min(self.due, due)
        return differs


class PendingLabels(dict[str, PendingLabel]):
    """Pending labels by entry id, in the order of their first arrival."""

    def pack(self) -> dict[str, Any] | None:
        """Return the saved form, with one row per label; None if there are none."""
        if not self:
            return None
        return {
            "ids": list(self),
            "dues": [held.due for held in self.values()],
            "values": np.stack([held.value for held in self.values()]),
            "times": np.stack([held.times for held in self.values()]),
        }

    @classmethod
    def unpack(cls, state: dict[str, Any] | None) -> PendingLabels:
        """Return what `pack` saved."""
        held = cls()
        for i, id_ in enumerate(() if state is None else state["ids"]):
            assert state is not None
            value, times = (
                np.array(state["values"][i], np.float64),
                np.array(state["times"][i], np.int64),
            )
            held[id_] = PendingLabel(value, times, int(state["dues"][i]))
        return held


class Queue:
    """A queue of ids, ordered by the event time at which they are due, then by the time of the
    entry, then by id.

    The order does not depend on the order of insertion. The queue may contain items that are no
    longer due; its owner checks each item.
    """

    def __init__(self, items: Iterable[tuple[int, int, str, bool]] = ()) -> None:
        self.items = list(items)
        heapq.heapify(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def push(self, due: int, entry_time: int, id_: str, is_label: bool) -> None:
        """Insert one item."""
        heapq.heappush(self.items, (due, entry_time, id_, is_label))

    def pop_due(self, now: int) -> Iterator[tuple[int, str, bool]]:
        """Remove and yield the items that are due by `now`, in order: (due time, id, whether a
        label is due)."""
        while self.items and self.items[0][0] <= now:
            due, _, id_, is_label = heapq.heappop(self.items)
            yield due, id_, is_label
