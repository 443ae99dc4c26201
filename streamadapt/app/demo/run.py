"""``streamadapt demo``: keeps the frozen calibration of a real sensor accurate, through a broker
with the Kafka protocol.

This process starts the broker, fits the base on the first fifth of the data, produces the rest,
and watches the engine through its metrics. At the end it reads the predictions back from their
topic and judges them. The engine is an ordinary ``streamadapt run`` in a separate process.
"""

from __future__ import annotations

import json
import logging
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from streamadapt.app.demo.broker import EmbeddedBroker, create_topics, free_port
from streamadapt.app.demo.cgm import Reading, labelled, read_glucose
from streamadapt.app.demo.engine import engine_process, last_lines, stop_engine, uninterrupted
from streamadapt.app.demo.files import write_config, write_history
from streamadapt.app.demo.judge import Judgement, judge
from streamadapt.app.demo.producer import Producer
from streamadapt.app.demo.view import show, watch
from streamadapt.app.fitting import fit_base
from streamadapt.app.tables import print_result
from streamadapt.errors import ConfigError, StreamadaptError
from streamadapt.outputs import check_output, write_whole

__all__ = ["run_demo"]

TRAIN_SHARE = 0.2
MIN_READINGS = 100
"""With fewer readings the demo shows nothing of interest."""
TOPICS: tuple[str, str, str, str] = (
    "cgm-entries",
    "cgm-labels",
    "cgm-predictions",
    "cgm-dead-letters",
)


def run_demo(
    *,
    speed: float | None,
    labels: str,
    json_path: Path | None,
    limit: int | None = None,
    keep: Path | None = None,
) -> int:
    """Run the demo; return its exit code.

    Parameters
    ----------
    speed : float or None
        Entries per second; None is as fast as possible.
    labels : {"all", "sparse"}
    json_path : Path or None
        The file for the result as JSON.
    limit : int or None
        The number of readings to stream; None is all.
    keep : Path or None
        A folder for config, base, checkpoints and the engine's log; None is a temporary folder.
    """
    _check(speed, labels, json_path, limit, keep)
    console = Console()
    # The client would log again and again that the broker has stopped.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    with _interrupts(), ExitStack() as stack:
        try:
            folder = keep or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="streamadapt-demo-"))
            )
            folder.mkdir(parents=True, exist_ok=True)
            readings = read_glucose()
            split = int(TRAIN_SHARE * len(readings))
            data = _Data(readings[:split], readings[split:][:limit], sparse=labels == "sparse")
            return _run(console, stack, folder, data, speed=speed, json_path=json_path)
        except KeyboardInterrupt:
            show(console, "interrupted: engine and broker are being stopped")
            return 130


def _check(
    speed: float | None, labels: str, json_path: Path | None, limit: int | None, keep: Path | None
) -> None:
    if labels not in ("all", "sparse"):
        raise ConfigError("--labels", labels, "all or sparse")
    if speed is not None and not 0.0 < speed < 1e9:
        raise ConfigError("--speed", speed, "entries per second, > 0")
    if limit is not None and limit < MIN_READINGS:
        raise ConfigError("--limit", limit, f"a number of readings >= {MIN_READINGS}")
    if json_path is not None:
        check_output("--json", json_path, {})
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise ConfigError(
            "--keep", str(keep), "a new or empty folder: the topics of the broker are new, too"
        )


@contextmanager
def _interrupts() -> Iterator[None]:
    """Make SIGTERM end the demo in the same way as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class _Data:
    """The readings on which the base is fitted, the readings that are streamed, and whether only
    some of these have a label."""

    history: list[Reading]
    stream: list[Reading]
    sparse: bool

    @property
    def labelled(self) -> list[Reading]:
        return labelled(self.stream, sparse=self.sparse)


def _run(
    console: Console,
    stack: ExitStack,
    folder: Path,
    data: _Data,
    *,
    speed: float | None,
    json_path: Path | None,
) -> int:
    show(
        console,
        f"A glucose sensor: a linear calibration is fitted on its first {len(data.history):,} "
        f"readings and frozen; the "
        f"next {len(data.stream):,} are streamed, labels 6 hours "
        f"later{', four a day' if data.sparse else ''}.",
    )
    # An interrupt in the middle of a fork would be lost: a hook of `logging` ignores it.
    with uninterrupted():
        broker = stack.enter_context(EmbeddedBroker())
    create_topics(broker.servers, dict.fromkeys(TOPICS, 1))
    port = free_port()
    config = write_config(folder, broker.servers, port, TOPICS)
    history = write_history(folder, data.history)
    fitted = fit_base(config, history, None, ridge=0.1, subtract_last=True, shared_scale=False)
    url = f"http://127.0.0.1:{port}/metrics"
    show(console, f"Fitted on {fitted['rows']:,} rows. Broker: {broker.servers}. Metrics: {url}")
    producer = Producer(broker.servers, TOPICS[:2], data.stream, data.labelled, speed)
    with uninterrupted():
        engine = stack.enter_context(engine_process(config, folder))
    stack.callback(producer.stop)
    producer.start()
    try:
        watch(console, url, engine, producer, total=len(data.stream) + len(data.labelled))
    except StreamadaptError as error:
        raise StreamadaptError(f"{error}; its log ends: {last_lines(folder)}") from error
    summary = stop_engine(engine, folder)
    judgement = judge(
        broker.servers, TOPICS[2], data.stream, expected_predictions=summary["predictions"]
    )
    result = _result(judgement, summary, data)
    if json_path is not None:
        _write(json_path, result)
    what = f"mean absolute error in mg/dL of {judgement.count:,} predictions"
    print_result(console, judgement.errors, summary, what=what)
    show(console, f"Metrics were served on {url}")
    return _verdict(console, result, data, summary)


def _write(path: Path, result: dict[str, Any]) -> None:
    target = check_output("--json", path, {})
    write_whole(target, (json.dumps(result, indent=2) + "\n").encode())


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
            f"continuous glucose monitor of bokeh_sampledata; base: linear calibration on the "
            f"last 6 currents, fitted on the first {TRAIN_SHARE:.0%}, frozen; the next "
            f"{len(data.stream)} rows in time order through Kafka, failed readings refused; "
            f"labels: {labels}, 6 h late in event time; each entry predicted first, learned "
            f"after its label's arrival; mean absolute error in mg/dL of the {judgement.count} "
            f"predictions read back from their topic, compared with the true glucose"
        ),
    }


def _verdict(
    console: Console, result: dict[str, Any], data: _Data, summary: dict[str, Any]
) -> int:
    """Print whether the demo succeeded and return the exit code: no entry may be lost, and the
    served predictions must be better than the frozen model's."""
    refused = sum(isinstance(reading.isig, str) for reading in data.stream)
    failures = []
    if summary["entries"] != len(data.stream) - refused:
        failures.append(
            f"{summary['entries']} entries accepted, {len(data.stream) - refused} expected"
        )
    if not result["served"] < result["frozen"]:
        failures.append("the served predictions are no better than the frozen model's")
    for failure in failures:
        show(console, f"FAILED: {failure}", style="bold red")
    if not failures:
        gain = 1.0 - result["served"] / result["frozen"]
        show(
            console,
            f"The mean error of the frozen model is {result['frozen']:.2f} mg/dL, "
            f"that of the served mixture {result['served']:.2f}: {gain:.0%} less.",
        )
    return 1 if failures else 0
