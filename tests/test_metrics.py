"""The catalogue, the docs page and a scrape agree; recording and scraping do not disturb each
other."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streamadapt import __version__
from streamadapt.app.exposition import MetricsCollector, metrics_markdown, serve
from streamadapt.engine.conditions import Condition, Standing
from streamadapt.engine.metrics import STAGE_BOUNDS_S, STAGES, Metrics, NullMetrics
from streamadapt.engine.metrics_catalogue import CATALOGUE
from streamadapt.errors import ConfigError
from streamadapt.pipeline.stats import Stats
from streamadapt.records import StreamPartition

DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"


class Clock:
    def __init__(self) -> None:
        self.ns = 1_000_000_000_000
        self.s = 50.0

    def time_ns(self) -> int:
        return self.ns

    def monotonic(self) -> float:
        return self.s


def some_stats() -> Stats:
    return Stats(
        entries=10,
        predictions=8,
        labels=Counter(learned=5, expired=1),
        updates={"rls": Counter(ok=4, restored=1)},
        loss_sum={"base": 3.5, "rls": 2.0, "served": 2.5},
        loss_cells={"base": 7, "rls": 7, "served": 7},
        drifts=Counter({"adwin:loss": 2}),
        reactions=Counter({"reset": 3}),
        faults=Counter({"guard": 1}),
        keys=Counter(resident=2, stored=5, evicted=9, restored=4),
        weights={"base": 0.25, "rls": 0.75},
        signals={"dictionary-error": 0.5},
        asked=2,
        asked_loss={"base": 6.0, "served": 4.0},
        asked_weight=8.0,
        estimated={"base": 9.0, "served": 8.0},
        foreseen={"base": 4.0, "served": 3.0},
        seen={"base": 3.5, "served": 2.5},
        estimated_count=8,
        seen_count=5.0,
        interval_cells=7,
        interval_hits=6,
        pending=3,
        last_time=990_000_000_000,
    )


def record_everything(metrics: Metrics) -> None:
    for stage in STAGES:
        metrics.stage(stage, 0.002)
    metrics.pipeline(3, some_stats())
    metrics.dead_letter("not_json", "decode")
    metrics.lag({StreamPartition("speeds", 3): 42})
    metrics.checkpoint(3, 0.02, 4096, 45.0)
    metrics.source_state("connected")
    metrics.late_label()
    began = {Condition.NO_ANSWER: 2}
    standing = Standing("away", {Condition.NO_ANSWER: True}, began, 6.0, {("speeds", 5): 4})
    metrics.standings(lambda: {"source": Standing(), "sink": standing})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(Clock())


@pytest.fixture
def registry(metrics: Metrics) -> CollectorRegistry:
    registry = CollectorRegistry()
    MetricsCollector(metrics, registry)
    return registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"streamadapt_{name}", labels)


def test_every_number_is_in_its_metric(metrics: Metrics, registry: CollectorRegistry) -> None:
    record_everything(metrics)
    assert value(registry, "entries_total", partition="3") == 10
    assert value(registry, "predictions_total", partition="3") == 8
    assert value(registry, "labels_total", partition="3", outcome="expired") == 1
    assert value(registry, "updates_total", partition="3", learner="rls", result="restored") == 1
    assert value(registry, "matured_loss_total", partition="3", role="served") == 2.5
    assert value(registry, "matured_cells_total", partition="3", role="served") == 7
    assert value(registry, "guard_weight_ratio", partition="3", expert="rls") == 0.75
    assert value(registry, "asked_labels_total", partition="3") == 2
    assert value(registry, "asked_loss", partition="3", role="served") == 0.5
    assert (
        value(registry, "estimated_loss_total", partition="3", measure="base", labels="known")
        == 4.0
    )
    assert value(registry, "estimated_predictions_total", partition="3", labels="all") == 8
    assert value(registry, "interval_cells_total", partition="3", result="outside") == 1
    assert value(registry, "true_loss_total", partition="3", measure="served") == 2.5
    assert value(registry, "signal", partition="3", signal="dictionary-error") == 0.5
    assert value(registry, "drifts_total", partition="3", detector="adwin", signal="loss") == 2
    assert value(registry, "reactions_total", partition="3", reaction="reset") == 3
    assert value(registry, "keys", partition="3", place="stored") == 5
    assert value(registry, "key_moves_total", partition="3", move="restored") == 4
    assert value(registry, "dead_letters_total", reason="not_json", stage="decode") == 1
    assert value(registry, "late_labels_total") == 1
    assert value(registry, "consumer_lag_records", stream="speeds", partition="3") == 42
    assert value(registry, "event_time_lag_seconds", partition="3") == 10
    assert value(registry, "pending_labels", partition="3") == 3
    assert value(registry, "checkpoint_age_seconds", partition="3") == 5
    assert value(registry, "checkpoint_duration_seconds", partition="3") == 0.02
    assert value(registry, "checkpoint_size_bytes", partition="3") == 4096
    assert value(registry, "source_connected") == 1
    assert value(registry, "build_info", version=__version__) == 1


def test_durations_fall_into_cumulative_buckets(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    for seconds in (0.0, 1e-5, 0.0005, 0.002, 99.0):
        metrics.stage("learn", seconds)
    expected = [
        sum(s <= bound for s in (0.0, 1e-5, 0.0005, 0.002, 99.0)) for bound in STAGE_BOUNDS_S
    ]
    text = generate_latest(registry).decode()
    found = re.findall(r'_bucket\{le="([^"]+)",stage="learn"\} (\S+)', text)
    assert [float(bound) for bound, _ in found] == [*STAGE_BOUNDS_S, float("inf")]
    assert [float(count) for _, count in found] == [*expected, 5]
    assert value(registry, "stage_duration_seconds_count", stage="learn") == 5
    assert value(registry, "stage_duration_seconds_sum", stage="learn") == pytest.approx(99.00251)
    with pytest.raises(KeyError):
        metrics.stage("lern", 1.0)


def test_unknown_values_are_absent_and_not_zero(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    names = {family.name for family in registry.collect()}
    assert names == {"streamadapt_build_info", "streamadapt_late_labels"}
    metrics.pipeline(0, Stats())
    assert value(registry, "entries_total", partition="0") == 0
    assert value(registry, "event_time_lag_seconds", partition="0") is None
    metrics.source_state("connecting")
    assert value(registry, "source_connected") == 0
    metrics.source_state("ended")
    assert value(registry, "source_connected") is None


def test_a_partition_that_moved_away_is_forgotten(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    record_everything(metrics)
    metrics.pipeline(4, some_stats())
    metrics.forget(3)
    text = generate_latest(registry).decode()
    assert 'partition="3"' not in text
    assert 'partition="4"' in text
    metrics.forget(9)


def test_ages_grow_with_the_clock_only() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    metrics.checkpoint(0, 0.1, 10, clock.s)
    clock.s += 7
    assert metrics.samples()["streamadapt_checkpoint_age_seconds"] == [(("0",), 7.0)]


def test_the_recorder_keeps_copies(metrics: Metrics, registry: CollectorRegistry) -> None:
    stats, lag = some_stats(), {StreamPartition("s", 0): 1}
    metrics.pipeline(3, stats)
    metrics.lag(lag)
    stats.entries, stats.weights["base"], lag[StreamPartition("s", 0)] = 99, 9.0, 9
    stats.updates["rls"]["ok"] = 99
    assert value(registry, "entries_total", partition="3") == 10
    assert value(registry, "guard_weight_ratio", partition="3", expert="base") == 0.25
    assert value(registry, "updates_total", partition="3", learner="rls", result="ok") == 4
    assert value(registry, "consumer_lag_records", stream="s", partition="0") == 1


def test_null_metrics_accept_everything_and_keep_nothing() -> None:
    metrics = NullMetrics()
    record_everything(metrics)
    known = {name for name, samples in metrics.samples().items() if samples}
    assert known == {"streamadapt_build_info", "streamadapt_late_labels_total"}


def test_two_engines_do_not_share_a_registry_by_accident(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    with pytest.raises(ValueError, match="Duplicated"):
        MetricsCollector(Metrics(), registry)
    MetricsCollector(Metrics(), CollectorRegistry())


def exposed(text: str) -> dict[str, tuple[str, str, set[str]]]:
    """Return name as in the catalogue -> (kind, help, label names)."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, family.documentation, labels)
    return found


