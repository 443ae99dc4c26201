"""The amount of work of the process-heavy tests: a little in CI, everything with ``make
test-faults``."""

from __future__ import annotations

import os
from typing import TypeVar

__all__ = ["IN_FULL", "trials"]

T = TypeVar("T")

IN_FULL = os.environ.get("STREAMADAPT_FAULTS") == "full"


def trials(reduced: T, full: T) -> T:
    """Return the number of trials for this run."""
    return full if IN_FULL else reduced
