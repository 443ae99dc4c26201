"""Which key an id belongs to: labels carry an id and no key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Routes"]

Newest = Callable[[str], "int | None"]


class Routes:
    """A bounded table of ids, as long-lived as a task's own: twice the time-to-live, by the clock
    of the id's own key.

    A key whose clock is wrong, or that has fallen silent, thus takes no other key's ids with it;
    its own stay until there are `most` ids in all, when the oldest go.

    Parameters
    ----------
    ttl : int, ns of event time
        How long a prediction waits for its label.
    most : int
        At most so many ids.
    """

    def __init__(self, ttl: int, most: int) -> None:
        self.ttl = ttl
        self.most = most
        self._of: OrderedDict[str, tuple[str, int]] = (
            OrderedDict()
        )  # id -> (key, entry's event time), oldest first

    def __len__(self) -> int:
        return len(self._of)

    def find(self, id_: str, newest: Newest) -> str | None:
        """Return the key of an id, if it is known still; `newest` tells the time of a key's newest
        entry."""
        found = self._of.get(id_)
        return None if found is None or self._stale(*found, newest) else found[0]

    def add(self, id_: str, key: str, time: int, newest: Newest) -> None:
        """Note an accepted entry's id, and forget what is too old."""
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
