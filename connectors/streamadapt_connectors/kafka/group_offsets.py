"""Compares the offsets of a consumer group with the checkpoints, which decide where to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kafka import TopicPartition

__all__ = ["OWN_COMMIT", "moved_by_others", "moved_text"]

OWN_COMMIT: Final = "streamadapt"
"""The metadata of our own commits: an offset without it was set by another program, such as an
operator's tool."""
SHOWN: Final = 3


def moved_by_others(
    placed: Mapping[TopicPartition, int], committed: Mapping[TopicPartition, Any]
) -> dict[Any, int]:
    """Return the group's offsets that differ from the positions where reading begins, except our
    own commits that are behind.

    A commit follows its checkpoint, so after a crash it may be missing. But our own commit cannot
    be ahead of the checkpoint.

    Parameters
    ----------
    placed : mapping of TopicPartition to int
        The positions where reading begins.
    committed : mapping of TopicPartition to OffsetAndMetadata
        The offsets of the group.
    """
    return {
        at: commit.offset
        for at, commit in committed.items()
        if at in placed
        and commit.offset >= 0
        and (
            commit.offset > placed[at]
            or (commit.offset < placed[at] and commit.metadata != OWN_COMMIT)
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
            f"{moves}; there is no checkpoint, so source.start decides: if there should be a "
            "checkpoint, stop the engine and set [checkpoint] path to its folder"
        )
    return (
        f"{moves}; the checkpoints decide. A reset of the group's offsets has no effect: to read "
        "from another position, use 'streamadapt checkpoint rollback', or set another "
        "[checkpoint] path and source.start"
    )