def test_the_catalogue_the_docs_and_a_live_scrape_agree(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    record_everything(metrics)
    metrics.stalled(False)
    metrics.damaged_checkpoints(0, 1)
    metrics.transaction_lost(0, "no_answer")
    with serve(registry, 0, "127.0.0.1") as server:
        assert server.port > 0
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.port}/metrics", timeout=10
        ) as response:
            live = exposed(response.read().decode())
    assert live == {spec.name: (spec.kind, spec.help, set(spec.labels)) for spec in CATALOGUE}
    documented = re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE)
    assert documented == [spec.name for spec in CATALOGUE]


def test_the_docs_page_is_up_to_date() -> None:
    assert DOCS.read_text() == metrics_markdown(), (
        "write docs/metrics.md again, as CONTRIBUTING.md says"
    )


def test_no_label_can_hold_a_key_or_an_id() -> None:
    assert {label for spec in CATALOGUE for label in spec.labels}.isdisjoint(
        {"key", "id", "entry", "offset"}
    )


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian package prometheus)",
)
def test_promtool_reports_no_problem(metrics: Metrics, registry: CollectorRegistry) -> None:
    record_everything(metrics)
    lint = ["promtool", "check", "metrics"]
    done = subprocess.run(lint, input=generate_latest(registry), capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    bad = subprocess.run(lint, input=b"# TYPE x counter\nx 1\n", capture_output=True, check=False)
    assert bad.returncode != 0, "the linter must be able to report a problem"


def test_scraping_while_the_engine_records_is_safe_and_counters_never_decrease(
    metrics: Metrics, registry: CollectorRegistry
) -> None:
    stop = threading.Event()

    def record() -> None:
        stats = some_stats()
        for i in range(100_000):
            if stop.is_set():
                return
            stats.entries = i
            stats.updates[f"learner-{i % 50}"] = Counter(ok=i)
            metrics.pipeline(i % 7, stats)
            metrics.dead_letter(f"reason-{i % 97}", "decode")
            metrics.stage("learn", 0.001)

    engine = threading.Thread(target=record)
    engine.start()
    last = 0.0
    try:
        for _ in range(30):
            text = generate_latest(registry).decode()
            now = float(next(iter(re.findall(r"duration_seconds_count\S* (\S+)", text)), "0"))
            assert now >= last
            last = now
    finally:
        stop.set()
        engine.join()


def test_a_port_in_use_is_an_error_with_its_path(registry: CollectorRegistry) -> None:
    with serve(registry, 0, "127.0.0.1") as server:
        with pytest.raises(ConfigError, match=r"metrics\.port: .*free port"):
            serve(registry, server.port, "127.0.0.1")
        server.close()
    again = serve(registry, server.port, "127.0.0.1")
    again.close()
