"""The kinds `cluster` and `zombie` of ``benchmarks.faults``: their verdicts, and one real fault of
each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.faults import clusters, zombies
from benchmarks.faults.trials import (
    Arrival,
    Ended,
    Partition,
    Setting,
    Trial,
    Trials,
    judge,
    longest_gap,
)
from benchmarks.kafka_broker import ApacheKafka, broker_name, measured_broker, start_script
from streamadapt.app.demo.broker import EmbeddedBroker
from streamadapt.errors import ConnectorError

GROUP = Setting("exactly-once", 2)
FENCED = Ended("a", 1, fenced=True, why="fenced by another engine")
CLOCK = 1e9

needs_apache_kafka = pytest.mark.skipif(
    start_script() is None, reason="no script that starts Apache Kafka"
)


def real(test):
    """Mark a test that starts brokers and kills them."""
    for mark in (
        needs_apache_kafka,
        pytest.mark.kafka,
        pytest.mark.apache_kafka,
        pytest.mark.slow,
        pytest.mark.timeout(900),
        pytest.mark.filterwarnings(
            "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
        ),
    ):
        test = mark(test)
    return test


def prediction_read(offset, at, value=b"v", appended=None):
    return Arrival(at, offset, value, CLOCK + at if appended is None else appended)


def watched(arrivals, wanted=range(5, 10)):
    return Partition(wanted, {offset: float(offset) for offset in wanted}, arrivals)


def undisturbed():
    """Five entries at 5 s to 9 s, each with its prediction half a second later; earlier ones
    belong to another trial."""
    return [prediction_read(offset, offset + 0.5) for offset in range(10)]


def judged(arrivals, guarantee="exactly-once", length_s=0.0, until=10.0):
    trial = Trial("leader killed", guarantee, 2, length_s=length_s)
    return judge(trial, [watched(undisturbed()), watched(arrivals)], 5.0, until, CLOCK)


# -- the verdict


def test_an_undisturbed_trial_survives():
    trial = judged(undisturbed())
    assert (trial.lost, trial.doubled, trial.values_differ, trial.fed) == (0, 0, 0, 10)
    assert (trial.gap_s, trial.gap_appended_s, trial.gap_input_s, trial.lag_s) == (
        1.0,
        1.0,
        1.0,
        0.5,
    )
    assert trial.survived


def test_a_missing_prediction_is_lost():
    trial = judged([one for one in undisturbed() if one.offset != 7])
    assert (trial.lost, trial.survived) == (1, False)


@pytest.mark.parametrize("value", [b"v", b"other"])
def test_a_repeated_prediction_is_doubled_and_its_value_compared(value):
    trial = judged([*undisturbed(), prediction_read(7, 9.8, value)])
    assert (trial.lost, trial.doubled, trial.values_differ) == (0, 1, value != b"v")
    assert not trial.survived
    assert judged([*undisturbed(), prediction_read(7, 9.8, value)], "at-least-once").survived == (
        value == b"v"
    )


def test_a_prediction_of_an_earlier_trial_may_be_repeated():
    """A prediction of an earlier trial that is repeated now counts as doubled now, and only
    once."""
    assert judged([*undisturbed(), prediction_read(1, 9.8)]).doubled == 1
    earlier = sorted([*undisturbed(), prediction_read(1, 3.0)], key=lambda one: one.at)
    assert judged(earlier).doubled == 0


def test_the_gap_is_that_of_the_worst_partition_up_to_the_end():
    late = [
        prediction_read(offset, offset + 0.5 if offset < 7 else offset + 23.0)
        for offset in range(10)
    ]
    trial = judged(late, until=40.0)
    assert (trial.gap_s, trial.lag_s, trial.lost) == (30.5, 23.0, 0), (
        "the calm partition is silent after 9.5 s"
    )
    assert not trial.survived
    assert judged(late, length_s=16.0, until=40.0).survived
    assert longest_gap([], 2.0, 7.0) == 5.0
    assert longest_gap([1.0, 3.0, 9.0], 2.0, 7.0) == 4.0, "from the last prediction to the end"


def test_the_gap_in_the_output_is_reported_beside_that_of_the_reader():
    """A late reader has a gap where the output has none."""
    held_up = [
        prediction_read(o, 9.9 if o > 5 else o + 0.5, appended=CLOCK + o + 0.5) for o in range(10)
    ]
    trial = judged(held_up)
    assert trial.gap_s == pytest.approx(4.4)
    assert trial.gap_appended_s == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"fed": 0},
        {"lost": 1},
        {"doubled": 1},
        {"values_differ": 1},
        {"gap_s": 25.1},
        {"ended": [Ended("a", 1, fenced=False, why="KeyError")]},
        {"ended": [Ended("a", -9, fenced=True, why="")]},
        {"ended": [FENCED, Ended("b", 0, fenced=False, why="")]},
    ],
    ids=str,
)
def test_each_criterion_can_fail_a_trial(change):
    well = Trial("f", *GROUP, length_s=10.0, gap_s=25.0, fed=9, ended=[FENCED])
    assert well.survived
    assert not replace(well, **change).survived


# -- the file


def test_a_later_run_continues_where_one_stopped(tmp_path):
    path = tmp_path / "new" / "trials.jsonl"
    alone = Setting("exactly-once", 1)
    trials = Trials(path)
    assert (trials.missing("f", GROUP, quick=False), trials.missing("f", alone, quick=False)) == (
        10,
        3,
    )
    trials.append(
        [Trial("f", *GROUP, fed=1, ended=[FENCED]), Trial("f", *alone, hit=False, fed=1)]
    )
    again = Trials(path)
    assert again.all == trials.all
    assert (again.missing("f", GROUP, quick=False), again.missing("f", GROUP, quick=True)) == (
        9,
        0,
    )
    assert again.missing("f", alone, quick=False) == 3, (
        "the killed broker was not one of its brokers"
    )
    assert again.missing("g", GROUP, quick=False) == 10
    again.append(
        [Trial("f", *GROUP, lost=2, doubled=1, gap_s=3.0, broker="Apache Kafka 4.3.1", fed=1)]
    )
    counts = Trials(path).counts(["f"])
    assert (counts.tried, counts.survived, counts.lost, counts.doubled) == (3, 2, 2, 1)
    rows = [(row["setting"], row["tried"], row["survived"]) for row in counts.more["rows"]]
    assert rows == [("exactly-once, alone", 1, 1), ("exactly-once, a group of 2", 2, 1)]


def test_without_missing_trials_nothing_is_run(tmp_path, monkeypatch):
    def no_broker(*of):
        raise AssertionError("a broker was started")

    script = tmp_path / "start"
    script.touch()
    monkeypatch.setenv("STREAMADAPT_KAFKA_START", str(script))
    monkeypatch.setattr(clusters, "ApacheKafka", no_broker)
    monkeypatch.setattr(zombies, "ApacheKafka", no_broker)
    trials = Trials(tmp_path / "trials.jsonl")
    for fault in [*clusters.FAULTS, zombies.FAULT]:
        trials.append([Trial(fault, *setting, fed=1) for setting in clusters.SETTINGS])
    assert clusters.cluster_trials(trials, quick=True).survived == 30
    assert zombies.zombie_trials(trials, quick=True).survived == 6


def test_without_a_script_nothing_is_tried_and_the_reason_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMADAPT_KAFKA_START", str(tmp_path / "none"))
    counts = clusters.cluster(True, tmp_path)
    assert counts.tried == 0
    assert "no script" in counts.more["left_out"]
    with pytest.raises(ConnectorError, match="STREAMADAPT_KAFKA_START"):
        ApacheKafka(tmp_path)


# -- real faults


@pytest.mark.kafka
def test_the_broker_of_a_measurement_is_named(monkeypatch):
    with EmbeddedBroker() as broker:
        assert broker_name(broker.servers).startswith("embedded Tansu ")
        monkeypatch.setenv("STREAMADAPT_TEST_BROKER", broker.servers)
        with measured_broker() as servers:
            assert servers == broker.servers


@needs_apache_kafka
def test_two_at_a_time_have_ports_of_their_own(tmp_path):
    """Also before their brokers listen, and while they are away."""
    one, two = ApacheKafka(tmp_path / "one", 3), ApacheKafka(tmp_path / "two")
    try:
        assert not set(one.servers.split(",")) & set(two.servers.split(","))
    finally:
        one.stop()
        two.stop()


@needs_apache_kafka
@pytest.mark.kafka
@pytest.mark.apache_kafka
def test_apache_kafka_is_named_with_its_version(monkeypatch):
    monkeypatch.delenv("STREAMADAPT_TEST_BROKER", raising=False)
    with measured_broker() as servers:
        name = broker_name(servers)
        assert name.startswith("Apache Kafka ")
        assert name.count(".") == 2, "the third number is in its log"
        with monkeypatch.context() as asked_only:
            asked_only.setattr(ApacheKafka, "running", [])
            by_protocol = broker_name(servers)
        assert name.startswith(by_protocol)


@real
def test_three_brokers_of_which_one_is_killed(tmp_path):
    trials = Trials(tmp_path / "trials.jsonl")
    settings = [GROUP, Setting("at-least-once", 1)]
    counts = clusters.cluster_trials(trials, ["coordinator killed"], settings, quick=True)
    assert counts.survived == counts.tried >= len(settings), trials.all
    assert (counts.lost, counts.doubled) == (0, 0)
    assert all(trial.length_s > clusters.DOWN_S and trial.gap_s > 0 for trial in trials.all)


@real
def test_a_zombie_is_fenced_and_its_successor_lives(tmp_path):
    counts = zombies.zombie_trials(Trials(tmp_path / "trials.jsonl"), quick=True)
    assert counts.survived == counts.tried == len(zombies.SETTINGS), Trials(
        tmp_path / "trials.jsonl"
    ).all
