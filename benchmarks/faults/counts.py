"""Counts for every kind of fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Counts"]


@dataclass
class Counts:
    """One kind of fault, over all its trials.

    Attributes
    ----------
    tried, survived : int
        Faults caused; those after which the engine ended as an undisturbed one, or refused as it
        should.
    lost, doubled : int
        Predictions that a reader of the output never sees; that it sees more than once.
    state_differs : int
        Trials whose final state is not, bit for bit, that of an undisturbed run.
    more : mapping
        Further figures of this kind, as JSON values.
    """

    tried: int = 0
    survived: int = 0
    lost: int = 0
    doubled: int = 0
    state_differs: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    def compare(self, wanted: Mapping[str, object], seen: Mapping[str, int]) -> None:
        """Count lost and doubled predictions: `wanted` by id, and the number of times that a
        reader saw each id."""
        self.lost += sum(1 for name in wanted if not seen.get(name))
        self.doubled += sum(count - 1 for count in seen.values() if count > 1)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        five = ("tried", "survived", "lost", "doubled", "state_differs")
        return {name: getattr(self, name) for name in five} | self.more
