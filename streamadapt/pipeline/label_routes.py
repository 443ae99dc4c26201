"""The key of each id: a label has an id but no key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Routes"]

Newest = Callable[[str], "int | None"]


class Routes:
    """A bounded table of ids; an id is kept for twice the time-to-live, by the clock of its key.

    A key with a wrong clock, or without new entries, therefore does not expire the ids of other
    keys. Its own ids stay until there are more than `most` ids in all; then the oldest are
    evicted.

    Parameters
    ----------
    ttl : int, ns of event time
        How long a prediction waits for its label.
    most : int
        The largest number of ids.
    """

    def __init__(self, ttl: int, most: int) -> None:
        self.ttl = ttl
        self.most = most
        # id -> (key, entry's event time), oldest first
        self._of: OrderedDict[str, tuple[str, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._of)

    def find(self, id_: str, newest: Newest) -> str | None:
        """Return the key of an id, or None if it is not known any more; `newest` returns the time
        of a key's newest entry."""
        route = self._of.get(id_)
        return None if route is None or self._stale(*route, newest) else route[0]

    def add(self, id_: str, key: str, time: int, newest: Newest) -> None:
        """Add the id of an accepted entry, and evict ids that are too old."""
        self._of[id_] = key, time
        self._of.move_to_end(id_)
        while len(self._of) > self.most or self._stale(*next(iter(self._of.values())), newest):
            self._of.popitem(last=False)

    def _stale(self, key: str, time: int, newest: Newest) -> bool:
        at = newest(key)
        return at is None or at - time > 2 * self.ttl

    def state_dict(self) -> dict[str, Any]:
        """Return the table; every key is written once."""
        number = {
            key: i for i, key in enumerate(dict.fromkeys(key for key, _ in self._of.values()))
        }
        return {
            "ids": list(self._of),
            "names": list(number),
            "keys": np.array([number[key] for key, _ in self._of.values()], np.int32),
            "times": np.array([time for _, time in self._of.values()], np.int64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        names = state["names"]
        rows = zip(state["ids"], state["keys"], state["times"], strict=True)
        self._of = OrderedDict((id_, (names[int(key)], int(time))) for id_, key, time in rows)
