"""How the Kafka connectors detect conditions that keep them from working, part by part, with a
manual clock."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.future import Future
from kafka.structs import OffsetAndMetadata
from streamadapt_connectors.kafka.answers import FETCH, PRODUCE, Answers
from streamadapt_connectors.kafka.client import Link
from streamadapt_connectors.kafka.client_log import ClientLog
from streamadapt_connectors.kafka.deliveries import SINK_CONDITIONS, Deliveries
from streamadapt_connectors.kafka.group_offsets import OWN_COMMIT, moved_by_others, moved_text
from streamadapt_connectors.kafka.open_transactions import OpenTransactions
from streamadapt_connectors.kafka.places import MissingTopicError
from streamadapt_connectors.kafka.words import deleted, with_article

from streamadapt.engine.conditions import Condition, Conditions


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


class FetchRequest:
    max_wait_ms = 2000


class MetadataRequest:
    pass


class JoinGroupRequest:
    pass


class ProduceRequest:
    pass


def sent(answers, request, node=1):
    future = Future()
    answers.sent(request, node, future)
    return future


class TestAnswers:
    def test_a_fetch_is_overdue_5_s_after_its_maximum_wait(self, clock):
        answers = Answers(clock)
        sent(answers, FetchRequest())
        clock.now += 6.9
        assert answers.overdue(FETCH) is None
        clock.now += 0.2
        assert (answers.overdue(FETCH).node, answers.overdue(FETCH).kind) == (1, "fetch")
        assert answers.overdue(FETCH).age_s == pytest.approx(7.1)

    def test_an_answer_or_a_lost_connection_ends_the_condition(self, clock):
        answers = Answers(clock)
        first, second = sent(answers, FetchRequest()), sent(answers, FetchRequest(), 2)
        clock.now += 10.0
        first.success(object())
        clock.now += 0.1
        assert answers.overdue(FETCH).node == 2
        second.failure(KafkaTimeoutError())
        assert answers.overdue(FETCH).node == 2
        answers.greeted(2)
        assert answers.overdue(FETCH) is None

    @pytest.mark.parametrize(
        ("request_", "node", "known", "over"),
        [
            (None, 1, True, True),  # a new connection on which the broker has answered
            (None, 2, True, False),
            (None, 2, False, True),  # the silent one no longer belongs to the cluster
            (MetadataRequest(), 2, True, False),
            (ProduceRequest(), 2, True, True),  # another broker does its work now
        ],
    )
    def test_a_request_that_was_given_up_counts_until_an_answer_that_shows_work(
        self, clock, request_, node, known, over
    ):
        """The client gives up after 30 s, closes the connection, and opens another one: a stopped
        process accepts it, and says nothing."""
        answers = Answers(clock)
        late = sent(answers, ProduceRequest())
        clock.now += 29.0
        assert answers.overdue(PRODUCE).age_s == 29.0
        clock.now += 1.0
        late.failure(KafkaTimeoutError())
        clock.now += 4.0
        assert answers.overdue(PRODUCE).age_s == 34.0
        clock.now += 1.0
        if request_ is None:
            answers.greeted(node)
        else:
            sent(answers, request_, node).success(object())
        assert (answers.overdue(PRODUCE, lambda node: known) is None) is over

    def test_another_request_counts_only_if_no_broker_answers(self, clock):
        answers = Answers(clock)
        sent(answers, MetadataRequest())
        clock.now += 5.0
        assert answers.overdue(FETCH).kind == "metadata"
        sent(answers, FetchRequest(), 2).success(object())
        assert answers.overdue(FETCH) is None, (
            "one broker of several is silent, and it is not needed"
        )

    def test_a_group_may_keep_a_member_waiting(self, clock):
        answers = Answers(clock)
        sent(answers, JoinGroupRequest())
        clock.now += 300.0
        assert answers.overdue(FETCH) is None

    def test_a_request_that_the_client_dropped_is_forgotten(self, clock):
        answers = Answers(clock)
        sent(answers, FetchRequest())
        clock.now += 601.0
        assert answers.overdue(FETCH) is None
        assert not answers._asked

    def test_unstored_records_are_kept_until_the_broker_stores_them(self, clock):
        answers = Answers(clock)

        def answer(code):
            part = SimpleNamespace(index=3, error_code=code)
            topic = SimpleNamespace(name="out", partition_responses=[part])
            sent(answers, ProduceRequest()).success(SimpleNamespace(responses=[topic]))

        answer(19)
        assert answers.refusal("out") == (3, "NotEnoughReplicas")
        assert answers.refusal("other") is None
        answer(0)
        assert answers.refusal("out") is None
        assert answers.overdue(PRODUCE) is None

    def test_a_transactional_id_unknown_to_the_broker(self, clock):
        """kafka-python does not report this when it was about to commit only positions: it asks
        for a new epoch."""
        answers = Answers(clock)
        sent(answers, MetadataRequest()).success(SimpleNamespace(error_code=0))
        assert not answers.forgotten
        sent(answers, MetadataRequest()).success(SimpleNamespace(error_code=49))
        assert answers.forgotten


@pytest.fixture
def conditions(clock):
    return Conditions("sink x", SINK_CONDITIONS, clock=clock)


@pytest.fixture
def deliveries(conditions, clock):
    return Deliveries(conditions, "out", clock=clock)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class AddOffsetsToTxnRequest:
    pass


class ApiVersionsRequest:
    pass


def test_a_request_has_a_readable_name(clock):
    answers = Answers(clock)
    for request, name in (
        (AddOffsetsToTxnRequest(), "an add offsets to transaction"),
        (ApiVersionsRequest(), "an API versions"),
        (FetchRequest(), "a fetch"),
        (MetadataRequest(), "a metadata"),
    ):
        future = sent(answers, request)
        clock.now += 10.0
        assert with_article(answers.overdue(PRODUCE).kind) == name
        future.success(object())
        clock.now += 1.0


def test_several_missing_topics_are_named_in_the_plural():
    assert str(MissingTopicError(["entries"])).startswith(
        "topic entries does not exist, and an engine does not create the topics that it reads: "
        "create it, or"
    )
    assert str(MissingTopicError(["entries", "labels"])).startswith(
        "topics entries and labels do not exist, and an engine does not create the topics that "
        "it reads: create them, or"
    )
    assert deleted(["entries", "labels"]) == (
        "topics entries and labels do not exist: they were deleted; waiting for them to be "
        "created again"
    )


class TestDeliveries:
    def test_deliveries_acknowledged_in_time_are_not_reported(self, deliveries, clock, caplog):
        for _ in range(100):
            deliveries.posted(future := Future())
            clock.now += 4.0
            deliveries.look(quiet="", refusal=None)
            future.success(None)
        assert (deliveries.age_s, deliveries.waiting, caplog.text) == (0.0, 0, "")

    def test_a_late_delivery_and_its_end_are_each_reported_once(
        self, deliveries, conditions, clock, caplog
    ):
        deliveries.posted(future := Future())
        with caplog.at_level(logging.INFO, "streamadapt"):
            for _ in range(20):
                clock.now += 1.0
                deliveries.look(quiet="", refusal=(0, "NotLeaderForPartition"))
            assert deliveries.age_s == 20.0
            assert conditions.trouble.startswith(
                "topic out has not acknowledged 1 record, the oldest for 6 s"
            )
            assert "partition 0: NotLeaderForPartition" in conditions.trouble
            future.success(None)
            deliveries.look(quiet="", refusal=None)
        assert len(caplog.records) == 2
        assert (
            caplog.records[1].getMessage()
            == "sink x: topic out has acknowledged everything that waited after 20 s"
        )

    def test_the_oldest_delivery_counts_even_if_newer_ones_are_acknowledged(
        self, deliveries, clock
    ):
        deliveries.posted(Future())
        clock.now += 3.0
        deliveries.posted(newer := Future())
        newer.success(None)
        assert (deliveries.waiting, deliveries.age_s) == (2, 3.0)

    def test_the_reason_is_reported_instead_of_the_delay(self, deliveries, clock, caplog):
        """One line for one outage, with the number of records that wait."""
        deliveries.posted(Future())
        for _ in range(30):
            clock.now += 1.0
            deliveries.look(
                quiet="broker b:1 is frozen" if clock.now > 105.0 else "", refusal=None
            )
        assert warnings(caplog) == [
            "sink x: broker b:1 is frozen; 1 record is not acknowledged, the oldest for 7 s"
        ]

    def test_only_an_answer_after_the_silence_ends_it(self, deliveries, conditions, clock, caplog):
        """That the client is connected again, or that earlier acknowledgements are read, is
        none."""
        caplog.set_level(logging.INFO, "streamadapt")
        link = Link(conditions, answered_at=deliveries.answered_at)
        deliveries.answered_at(clock.now)
        link.up()
        for _ in range(8):
            clock.now += 1.0
            deliveries.look(
                quiet="broker b:1 is frozen" if clock.now > 106.0 else "", refusal=None
            )
        assert conditions.holds(Condition.NO_ANSWER)
        for _ in range(20):
            clock.now += 1.0
            deliveries.look(quiet="", refusal=None)
            link.up()
        assert conditions.holds(Condition.NO_ANSWER)
        deliveries.answered_at(clock.now)
        deliveries.look(quiet="", refusal=None)
        assert not conditions.holds(Condition.NO_ANSWER)
        assert [line.getMessage() for line in caplog.records[1:]] == [
            "sink x: broker b:1 is frozen", "sink x: connected again after 28 s",
        ]  # fmt: skip

    def test_a_connection_is_up_again_only_after_an_answer(self, conditions, clock, caplog):
        answered = [clock.now]
        link = Link(conditions, answered_at=lambda: answered[0])
        link.up()
        clock.now += 30.0
        link.down("no broker answers")
        clock.now += 10.0
        link.up()
        assert link.state == "connecting"
        answered[0] = clock.now
        with caplog.at_level(logging.INFO, "streamadapt"):
            link.up()
        assert link.state == "connected"
        assert caplog.messages[-1] == "sink x: connected again after 40 s"

    def test_a_delivery_that_the_client_gave_up_still_waits(
        self, deliveries, conditions, clock, caplog
    ):
        """It is sent again; that is no acknowledgement."""
        deliveries.posted(given_up := Future())
        for _ in range(30):
            clock.now += 1.0
            deliveries.look(quiet="", refusal=None)
        given_up.failure(KafkaTimeoutError())
        deliveries.posted(again := Future())
        for _ in range(3):
            deliveries.look(quiet="", refusal=None)
            assert conditions.holds(Condition.UNACKNOWLEDGED)
            clock.now += 1.0
        again.success(None)
        with caplog.at_level(logging.INFO, "streamadapt"):
            deliveries.look(quiet="", refusal=None)
        assert caplog.messages[-1].endswith("everything that waited after 33 s")

    def test_a_paused_process_does_not_blame_the_broker(self, deliveries, clock, caplog):
        deliveries.look(quiet="no answer for 60 s", refusal=None)
        clock.now += 0.3
        deliveries.look(quiet="", refusal=None)
        assert caplog.text == ""

    def test_the_condition_too_few_replicas_lasts_until_a_record_is_stored(
        self, deliveries, conditions, clock, caplog
    ):
        """Also if the transaction is aborted again and again meanwhile: there is no new line for
        each try."""
        refusal = (2, "NotEnoughReplicas")
        for _ in range(4):
            deliveries.posted(future := Future())
            for _ in range(10):
                clock.now += 1.0
                deliveries.look(quiet="", refusal=refusal)
            deliveries.given_up()
            deliveries.begun()
            deliveries.look(quiet="", refusal=None)
            assert conditions.holds(Condition.TOO_FEW_REPLICAS)
        assert len(warnings(caplog)) == 1
        assert (
            "topic out, partition 2 has fewer in-sync replicas than its min.insync.replicas"
            in caplog.text
        )
        deliveries.posted(future)
        future.success(None)
        deliveries.look(quiet="", refusal=None)
        assert conditions.trouble == ""

    def test_a_new_producer_forgets_deliveries_of_the_old_one(self, deliveries, conditions, clock):
        deliveries.posted(Future())
        clock.now += 9.0
        deliveries.look(quiet="", refusal=None)
        deliveries.given_up()
        assert deliveries.age_s == 9.0
        deliveries.begun()
        deliveries.look(quiet="", refusal=None)
        assert (deliveries.age_s, conditions.trouble) == (0.0, "")


AT = TopicPartition("t", 0)


class TestOpenTransactions:
    @pytest.fixture
    def condition(self, clock):
        return Conditions("source x", (Condition.OPEN_TRANSACTION,), clock=clock)

    @pytest.fixture
    def watch(self, condition, clock):
        return OpenTransactions(
            condition, lambda at, offset: f" (transactional id 'other' at {offset})", clock
        )

    def stand(self, watch, clock, seconds, stable=10, position=10, end=22):
        for _ in range(seconds):
            watch.look({AT: stable}, {AT: position}, {AT: end})
            clock.now += 1.0

    def test_a_long_transaction_is_reported_with_its_owner(self, watch, condition, clock, caplog):
        self.stand(watch, clock, 10)
        assert not condition.holds(Condition.OPEN_TRANSACTION)
        self.stand(watch, clock, 30)
        assert len(warnings(caplog)) == 1
        assert "t[0]@10" in caplog.text
        assert "transactional id 'other' at 10" in caplog.text
        assert "12 records" in caplog.text
        with caplog.at_level(logging.INFO, "streamadapt"):
            self.stand(watch, clock, 1, stable=22, position=22)
        assert "the transaction has ended after 40 s" in caplog.text
        assert not condition.holds(Condition.OPEN_TRANSACTION)

    def test_short_transactions_in_sequence_are_not_reported(self, watch, clock, caplog):
        for i in range(10):
            self.stand(watch, clock, 8, stable=10 + i, position=10 + i)
        assert caplog.text == ""

    def test_a_reader_that_is_behind_or_at_the_end_is_not_reported(self, watch, clock, caplog):
        self.stand(watch, clock, 30, stable=10, position=4)
        self.stand(watch, clock, 30, stable=10, position=22)
        assert caplog.text == ""

    def test_a_lost_partition_ends_it_silently(self, watch, condition, clock, caplog):
        self.stand(watch, clock, 20)
        with caplog.at_level(logging.INFO, "streamadapt"):
            watch.look({}, {}, {})
        assert not condition.holds(Condition.OPEN_TRANSACTION)
        assert len(caplog.records) == 1


def committed(offset, metadata=""):
    return {AT: OffsetAndMetadata(offset, metadata, -1)}


@pytest.mark.parametrize(
    ("found", "moved"),
    [
        (committed(100, OWN_COMMIT), {}),
        (committed(100), {}),
        (committed(90, OWN_COMMIT), {}),  # the process died between the checkpoint and the commit
        (committed(90), {AT: 90}),
        (committed(0), {AT: 0}),
        (committed(150), {AT: 150}),
        (committed(150, OWN_COMMIT), {AT: 150}),
        (committed(-1), {}),
        ({}, {}),
    ],
)
def test_group_offsets_set_from_outside(found, moved):
    assert moved_by_others({AT: 100}, found) == moved


def test_the_message_names_the_group_and_the_remedy():
    message = moved_text("g", {AT: 0}, {AT: 100}, {AT: 100})
    for part in (
        "group 'g'",
        "t[0] 0, read from 100",
        "the checkpoints decide",
        "checkpoint rollback",
    ):
        assert part in message
    assert "there is no checkpoint" in moved_text("g", {AT: 500}, {AT: 0}, {AT: None})


class TestClientLog:
    @pytest.fixture
    def library(self, clock):
        out = logging.getLogger("streamadapt.kafka.client")
        library = logging.Logger("lib.net")
        library.addHandler(ClientLog(out, clock))
        return library

    def test_a_warning_is_logged_once_a_minute_with_its_count(self, library, clock, caplog):
        for i in range(300):
            library.warning("connection %d to %s failed: <Task 0x%x>", i, "b:1", 10**6 * i)
            clock.now += 1.0
        logged = warnings(caplog)
        assert len(logged) == 5
        assert logged[0] == "lib.net: connection 0 to b:1 failed: <Task 0x0>"
        assert (
            logged[1]
            == "lib.net: connection 60 to b:1 failed: <Task 0x3938700> (59 more like it since "
            "the last line)"
        )

    def test_a_different_message_is_not_delayed(self, library, caplog):
        library.warning("topic %s is not authorized", "a")
        library.warning("topic %s is not authorized", "b")
        assert len(warnings(caplog)) == 2

    def test_lower_levels_and_our_own_refusals_are_left_out(self, library, caplog):
        library.info("hello")
        library.error("Error sending: ProducerFencedError: this producer sends no more requests")
        assert caplog.text == ""

    def test_a_retried_request_is_not_an_error_and_has_no_traceback(self, library, caplog):
        try:
            raise ConnectionResetError(104, "reset by peer")
        except ConnectionResetError:
            library.exception("closing socket")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert warnings(caplog) == ["lib.net: closing socket: [Errno 104] reset by peer"]
        assert caplog.records[0].exc_info is None

    def test_memory_is_bounded(self, library):
        for i in range(2000):
            library.warning("topic %s", "x" * i)
        assert len(library.handlers[0]._logged) <= 256
