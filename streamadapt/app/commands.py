"""The commands: ``streamadapt run|check|init|config|fit|replay|demo|warm|checkpoint|dlq``."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from streamadapt.app.dlq.commands import dlq
from streamadapt.app.exit_codes import EXIT_CONFIG, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED
from streamadapt.app.interrupts import interruptible
from streamadapt.app.logs import logs_are_json, setup_logging
from streamadapt.app.options import AsJson, ConfigPath, Settings
from streamadapt.app.printing import print_alert, print_line, tolerant_output
from streamadapt.app.terminal import safe
from streamadapt.config.secrets import remember, scrubbed
from streamadapt.errors import BadShareError, ConfigError, ConnectorError, StreamadaptError
from streamadapt.version import __version__

__all__ = ["Outcome", "app", "run_command"]


app = typer.Typer(
    help="Keep the predictions of a deployed model accurate while its data changes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

LogJson = Annotated[bool, typer.Option("--log-json", help="Log one JSON object per line.")]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print_line(__version__)
        raise typer.Exit


@app.command()
def run(
    config: ConfigPath,
    settings: Settings = None,
    log_json: LogJson = False,
    log_level: LogLevel = "info",
    as_json: AsJson = False,
) -> None:
    """Run the engine of a config until it is stopped (SIGINT or SIGTERM drain it and write a
    checkpoint), or a finite source ends.

    Exit code 2: the config is wrong; 3: nearly all records were refused (limits.max_bad_share), or
    nothing was predicted or learned from the records that were read; 1: any other failure.
    """
    setup_logging(log_level, as_json=log_json)
    from streamadapt.app.running import run_config

    def finish(summary: dict[str, Any], stuck: bool) -> None:
        raise Ended(_print_summary(summary, as_json=as_json), stuck=stuck)

    run_config(config, settings or (), finish)


@app.command()
def check(config: ConfigPath, settings: Settings = None, as_json: AsJson = False) -> None:
    """Report the mistakes in a config, without connecting to anything.

    Exit code 2 if there is a mistake.
    """
    from streamadapt.app.checkpoints import resumable
    from streamadapt.build import check_config, look_at_files
    from streamadapt.config.secret_files import literal_secrets
    from streamadapt.config.tables import load_config
    from streamadapt.outputs import check_outputs

    warnings: list[str] = []

    def renamed(line: str) -> None:
        warnings.append(line)
        if not as_json:  # at once: the error that follows may be about this key
            _say(f"warning: {line}")

    try:
        loaded = load_config(config, settings=settings or (), warn=renamed)
        check_outputs(loaded, config)
        experts = check_config(loaded).names
        files = look_at_files(loaded)
    except ConfigError as error:
        if as_json:
            problem = {"path": error.path, "value": repr(error.value), "expected": error.expected}
            print_line(json.dumps({"ok": False, "error": problem}))
            raise typer.Exit(EXIT_CONFIG) from None
        raise
    secrets = literal_secrets(config, os.environ, settings or ())
    checkpoints = resumable(loaded)
    if as_json:
        more = {"files": files, "warnings": [*warnings, *secrets], "checkpoints": checkpoints}
        print_line(
            json.dumps(
                {"ok": True, "experts": experts}
                | {name: found for name, found in more.items() if found}
            )
        )
        return
    for warning in secrets:
        _say(f"warning: {warning}")
    for file in files:
        _print_file(file)
    for checkpoint in checkpoints:
        _print_checkpoint(checkpoint)
    print_line(f"ok: experts {', '.join(experts)}")


def _print_checkpoint(found: dict[str, Any]) -> None:
    """Print from which checkpoint a run of this partition would resume."""
    for sequence, why in found.get("damaged", {}).items():
        _say(
            f"warning: {found['partition']}, checkpoint {sequence}: damaged, will be skipped: "
            f"{why}"
        )
    place = f"{found['partition']}, checkpoint {found['sequence']}"
    if found["resumes"]:
        print_line(f"resumes from {place}")
    else:
        _say(f"warning: a run would not resume from {place}: {found['problem']}")


def _print_file(found: dict[str, Any]) -> None:
    """Print what `check` found at the beginning of a file."""
    print_line(f"{found['path']}: columns {', '.join(found['columns']) or 'none: it is empty'}")
    if "note" in found:
        _say(f"warning: {found['path']}: {found['note']}")
    if found["refused"]:
        share = f"{found['refused']} of the first {found['records']} records"
        _say(f"warning: {found['path']}: {share} would be refused, for example {found['example']}")


@app.command()
def init(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The file to write.")] = Path(
        "streamadapt.toml"
    ),
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented config to start from."""
    from importlib.resources import files

    from streamadapt.outputs import check_output, write_whole

    if config.exists() and not force:
        raise ConfigError("config", str(config), "a file that does not exist yet, or --force")
    text = files("streamadapt.app").joinpath("template.toml").read_bytes()
    if not Path(os.path.realpath(config)).parent.is_dir():
        raise ConfigError(
            "config", str(config), "a file that can be written, in an existing folder"
        )
    try:
        write_whole(check_output("config", config, {}), text)
    except ConnectorError as error:
        raise ConfigError(
            "config", str(config), f"a file that can be written ({error})"
        ) from error
    print_line(
        f"wrote {config}; edit it (streamadapt config TABLE explains the keys), then fit its "
        f"base: streamadapt fit {config} HISTORY, and check it: streamadapt check {config}"
    )


