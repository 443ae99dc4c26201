"""``streamadapt dlq list|replay``: lists refused records, and sends repaired ones back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from streamadapt.app.options import AsJson, ConfigPath, Settings
from streamadapt.app.printing import tell
from streamadapt.config.secrets import scrubbed

__all__ = ["dlq"]

dlq = typer.Typer(help="Look at dead letters, and feed repaired ones back.", no_args_is_help=True)


@dlq.command("list")
def list_letters(
    config: ConfigPath,
    reasons: Annotated[
        list[str] | None,
        typer.Option("--reason", metavar="REASON", help="Only these; may be given several times."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help='Records stamped since: "2h", or "2026-05-01T12:00".'),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The newest so many. Default: 30; with --json all.")
    ] = None,
    replayed: Annotated[
        bool, typer.Option("--all", help="Also those that were fed back.")
    ] = False,
    settings: Settings = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="One JSON object a line, whole: repair them and give them to dlq replay.",
        ),
    ] = False,
) -> None:
    """Show the refused records up to now, and why. Commits nothing and changes nothing."""
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
            metavar="FILE", help="Lines of dlq list --json, repaired; - is standard input."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send nothing; say what would be.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Send also what was fed back before.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="LINES", help="Sources of files: write lines to append by hand, here."
        ),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Put repaired records at the end of the streams they came from.

    Exit code 1 if one of them was not sent.
    """
    from streamadapt.app.dlq.replay import Replay
    from streamadapt.app.interrupts import interruptible
    from streamadapt.config.tables import load_config

    def say(text: str) -> None:
        if as_json:
            sys.stderr.write(f"{scrubbed(text)}\n")
        else:
            tell(text)

    loaded = load_config(config, settings=settings or (), warn=_warn)
    with interruptible(_say), Replay(loaded, out, say=say) as replay:
        replay.read(file, again=again)
        replay.report(dry_run=dry_run)
        if not dry_run and replay.ready:
            if not yes:
                typer.confirm(replay.question, abort=True, err=as_json)
            replay.send()
        if as_json:
            tell(json.dumps(replay.result(dry_run=dry_run)))
        code = replay.exit_code
    raise typer.Exit(code)


def _warn(text: str) -> None:
    _say(f"warning: {text}")


def _say(text: str) -> None:
    sys.stderr.write(f"streamadapt: {text}\n")
