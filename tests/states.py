"""Comparing state trees bit for bit, as the benchmark of faults does."""

from __future__ import annotations

from benchmarks.faults.states import assert_same_state, canonical, differing, flat

__all__ = ["assert_same_state", "canonical", "differing", "flat"]
