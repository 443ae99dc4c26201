"""``streamadapt dlq list``: dead letters as a table, or as lines of JSON that can be repaired."""

from __future__ import annotations

import heapq
import json
import re
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamadapt.app.terminal import progress, safe
from streamadapt.build import make_letter_reader
from streamadapt.config.convert import did_you_mean
from streamadapt.config.durations import duration_ns
from streamadapt.config.tables import Config
from streamadapt.engine.dead_letter_ports import FOREIGN, DeadLetterReader, StoredLetter
from streamadapt.engine.dead_letters import ReplayLedger, stored_fields
from streamadapt.errors import ConfigError, Reason
from streamadapt.records import Position
from streamadapt.wiring import source_class

__all__ = ["Wanted", "json_line", "preview", "print_lines", "print_table", "when"]

PREVIEW = 100
DETAIL = 300
PIPE_WIDTH = 120
NOT_PLAIN = re.compile(r"[^ -~]")
NO_CLOCK_NS = 10**15
"""A smaller time stamp (before 12 January 1970) is not a time: lines of files have no time stamps,
and are numbered instead."""


@dataclass(frozen=True)
class Wanted:
    """Selects the letters to show.

    Attributes
    ----------
    reasons : frozenset of str
        The reasons to show; empty for all.
    since : int, ns since the Unix epoch
        Compared with the time stamp of the refused record.
    replayed : bool
        Whether to show also records that were fed back.
    """

    reasons: frozenset[str] = frozenset()
    since: int = -(2**63)
    replayed: bool = False

    @classmethod
    def of(
        cls, config: Config, reasons: Sequence[str], since: str | None, *, replayed: bool
    ) -> Wanted:
        """Check and convert the options; raises `ConfigError`."""
        known = [*(reason.value for reason in Reason), FOREIGN]
        for reason in reasons:
            if reason not in known:
                raise ConfigError(
                    "--reason", reason, f"one of {', '.join(known)}{did_you_mean(reason, known)}"
                )
        if since is None:
            return cls(frozenset(reasons), replayed=replayed)
        if not source_class(config).has_times:
            raise ConfigError(
                "--since", since, "--limit: records of files have no time stamps of their own"
            )
        return cls(frozenset(reasons), _time_of(since), replayed)

    def has(self, letter: StoredLetter) -> bool:
        """Whether reason and time match the options."""
        refused = letter.letter
        return (
            not self.reasons or refused.reason in self.reasons
        ) and refused.record.time >= self.since


def _time_of(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        try:
            return time.time_ns() - duration_ns("--since", text)
        except ConfigError:
            raise ConfigError(
                "--since", text, 'a duration ("2h") or an ISO time ("2026-05-01T12:00", UTC)'
            ) from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e9)


@dataclass
class Seen:
    """Counts the letters that were shown and left out.

    Attributes
    ----------
    reasons : Counter of str
        Reason -> number of letters to show.
    fed_back : int
        Letters left out because their records were fed back.
    again : int
        Letters left out because an earlier letter is about the same record and reason.
    """

    ledger: ReplayLedger
    reasons: Counter[str] = field(default_factory=Counter)
    fed_back: int = 0
    again: int = 0
    _known: set[tuple[Position, str]] = field(default_factory=set)

    def keep(self, stored: StoredLetter, wanted: Wanted) -> bool:
        """Return whether to show a letter, and count it."""
        at, reason = stored.letter.record.position, stored.letter.reason
        if not wanted.has(stored):
            return False
        # After a crash the engine reads and refuses records for a second time.
        if not stored.foreign and (at, reason) in self._known:
            self.again += 1
            return False
        self._known.add((at, reason))
        if at in self.ledger.sent and not wanted.replayed:
            self.fed_back += 1
            return False
        self.reasons[reason] += 1
        return True


def _shown(reader: DeadLetterReader, wanted: Wanted) -> tuple[Seen, Iterator[StoredLetter]]:
    """Return the counts and the letters to show.

    The dead letters are read twice, since a note about a replay comes after the letter.
    """
    ledger = ReplayLedger()
    with progress(f"{reader.name}: notes") as on_progress:
        for item in reader.read(on_progress):
            if not isinstance(item, StoredLetter):
                ledger.take(item)
    seen = Seen(ledger)

    def letters() -> Iterator[StoredLetter]:
        with progress(f"{reader.name}: letters") as on_progress:
            for item in reader.read(on_progress):
                if isinstance(item, StoredLetter) and seen.keep(item, wanted):
                    yield item

    return seen, letters()


def print_lines(config: Config, wanted: Wanted, limit: int | None) -> None:
    """Print each letter as one line of JSON; with a `limit`, only the newest."""
    reader = make_letter_reader(config)
    try:
        seen, letters = _shown(reader, wanted)
        lines = (_line_of(stored, seen.ledger) for stored in letters)
        for line in lines if limit is None else _newest(lines, limit):
            sys.stdout.write(line.shown + "\n")
        _note_missing(reader)
    finally:
        reader.close()


