"""Decides, for each repaired record, whether it goes back to its stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streamadapt.app.dlq.listing import when
from streamadapt.app.dlq.outlook import Decoded
from streamadapt.app.dlq.repaired import RepairedLine
from streamadapt.app.terminal import progress
from streamadapt.engine.dead_letter_ports import DeadLetterReader, StoredLetter
from streamadapt.engine.dead_letters import ReplayLedger
from streamadapt.errors import EntryError, Reason
from streamadapt.records import Entry, Label, Position, Record

__all__ = ["Letters", "Line", "Verdicts", "judge", "read_letters"]


class Line(NamedTuple):
    """A line of the file, and the message about it."""

    number: int
    position: Position
    message: str


@dataclass
class Letters:
    """What the place of the dead letters holds.

    Attributes
    ----------
    place : str
        The name of the place.
    ledger : ReplayLedger
        The records that were replayed, and those that may have been.
    refused : set of Position
        The records that have a dead letter.
    refused_labels : set of Position
        Those of them whose entry was predicted, and only whose label was refused.
    """

    place: str
    ledger: ReplayLedger = field(default_factory=ReplayLedger)
    refused: set[Position] = field(default_factory=set)
    refused_labels: set[Position] = field(default_factory=set)


@dataclass
class Verdicts:
    """The repaired records by what happens to them, each list in the order of the file.

    Attributes
    ----------
    ready : list of Decoded
        To be sent.
    bad : list of Line
        Still refused by the codec.
    perhaps : list of Line
        Perhaps sent by a replay that was interrupted.
    before : list of Line
        Sent by an earlier replay.
    unknown : list of Line
        Ready, but without a dead letter.
    """

    ready: list[Decoded] = field(default_factory=list)
    bad: list[Line] = field(default_factory=list)
    perhaps: list[Line] = field(default_factory=list)
    before: list[Line] = field(default_factory=list)
    unknown: list[Line] = field(default_factory=list)


def read_letters(reader: DeadLetterReader) -> Letters:
    """Read all dead letters and replay marks; `ConnectorError` if they cannot be read."""
    letters = Letters(reader.name)
    with progress(f"{reader.name}: what was fed back") as on_progress:
        for item in reader.read(on_progress):
            if not isinstance(item, StoredLetter):
                letters.ledger.take(item)
                continue
            letters.refused.add(item.letter.record.position)
            if item.letter.stage == "label":
                letters.refused_labels.add(item.letter.record.position)
    return letters


def judge(
    repaired: Iterable[RepairedLine], codec: Any, letters: Letters, *, again: bool
) -> Verdicts:
    """Decode the records, and look up each in the ledger of earlier replays.

    Parameters
    ----------
    again : bool
        Send also what was, or may have been, sent before.
    """
    verdicts = Verdicts()
    ledger = letters.ledger
    for number, record in repaired:
        at = record.position
        try:
            decoded = _decoded(number, record, codec, only_label=at in letters.refused_labels)
        except EntryError as error:
            message = f"still bad: {error.reason.value}: {error.detail}"
            verdicts.bad.append(Line(number, at, message))
            continue
        if at in ledger.perhaps and not again:
            message = (
                f"perhaps fed back already, {when(ledger.perhaps[at])} UTC: that replay "
                f"broke off; look at the end of {at.stream}, then --again"
            )
            verdicts.perhaps.append(Line(number, at, message))
            continue
        if at in ledger.sent and not again:
            message = f"fed back before, {when(ledger.sent[at])} UTC (--again sends it)"
            verdicts.before.append(Line(number, at, message))
            continue
        verdicts.ready.append(decoded)
        if at not in letters.refused:
            message = f"is no dead letter that {letters.place} still holds"
            verdicts.unknown.append(Line(number, at, message))
    return verdicts


def _decoded(number: int, record: Record, codec: Any, *, only_label: bool) -> Decoded:
    """Return what goes back to the stream; if the entry was predicted, only its label."""
    if only_label and hasattr(codec, "label_alone"):
        record = codec.label_alone(record)
    item: Entry | Label = codec.decode(record)
    if isinstance(item, Entry) and only_label:
        raise EntryError(
            Reason.DUPLICATE_ID,
            "the entry itself was predicted, and would come twice",
            record.position,
        )
    if isinstance(item, Entry) and item.refused is not None:
        raise EntryError(item.refused.reason, f"its label: {item.refused.detail}", record.position)
    return Decoded(number, record, item)
