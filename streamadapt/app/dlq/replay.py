"""``streamadapt dlq replay``: reads repaired letters, checks them, and writes the valid ones back
to their streams."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streamadapt.app.dlq.outlook import Decoded, Outlook, outlook
from streamadapt.app.dlq.repaired import read_repaired
from streamadapt.app.dlq.verdicts import Line, Verdicts, judge, read_letters
from streamadapt.app.terminal import safe
from streamadapt.build import check_config, make_codec, make_letter_reader, make_stream_writer
from streamadapt.config.tables import Config
from streamadapt.engine.dead_letter_ports import (
    DeadLetterReader,
    ReplayMark,
    Returned,
    Returning,
)
from streamadapt.errors import ConfigError, ConnectorError, RepairError
from streamadapt.records import Entry, StreamPartition

__all__ = ["Replay"]

BATCH = 200
"""Number of records between two marks: if this process is killed, it is unknown for at most this
number of records whether they were sent."""
SHOWN = 20
"""Largest number of lines of one kind that are printed one by one."""


class Replay:
    """Checks the repaired letters of one file and sends them back; a context manager.

    Parameters
    ----------
    config : Config
    out : Path or None
        For sources of files: the file to write the lines to, instead of appending them.
    say : callable of str
        Prints one line for the user.
    """

    def __init__(self, config: Config, out: Path | None, say: Callable[[str], None]) -> None:
        check_config(config)
        self._config = config
        self._say = say
        self._codec, self._streams = make_codec(config)
        self._reader: DeadLetterReader = make_letter_reader(config)
        self._writer = make_stream_writer(config)
        self._out = out
        self._appending = ""
        self.lines = 0
        self._verdicts = Verdicts()
        self._outlook = Outlook({}, [])
        self._done: list[tuple[Decoded, Returned]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with suppress(ConnectorError):
            self._writer.close()
        self._reader.close()

    # -- reading and judging

    def read(self, file: Path, *, again: bool) -> None:
        """Read the file and sort its lines into what is ready, still bad, and fed back before.

        Raises
        ------
        RepairError
            If a line is no letter of this config; all such lines have been said. Nothing is ready
            then.
        ConnectorError
            If the file, the dead letters or the streams cannot be read.
        """
        repaired = read_repaired(file, self._streams)
        self.lines = repaired.lines
        if repaired.problems:
            for problem in repaired.problems[:SHOWN]:
                self._say(problem)
            raise RepairError(
                f"{safe(str(file))}: {len(repaired.problems)} of {repaired.lines} lines are no "
                f"letters; nothing was sent"
            )
        letters = read_letters(self._reader)
        if self._reader.missing and self._reader.made_beforehand:
            self._say(f"note: {safe(self._reader.name)} does not exist")
        self._verdicts = judge(repaired.records, self._codec, letters, again=again)
        self._check_writable()
        self._outlook = outlook(self._config, self._streams, self.ready)

    @property
    def ready(self) -> list[Decoded]:
        """The records to send, in the order of the file."""
        return self._verdicts.ready

    def _check_writable(self) -> None:
        places = {
            StreamPartition(one.record.position.stream, one.record.position.partition)
            for one in self.ready
        }
        if self._out is not None:
            detached = getattr(self._writer, "detached", None)
            if detached is None:
                raise ConfigError(
                    "--out",
                    str(self._out),
                    "no such option here: only a source of files has it; other sources are "
                    "written to directly",
                )
            if places:
                self._writer, self._appending = detached(self._out, {at.stream for at in places})
        if places:
            self._writer.check(places)

    # -- reporting

    def report(self, *, dry_run: bool) -> None:
        """Print which records would be sent, which not and why, and the expected result."""
        verdicts = self._verdicts
        for lines in (verdicts.bad, verdicts.perhaps, verdicts.before, verdicts.unknown):
            self._say_lines(lines)
        refused = self._outlook.refused
        by_number = {one.number: one.record.position for one in self.ready}
        self._say_lines(
            [
                Line(n, by_number[n], f"will be refused again: {why}")
                for n, why in sorted(refused.items())
            ]
        )
        for note in self._outlook.notes:
            self._say(f"note: {safe(note)}")
        counts = {
            "ready": len(self.ready),
            "of which will be refused again": len(refused),
            "still bad": len(self._verdicts.bad),
            "fed back before": len(self._verdicts.before),
            "perhaps fed back": len(self._verdicts.perhaps),
        }
        parts = ", ".join(
            f"{count} {what}" for what, count in counts.items() if count or what == "ready"
        )
        self._say(f"{self.lines} lines: {parts}{'; dry run, nothing is sent' if dry_run else ''}")

    def _say_lines(self, lines: list[Line]) -> None:
        for line in lines[:SHOWN]:
            self._say(f"line {line.number}: {safe(str(line.position))}: {safe(line.message)}")
        if len(lines) > SHOWN:
            self._say(
                f"... and {len(lines) - SHOWN} more lines like the last (--json has them all)"
            )

    @property
    def question(self) -> str:
        """The question to the user before anything is sent."""
        by_place = Counter(self._place(one) for one in self.ready)
        parts = ", ".join(f"{count} to {place}" for place, count in sorted(by_place.items()))
        again = len(self._outlook.refused)
        return f"Send {parts}" + (f" ({again} of them will be refused again)?" if again else "?")

    def _place(self, one: Decoded) -> str:
        at = one.record.position
        return safe(str(self._out) if self._out is not None else f"{at.stream}[{at.partition}]")

    # -- sending

    def send(self) -> None:
        """Send the records that are ready, in the order of the file; write a mark before and
        after each batch.

        Raises
        ------
        ConnectorError
            If a mark cannot be written: no batch is sent without its mark.
        """
        try:
            for start in range(0, len(self.ready), BATCH):
                batch = self.ready[start : start + BATCH]
                self._note("sending", batch)
                done = self._writer.write([self._returning(one) for one in batch])
                self._done += zip(batch, done, strict=True)
                for state in ("sent", "not-sent"):
                    self._note(
                        state,
                        [
                            one
                            for one, what in zip(batch, done, strict=True)
                            if what.state == state
                        ],
                    )
                if any(what.state != "sent" for what in done):
                    break  # later records would probably fail too, and would be out of order
        finally:
            self._say_sent()

    def _note(self, state: str, batch: list[Decoded]) -> None:
        if batch:
            self._reader.mark(
                ReplayMark(state, time.time_ns(), tuple(one.record.position for one in batch))
            )

    def _returning(self, one: Decoded) -> Returning:
        fields = self._config.fields
        stamp = (
            fields.get("time")
            if isinstance(one.item, Entry)
            else fields.get("label_time", fields.get("time"))
        )
        return Returning(one.record, timed=stamp is None)

    def _say_sent(self) -> None:
        words = {"not-sent": "not sent", "unknown": "perhaps sent"}
        failed = [(one, done) for one, done in self._done if done.state in words]
        self._say_lines(
            [Line(x.number, x.record.position, f"{words[y.state]}: {y.detail}") for x, y in failed]
        )
        sent = sum(done.state == "sent" for _, done in self._done)
        left = len(self.ready) - len(self._done)
        self._say(
            f"sent {sent} of {len(self.ready)}"
            + (f"; the last {left} were not tried" if left else "")
        )
        if self._appending and sent:
            self._say(f"now: {self._appending}")

    @property
    def exit_code(self) -> int:
        """Exit code: 0 if every record of the file was sent, was sent before or (in a dry run)
        would be sent; else 1."""
        failed = any(done.state != "sent" for _, done in self._done)
        return int(bool(self._verdicts.bad or self._verdicts.perhaps or failed))

    def result(self, *, dry_run: bool) -> dict[str, Any]:
        """Return the whole result as JSON values."""
        by_state = {"sent": "sent", "not-sent": "not_sent", "unknown": "perhaps_sent"}
        result: dict[str, Any] = {
            "lines": self.lines, "dry_run": dry_run, "ready": len(self.ready),
        }  # fmt: skip
        for name, lines in (
            ("still_bad", self._verdicts.bad), ("perhaps_before", self._verdicts.perhaps),
            ("sent_before", self._verdicts.before),
        ):  # fmt: skip
            result[name] = [
                {"line": x.number, "position": str(x.position), "detail": x.message} for x in lines
            ]
        result["refused_again"] = [
            {"line": n, "detail": why} for n, why in sorted(self._outlook.refused.items())
        ]
        for state, name in by_state.items():
            result[name] = [
                {"line": one.number, "position": str(one.record.position), "detail": done.detail}
                for one, done in self._done
                if done.state == state
            ]
        return result | {"notes": self._outlook.notes}