class _Line(NamedTuple):
    """What is shown of one letter, and the time and number by which letters are sorted."""

    time: int
    number: tuple[str, int, int]
    shown: Any


def _newest(lines: Iterator[_Line], limit: int) -> list[_Line]:
    return sorted(
        heapq.nlargest(limit, lines, key=lambda line: line[:2]), key=lambda line: line[:2]
    )


def _line_of(stored: StoredLetter, ledger: ReplayLedger) -> _Line:
    return _Line(
        stored.letter.record.time,
        stored.place,
        json_line(stored_fields(stored) | _fed_back(stored, ledger)),
    )


def _fed_back(stored: StoredLetter, ledger: ReplayLedger) -> dict[str, str]:
    at = stored.letter.record.position
    if at in ledger.perhaps:
        return {"replayed": f"perhaps {when(ledger.perhaps[at])}"}
    return {"replayed": when(ledger.sent[at])} if at in ledger.sent else {}


def json_line(data: dict[str, Any]) -> str:
    """Return one line of JSON that is safe to print: control characters, line breaks and
    characters that change the text's direction are escaped.

    Other characters are escaped only if standard output is not UTF-8 (`dlq replay` reads UTF-8):
    then all but ASCII.
    """
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-")
    if encoding not in ("utf-8", "utf8"):
        return json.dumps(data)
    return NOT_PLAIN.sub(_escape_steering, json.dumps(data, ensure_ascii=False))


def _escape_steering(match: re.Match[str]) -> str:
    c = match[0]
    if c == "\x7f":
        return "\\u007f"
    return json.dumps(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c


def when(time_ns: int) -> str:
    """Return a time stamp as text in UTC; a dash if it is not a time."""
    if not NO_CLOCK_NS <= time_ns < 2**63:
        return "-"
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def preview(stored: StoredLetter) -> str:
    """Return the beginning of the value as safe text."""
    value = stored.letter.record.value
    if value is None:
        return "(none)"
    if not value:
        return "(empty)"
    text = safe(value[: 4 * PREVIEW].decode("utf-8", "backslashreplace"))
    if stored.truncated is not None:
        return f"{text[:PREVIEW]}… {stored.truncated:,} bytes, cut when it was refused"
    return (
        text
        if len(text) <= PREVIEW and len(value) <= 4 * PREVIEW
        else f"{text[:PREVIEW]}… {len(value):,} bytes"
    )


def print_table(config: Config, wanted: Wanted, limit: int) -> None:
    """Print the newest letters as a table, and the number of letters for each reason."""
    reader = make_letter_reader(config)
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    try:
        seen, letters = _shown(reader, wanted)
        rows = _newest((_row_of(stored, seen.ledger) for stored in letters), limit)
        if rows:
            table = Table("reason", "where, when (UTC)", "detail, value", show_lines=True)
            table.columns[1].overflow = table.columns[2].overflow = "fold"
            for row in rows:
                table.add_row(*row.shown)
            console.print(table)
        for line in _counts(seen, len(rows), reader):
            console.print(Text(line), soft_wrap=not console.is_terminal)
        _note_missing(reader)
    finally:
        reader.close()


def _row_of(stored: StoredLetter, ledger: ReplayLedger) -> _Line:
    letter = stored.letter
    at = safe(str(letter.record.position)[:DETAIL])
    fed_back = _fed_back(stored, ledger).get("replayed")
    cells = (
        Text(f"{safe(letter.reason[:DETAIL])}\n{safe(letter.stage[:DETAIL])}"),
        Text(
            "\n".join(
                (at, when(letter.record.time), *([f"fed back {fed_back}"] if fed_back else []))
            )
        ),
        Text.assemble(safe(letter.detail[:DETAIL]), "\n", (preview(stored), "dim")),
    )
    return _Line(letter.record.time, stored.place, cells)


def _counts(seen: Seen, shown: int, reader: DeadLetterReader) -> Iterator[str]:
    total = seen.reasons.total()
    place = safe(reader.name)
    if not total:
        yield f"no dead letters to show in {place}"
    else:
        counts = ", ".join(
            f"{safe(reason[:DETAIL])} {count:,}" for reason, count in seen.reasons.most_common()
        )
        only = f", the newest {shown:,} shown" if shown < total else ""
        yield f"{total:,} in {place}: {counts}{only}"
    if seen.fed_back:
        yield f"{seen.fed_back:,} more were fed back and are left out (--all shows them)"
    if seen.again:
        yield f"{seen.again:,} more are repetitions, written after a restart"


def _note_missing(reader: DeadLetterReader) -> None:
    if reader.missing:
        sys.stderr.write(
            f"streamadapt: {safe(reader.name)} does not exist: nothing was refused yet, or dead "
            f"letters were written elsewhere\n"
        )
