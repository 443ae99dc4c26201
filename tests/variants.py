"""Parameters of which a few run in every run of the tests, and all in `make test-slow`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def variants(values: Iterable[Any], *, quick: int = 1) -> list[Any]:
    """Mark all values but the first `quick` as slow; a tuple is one set of parameters."""
    found = list(values)
    slow = [
        pytest.param(*value, marks=pytest.mark.slow)
        if isinstance(value, tuple)
        else pytest.param(value, marks=pytest.mark.slow)
        for value in found[quick:]
    ]
    return [*found[:quick], *slow]
