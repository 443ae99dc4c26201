"""Holders that hand many arrays to a kernel as one pointer: numba's form of `Lot` and `Parts`."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba.core.types import StructRef
from numba.experimental import structref

from streamadapt.compiled import Kernel
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


class PartsBox(structref.StructRefProxy):  # type: ignore[misc]
    """A `Parts`."""


structref.define_proxy(LotBox, LotType, list(Lot._fields))
structref.define_proxy(PartsBox, PartsType, list(Parts._fields))


@cache
def _lot_maker() -> Kernel:
    def make(k: Any, keys: Any, at: Any, w: Any, t: Any, e: Any, b: Any, y: Any,  # noqa: PLR0913
             known: Any, weights: Any, boosts: Any, out: Any) -> Any:  # fmt: skip
        return LotBox(k, keys, at, w, t, e, b, y, known, weights, boosts, out)

    return Kernel(make, f"a holder of {Lot._fields}")


@cache
def _parts_maker(learner: str) -> Kernel:
    def make(c: Any, p: Any, s: Any, w: Any, first: Any, last: Any) -> Any:
        return PartsBox(c, p, s, w, first, last)

    return Kernel(make, f"a holder of {Parts._fields} for {learner}")


def lot_box(lot: Lot) -> Any:
    """Return a holder of a lot."""
    return _lot_maker().call(*lot)


def parts_box(parts: Parts) -> Any:
    """Return a holder of a learner's parts: made in a kernel, since numba would compile the
    holder's constructor in each process."""
    return _parts_maker(type(parts.state).__qualname__).call(*parts)
