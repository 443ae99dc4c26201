"""Runs the demo's engine: an ordinary ``streamadapt run`` in a separate process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from streamadapt.app.demo.broker import die_with_parent
from streamadapt.errors import StreamadaptError

__all__ = ["engine_process", "last_lines", "stop_engine", "uninterrupted"]

STOP_S = 15.0
KILL_AFTER_S = 6.0
"""Longer than the time within which the engine ends after a signal."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay an interrupt until the end of the block, and raise it there, so that a process that is
    started in the block can be stopped."""
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        del frame
        held.append(number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        raise KeyboardInterrupt


@contextmanager
def engine_process(config: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the engine, and stop it at the end of the block, also after an error. Enter this
    context in an `uninterrupted` block."""
    command = [sys.executable, "-m", "streamadapt", "run", str(config), "--json"]
    with (folder / "summary.json").open("wb") as out, (folder / "engine.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
            preexec_fn=die_with_parent(signal.SIGTERM),
            # Ctrl-C must reach only the demo, which then stops the engine in the right order.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(KILL_AFTER_S)
    except BaseException as reason:  # also a second interrupt: kill at once
        process.kill()
        process.wait()
        if not isinstance(reason, subprocess.TimeoutExpired):
            raise


def stop_engine(process: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    """Stop the engine and return its summary.

    Raises
    ------
    StreamadaptError
        If the engine does not end in time, or ends with an exit code other than 0.
    """
    process.terminate()
    try:
        code = process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        raise StreamadaptError(
            f"the engine did not end within {STOP_S:g} s: {last_lines(folder)}"
        ) from None
    if code != 0:
        raise StreamadaptError(f"the engine ended with exit code {code}: {last_lines(folder)}")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def last_lines(folder: Path) -> str:
    """Return the end of the engine's log, as one line."""
    text = (folder / "engine.log").read_text(encoding="utf-8", errors="replace")
    return " | ".join(text.splitlines()[-3:]) or "it logged nothing"
