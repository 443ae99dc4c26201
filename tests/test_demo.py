"""The demo as a person sees it: on a pipe, on a terminal, and ended with Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from pathlib import Path

import pytest
from rich.console import Console

from streamadapt.app.demo.engine import uninterrupted
from streamadapt.app.demo.view import _View
from streamadapt.app.tables import summary_text

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="looks for processes in /proc"
)

PATIENCE_S = 150.0  # a bound against hanging, far above any step here
DEMO = [sys.executable, "-m", "streamadapt", "demo"]


def marked(mark):
    """Return the command lines of the processes that inherited `mark`."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes())
        except OSError:
            continue
    return found


class Terminal:
    """The demo in a pseudo-terminal of 80 columns."""

    def __init__(self, *arguments):
        self.mark = f"demo-{uuid.uuid4().hex}"
        self.output = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", STREAMADAPT_TEST_MARK=self.mark)
            for name in ("COLUMNS", "LINES", "NO_COLOR", "CI"):
                os.environ.pop(name, None)
            os.execv(DEMO[0], [*DEMO, *arguments])
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))

    def read_until(self, text=None):
        """Read until `text` appears, or to the end; True if it appeared."""
        deadline = time.monotonic() + PATIENCE_S
        while text is None or text not in self.output:
            assert time.monotonic() < deadline, self.output[-2000:]
            if not select.select([self.fd], [], [], 0.2)[0]:
                continue
            try:
                read = os.read(self.fd, 1 << 16)
            except OSError:  # how Linux reports the end of a terminal
                return False
            if not read:
                return False
            self.output += read
        return True

    def press_ctrl_c(self):
        os.write(self.fd, b"\x03")

    def exit_code(self):
        self.read_until()
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def text(self):
        # A frame is drawn over the one before.
        lines = self.output.decode().replace("\r", "").replace("\x1b[1A", "\n")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", lines)


