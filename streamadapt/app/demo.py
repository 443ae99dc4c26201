"""``streamadapt demo``: a frozen calibration kept right on a real sensor, through a real Kafka protocol broker.

This process starts the broker, fits the base on the first fifth of the data, produces the rest, watches the engine
through its metrics, and at the end reads the predictions back from their topic and judges them itself. The engine is
an ordinary ``streamadapt run`` in a process of its own.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from streamadapt.app.broker import EmbeddedBroker, create_topics, free_port
from streamadapt.app.cgm import Reading, labelled, read_glucose
from streamadapt.app.demo_files import write_config, write_history
from streamadapt.app.demo_judge import Judgement, judge
from streamadapt.app.demo_producer import produce
from streamadapt.app.demo_view import watch
from streamadapt.app.fitting import fit_base
from streamadapt.app.tables import count_table, expert_table
from streamadapt.errors import ConfigError, StreamadaptError

__all__ = ["run_demo"]

TRAIN_SHARE = 0.2
STOP_S = 15.0
TOPICS = ("cgm-entries", "cgm-labels", "cgm-predictions", "cgm-dead-letters")


def run_demo(
    *, speed: float | None, labels: str, json_path: Path | None, limit: int | None = None, keep: Path | None = None
) -> int:
    """Run the demo; return its exit code.

    Parameters
    ----------
    speed : float or None
        Entries a second; None is as fast as it goes.
    labels : {"all", "sparse"}
    json_path : Path or None
        Where the result goes as JSON.
    limit : int or None
        Stream only so many readings; None is all.
    keep : Path or None
        A folder for config, base, checkpoints and the engine's log; None is a temporary one.
    """
    if labels not in ("all", "sparse"):
        raise ConfigError("--labels", labels, "all or sparse")
    if speed is not None and not 0.0 < speed < 1e9:
        raise ConfigError("--speed", speed, "entries a second, > 0")
    console = Console()
    if limit is not None and limit < 1:
        raise ConfigError("--limit", limit, "a number of readings >= 1")
    with _interrupts(), ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamadapt-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            readings = read_glucose()
            split = int(TRAIN_SHARE * len(readings))
            data = _Data(readings[:split], readings[split:][:limit], sparse=labels == "sparse")
            return _run(console, stack, folder, data, speed=speed, json_path=json_path)
        except KeyboardInterrupt:
            console.print("interrupted: engine and broker are being stopped")
            return 130


@contextmanager
def _interrupts() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class _Data:
    """What the base is fitted on, what is streamed, and how much of that gets a label."""

    history: list[Reading]
    stream: list[Reading]
    sparse: bool

    @property
    def labelled(self) -> list[Reading]:
        return labelled(self.stream, sparse=self.sparse)


def _run(
    console: Console, stack: ExitStack, folder: Path, data: _Data, *, speed: float | None, json_path: Path | None
) -> int:
    console.print(
        f"A glucose sensor: a linear calibration is fitted on its first {len(data.history):,} readings and frozen; the "
        f"next {len(data.stream):,} are streamed, labels 6 hours later{', four a day' if data.sparse else ''}."
    )
    broker = stack.enter_context(EmbeddedBroker())
    create_topics(broker.servers, dict.fromkeys(TOPICS, 1))
    port = free_port()
    config = write_config(folder, broker.servers, port, TOPICS)
    history = write_history(folder, data.history)
    fitted = fit_base(config, history, None, ridge=0.1, subtract_last=True, shared_scale=False)
    url = f"http://127.0.0.1:{port}/metrics"
    console.print(f"Fitted on {fitted['rows']:,} rows. Broker: {broker.servers}. Metrics: {url}")
    arguments = (broker.servers, *TOPICS[:2], data.stream, data.labelled, speed)
    engine = stack.enter_context(_engine(config, folder))
    threading.Thread(target=produce, args=arguments, daemon=True, name="producer").start()
    try:
        watch(console, url, engine, total=len(data.stream) + len(data.labelled))
    except StreamadaptError as error:
        raise StreamadaptError(f"{error}; its log ends: {last_lines(folder / 'engine.log')}") from error
    summary = _stop(engine, folder)
    judgement = judge(broker.servers, TOPICS[2], data.stream, expected_predictions=summary["predictions"])
    result = _result(judgement, summary, data)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _show(console, judgement, summary, url)
    return _verdict(console, result, data, summary)


@contextmanager
def _engine(config: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``streamadapt run`` in a process of its own; stopped at the end, whatever happens."""
    command = [sys.executable, "-m", "streamadapt", "run", str(config), "--json"]
    # Its own process group: Ctrl-C reaches this process only, which then stops the engine in order.
    with (folder / "summary.json").open("wb") as out, (folder / "engine.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=out, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _stop(engine: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    engine.terminate()
    code = engine.wait(STOP_S)
    if code != 0:
        raise StreamadaptError(f"the engine ended with exit code {code}: {last_lines(folder / 'engine.log')}")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def last_lines(path: Path) -> str:
    """Return the end of a log."""
    return " | ".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])


def _result(judgement: Judgement, summary: dict[str, Any], data: _Data) -> dict[str, Any]:
    labels = "one in 72 (four a day)" if data.sparse else "every one"
    return {
        "frozen": judgement.errors["base"],
        "served": judgement.errors["served"],
        "experts": {name: error for name, error in judgement.errors.items() if name != "served"},
        "entries": summary["entries"],
        "dead_letters": summary["dead_letters"],
        "drifts": summary["drifts"],
        "protocol": (
            f"continuous glucose monitor of bokeh_sampledata; base: linear calibration on the last 6 currents, fitted "
            f"on the first {TRAIN_SHARE:.0%}, frozen; the next {len(data.stream)} rows in time order through Kafka, dirty "
            f"ones refused; labels: {labels}, 6 h late in event time; predicted first, learned after the label's arrival; "
            f"mean absolute error in mg/dL of the {judgement.count} predictions read back from their topic, against "
            f"the true glucose"
        ),
    }


def _show(console: Console, judgement: Judgement, summary: dict[str, Any], url: str) -> None:
    experts = {name: error for name, error in judgement.errors.items() if name != "served"}
    what = f"mean absolute error, mg/dL, {judgement.count:,} predictions"
    console.print(expert_table(experts, judgement.errors["served"], summary["weights"], what=what))
    console.print(count_table(summary))
    console.print(f"Metrics were served on {url}")


def _verdict(console: Console, result: dict[str, Any], data: _Data, summary: dict[str, Any]) -> int:
    """Nothing lost, and something gained; otherwise the demo has failed."""
    refused = sum(isinstance(reading.isig, str) for reading in data.stream)
    failures = []
    if summary["entries"] != len(data.stream) - refused:
        failures.append(f"{summary['entries']} entries accepted, {len(data.stream) - refused} expected")
    if not result["served"] < result["frozen"]:
        failures.append("the served predictions are no better than the frozen model's")
    for failure in failures:
        console.print(f"FAILED: {failure}", style="bold red")
    if not failures:
        gain = 1.0 - result["served"] / result["frozen"]
        console.print(
            f"The frozen model errs by {result['frozen']:.2f} mg/dL, "
            f"the served mixture by {result['served']:.2f}: {gain:.0%} less."
        )
    return 1 if failures else 0
