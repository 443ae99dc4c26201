"""Importing this module adds all cases to `parity.case.CASES`."""

from __future__ import annotations

from parity import guard_cases, learner_cases, other_cases
from parity.case import CASES

__all__ = ["CASES"]
_ = guard_cases, learner_cases, other_cases
