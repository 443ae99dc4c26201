"""Compare a disturbed job with an undisturbed one."""

from __future__ import annotations

from typing import Any

from benchmarks.faults.counts import Counts
from benchmarks.faults.job import Job, ids
from benchmarks.faults.states import same_state

__all__ = ["compare"]


def compare(
    counts: Counts,
    job: Job,
    undisturbed: Job,
    expected: dict[str, Any],
    *,
    committed: bool = False,
) -> bool:
    """Add to `counts` the predictions that a reader misses or sees twice, and whether the final
    state differs; True if all is well.

    Parameters
    ----------
    expected : dict
        The undisturbed job's predictions, by id.
    """
    seen = job.read(committed=committed)
    lost, doubled = counts.lost, counts.doubled
    counts.compare(expected, ids(seen))
    differ = sum(one != expected.get(one["id"]) for one in seen)
    counts.more["repeats_differ"] = counts.more.get("repeats_differ", 0) + differ
    same = all(
        same_state(one, two)
        for one, two in zip(job.states().values(), undisturbed.states().values(), strict=True)
    )
    counts.state_differs += not same
    repeats_are_fine = "at-least-once" in job.guarantee
    return (
        same
        and differ == 0
        and counts.lost == lost
        and (repeats_are_fine or counts.doubled == doubled)
    )
