"""What a run shows to an observer: its lag, all counters that can occur, and whether it is
alive."""

from __future__ import annotations

import http.client
import io
import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from streamadapt import (
    Bias,
    DriftMonitor,
    Entry,
    KeyedPipeline,
    Label,
    Pipeline,
    Position,
    Supervised,
    TwoLayer,
)
from streamadapt.app.demo.view import _View
from streamadapt.app.exposition import MetricsCollector, serve
from streamadapt.app.watchdog import Watchdog
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import Reason
from streamadapt.records import StreamPartition
from streamadapt.testing import (
    IdentityCodec,
    ManualClock,
    MemoryDeadLetters,
    MemorySink,
    MemorySource,
)


def entry(i, partition=0):
    return Entry(
        np.array([i % 5], np.float32), i, f"e{i}", position=Position("memory", partition, i)
    )


def label(i, partition=0):
    return Label(
        f"e{i}", np.array([1.0], np.float32), i + 1, Position("memory-labels", partition, i)
    )


def pipeline():
    monitors = [
        DriftMonitor("adwin", "loss", "reset"),
        DriftMonitor("page-hinkley", "input", "refit"),
    ]
    return Pipeline(Supervised(1), lambda x: x[-1:, :1], [Bias(0.1)], drift=monitors)


def engine_of(source, make=pipeline, **settings):
    metrics, clock = Metrics(), ManualClock()
    options = EngineSettings(**{"label_wait_s": 10.0} | settings)
    engine = Engine(
        source,
        make,
        MemorySink(),
        IdentityCodec(),
        MemoryDeadLetters(),
        settings=options,
        metrics=metrics,
        clock=clock,
    )
    return engine, metrics, clock


def lag_of(metrics):
    return dict(metrics.samples()["streamadapt_consumer_lag_records"])


def test_the_lag_counts_unprocessed_records():
    """Entries that wait for their labels are read but not processed: per partition, in the metric
    and in the summary."""
    items = [entry(i, p) for p in (0, 1) for i in range(300)]
    source = MemorySource(items, [], batch=50, finite=False)
    engine, metrics, clock = engine_of(source)
    source.open(engine)
    for _ in range(20):  # far more steps than needed to read everything
        engine.step()
    assert source.lag() == {StreamPartition(s, p): 0 for s in source.streams for p in (0, 1)}, (
        "everything is read"
    )
    assert lag_of(metrics) == {
        ("memory", "0"): 300, ("memory", "1"): 300, ("memory-labels", "0"): 0,
        ("memory-labels", "1"): 0,
    }  # fmt: skip
    assert engine.summary()["lag"]["memory[1]"] == 300
    clock.advance(11.0)
    engine.step()
    assert set(lag_of(metrics).values()) == {0}
    assert set(engine.summary()["lag"].values()) == {0}


def test_the_lag_at_any_moment_is_the_number_of_unprocessed_records():
    """Read or not: of 1,000 records, the number that the pipeline has not seen; with a backlog in
    the source too."""
    source = MemorySource([entry(i) for i in range(1000)], batch=90, finite=False)
    engine, metrics, _ = engine_of(source, max_buffer=100)
    source.open(engine)
    seen = set()
    for _ in range(30):
        engine.step()
        done = engine.runners[0].pipeline.stats.entries
        assert lag_of(metrics)["memory", "0"] == 1000 - done
        seen.add(done)
    assert done == 1000
    assert len(seen) > 5


def series(metrics):
    registry = CollectorRegistry()
    MetricsCollector(metrics, registry)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples
    }


def test_counters_exist_before_the_first_count():
    """For every reason, detector, outcome and learner that can occur; otherwise `increase()`
    misses the first one."""
    source = MemorySource([], [], finite=False)
    engine, metrics, _ = engine_of(source)
    source.open(engine)
    before = series(metrics)
    reasons = {
        dict(key[1:])["reason"] for key in before if key[0] == "streamadapt_dead_letters_total"
    }
    assert reasons == {reason.value for reason in Reason}
    drifts = {
        tuple(v for _, v in key[1:3]) for key in before if key[0] == "streamadapt_drifts_total"
    }
    assert drifts == {("adwin", "0"), ("page-hinkley", "0")}
    for name, labels in [
        ("labels_total", {"outcome": "expired"}), ("labels_total", {"outcome": "learned"}),
        ("updates_total", {"learner": "bias", "result": "restored"}),
        ("matured_cells_total", {"role": "served"}), ("reactions_total", {"reaction": "reset"}),
        ("reactions_total", {"reaction": "refit-kept"}),
        ("drifts_total", {"detector": "adwin", "signal": "loss"}),
    ]:  # fmt: skip
        found = [
            key
            for key in before
            if key[0] == f"streamadapt_{name}" and labels.items() <= dict(key[1:]).items()
        ]
        assert len(found) == 1 or "bias" in labels.values(), (name, labels)
        assert all(before[key] == 0.0 for key in found)
    assert all(value == 0.0 for key, value in before.items() if key[0].endswith("_total"))
    source.append(b"nonsense", *[entry(i) for i in range(30)])
    source.append(
        *[label(i) for i in range(28)],
        Label("x", np.array([1.0], np.float32), 50),
        stream="memory-labels",
    )
    for _ in range(3):
        engine.step()
    engine.clock.advance(60.0)
    engine.step()
    after = series(metrics)
    counted = {key for key, value in after.items() if value and key[0].endswith("_total")}
    assert counted, "something was counted"
    assert counted <= before.keys(), "each series existed before, at 0"


