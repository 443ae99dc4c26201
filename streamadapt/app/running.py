"""Runs a config in this process, with signal handlers and the metrics endpoint."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from streamadapt.app.exposition import MetricsCollector, serve
from streamadapt.app.signals import too_late
from streamadapt.app.watchdog import Watchdog
from streamadapt.build import make_engine, stuck_after_s
from streamadapt.config.tables import Config, load_config
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics, NullMetrics
from streamadapt.errors import StreamadaptError
from streamadapt.outputs import check_outputs

__all__ = ["ClosingTimeoutError", "DrainTimeoutError", "run_config"]

_LOG = logging.getLogger("streamadapt")

DRAIN_S = 3.5
"""Time for flushing and the last checkpoint after a signal; the process promises to exit within
five seconds."""
CLOSE_S = 3.5
"""Time for closing after everything is saved."""
ALARM_INTERVAL_S = 0.1
"""After `CLOSE_S`, the time for each further resource that blocks while it is closed."""


def run_config(
    path: Path,
    settings: Sequence[str] = (),
    finish: Callable[[dict[str, Any], bool], None] | None = None,
) -> dict[str, Any]:
    """Run the engine of a config file until it is stopped or its source ends; return its summary.

    Parameters
    ----------
    finish : callable of the summary and a bool, optional
        Called while signals are still ignored: everything is processed and saved, so a signal
        must not look like a failure. The bool is True if something did not close.
    """
    config = load_config(path, settings=settings, warn=_LOG.warning)
    check_outputs(config, path)
    metrics = NullMetrics() if config.metrics is None else Metrics()
    engine = make_engine(config, metrics)
    torch.set_num_threads(config.threads)
    watchdog = Watchdog(engine, metrics, stuck_after_s(config))
    with _stopped_by_signals(engine):
        with watchdog, _metrics_endpoint(config, metrics, watchdog):
            stuck = False
            try:
                summary = engine.run()
            except ClosingTimeoutError as error:
                _LOG.warning("%s", error)
                summary, stuck = engine.summary(), True
        if finish is not None:
            finish(summary, stuck)
    return summary


class DrainTimeoutError(StreamadaptError):
    """Raised if draining takes too long; a restart replays from the last checkpoint."""


class ClosingTimeoutError(StreamadaptError):
    """Raised if everything is processed and saved, but a resource does not close in time."""


@contextmanager
def _stopped_by_signals(engine: Engine) -> Iterator[None]:
    """Make SIGINT and SIGTERM drain the engine; a call that blocks longer than `DRAIN_S` (a broker
    that does not answer) is interrupted.

    After the engine has drained, an alarm is not a failure: it only interrupts a call to close
    that takes longer than `CLOSE_S`. Later signals are ignored.
    """
    alarms_left = round(CLOSE_S / ALARM_INTERVAL_S)  # until a blocked call to close is interrupted

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        if engine.drained:
            return
        if engine.stopping:  # a second signal stops at once
            raise KeyboardInterrupt
        _LOG.info("%s: draining", signal.Signals(number).name)
        engine.stop()
        signal.setitimer(signal.ITIMER_REAL, DRAIN_S, ALARM_INTERVAL_S)

    def on_alarm(number: int, frame: FrameType | None) -> None:
        nonlocal alarms_left
        del number, frame
        if not engine.drained:
            raise DrainTimeoutError(
                f"not drained within {DRAIN_S:g} s; a restart replays from the last checkpoint"
            )
        alarms_left -= 1
        if alarms_left <= 0 and engine.closing:
            engine.closing = False  # once for each resource
            raise ClosingTimeoutError("closing was interrupted; everything had been saved")

    handlers = {signal.SIGINT: on_signal, signal.SIGTERM: on_signal, signal.SIGALRM: on_alarm}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        if engine.drained:
            too_late()
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # drops a pending alarm
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _metrics_endpoint(config: Config, metrics: Metrics, watchdog: Watchdog) -> Iterator[None]:
    if config.metrics is None:
        yield
        return
    registry = CollectorRegistry()
    MetricsCollector(metrics, registry)
    with serve(
        registry, config.metrics.port, config.metrics.host, watchdog.ready, watchdog.live
    ) as server:
        _LOG.info("metrics at http://%s:%d/metrics", config.metrics.host, server.port)
        yield
