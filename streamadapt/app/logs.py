"""Logging to standard error: one line per event, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime

from streamadapt.config.secrets import scrubbed
from streamadapt.errors import ConfigError

__all__ = ["logs_are_json", "report_dead_threads", "setup_logging"]

LEVELS = ("debug", "info", "warning", "error")


def setup_logging(level: str, *, as_json: bool) -> None:
    """Log to standard error, one line per event, also for Python's warnings.

    Raises
    ------
    ConfigError
        If the level is unknown.
    """
    if level.lower() not in LEVELS:
        raise ConfigError("--log-level", level, "one of " + ", ".join(LEVELS))
    handler: logging.Handler
    if as_json:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonLines())
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False)
        handler.setFormatter(_Lines("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def logs_are_json() -> bool:
    """Whether `setup_logging` was called with `as_json`: then all of standard error is JSON."""
    return any(
        isinstance(handler.formatter, _JsonLines) for handler in logging.getLogger().handlers
    )


def report_dead_threads() -> None:
    """Log every exception that ends a thread, without the config's secrets."""

    def log(died: threading.ExceptHookArgs) -> None:
        name = died.thread.name if died.thread is not None else "unknown"
        logging.getLogger("streamadapt").error(
            "thread %s died: %s",
            name,
            died.exc_value,
            exc_info=(died.exc_type, died.exc_value, died.exc_traceback),  # type: ignore[arg-type]
        )

    threading.excepthook = log


class _Lines(logging.Formatter):
    """Formats log lines for people, without the config's secrets, also the lines of libraries."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": scrubbed(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = scrubbed(self.formatException(record.exc_info))
        return json.dumps(line)
