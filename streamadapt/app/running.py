"""Running a config in this process: signals, metrics endpoint, replay."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import torch
from prometheus_client import CollectorRegistry
from rich.console import Console

from streamadapt.app.exposition import MetricsCollector, Ready, serve
from streamadapt.app.watchdog import Watchdog
from streamadapt.assemble import file_form, make_engine, stuck_after_s
from streamadapt.config import Config, load_config
from streamadapt.engine import Engine
from streamadapt.errors import ConnectorError, StreamadaptError
from streamadapt.metrics import Metrics, NullMetrics
from streamadapt.ports import DeadLetter, DeadLetterSink, Sink

__all__ = ["DrainTimeoutError", "replay_config", "run_config"]

_LOG = logging.getLogger("streamadapt")

DRAIN_S = 3.5
"""After a signal, so long for flushing and the last checkpoint; five seconds to the exit is the promise."""
AGAIN_S = 0.1
"""Then each thing that still blocks is given this long."""


def run_config(path: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Run a config file's engine until it is stopped or done; return its summary."""
    config = load_config(path, settings=settings)
    metrics = NullMetrics() if config.metrics is None else Metrics()
    engine = make_engine(config, metrics)
    torch.set_num_threads(config.threads)
    watchdog = Watchdog(engine, metrics, stuck_after_s(config))
    with _stopped_by_signals(engine), watchdog, _metrics_endpoint(config, metrics, watchdog.ready):
        return engine.run()


class DrainTimeoutError(StreamadaptError):
    """Draining took too long; a restart replays from the last checkpoint."""


@contextmanager
def _stopped_by_signals(engine: Engine) -> Iterator[None]:
    """SIGINT and SIGTERM drain the engine; what blocks longer than `DRAIN_S` (a broker that is away) is broken off."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        if engine.stopping:  # the second one means it
            raise KeyboardInterrupt
        _LOG.info("%s: draining", signal.Signals(number).name)
        engine.stop()
        signal.setitimer(signal.ITIMER_REAL, DRAIN_S, AGAIN_S)

    def on_alarm(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise DrainTimeoutError(f"not drained within {DRAIN_S:g} s; a restart replays from the last checkpoint")

    handlers = {signal.SIGINT: on_signal, signal.SIGTERM: on_signal, signal.SIGALRM: on_alarm}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _metrics_endpoint(config: Config, metrics: Metrics, ready: Ready) -> Iterator[None]:
    if config.metrics is None:
        yield
        return
    registry = CollectorRegistry()
    MetricsCollector(metrics, registry)
    with serve(registry, config.metrics.port, config.metrics.host, ready) as server:
        _LOG.info("metrics at http://%s:%d/metrics", config.metrics.host, server.port)
        yield


class _NoSink(Sink):
    """Takes predictions and keeps none."""

    def write(self, predictions: Any) -> None:
        """Forget them."""

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


class _NoLetters(DeadLetterSink):
    """Counts refused records in the log only."""

    def write(self, letters: Any) -> None:
        """Log them."""
        for letter in letters:
            _log_letter(letter)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def _log_letter(letter: DeadLetter) -> None:
    _LOG.info("refused %s %s: %s", letter.record.position, letter.reason, letter.detail)


def replay_config(
    path: Path, entries: Path, labels: Path | None, out: Path | None, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """Run a config's pipeline over files; return the summary.

    Raises
    ------
    ConnectorError
        If a file cannot be read, or `out` not be written.
    """
    config = load_config(path, settings=settings)
    source: dict[str, Any] = {"kind": "files", "path": str(entries)} | file_form(config)
    if labels is not None:
        source["label_path"] = str(labels)
    config = msgspec.structs.replace(config, source=source, checkpoint=None, metrics=None)
    if out is None:
        engine = make_engine(config, sinks=(_NoSink(), _NoLetters()))
    else:
        sink = {"kind": "files", "path": str(out)}
        config = msgspec.structs.replace(config, sink=sink, dead_letters=None)
        _forget(out, Path(f"{out}.dead-letters"))
        engine = make_engine(config)
    torch.set_num_threads(config.threads)
    progress = Console(stderr=True).status(f"replaying {entries}") if sys.stderr.isatty() else nullcontext()
    with progress:
        return engine.run()


def _forget(*paths: Path) -> None:
    """Remove what an earlier replay wrote: the sinks append."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ConnectorError(f"file {path}: cannot be written: {error}") from error
