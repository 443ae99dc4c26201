"""Bad records, end to end: each becomes a dead letter with its reason, and the model is as without
it."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kafka_helpers import made, produce, until
from kafka_tail import read_until
from states import assert_same_state
from streamadapt_connectors.codecs import FieldMap, JsonCodec
from streamadapt_connectors.kafka import KafkaDeadLetters, KafkaSource

from streamadapt import RLS, Bias, DriftMonitor, Pipeline, Supervised
from streamadapt.engine.engine import Engine
from streamadapt.engine.settings import EngineSettings
from streamadapt.testing import ManualClock, MemoryDeadLetters, MemorySink, MemorySource

N = 60
HOUR = 3600
DELAY_H, TTL_H = 6, 20
FIELDS = FieldMap(values=("x",), time="time", time_format="unix_s", id="id", label="y", channels=2)
NEVER_LABELLED = 5  # in every ten entries


def base(inputs):
    return inputs[-1:, :1] * 2.0


def make_pipeline():
    task = Supervised(3, ttl=TTL_H * HOUR * 10**9)
    return Pipeline(
        task, base, [Bias((0.1, 0.01)), RLS(0.98)], drift=[DriftMonitor("adwin", "loss", "boost")]
    )


def dump(**fields):
    return json.dumps(fields).encode()


_x = np.random.default_rng(0).normal(size=(N, 2)).round(4).tolist()
LABELLED = [i for i in range(N) if i % 10 != NEVER_LABELLED]


def entry(i, **other):
    return dump(**{"id": f"e{i}", "time": i * HOUR, "x": _x[i], **other})


def label(i, **other):
    return dump(
        **{
            "id": f"e{i}",
            "time": (i + DELAY_H) * HOUR,
            "y": 2.0 * _x[i][0] + (i > N // 2) * 5.0,
            **other,
        }
    )


ENTRIES = [entry(i) for i in range(N)]
LABELS = [label(i) for i in LABELLED]
HUGE = b'{"id": "huge", "time": 0, "x": "' + b"a" * 10_000_000 + b'"}'

# Reason -> the function that makes such a record before entry i (1 <= i), with the stage that
# refuses it.
BAD_ENTRIES = {
    "not JSON": ("not_json", "decode", lambda i: b'{"id": nonsense'),
    "not UTF-8": ("not_json", "decode", lambda i: b"\xff\xfe\x00"),
    "no object": ("wrong_type", "decode", lambda i: b"[1, 2]"),
    "wrong type": ("wrong_type", "decode", lambda i: entry(i, id="bad", x=["1.0", 2.0])),
    "wrong type of id": ("wrong_type", "decode", lambda i: entry(i, id={})),
    "missing field": ("missing_field", "decode", lambda i: dump(id="bad", time=i * HOUR)),
    "wrong width": ("wrong_width", "decode", lambda i: entry(i, id="bad", x=[1.0, 2.0, 3.0])),
    "no width": ("wrong_width", "decode", lambda i: entry(i, id="bad", x=[])),
    "Inf": ("not_finite", "decode", lambda i: entry(i, id="bad", x=[1.0, float("-inf")])),
    "beyond float32": ("not_finite", "decode", lambda i: entry(i, id="bad", x=[1e39, 0.0])),
    "no time": ("bad_time", "decode", lambda i: entry(i, id="bad", time="soon")),
    "a time that goes back": (
        "time_backwards",
        "process",
        lambda i: entry(i, id="bad", time=(i - 1) * HOUR - 6),
    ),
    "an id again": ("duplicate_id", "process", lambda i: entry(i, id=f"e{i - 1}")),
    "a key twice": (
        "duplicate_key",
        "decode",
        lambda i: entry(i, id="bad")[:-1] + b', "time": 1}',
    ),
    "an empty value": ("empty_value", "decode", lambda i: b""),
    "10 MB in one value": ("too_large", "decode", lambda i: HUGE),
    "500 levels of nesting": (
        "too_deep",
        "decode",
        lambda i: b'{"x":' + b"[" * 500 + b"]" * 500 + b"}",
    ),
}


def known_at(j):
    """Return the hours at which the label at position j of the label stream became known."""
    return LABELLED[j] + DELAY_H


def too_late(j):
    """Return a label for an entry that has expired but is not forgotten yet, in the order of the
    stream."""
    now = known_at(j)
    waited = next(u for u in range(now - TTL_H - 3, 0, -1) if u % 10 == NEVER_LABELLED)
    return label(waited, time=now * HOUR)


# The same for a record before the label at position j (j >= 1) of the label stream.
BAD_LABELS = {
    "an unknown id": (
        "unknown_label",
        "process",
        lambda j: label(0, id="nobody", time=known_at(j) * HOUR),
    ),
    "a label twice": ("duplicate_label", "process", lambda j: LABELS[j - 1]),
    "a label too late": ("late_label", "process", too_late),
    "an infinite label": ("not_finite", "decode", lambda j: label(LABELLED[j], y=float("inf"))),
    "a wide label": ("wrong_width", "decode", lambda j: label(LABELLED[j], y=[1.0, 2.0])),
    "a label of text": ("wrong_type", "decode", lambda j: label(LABELLED[j], y="high")),
    "no label": ("missing_field", "decode", lambda j: dump(id="e1", time=0)),
    "an empty value": ("empty_value", "decode", lambda j: b""),
    "not JSON": ("not_json", "decode", lambda j: b"}"),
}
FIRST_LATE = 35
"""From this position on, the label stream has an entry that is too late but not forgotten."""


def run(entries, labels):
    source = MemorySource(entries, labels, streams=("entries", "labels"))
    codec = JsonCodec(FIELDS, streams=source.streams)
    sink, letters = MemorySink(), MemoryDeadLetters()
    engine = Engine(source, make_pipeline, sink, codec, letters, clock=ManualClock())
    summary = engine.run()
    state = engine.runners[0].pipeline.state_dict()
    state["stats"].pop("rejected")
    return state, {p.id: p.served.tobytes() for p in sink.predictions}, letters.letters, summary


CLEAN_STATE, CLEAN_PREDICTIONS, _none, _summary = run(ENTRIES, LABELS)


def injected(stream, bad, chosen):
    """Return `stream` with the records of `chosen`, (kind, position), inserted."""
    found = []
    for place, record in enumerate(stream):
        found += [bad[kind][2](place) for kind, at in chosen if at == place]
        found.append(record)
    return found


def check(bad_entries, bad_labels):
    state, predictions, letters, summary = run(
        injected(ENTRIES, BAD_ENTRIES, bad_entries), injected(LABELS, BAD_LABELS, bad_labels)
    )
    assert_same_state(CLEAN_STATE, state)
    assert predictions == CLEAN_PREDICTIONS
    wanted = [BAD_ENTRIES[kind][:2] for kind, _ in bad_entries] + [
        BAD_LABELS[kind][:2] for kind, _ in bad_labels
    ]
    assert Counter((letter.reason, letter.stage) for letter in letters) == Counter(wanted)
    assert summary["dead_letters"] == Counter(reason for reason, _ in wanted)
    assert all(letter.detail and len(letter.detail) < 300 for letter in letters)


def test_the_clean_stream_is_clean():
    """The dirty streams are compared with it: every label is learned, late ones expire, nothing is
    refused."""
    assert _none == []
    assert len(CLEAN_PREDICTIONS) == N - 2
    assert _summary["labels"] == {"learned": len(LABELS) - 2, "unpredicted": 2, "expired": 4}


@pytest.mark.parametrize("kind", BAD_ENTRIES)
def test_a_bad_entry_changes_nothing(kind):
    """At the start, in the middle and twice in a row."""
    check([(kind, 1), (kind, 30), (kind, 30)], [])


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_a_bad_label_changes_nothing(kind):
    """The same for the label stream."""
    check([], [(kind, FIRST_LATE), (kind, FIRST_LATE), (kind, 40)])


some_entries = st.lists(
    st.tuples(st.sampled_from(sorted(BAD_ENTRIES)), st.integers(1, N - 1)), max_size=12
)
some_labels = st.lists(
    st.tuples(st.sampled_from(sorted(BAD_LABELS)), st.integers(FIRST_LATE, len(LABELS) - 1)),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(some_entries, some_labels)
@example([(kind, 7) for kind in BAD_ENTRIES], [(kind, FIRST_LATE) for kind in BAD_LABELS])
def test_any_mixture_of_bad_records_changes_nothing(bad_entries, bad_labels):
    """Any bad records in any place: the state and the predictions equal those of the clean stream,
    bit for bit."""
    check(bad_entries, bad_labels)


def processed(engine):
    return sum(sum(runner.positions.values()) for runner in engine.runners.values())


@pytest.mark.kafka
def test_dead_letters_reach_their_topic(kafka_servers, topic):
    """With the raw value, and the reason, stage and position of the record as headers."""
    large = {"max.message.bytes": str(64 << 20)}  # a broker's default is 1 MiB
    entries, labels, letters = (
        made(kafka_servers, topic(0, name), large) for name in ("entries", "labels", "letters")
    )
    kinds = [(kind, 7) for kind in BAD_ENTRIES if kind != "an empty value"]
    dirty = injected(ENTRIES, BAD_ENTRIES, kinds)
    dirty_labels = injected(LABELS, BAD_LABELS, [(kind, FIRST_LATE) for kind in BAD_LABELS])
    produce(kafka_servers, entries, [dirty])
    produce(kafka_servers, labels, [dirty_labels])
    source = KafkaSource(kafka_servers, entries, labels)
    sink = MemorySink()
    codec = JsonCodec(FIELDS, streams=source.streams)
    refused = KafkaDeadLetters(kafka_servers, letters)
    engine = Engine(
        source, make_pipeline, sink, codec, refused, settings=EngineSettings(label_wait_s=1.0)
    )
    source.open(engine)
    try:
        until(lambda: sum(map(len, (dirty, dirty_labels))) == processed(engine), engine.step)
        engine.checkpoint()
        state = engine.runners[0].pipeline.state_dict()
    finally:
        engine._close()
    state["stats"].pop("rejected")
    assert_same_state(CLEAN_STATE, state)
    found = read_until(
        kafka_servers, letters, lambda found: len(found) >= len(kinds) + len(BAD_LABELS)
    )
    counts = Counter()
    for record in found:
        headers = {name: value.decode() for name, value in record.headers}
        stream = {entries: dirty, labels: dirty_labels}[headers["topic"]]
        assert record.value == stream[int(headers["offset"])]
        assert headers["partition"] == "0"
        assert headers["detail"]
        counts[headers["reason"], headers["stage"]] += 1
    assert counts == Counter(
        [BAD_ENTRIES[k][:2] for k, _ in kinds] + [bad[:2] for bad in BAD_LABELS.values()]
    )
