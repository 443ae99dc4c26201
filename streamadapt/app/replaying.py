"""``streamadapt replay``: runs a config's pipeline over files at full speed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from rich.text import Text

from streamadapt.build import file_form, make_engine
from streamadapt.config.tables import Config, load_config
from streamadapt.engine.ports import DeadLetterSink, Sink
from streamadapt.errors import ConnectorError
from streamadapt.files import open_regular
from streamadapt.outputs import Replacement, check_output, inputs_of, letters_of

__all__ = ["replay_config"]

_LOG = logging.getLogger("streamadapt")


class _NoSink(Sink):
    """A sink that discards predictions."""

    def write(self, predictions: Any) -> None:
        """Discard the predictions."""

    def flush(self) -> None:
        """Do nothing: no prediction waits."""

    def close(self) -> None:
        """Do nothing: no resource is open."""


class _NoLetters(DeadLetterSink):
    """A sink that only logs refused records."""

    def write(self, letters: Any) -> None:
        """Log the refused records."""
        for letter in letters:
            at = letter.record.position
            _LOG.info("refused %s %s: %s", at, letter.reason, letter.detail)

    def flush(self) -> None:
        """Do nothing: no letter waits."""

    def close(self) -> None:
        """Do nothing: no resource is open."""


def replay_config(
    path: Path, entries: Path, labels: Path | None, out: Path | None, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Run a config's pipeline over files; return the summary.

    Predictions are written to `out`, and dead letters to ``OUT.dead-letters`` beside it. Both
    replace earlier files at the end, when they are complete, and only if there is a prediction or
    there were no records.

    Raises
    ------
    ConfigError
        If the config is wrong, or `out` is one of the files that are read or not a regular file.
    ConnectorError
        If a file cannot be read, or `out` cannot be written.
    """
    from streamadapt_connectors.files.source import FilesSource

    config = load_config(path, settings=settings, warn=_LOG.warning)
    inputs = {**inputs_of(config, path), "the entries": entries}
    letters = letters_of(config)
    source: dict[str, Any] = {"kind": FilesSource.kind, "path": str(entries)} | file_form(config)
    if labels is not None:
        source["label_path"] = str(labels)
        inputs["--labels"] = labels
    # Other guarantees need a checkpoint, or the output of an earlier run.
    changes = {"source": source, "checkpoint": None, "metrics": None, "guarantee": "at-least-once"}
    config = msgspec.structs.replace(config, **changes)
    targets = None if out is None else _targets(out, inputs, letters)
    torch.set_num_threads(config.threads)
    status = Console(stderr=True).status(Text(f"replaying {entries}"))
    with status if sys.stderr.isatty() else nullcontext():
        return _run(config, (entries, labels), targets)


def _targets(out: Path, inputs: dict[str, Path], letters: dict[str, Path]) -> tuple[Path, Path]:
    """Return the files to write predictions and dead letters to; neither may be one of `inputs`,
    and the first must not be one of `letters`, the dead-letter files of the config's own runs."""
    target = check_output("--out", out, {**inputs, **letters}, make_folders=True)
    beside = Path(f"{out}.dead-letters")
    return target, check_output("--out", beside, {**inputs, "--out": out}, make_folders=True)


def _run(
    config: Config, read: Sequence[Path | None], targets: tuple[Path, Path] | None
) -> dict[str, Any]:
    with ExitStack() as stack:
        parts: list[Replacement] = []

        def sinks() -> tuple[Sink, DeadLetterSink]:
            from streamadapt_connectors.files.sinks import JsonlDeadLetters, JsonlSink

            for file in read:
                _check_readable(file)
            if targets is None:
                return _NoSink(), _NoLetters()
            parts.extend(stack.enter_context(Replacement(target)) for target in targets)
            return JsonlSink(parts[0].path), JsonlDeadLetters(parts[1].path)

        engine = make_engine(config, sinks=sinks)
        engine.run_log.quiet = True  # the summary will contain the same facts
        summary = engine.run()
        if summary["predictions"] or not summary["records"]:
            for part in reversed(parts):
                part.put()
        elif parts:
            _LOG.warning("nothing was predicted: %s is unchanged", parts[0].target)
    return summary


def _check_readable(file: Path | None) -> None:
    if file is None:
        return
    if not file.exists():
        raise ConnectorError(f"file {file}: not found")
    try:
        open_regular(file).close()
    except OSError as error:
        raise ConnectorError(f"file {file}: cannot be read: {error.strerror}") from error
