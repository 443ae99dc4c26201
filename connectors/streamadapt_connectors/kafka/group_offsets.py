"""The offsets that a consumer group has, against the checkpoints, which decide where to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kafka import TopicPartition

__all__ = ["OWN_COMMIT", "moved_by_others", "moved_text"]

OWN_COMMIT: Final = "streamadapt"
"""The metadata of our own commits: an offset without it was set by somebody else, such as an
operator's tool."""
SHOWN: Final = 3


def moved_by_others(
    placed: Mapping[TopicPartition, int], committed: Mapping[TopicPartition, Any]
) -> dict[Any, int]:
    """Return the group's offsets that differ from where reading begins, but for our own that lag
    behind.

    A commit follows its checkpoint, so after a crash it may be missing. One that is ahead of the
    checkpoint may not.

    Parameters
    ----------
    placed : mapping of TopicPartition to int
        Where reading begins.
    committed : mapping of TopicPartition to OffsetAndMetadata
        What the group has.
    """
    return {
        at: found.offset
        for at, found in committed.items()
        if at in placed
        and found.offset >= 0
        and (
            found.offset > placed[at]
            or (found.offset < placed[at] and found.metadata != OWN_COMMIT)
        )
    }


def moved_text(
    group: str,
    moved: Mapping[TopicPartition, int],
    placed: Mapping[TopicPartition, int],
    wanted: Mapping[TopicPartition, int | None],
) -> str:
    """Return the message for the operator."""
    shown = ", ".join(
        f"{at.topic}[{at.partition}] {offset}, read from {placed[at]}"
        for at, offset in sorted(moved.items())[:SHOWN]
    )
    more = f" and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
    moves = (
        f"group {group!r} has committed offsets that are not those of the checkpoints: "
        f"{shown}{more}"
    )
    if all(wanted.get(at) is None for at in moved):
        return (
            f"{moves}; there is no checkpoint, so source.start decides: if there should be one, "
            f"stop the engine and set "
            "[checkpoint] path to the folder that has it"
        )
    return (
        f"{moves}; the checkpoints count. If somebody has reset the group's offsets, it has no "
        f"effect: to read from "
        "elsewhere, go back with 'streamadapt checkpoint rollback', or set another [checkpoint] "
        "path and source.start"
    )
