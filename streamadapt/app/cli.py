"""The command line: ``streamadapt run|check|init|fit|replay|demo``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from streamadapt import __version__
from streamadapt.errors import ConfigError, StreamadaptError

__all__ = ["app", "main"]

EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Keep a deployed model right while the world under it moves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The config file (TOML).")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log one JSON object per line.")]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    config: ConfigPath,
    log_json: LogJson = False,
    log_level: LogLevel = "info",
    as_json: AsJson = False,
) -> None:
    """Run the main job until it is stopped (SIGINT or SIGTERM drain and checkpoint), or a finite source ends."""
    from streamadapt.app.running import run_config, setup_logging

    setup_logging(log_level, as_json=log_json)
    summary = run_config(config)
    typer.echo(json.dumps(summary) if as_json else _table(summary))


@app.command()
def check(config: ConfigPath, as_json: AsJson = False) -> None:
    """Say what is wrong with a config, without connecting anywhere. Exit code 2 if something is."""
    from streamadapt.assemble import make_engine
    from streamadapt.config import load_config

    try:
        engine = make_engine(load_config(config))
    except ConfigError as error:
        if as_json:
            problem = {"path": error.path, "value": repr(error.value), "expected": error.expected}
            typer.echo(json.dumps({"ok": False, "error": problem}))
            raise typer.Exit(EXIT_CONFIG) from None
        raise
    experts = engine.make_pipeline().names
    typer.echo(json.dumps({"ok": True, "experts": experts}) if as_json else f"ok: experts {', '.join(experts)}")


@app.command()
def init(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The file to write.")] = Path("streamadapt.toml"),
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented config to start from."""
    from importlib.resources import files

    if config.exists() and not force:
        raise ConfigError("config", str(config), "a file that does not exist yet, or --force")
    config.write_text(files("streamadapt.app").joinpath("template.toml").read_text(encoding="utf-8"), encoding="utf-8")
    typer.echo(f"wrote {config}; edit it, then: streamadapt check {config}")


@app.command()
def fit(
    config: ConfigPath,
    history: Annotated[Path, typer.Argument(metavar="HISTORY", help="CSV or JSONL (.gz too), oldest first.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default: the config's base.weights.")] = None,
    ridge: Annotated[float, typer.Option(help="Penalty, in scaled units.")] = 0.1,
    raw_window: Annotated[bool, typer.Option(help="Forecasts: do not subtract the last value.")] = False,
    shared_scale: Annotated[bool, typer.Option(help="Forecasts: one scale for all channels.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit the built-in linear base on a history file, with the config's task and fields."""
    from streamadapt.app.fitting import fit_base

    result = fit_base(config, history, out, ridge=ridge, subtract_last=not raw_window, shared_scale=shared_scale)
    text = f"fitted on {result['rows']} rows ({result['skipped']} refused), wrote {result['weights']}"
    typer.echo(json.dumps(result) if as_json else text)


@app.command()
def replay(
    config: ConfigPath,
    history: Annotated[Path, typer.Argument(metavar="FILE", help="Entries: CSV or JSONL (.gz too).")],
    labels: Annotated[Path | None, typer.Option(help="Labels that came apart from their entries.")] = None,
    out: Annotated[Path | None, typer.Option(help="Predictions (JSONL); default: none are written.")] = None,
    log_level: LogLevel = "warning",
    as_json: AsJson = False,
) -> None:
    """Backtest a config on a file at full speed, through the same engine; no checkpoint is read or written."""
    from streamadapt.app.running import replay_config, setup_logging

    setup_logging(log_level, as_json=False)
    summary = replay_config(config, history, labels, out)
    typer.echo(json.dumps(summary) if as_json else _table(summary))


@app.command()
def demo(
    speed: Annotated[
        float | None, typer.Option(help="Entries a second, to watch; default: as fast as it goes.")
    ] = None,
    labels: Annotated[str, typer.Option(help="all (6 hours late) or sparse (four a day, 6 hours late).")] = "all",
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result here.")] = None,
    limit: Annotated[int | None, typer.Option(help="Stream only so many readings.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep config, base, checkpoints and logs in this folder.")] = None,
) -> None:
    """Keep a glucose sensor's calibration right, through an embedded Kafka broker. Nothing to set up."""
    from streamadapt.app.demo import run_demo

    raise typer.Exit(run_demo(speed=speed, labels=labels, json_path=as_json, limit=limit, keep=keep))


def _table(summary: dict[str, object]) -> str:
    from streamadapt.app.tables import summary_text

    return summary_text(summary)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"streamadapt: {message}\n")
    raise SystemExit(code)


def main() -> None:
    """Run the command line; errors of ours are one line on standard error, and the exit code tells their kind."""
    try:
        app()
    except ConfigError as error:
        _fail(f"config: {error}", EXIT_CONFIG)
    except StreamadaptError as error:
        _fail(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)
