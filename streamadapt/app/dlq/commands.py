"""``streamadapt dlq list|replay``: lists refused records, and sends repaired ones back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from streamadapt.app.options import AsJson, ConfigPath, Settings
from streamadapt.app.printing import print_line
from streamadapt.config.secrets import scrubbed

__all__ = ["dlq"]

dlq = typer.Typer(
    help="List dead letters, and send repaired ones back to their streams.", no_args_is_help=True
)


@dlq.command("list")
def list_letters(
    config: ConfigPath,
    reasons: Annotated[
        list[str] | None,
        typer.Option(
            "--reason", metavar="REASON", help="Only this reason; can be given several times."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help='Only records with a later time stamp: "2h" ago, or "2026-05-01T12:00" (UTC).',
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Show only the newest N. Default: 30; with --json all."),
    ] = None,
    replayed: Annotated[
        bool, typer.Option("--all", help="Also show records that were fed back.")
    ] = False,
    settings: Settings = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print each whole record as one line of JSON, which dlq replay can read.",
        ),
    ] = False,
) -> None:
    """Show the records refused until now, and the reasons. Commits nothing and changes nothing."""
    from streamadapt.app.dlq.listing import Wanted, print_lines, print_table
    from streamadapt.app.interrupts import interruptible
    from streamadapt.config.tables import load_config

    loaded = load_config(config, settings=settings or (), warn=_warn)
    wanted = Wanted.of(loaded, reasons or (), since, replayed=replayed)
    with interruptible(_say):
        if as_json:
            print_lines(loaded, wanted, limit)
        else:
            print_table(loaded, wanted, limit or 30)


@dlq.command("replay")
def replay_letters(
    config: ConfigPath,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Repaired lines of dlq list --json; - is standard input."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send nothing; print what would be sent.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also send records that were fed back before.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="LINES",
            help="Only for a source of files: write the lines to this file, to append by hand.",
        ),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Append repaired records to the streams that they came from.

    Exit code 1 if one of them was not sent.
    """
    from streamadapt.app.dlq.replay import Replay
    from streamadapt.app.interrupts import interruptible
    from streamadapt.config.tables import load_config

    def say(text: str) -> None:
        if as_json:
            sys.stderr.write(f"{scrubbed(text)}\n")
        else:
            print_line(text)

    loaded = load_config(config, settings=settings or (), warn=_warn)
    with interruptible(_say), Replay(loaded, out, say=say) as replay:
        replay.read(file, again=again)
        replay.report(dry_run=dry_run)
        if not dry_run and replay.ready:
            if not yes:
                typer.confirm(replay.question, abort=True, err=as_json)
            replay.send()
        if as_json:
            print_line(json.dumps(replay.result(dry_run=dry_run)))
        code = replay.exit_code
    raise typer.Exit(code)


def _warn(text: str) -> None:
    _say(f"warning: {text}")


def _say(text: str) -> None:
    sys.stderr.write(f"streamadapt: {text}\n")