def test_keyed_and_unlabelled_pipelines_show_zeros_too():
    from streamadapt import Unlabelled

    keyed, metrics, _ = engine_of(
        MemorySource([], finite=False), lambda: KeyedPipeline(pipeline, 5)
    )
    keyed.source.open(keyed)
    moves = {
        key: v for key, v in series(metrics).items() if key[0] == "streamadapt_key_moves_total"
    }
    assert {dict(key[1:])["move"]: v for key, v in moves.items()} == {
        "evicted": 0,
        "restored": 0,
        "forgotten": 0,
    }
    keyed._close()

    def unlabelled():
        guard = TwoLayer(prior={"base": 1.0})
        return Pipeline(Unlabelled(1, classes=2), lambda x: x[-1:, :2].softmax(-1), guard=guard)

    plain, metrics, _ = engine_of(MemorySource([], finite=False), unlabelled)
    plain.source.open(plain)
    assert not [key for key in series(metrics) if key[0] == "streamadapt_labels_total"], (
        "no label can arrive"
    )


# -- the port


def ask(port, path, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally:
        connection.close()


@pytest.fixture
def port():
    metrics, registry = Metrics(), CollectorRegistry()
    MetricsCollector(metrics, registry)
    with serve(
        registry, 0, "127.0.0.1", lambda: (False, "not yet"), lambda: (True, "the loop runs")
    ) as server:
        yield server.port


def test_each_path_has_its_answer(port):
    assert ask(port, "/live")[:2] == (200, "live: the loop runs\n")
    assert ask(port, "/ready")[:2] == (503, "not ready: not yet\n")
    assert "streamadapt_build_info" in ask(port, "/metrics")[1]
    assert "streamadapt_build_info" in ask(port, "/metrics?name[]=streamadapt_build_info")[1]
    for path in ("/", "/metric", "/metrics/more", "/livez", "/favicon.ico", "//", "/%6detrics/x"):
        status, text, _ = ask(port, path)
        assert status == 404, path
        assert "/live, /metrics, /ready" in text


@pytest.mark.parametrize("path", ["/metrics", "/live", "/ready", "/nowhere"])
def test_head_answers_as_get_does_without_a_body(port, path):
    status, text, headers = ask(port, path)
    found, nothing, same = ask(port, path, "HEAD")
    assert (found, nothing) == (status, "")
    assert same["Content-Type"] == headers["Content-Type"]
    assert int(same["Content-Length"]) == len(text)


def test_other_methods_are_refused(port):
    for method in ("POST", "PUT", "DELETE"):
        assert ask(port, "/metrics", method)[0] == 405


class Restoring(MemorySource):
    """A source that opens when the test allows it."""

    def __init__(self):
        super().__init__([], finite=False)
        self.opening, self.go_on = threading.Event(), threading.Event()

    def open(self, owner):
        self.opening.set()
        self.go_on.wait()
        super().open(owner)


def test_live_while_restoring_ready_while_running_neither_after_the_end():
    source = Restoring()
    engine, metrics, _ = engine_of(source)
    watchdog = Watchdog(engine, metrics, 60.0)
    assert watchdog.live()[0]
    loop = threading.Thread(target=engine.run)
    loop.start()
    source.opening.wait()
    assert (watchdog.live()[0], watchdog.ready()) == (True, (False, "its state is being restored"))
    source.go_on.set()
    while not engine.runners or engine.heartbeat < 3:
        threading.Event().wait(0.01)
    assert (watchdog.live()[0], watchdog.ready()[0]) == (True, True)
    engine.stop()
    loop.join()
    assert (watchdog.live(), watchdog.ready()[0]) == ((False, "the loop has ended"), False)


def test_the_demo_view_counts_dead_letters_as_they_arrive():
    """Once each, whatever else is counted for the same record; the view ends with the last record,
    not before."""
    view = _View(total=100)
    samples = {
        "entries_total": {"": 40.0},
        "labels_total": {"learned": 30.0, "expired": 7.0, "refused": 5.0},
        "dead_letters_total": {"wrong_type": 0.0, "unknown_label": 0.0},
    }
    for wrong, unknown in ((0.0, 0.0), (3.0, 0.0), (10.0, 5.0)):
        samples["dead_letters_total"] = {"wrong_type": wrong, "unknown_label": unknown}
        view.update(samples, 1.0)
        assert view.done == 70 + wrong + unknown
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(view.draw())
        assert f"dead letters    {wrong + unknown:,.0f}" in console.export_text()
        assert f"dead letters {wrong + unknown:,.0f}" in view.line()