@pytest.mark.kafka
@pytest.mark.slow
@linux
def test_the_demo_on_a_pipe(tmp_path):
    """Plain lines, a table at the end, the result as JSON, exit code 0, and no process left."""
    mark = f"demo-{uuid.uuid4().hex}"
    out = tmp_path / "result.json"
    done = subprocess.run(
        [*DEMO, "--limit", "1500", "--json", str(out)], capture_output=True, text=True,
        check=False, env=os.environ | {"STREAMADAPT_TEST_MARK": mark}, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    result = json.loads(out.read_text())
    assert result.keys() == {
        "frozen",
        "served",
        "experts",
        "entries",
        "dead_letters",
        "drifts",
        "protocol",
    }
    assert result["served"] < result["frozen"] == result["experts"]["base"]
    assert result["entries"] + sum(result["dead_letters"].values()) == 1500
    lines = done.stdout.splitlines()
    progress = [line for line in lines if "entries/s" in line]
    assert progress
    for text in (
        "lag ",
        "error frozen ",
        "error served ",
        "dead letters ",
        "drifts ",
        "weights: ",
    ):
        assert all(text in line for line in progress)
    assert progress[-1].startswith("100%")
    for text in [*result["experts"], "served", "predictions", "drifts", "dead letters"]:
        assert any(line.startswith("│") and text in line for line in lines), text
    assert re.search(r"Metrics were served on http://127.0.0.1:\d+/metrics", done.stdout)
    assert marked(mark) == []


@pytest.mark.kafka
@pytest.mark.slow
@linux
def test_the_demo_on_a_terminal_with_sparse_labels():
    """The live view shows every figure within 80 columns, the cursor returns, and few labels are
    enough."""
    terminal = Terminal("--labels", "sparse", "--limit", "1500")
    assert terminal.exit_code() == 0, terminal.text[-2000:]
    assert "four a day" in terminal.text
    frames = terminal.text.split(" records\n")
    assert len(frames) > 3
    for text in (
        "entries/s",
        "lag",
        "error frozen",
        "error served",
        "dead letters",
        "drifts",
        "weights",
    ):
        assert text in frames[-1]
    wide = [line for line in terminal.text.splitlines() if len(line) > 80]
    assert wide == []
    assert terminal.output.rfind(b"\x1b[?25h") > terminal.output.rfind(b"\x1b[?25l") > 0
    assert "less." in terminal.text.splitlines()[-1]
    assert marked(terminal.mark) == []


@pytest.mark.kafka
@pytest.mark.slow
@linux
@pytest.mark.parametrize("at", [b"A glucose sensor", b"Fitted on", b"entries/s"])
def test_ctrl_c_ends_the_demo_cleanly(at):
    """While the broker starts, while the engine starts and while it runs: 130, no traceback, no
    process left."""
    terminal = Terminal("--speed", "500")
    assert terminal.read_until(at), terminal.text
    terminal.press_ctrl_c()
    assert terminal.exit_code() == 130, terminal.text
    assert "interrupted" in terminal.text.splitlines()[-1]
    assert "Traceback" not in terminal.text
    assert "rror:" not in terminal.text
    assert terminal.output.rfind(b"\x1b[?25h") >= terminal.output.rfind(b"\x1b[?25l")
    assert marked(terminal.mark) == []


def test_an_interrupt_waits_for_the_end_of_a_start():
    """A just started process is registered before the interrupt is raised."""
    reached = []
    # Ignored if a shell started us in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def start():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end of the block")

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached


def samples(entries, drifts=0.0):
    return {
        "entries_total": {"": entries},
        "dead_letters_total": {"not_json": 3.0},
        "labels_total": {"learned": 40.0, "expired": 7.0},
        "matured_cells_total": {"base": 40.0, "served": 40.0},
        "matured_loss_total": {"base": 80.0, "served": 20.0},
        "guard_weight_ratio": {f"a-learner-with-a-long-name-0.{i}": 0.1 for i in range(9)}
        | {"base": 0.1},
        "consumer_lag_records": {"entries": 1200.0, "labels": 34.0},
        "drifts_total": {"adwin": drifts},
    }


def test_the_view_shows_the_metrics():
    """Rates, lag, errors, weights and places of drift; never wider than the terminal, always with
    the same height."""
    view = _View(1000)
    heights = set()
    for second in range(6):
        view.update(samples(100.0 * (second + 1), drifts=float(second)), float(second))
        console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - closed below
        with console.file:
            console.print(view.draw())
            lines = console.export_text().splitlines()
        heights.add(len(lines))
        assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert heights == {len(lines)}
    assert "643 of 1,000 records" in lines[0]
    for name, value in [
        ("entries/s", "100"),
        ("lag", "1,234"),
        ("error frozen", "2.00"),
        ("dead letters", "3"),
    ]:
        assert re.search(rf"{name}\s+{value}", text)
    assert re.search(r"error served\s+0\.50 \(-75 %\)", text)
    assert re.search(r"drifts\s+5 \(newest at entry 400, 500, 600\)", text)
    assert view.line().startswith(
        " 64%  entries/s 100  lag 1,234  error frozen 2.00  error served 0.50 (-75 %)"
    )


def test_an_empty_summary_is_readable(monkeypatch):
    """Before the first prediction there is no error to show, and no drift; at the width of a
    terminal."""
    empty = {
        "frozen": None, "served": None, "experts": {"base": None}, "weights": {}, "entries": 0,
        "predictions": 0, "pending": 0, "labels": {}, "dead_letters": {}, "drifts": {},
        "reactions": {}, "drift_log": [], "restored": {},
    }  # fmt: skip
    text = summary_text(empty)
    assert "Error" not in text
    assert re.search(r"dead letters\s+│ +none", text)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    assert max(map(len, summary_text(empty).splitlines())) <= 20
    assert "2026-01-02 03:04" in summary_text(
        {**empty, "drifts": {"adwin:loss": 9}, "drift_log": [["adwin:loss", 1767323045 * 10**9]]}
    )
