"""Engines join a group that is behind, with a slow model: as processes, on a broker."""

from __future__ import annotations

import threading
import time

import pytest
from kafka_engines import Job, create, fill
from kafka_helpers import until
from streamadapt_connectors.kafka import KafkaSource

from streamadapt.testing.checks.sources import Owner

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.apache_kafka]


def job(servers, topic, folder, partitions, count, guarantee="at-least-once", *, group=True):
    name = topic(partitions)
    create(servers, f"{name}-out", f"{name}-dead", partitions=partitions)
    fill(servers, name, count, partitions)
    return Job(folder, servers, name, guarantee, f'group = "{name}"' if group else "")


def wait(holds):
    until(holds, lambda: time.sleep(0.1))


def test_partitions_of_one_engine_are_served_equally(kafka_servers, topic, tmp_path):
    """A base of 10 ms an entry, and a backlog of minutes in each of three partitions."""
    work = job(kafka_servers, topic, tmp_path, 3, 5000, group=False)
    with work.start("one", 0.01) as one:
        wait(lambda: sum(one.predictions().values()) > 600)
        done = one.predictions()
        assert len(done) == 3
        assert min(done.values()) > 0.5 * max(done.values())
        assert one.end() == 0


@pytest.mark.parametrize(("slow_s", "guarantee"), [(2.0, "at-least-once"), (0.02, "exactly-once")])
def test_a_second_engine_gets_its_share_of_a_backlog(
    slow_s, guarantee, kafka_servers, topic, tmp_path
):
    """Within 15 s, however slow the model is; no engine is fenced, and nothing is lost or, with
    exactly-once, doubled."""
    count = 3000
    work = job(kafka_servers, topic, tmp_path, 2, count, guarantee)
    with work.start("one", slow_s) as one:
        wait(lambda: len(one.predictions()) == 2)
        time.sleep(3 * slow_s)
        with work.start("two", slow_s) as two:
            wait(lambda: two.ready() != 0)
            begin = time.monotonic()
            wait(lambda: two.predictions())
            assert time.monotonic() - begin < 15.0 + 2 * slow_s, (
                "its first prediction needs a window of two"
            )
            wait(lambda: len(one.predictions()) == len(two.predictions()) == 1)
            assert one.process.poll() is None
            assert two.process.poll() is None
            assert [one.end(), two.end()] == [0, 0]
        assert "handed over" in one.log
    found = work.offsets()
    for partition in (0, 1):
        offsets = sorted(found[partition])
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets))), "no gap"
        if guarantee == "exactly-once":
            assert set(found[partition].values()) == {1}


def test_a_signal_while_waiting_to_join_ends_the_process_at_once(kafka_servers, topic, tmp_path):
    """The group waits for a member that sends heartbeats but does not rejoin; a member that waits
    with it may still leave."""
    work = job(kafka_servers, topic, tmp_path, 2, 10)
    source = KafkaSource(kafka_servers, work.topic, group=work.topic, session_timeout="60s")
    source.open(owner := Owner())
    owner.streams = source.streams
    try:
        until(lambda: bool(owner.assigned), lambda: source.poll(0.2))
        with work.start(
            "one"
        ) as one:  # from here on the other member is not polled; its heartbeats continue
            wait(lambda: one.ready() != 0)
            time.sleep(3.0)
            assert one.end() == 0
            assert "draining" in one.log
        begin = time.monotonic()
        source.poll(0.5)
        until(lambda: source.state == "connected", lambda: source.poll(0.2))
        assert time.monotonic() - begin < 20.0, "the member that left received no partition"
    finally:
        source.close()


def test_a_member_that_processes_its_buffer_stays_in_the_group(kafka_servers, topic):
    """Polls are far apart, as with a slow model, while others join and leave: every rebalance
    completes."""
    name = topic(4)
    fill(kafka_servers, name, 500, 4)
    owners = []

    def member(pause_s, stop):
        source = KafkaSource(
            kafka_servers, name, group=name, session_timeout="6s", max_poll_records=2
        )
        owner = Owner()
        owner.streams = source.streams
        owners.append(owner)
        source.open(owner)
        while not stop.is_set():
            source.poll(0.0)
            stop.wait(pause_s)
        source.close()

    stops = [threading.Event() for _ in range(2)]
    threads = [
        threading.Thread(target=member, args=(1.5 if i == 0 else 0.1, stop))
        for i, stop in enumerate(stops)
    ]
    try:
        threads[0].start()
        wait(lambda: bool(owners and owners[0].assigned == [[0, 1, 2, 3]]))
        threads[1].start()
        wait(lambda: bool(len(owners) == 2 and owners[1].assigned))
        assert len(owners[0].revoked) == 1
        assert sorted(owners[0].revoked[0]) == sorted(owners[1].assigned[0])
        stops[1].set()
        threads[1].join()
        wait(lambda: len(owners[0].assigned) == 2)
        assert sorted(owners[0].assigned[1]) == sorted(owners[0].revoked[0])
    finally:
        for stop in stops:
            stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
