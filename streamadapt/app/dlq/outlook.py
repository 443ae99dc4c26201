"""Predicts how the engine will treat repaired records, from the newest checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from streamadapt.app.dlq.listing import when
from streamadapt.build import make_pipeline, time_limits
from streamadapt.config.tables import Config
from streamadapt.engine.merge import Merge
from streamadapt.errors import CheckpointError, EntryError
from streamadapt.pipeline.pipeline import Pipeline
from streamadapt.records import DeadLetter, Entry, Label, Record
from streamadapt.state.folder import folder_of
from streamadapt.state.store import CheckpointStore

__all__ = ["Decoded", "Outlook", "outlook"]


class Decoded(NamedTuple):
    """A repaired record, its line number, and the item that the codec decoded from it."""

    number: int
    record: Record
    item: Entry | Label


class Outlook(NamedTuple):
    """The expected result of a replay.

    Attributes
    ----------
    refused : dict of int to str
        Line number -> the reason for which the engine will refuse the record again.
    notes : list of str
        Warnings for the user, to read before sending.
    """

    refused: dict[int, str]
    notes: list[str]


def outlook(config: Config, streams: Sequence[str], records: Sequence[Decoded]) -> Outlook:
    """Predict how the engine will treat these records at the end of their streams."""
    refused: dict[int, str] = {}
    notes = list(_general(config, records))
    for partition in sorted({one.record.position.partition for one in records}):
        own = [one for one in records if one.record.position.partition == partition]
        notes += _tried(config, streams, partition, own, refused)
    return Outlook(refused, notes)


def _general(config: Config, records: Sequence[Decoded]) -> Iterator[str]:
    entries = sum(isinstance(one.item, Entry) for one in records)
    if entries:
        yield (
            f"{entries} entries will be appended to the end of their stream, with their old "
            "times: an entry older than the newest one read by then is refused as "
            "time_backwards (with [panel]: late_record)"
        )
        if config.fields.get("id") is None:
            yield (
                "without fields.id the id of an entry is its position, which will be a new one: "
                "labels with the old id will not match it"
            )
    if entries < len(records):
        yield (
            f"{len(records) - entries} labels will be learned at their new place, after the "
            "labels that were learned meanwhile, and only if their predictions still wait "
            "(task.ttl)"
        )


def _tried(
    config: Config,
    streams: Sequence[str],
    partition: int,
    records: Sequence[Decoded],
    refused: dict[int, str],
) -> Iterator[str]:
    """Run the records through a pipeline restored from its newest checkpoint; yield warnings for
    the user."""
    name = f"{streams[0]}[{partition}]"
    if config.checkpoint is None:
        yield f"{name}: no [checkpoint]: cannot predict which records will be refused again"
        return
    if config.keys is not None:
        yield f"{name}: with [keys], refusals are not predicted"
        return
    store = CheckpointStore(folder_of(config.checkpoint.path).child(f"{streams[0]}-{partition}"))
    try:
        loaded = store.load_latest(config.digest())
        if loaded is None:
            yield (
                f"{name}: no checkpoint in {store.folder}: cannot predict which records will be "
                f"refused again"
            )
            return
        pipeline = make_pipeline(config)
        assert isinstance(pipeline, Pipeline), "no [keys]"
        pipeline.load_state_dict(loaded.state)
    except CheckpointError as error:
        yield f"{name}: cannot predict which records will be refused again: {error}"
        return
    merge = Merge(len(streams), 0.0, *time_limits(config))
    merge.start_from(pipeline.task.clock)
    pipeline.task.clock.doubts = False  # as in the engine: the merge judges jumps in time
    _run(pipeline, merge, streams, records, refused)
    positions = ", ".join(f"{at}@{offset}" for at, offset in loaded.positions.items())
    yield (
        f"{name}: refusals were predicted from the checkpoint of {when(loaded.info.time_ns)} UTC, "
        f"at {positions}; records read since then can change them"
    )


def _run(
    pipeline: Pipeline,
    merge: Merge,
    streams: Sequence[str],
    records: Sequence[Decoded],
    refused: dict[int, str],
) -> None:
    number = 0

    def on_rejected(item: Any, error: EntryError) -> None:
        del item
        refused[number] = f"{error.reason.value}: {error.detail}"

    pipeline.on_rejected = on_rejected
    by_record = {id(one.record): one.number for one in records}
    for one in records:
        merge.offer(streams.index(one.record.position.stream), one.record, one.item, 0.0)
    for arrived in merge.release(0.0, len(records), ended=True):
        number = by_record[id(arrived.record)]
        if isinstance(arrived.item, DeadLetter):
            refused[number] = f"{arrived.item.reason}: {arrived.item.detail}"
        else:
            pipeline.observe((arrived.item,))