@app.command("config")
def explain(
    table: Annotated[
        str | None,
        typer.Argument(metavar="[TABLE]", help="A table, such as source or learners.rls."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/configuration.md: all tables.")
    ] = False,
) -> None:
    """Explain the keys of a config: type, default, meaning and an example.

    Without a table: list the tables.
    """
    from streamadapt.app.config_page import config_index, config_markdown, config_text

    if markdown:
        print_line(config_markdown().rstrip("\n"))
    else:
        print_line(config_index() if table is None else config_text(table))


@app.command()
def fit(  # noqa: PLR0913 - each is an option of the command
    config: ConfigPath,
    history: Annotated[
        Path, typer.Argument(metavar="HISTORY", help="CSV or JSONL (.gz too), oldest first.")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="Labels in a file of their own (CSV or JSONL).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; default: the config's base.weights.")
    ] = None,
    ridge: Annotated[float, typer.Option(help="Ridge penalty, in scaled units.")] = 0.1,
    raw_window: Annotated[
        bool, typer.Option(help="Forecasts: do not subtract the last value.")
    ] = False,
    shared_scale: Annotated[
        bool, typer.Option(help="Forecasts: one scale for all channels.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Fit even if most of the history was refused.")
    ] = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Fit the built-in linear base on a history file, with the config's task and fields.

    If fewer than half of the rows, or of the labels, can be used, nothing is written, and the exit
    code is 3 (see --force).
    """
    from streamadapt.app.fitting import fit_base

    with interruptible(_say):
        result = fit_base(
            config,
            history,
            out,
            labels=labels,
            ridge=ridge,
            subtract_last=not raw_window,
            shared_scale=shared_scale,
            force=force,
            settings=settings or (),
        )
    _print_fit(result, as_json=as_json)


@app.command()
def replay(
    config: ConfigPath,
    history: Annotated[
        Path, typer.Argument(metavar="FILE", help="Entries: CSV or JSONL (.gz too).")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="Labels in a file of their own (CSV or JSONL).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file for predictions (JSONL), which is replaced; default: none is written."
        ),
    ] = None,
    settings: Settings = None,
    log_level: LogLevel = "warning",
    as_json: AsJson = False,
) -> None:
    """Backtest a config on a file at full speed, through the same engine; no checkpoint is read or
    written.

    Exit code 3: nothing was predicted or learned from the records that were read. The results of
    an earlier replay are replaced only when this one is complete.
    """
    setup_logging(log_level, as_json=False)
    from streamadapt.app.replaying import replay_config

    with interruptible(_say):
        summary = replay_config(config, history, labels, out, settings or ())
    raise typer.Exit(_print_summary(summary, as_json=as_json))


@app.command()
def warm() -> None:
    """Compile the kernels of learners and guard, so that the first run starts at once.

    Needed once for each installation. What is compiled is kept in ~/.cache/streamadapt, or in
    the folder that STREAMADAPT_CACHE names. Exit code 2: it cannot be kept there.
    """
    from streamadapt.app.terminal import progress
    from streamadapt.app.warming import warm
    from streamadapt.compiled import cache_folder

    with progress("compiling") as shown:
        warmed = warm(lambda done, total: shown(done, total) if shown is not None else None)
    if warmed.problem:  # it is in the log already
        raise typer.Exit(2)
    print_line(f"the kernels of {warmed.parts} parts are compiled, in {cache_folder().path}")


@app.command()
def demo(
    speed: Annotated[
        float | None, typer.Option(help="Entries per second; default: as fast as possible.")
    ] = None,
    labels: Annotated[
        str, typer.Option(help="all (6 hours late) or sparse (four per day, 6 hours late).")
    ] = "all",
    as_json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the result to this file."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="The number of readings to stream.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep config, base, checkpoints and logs in this folder.")
    ] = None,
) -> None:
    """Keep the calibration of a glucose sensor accurate, through an embedded Kafka broker.

    It needs no setup.
    """
    from streamadapt.app.demo.run import run_demo

    with interruptible(_say):
        code = run_demo(speed=speed, labels=labels, json_path=as_json, limit=limit, keep=keep)
    raise typer.Exit(code)


checkpoint = typer.Typer(
    help="List and inspect checkpoints, and go back to an earlier one.", no_args_is_help=True
)
app.add_typer(checkpoint, name="checkpoint")
app.add_typer(dlq, name="dlq")

StatePath = Annotated[
    str, typer.Argument(metavar="PATH", help="checkpoint.path, or the folder of one partition.")
]


@checkpoint.command("list")
def list_checkpoints(path: StatePath, as_json: AsJson = False) -> None:
    """List every checkpoint of every partition. This reads only the manifests; inspect also checks
    the files."""
    from rich.console import Console

    from streamadapt.app.checkpoints import listed, listing

    rows = [_scrubbed_row(row) for row in listed(path)]
    if as_json:
        print_line(json.dumps(rows))
    else:
        Console().print(listing(rows))


def _scrubbed_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: scrubbed(cell) if isinstance(cell, str) else cell for name, cell in row.items()}


@checkpoint.command("inspect")
def inspect_checkpoint(
    path: StatePath,
    sequence: Annotated[
        int | None, typer.Argument(metavar="[CHECKPOINT]", help="Default: the newest.")
    ] = None,
) -> None:
    """Check the files of one checkpoint, and print its facts as JSON: positions, losses, guard
    weights, restored learners."""
    from streamadapt.app.checkpoints import inspected

    print_line(json.dumps(inspected(path, sequence), indent=2))


@checkpoint.command("rollback")
def roll_back(
    path: StatePath,
    sequence: Annotated[
        int, typer.Argument(metavar="CHECKPOINT", help="The checkpoint to go back to.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all checkpoints that are newer than CHECKPOINT: the next run resumes from it and
    reads the later records again."""
    from streamadapt.app.checkpoints import rolled_back
    from streamadapt.state.folder import folder_of

    if not yes:
        typer.confirm(
            f"Remove every checkpoint in {folder_of(path)} that is newer than {sequence}?",
            abort=True,
        )
    removed = rolled_back(path, sequence)
    print_line(f"back at {sequence}; removed {', '.join(map(str, removed)) or 'nothing'}")


def _print_fit(result: dict[str, Any], *, as_json: bool) -> None:
    from streamadapt.app.fitting import refused_lines

    refused, problem = result.pop("refused"), result.pop("problem")
    if as_json:
        print_line(
            json.dumps(
                result if problem is None else {**result, "problem": problem, "refused": refused}
            )
        )
        return
    if problem is not None:
        print_alert(safe(problem))
    text = (
        f"fitted on {result['rows']} rows ({result['skipped']} refused), wrote {result['weights']}"
    )
    print_line("\n".join([text, *refused_lines(refused)]))


def _print_summary(summary: dict[str, Any], *, as_json: bool) -> int:
    """Print the summary of a run; return its exit code."""
    from streamadapt.app.outcome import problem_of, refusals
    from streamadapt.app.tables import summary_text

    problem = problem_of(summary["run"])
    if as_json:
        facts = None if problem is None else problem.facts
        if problem is not None:
            _say(safe(problem.text))
        # Facts of this run alone are left out: so a run that was stopped and resumed prints the
        # same as an uninterrupted one.
        shown = {name: value for name, value in summary.items() if name not in ("run", "records")}
        print_line(json.dumps({**shown, "problem": facts, "refused": refusals(summary["run"])}))
    else:
        if problem is not None:
            print_alert(safe(problem.text))
        print_line(summary_text(summary))
    return 0 if problem is None else problem.code


class Ended(SystemExit):
    """Raised to end a command with an exit code.

    Parameters
    ----------
    code : int
    stuck : bool
        Whether some of its threads may never end.
    """

    def __init__(self, code: int, *, stuck: bool = False) -> None:
        super().__init__(code)
        self.stuck = stuck


class Outcome(NamedTuple):
    """The result of a command: its exit code, and whether some of its threads may never end."""

    code: int
    stuck: bool = False


def run_command(arguments: Sequence[str]) -> Outcome:
    """Run one command; a `StreamadaptError` becomes one line on standard error and an exit
    code."""
    remember("", list(arguments))  # a path may be a URL with a password in it
    with tolerant_output():
        return _run_command(arguments)


def _run_command(arguments: Sequence[str]) -> Outcome:
    try:
        app(args=list(arguments), prog_name="streamadapt")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else EXIT_FAILED
        return Outcome(code, stuck=getattr(end, "stuck", False))
    except ConfigError as error:
        from streamadapt.config.overrides import variable_of

        variable = variable_of(error.path, os.environ)
        _say(f"config: {error}" + (f" (set by {variable})" if variable else ""))
        return Outcome(EXIT_CONFIG)
    except StreamadaptError as error:
        _say(str(error), loud=isinstance(error, BadShareError))
        return Outcome(
            EXIT_REFUSED if isinstance(error, BadShareError) else EXIT_FAILED, stuck=True
        )
    except KeyboardInterrupt:
        _say("interrupted")
        return Outcome(EXIT_INTERRUPTED, stuck=True)
    except Exception as error:  # a fault of ours or of the user's own model: show the traceback
        _say(f"unexpected {type(error).__name__}: {error}", error)
        return Outcome(EXIT_FAILED, stuck=True)
    return Outcome(0)


def _say(message: str, error: Exception | None = None, *, loud: bool = False) -> None:
    if logs_are_json():
        logging.getLogger("streamadapt").error(message, exc_info=error)
        return
    if error is not None:
        sys.stderr.write(scrubbed("".join(traceback.format_exception(error))))
    first, *more = f"streamadapt: {message}".splitlines()
    if loud:
        print_alert(first, err=True)
    else:
        sys.stderr.write(scrubbed(f"{first}\n"))
    sys.stderr.writelines(scrubbed(f"{line}\n") for line in more)
