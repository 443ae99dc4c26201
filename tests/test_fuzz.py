"""Broken records: nothing crashes, every refused record has its reason, and the good ones are as
if alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamadapt_connectors.codecs import JsonCodec

from benchmarks.faults.bad_records import (
    DECODED,
    FIELDS,
    IN_ENGINE,
    STREAMS,
    through_decoder,
    through_engine,
)
from streamadapt.errors import EntryError, Reason
from streamadapt.records import Entry, Label, Position, Record

CODEC = JsonCodec(FIELDS, streams=STREAMS)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
)


def decode(value, stream=STREAMS[0]):
    """Return an entry, a label, or an error with its reason; anything else fails."""
    refused = None
    try:
        found = CODEC.decode(Record(Position(stream, 0, 0), None, value, 0))
    except EntryError as error:
        refused = error
    if refused is None:
        assert isinstance(found, Entry | Label)
    else:
        assert isinstance(refused.reason, Reason)
        assert refused.detail


@given(st.binary(max_size=400), st.sampled_from(STREAMS))
def test_any_bytes_are_decoded_or_refused(value, stream):
    decode(value, stream)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "time", "x", "y"), json_values)),
    st.sampled_from(STREAMS),
)
def test_any_json_in_the_fields_is_decoded_or_refused(row, stream):
    decode(json.dumps(row).encode("utf-8", "surrogatepass"), stream)


@pytest.mark.parametrize("n", [10_000, pytest.param(DECODED, marks=pytest.mark.slow)])
def test_many_through_the_decoder(n):
    found = through_decoder(n, seed=1)
    assert found.tried == found.survived == n
    assert len(found.more["reasons"]) >= 7, "the mutations reach many checks"


@pytest.mark.parametrize("n", [1_000, pytest.param(IN_ENGINE, marks=pytest.mark.slow)])
def test_many_through_the_engine(n):
    found = through_engine(n, seed=2)
    assert found.tried == n
    assert (found.survived, found.lost, found.doubled, found.state_differs) == (
        found.tried,
        0,
        0,
        0,
    )


def test_a_decoder_that_crashes_is_detected():
    class Crashes:
        def decode(self, record):
            if b"NaN" in (record.value or b""):
                raise RuntimeError
            return CODEC.decode(record)

    found = through_decoder(2000, seed=1, codec=Crashes())
    assert found.survived < found.tried
