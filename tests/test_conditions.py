"""Conditions that keep an engine from working: a log line at the start and at the end, counts, and
true metrics."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from streamadapt.app.exposition import MetricsCollector
from streamadapt.app.watchdog import Watchdog
from streamadapt.config.secrets import remember
from streamadapt.engine.conditions import Condition, Conditions, Standing
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics, NullMetrics
from streamadapt.testing import IdentityCodec, MemoryDeadLetters, MemorySink, MemorySource

KNOWN = (Condition.NO_ANSWER, Condition.OPEN_TRANSACTION, Condition.GROUP_OFFSET)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def conditions(clock):
    return Conditions("source x", KNOWN, clock=clock)


def lines(caplog):
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_condition_logs_one_line_and_its_end_another_with_the_duration(
    conditions, clock, caplog
):
    with caplog.at_level(logging.INFO, "streamadapt"):
        for _ in range(5):
            conditions.begin(Condition.NO_ANSWER, "broker b:1 is away")
            clock.now += 4.0
        conditions.end(Condition.NO_ANSWER, "connected again")
        conditions.end(Condition.NO_ANSWER, "connected again")
    assert lines(caplog) == [
        ("WARNING", "source x: broker b:1 is away"),
        ("INFO", "source x: connected again after 20 s"),
    ]


def test_the_trouble_text_gives_the_reason(conditions, clock):
    conditions.begin(Condition.UNACKNOWLEDGED, "not acknowledged")
    assert conditions.trouble == "not acknowledged"
    clock.now += 1.0
    conditions.begin(Condition.TOO_FEW_REPLICAS, "too few replicas")
    clock.now += 1.0
    conditions.begin(Condition.NO_ANSWER, "no answer")
    assert conditions.trouble == "too few replicas"


def test_a_condition_of_several_parts_ends_with_the_last_part(conditions, caplog):
    with caplog.at_level(logging.INFO, "streamadapt"):
        conditions.begin(Condition.NO_ANSWER, "away", "0")
        conditions.begin(Condition.NO_ANSWER, "away", "1")
        conditions.end(Condition.NO_ANSWER, "back", "0")
        assert conditions.trouble == "away"
        conditions.end(Condition.NO_ANSWER, "back", "2")
        assert conditions.holds(Condition.NO_ANSWER, "1")
        assert not conditions.holds(Condition.NO_ANSWER, "0")
        conditions.end(Condition.NO_ANSWER, "back", "1")
    assert conditions.trouble == ""
    assert [level for level, _ in lines(caplog)] == ["WARNING", "INFO"]


def test_a_removed_part_ends_its_conditions(conditions, caplog):
    conditions.begin(Condition.NO_ANSWER, "away", "0")
    conditions.begin(Condition.OPEN_TRANSACTION, "open", "1")
    conditions.release("0")
    assert not conditions.holds(Condition.NO_ANSWER)
    assert conditions.holds(Condition.OPEN_TRANSACTION)


def test_only_conditions_that_stop_all_work_are_trouble(conditions, clock):
    conditions.begin(Condition.OPEN_TRANSACTION, "open")
    assert conditions.trouble == ""
    conditions.begin(Condition.TOO_FEW_REPLICAS, "first")
    clock.now += 1.0
    conditions.begin(Condition.NO_ANSWER, "second")
    assert conditions.trouble == "first"


def test_a_broker_that_fails_again_on_its_return_has_one_outage(conditions, clock, caplog):
    """The log has one line; the current state is still reported correctly."""
    with caplog.at_level(logging.INFO, "streamadapt"):
        for _ in range(3):
            conditions.begin(Condition.NO_ANSWER, "away")
            assert conditions.trouble == "away"
            clock.now += 2.0
            conditions.end(Condition.NO_ANSWER, "back")
            assert conditions.trouble == ""
            clock.now += 4.0
    assert [level for level, _ in lines(caplog)] == ["WARNING", "INFO", "INFO", "INFO"]
    assert lines(caplog)[-1] == ("INFO", "source x: back after 14 s")
    assert conditions.standing().began[Condition.NO_ANSWER] == 1


def test_started_conditions_are_counted_and_possible_ones_shown_at_0(conditions, clock):
    for _ in range(2):
        conditions.begin(Condition.NO_ANSWER, "away")
        conditions.end(Condition.NO_ANSWER, "back")
        clock.now += 60.0
    conditions.happened(Condition.GROUP_OFFSET, "moved")
    standing = conditions.standing()
    assert standing.holds == {Condition.NO_ANSWER: False, Condition.OPEN_TRANSACTION: False}
    assert standing.began == {
        Condition.NO_ANSWER: 2,
        Condition.OPEN_TRANSACTION: 0,
        Condition.GROUP_OFFSET: 1,
    }


def test_a_secret_in_a_reason_is_not_shown(conditions, caplog):
    remember("security", {"sasl_plain_password": "hunter2!"})
    conditions.begin(Condition.NO_ANSWER, "refused hunter2!")
    assert "hunter2!" not in conditions.trouble + caplog.text


class Troubled(MemorySink):
    standing = Standing(
        "nothing goes out", {Condition.UNACKNOWLEDGED: True}, {Condition.UNACKNOWLEDGED: 3}, 7.5
    )

    @property
    def trouble(self):
        return self.standing.trouble


class TroubledSource(MemorySource):
    standing = Standing(skipped={("speeds", 1): 400})

    @property
    def trouble(self):
        return self.standing.trouble


def make_engine(metrics, sink=None, letters=None):
    return Engine(
        TroubledSource([], finite=False), lambda: None, sink or MemorySink(), IdentityCodec(),
        letters or MemoryDeadLetters(), metrics=metrics,
    )  # fmt: skip


def test_metrics_show_the_state_of_source_and_sinks_at_the_scrape():
    metrics, registry = Metrics(), CollectorRegistry()
    MetricsCollector(metrics, registry)

    def value(name, **labels):
        return registry.get_sample_value(f"streamadapt_{name}", labels)

    engine = make_engine(metrics, Troubled())
    metrics.source_state("connected")
    assert value("source_connected") == 1.0
    assert value("sink_connected", side="sink") == 0.0
    assert value("sink_connected", side="dead_letters") == 1.0
    assert value("condition_active", side="sink", condition="unacknowledged") == 1.0
    assert value("conditions_total", side="sink", condition="unacknowledged") == 3.0
    assert value("unacknowledged_seconds", side="sink") == 7.5
    assert value("unacknowledged_seconds", side="dead_letters") is None
    assert value("skipped_records_total", stream="speeds", partition="1") == 400.0
    engine.source.standing = replace(engine.source.standing, trouble="away")
    assert value("source_connected") == 0.0


def test_ready_reports_trouble_of_source_and_sink():
    sink = Troubled()
    engine = make_engine(NullMetrics(), sink)
    engine.opened = True
    watchdog = Watchdog(engine, NullMetrics(), 60.0)
    assert watchdog.ready() == (False, "nothing goes out")
    sink.standing = Standing()
    assert watchdog.ready()[0]
    engine.source.standing = Standing("broker b:1 is away")
    assert watchdog.ready() == (False, "broker b:1 is away")


def test_the_duration_counts_from_the_beginning_and_not_from_the_warning(
    conditions, clock, caplog
):
    caplog.set_level(logging.INFO)
    clock.now += 6.0
    conditions.begin(Condition.NO_ANSWER, "no broker answers", since=clock.now - 6.0)
    clock.now += 10.0
    conditions.end(Condition.NO_ANSWER, "connected again")
    assert caplog.messages[-1].endswith("connected again after 16 s")


def test_what_was_seen_before_a_condition_does_not_end_it(conditions, clock):
    seen = clock.now
    clock.now += 6.0
    conditions.begin(Condition.NO_ANSWER, "no broker answers", since=seen)
    clock.now += 10.0
    conditions.end(Condition.NO_ANSWER, "connected again", at=seen)
    assert conditions.holds(Condition.NO_ANSWER)
    conditions.end(Condition.NO_ANSWER, "connected again", at=clock.now)
    assert not conditions.holds(Condition.NO_ANSWER)
