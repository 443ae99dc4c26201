"""Records are decoded into entries and labels, and bad ones are refused with a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamadapt_connectors.codecs import FieldMap, JsonCodec, Limits, encode_prediction
from streamadapt_connectors.codecs.json_codec import nesting

from streamadapt.errors import ConfigError, EntryError, Reason
from streamadapt.records import Entry, Label, Position, Prediction, Record

CGM = FieldMap(values=("isig",), time="t", id="id", key="patient", label="bg")
PLAIN = FieldMap(values=("a", "b"))
T0 = 1_700_000_000_000_000_000


def record(value: bytes | None, stream: str = "cgm", key: bytes | None = None) -> Record:
    return Record(Position(stream, 0, 17), key, value, 5)


def decode(
    fields: FieldMap, value: Any, *, streams: tuple[str, ...] = ("cgm",), stream: str = "cgm"
) -> Entry | Label:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return JsonCodec(fields, streams=streams).decode(record(raw, stream))


def entry(fields: FieldMap, value: Any) -> Entry:
    item = decode(fields, value)
    assert isinstance(item, Entry)
    return item


def refused(fields: FieldMap, value: Any, **kwargs: Any) -> EntryError:
    with pytest.raises(EntryError) as caught:
        decode(fields, value, **kwargs)
    assert caught.value.position == Position("cgm", 0, 17)
    return caught.value


def time_of(time_format: str, value: Any, *, text_numbers: bool = False) -> int:
    fields = FieldMap(values=("v",), time="t", time_format=time_format, text_numbers=text_numbers)
    return entry(fields, {"v": 1, "t": value}).time


def test_a_full_record_becomes_an_entry() -> None:
    got = entry(
        CGM, {"t": "2023-11-14T22:13:20Z", "isig": 21.5, "id": "r1", "patient": 7, "bg": 120}
    )
    assert (got.time, got.id, got.key, got.position) == (T0, "r1", "7", Position("cgm", 0, 17))
    assert got.values.dtype == np.float64
    assert got.values.tolist() == [21.5]
    assert got.label is not None
    assert got.label.tolist() == [120.0]


def test_unmapped_fields_come_from_the_record() -> None:
    got = JsonCodec(PLAIN, streams=["cgm"]).decode(record(b'{"a":1,"b":2}', key=b"p\xff"))
    assert isinstance(got, Entry)
    assert (got.time, got.id, got.key, got.label) == (5, "cgm[0]@17", "p\\xff", None)


def test_null_and_nan_are_missing_values() -> None:
    for raw in (b'{"a":null,"b":2}', b'{"a":NaN,"b":2}'):
        values = entry(PLAIN, raw).values
        assert np.isnan(values[0])
        assert values[1] == 2


def test_one_path_may_contain_the_whole_row() -> None:
    fields = FieldMap(values=("row",), channels=3)
    assert entry(fields, {"row": [1, 2.5, -3]}).values.tolist() == [1, 2.5, -3]
    assert np.isnan(entry(replace(fields, missing_as_null=True), {}).values).tolist() == [True] * 3
    for row in ([1, 2], [1, 2, 3, 4], [], 5):
        assert refused(fields, {"row": row}).reason is Reason.WRONG_WIDTH
    assert refused(fields, {"row": [1, "x", 3]}).detail == "$.row[1]: expected number, got str 'x'"


def test_dotted_paths_reach_inside_objects_and_a_literal_key_wins() -> None:
    fields = FieldMap(values=("payload.speed",))
    assert entry(fields, {"payload": {"speed": 3}}).values.tolist() == [3]
    assert entry(fields, {"payload": {"speed": 3}, "payload.speed": 4}).values.tolist() == [4]
    assert refused(fields, {"payload": 3}).detail == "$.payload.speed: missing"


def test_a_missing_key_is_refused_unless_missing_values_are_allowed() -> None:
    assert refused(PLAIN, {"a": 1}).detail == "$.b: missing"
    assert np.isnan(entry(replace(PLAIN, missing_as_null=True), {"a": 1}).values).tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", Reason.EMPTY_VALUE),
        (b'{"a":1,"b":"' + b"x" * (1 << 20) + b'"}', Reason.TOO_LARGE),
        (b"[" * 65 + b"]" * 65, Reason.TOO_DEEP),
        (b"[" * 500 + b"]" * 500, Reason.TOO_DEEP),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, Reason.TOO_DEEP),
        (b"[" * 100_000, Reason.TOO_DEEP),
        (b"not json", Reason.NOT_JSON),
        (b'{"a":1', Reason.NOT_JSON),
        (b'{"a":1,"b":2}x', Reason.NOT_JSON),
        (b'{"a":1,"b":"\xff"}', Reason.NOT_JSON),
        (b'{"a":1,"b":\x00}', Reason.NOT_JSON),
        ('{"a":1,"b":2}'.encode("utf-16"), Reason.NOT_JSON),
        (b"[1,2]", Reason.WRONG_TYPE),
        (b"null", Reason.WRONG_TYPE),
        (b"7", Reason.WRONG_TYPE),
        (b'{"b":2}', Reason.MISSING_FIELD),
        (b'{"a":true,"b":2}', Reason.WRONG_TYPE),
        (b'{"a":"1","b":2}', Reason.WRONG_TYPE),
        (b'{"a":[1],"b":2}', Reason.WRONG_TYPE),
        (b'{"a":{},"b":2}', Reason.WRONG_TYPE),
        (b'{"a":1e999,"b":2}', Reason.NOT_FINITE),
        (b'{"a":-1e999,"b":2}', Reason.NOT_FINITE),
        (b'{"a":Infinity,"b":2}', Reason.NOT_FINITE),
        (b'{"a":-Infinity,"b":2}', Reason.NOT_FINITE),
        (b'{"a":3.5e38,"b":2}', Reason.NOT_FINITE),
        (b'{"a":' + b"9" * 300 + b',"b":2}', Reason.NOT_FINITE),
        (b'{"a":' + b"9" * 5000 + b',"b":2}', Reason.NOT_FINITE),
    ],
)
def test_each_bad_record_has_its_reason(raw: bytes, reason: Reason) -> None:
    error = refused(PLAIN, raw)
    assert error.reason is reason
    assert error.detail.startswith("$")
    assert len(error.detail) <= 250


def test_a_tombstone_is_empty() -> None:
    with pytest.raises(EntryError, match="empty_value"):
        JsonCodec(PLAIN, streams=["cgm"]).decode(record(None))


def test_details_are_one_short_line() -> None:
    assert refused(CGM, {"isig": "nil"}).detail == "$.isig: expected number, got str 'nil'"
    assert len(refused(CGM, {"isig": "x" * 10_000}).detail) < 100


def test_limits_are_configurable_and_exact() -> None:
    value = b'{"a":[[1]],"b":2}'
    codec = JsonCodec(
        FieldMap(values=("b",)), streams=["cgm"], limits=Limits(record_bytes=len(value), depth=3)
    )
    codec.decode(record(value))
    with pytest.raises(EntryError, match="too_large"):
        codec.decode(record(value + b" "))
    codec = JsonCodec(FieldMap(values=("b",)), streams=["cgm"], limits=Limits(depth=2))
    with pytest.raises(EntryError, match=r"too_deep.*at most 2 levels, got 3"):
        codec.decode(record(value))
    codec = JsonCodec(FieldMap(values=("b",)), streams=["cgm"], limits=Limits(width=2))
    codec.decode(record(b'{"a": 1, "b": [1, 2]}'))
    with pytest.raises(EntryError, match=r"wrong_width.*at most 2 fields, got 3"):
        codec.decode(record(b'{"a": 1, "b": 2, "c": 3}'))
    with pytest.raises(EntryError, match=r"wrong_width.*b: expected at most 2 numbers, got 3"):
        codec.decode(record(b'{"a": 1, "b": [1, 2, 3]}'))
    with pytest.raises(ConfigError, match=r"limits\.depth"):
        Limits(depth=0)


def test_brackets_in_strings_are_not_nesting() -> None:
    text = '[{"' * 100 + "\\"
    assert entry(FieldMap(values=("a",)), {"a": 1, "text": text}).values.tolist() == [1]
    assert nesting(json.dumps({"a": [[1], [2]], "t": text}).encode()) == 3


@given(
    st.recursive(
        st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
    )
)
def test_nesting_depth_equals_that_of_a_recursive_count(value: Any) -> None:
    def depth(v: Any) -> int:
        if not isinstance(v, list | dict):
            return 0
        return 1 + max((depth(x) for x in (v.values() if isinstance(v, dict) else v)), default=0)

    assert nesting(json.dumps(value).encode()) == depth(value)


@pytest.mark.parametrize(
    ("time_format", "value", "expected"),
    [
        ("iso8601", "2023-11-14T22:13:20", T0),
        ("iso8601", "2023-11-14T22:13:20Z", T0),
        ("iso8601", "2023-11-14T23:13:20+01:00", T0),
        ("iso8601", "2023-11-14 22:13:20.123456789Z", T0 + 123_456_789),
        ("iso8601", "2023-11-14 22:13:20.1234567", T0 + 123_456_700),
        ("iso8601", "1969-12-31T23:59:59.5Z", -500_000_000),
        ("unix_s", 1_700_000_000, T0),
        ("unix_s", 1_700_000_000.5, T0 + 500_000_000),
        ("unix_ms", 1_700_000_000_001, T0 + 1_000_000),
        ("unix_us", 1_700_000_000_000_001, T0 + 1000),
        ("unix_ns", T0 + 1, T0 + 1),
        ("%d.%m.%Y %H:%M:%S", "14.11.2023 22:13:20", T0),
        ("%Y-%m-%d %H:%M:%S %z", "2023-11-14 23:13:20 +0100", T0),
    ],
)
def test_times_are_exact(time_format: str, value: Any, expected: int) -> None:
    assert time_of(time_format, value) == expected


@pytest.mark.parametrize(
    ("time_format", "value"),
    [
        ("iso8601", "yesterday"),
        ("iso8601", 1_700_000_000),
        ("iso8601", None),
        ("iso8601", "0001-01-01T00:00:00"),
        ("iso8601", True),
        ("unix_s", "1700000000"),
        ("unix_s", True),
        ("unix_s", None),
        ("unix_s", float("nan")),
        ("unix_s", float("inf")),
        ("unix_s", 10**12),
        ("unix_ns", 10**400),
        ("%Y", "MMXXIII"),
        ("%Y", 2023),
    ],
)
def test_bad_times_are_refused(time_format: str, value: Any) -> None:
    error = refused(
        FieldMap(values=("v",), time="t", time_format=time_format), {"v": 1, "t": value}
    )
    assert error.reason is Reason.BAD_TIME
    assert error.detail.startswith("$.t: expected")


def test_a_missing_time_is_a_missing_field() -> None:
    assert refused(CGM, {"isig": 1, "id": "x", "patient": 1}).reason is Reason.MISSING_FIELD


@given(st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)))
def test_iso_times_agree_with_exact_arithmetic(moment: datetime) -> None:
    exact = (
        (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC))
        // timedelta(microseconds=1)
        * 1000
    )
    assert time_of("iso8601", moment.isoformat()) == exact


def test_text_cells_are_numbers_if_the_fields_allow_it() -> None:
    fields = FieldMap(values=("a", "b"), text_numbers=True)
    assert entry(fields, {"a": "1.5", "b": " -2e3 "}).values.tolist() == [1.5, -2000]
    for word in ("", " ", "nan", "NaN", "NA", "null"):
        assert np.isnan(entry(fields, {"a": word, "b": "1"}).values[0])
    for word, reason in {
        "nil": "wrong_type",
        "1_000": "wrong_type",
        "inf": "not_finite",
        "1e39": "not_finite",
    }.items():
        assert refused(fields, {"a": word, "b": "1"}).reason == reason
    assert time_of("unix_s", "1700000000.000000001", text_numbers=True) == T0 + 1
    for word in ("1E999999999", "nan", "x", "1_0", ""):
        fields = FieldMap(values=("v",), time="t", time_format="unix_s", text_numbers=True)
        assert refused(fields, {"v": 1, "t": word}).reason is Reason.BAD_TIME


@pytest.mark.parametrize("bad", [None, True, 1.5, [], {}, ""])
def test_ids_are_text_or_integers(bad: Any) -> None:
    assert (
        refused(FieldMap(values=("v",), id="id"), {"v": 1, "id": bad}).reason is Reason.WRONG_TYPE
    )


def test_a_lone_surrogate_is_refused_as_id_because_it_cannot_be_written() -> None:
    fields = FieldMap(values=("v",), id="id")
    assert refused(fields, b'{"v":NaN,"id":"\\ud800"}').reason is Reason.WRONG_TYPE


def test_labels_inside_entries() -> None:
    fields = FieldMap(values=("v",), label="y", outputs=2)
    label = entry(fields, {"v": 1, "y": [3, None]}).label
    assert label is not None
    assert label[0] == 3
    assert np.isnan(label[1])
    for absent in ({"v": 1}, {"v": 1, "y": None}):
        assert entry(fields, absent).label is None
    for bad, reason in (
        ([1], Reason.WRONG_WIDTH),
        (1, Reason.WRONG_WIDTH),
        ("a", Reason.WRONG_TYPE),
        (True, Reason.WRONG_TYPE),
    ):
        got = entry(fields, {"v": 1, "y": bad})
        assert got.values.tolist() == [1], "a bad label does not change the entry"
        assert got.label is None
        assert got.refused is not None
        assert got.refused.reason is reason
        assert got.refused.detail.startswith("$.y")


def test_records_of_the_label_stream_are_labels() -> None:
    fields = FieldMap(
        values=("v",),
        id="id",
        label="y",
        label_id="ref",
        label_time="at",
        time="t",
        time_format="unix_ns",
    )
    codec = JsonCodec(fields, streams=["cgm", "bg"])
    got = codec.decode(record(b'{"ref":"r1","y":5,"at":9}', stream="bg"))
    assert isinstance(got, Label)
    assert (got.id, got.value.tolist(), got.time, got.position) == (
        "r1",
        [5.0],
        9,
        Position("bg", 0, 17),
    )
    for raw, reason in {
        b'{"y":5,"at":9}': "missing_field",
        b'{"ref":"r1","at":9}': "missing_field",
    }.items():
        with pytest.raises(EntryError, match=reason):
            codec.decode(record(raw, stream="bg"))


def test_one_topic_may_hold_both() -> None:
    fields = FieldMap(values=("v", "w"), id="id", label="y")
    assert isinstance(decode(fields, {"id": "r1", "y": 5}), Label)
    assert isinstance(decode(fields, {"id": "r1", "y": 5, "v": 1, "w": 2}), Entry)
    assert refused(fields, {"id": "r1", "y": 5, "v": 1}).detail == "$.w: missing"
    assert refused(fields, {"id": "r1", "y": None}).reason is Reason.MISSING_FIELD
    cells = replace(fields, text_numbers=True)
    assert isinstance(decode(cells, {"id": "r1", "y": "5", "v": "", "w": ""}), Label)
    assert isinstance(decode(cells, {"id": "r1", "y": "", "v": "", "w": ""}), Entry)


@pytest.mark.parametrize(
    ("path", "make"),
    [
        ("fields.values", lambda: FieldMap(values=())),
        ("fields.values", lambda: FieldMap(values="isig")),  # type: ignore[arg-type]
        ("fields.values[0]", lambda: JsonCodec(FieldMap(values=(" ",)), streams=["s"])),
        ("fields.decimal", lambda: FieldMap(values=("a",), decimal=";")),
        (
            "fields.missing[1]",
            lambda: JsonCodec(FieldMap(values=("a",), missing=("x", True)), streams=["s"]),
        ),
        (
            "fields.timezone",
            lambda: JsonCodec(FieldMap(values=("a",), timezone="Berlin"), streams=["s"]),
        ),
        (
            "fields.timezone",
            lambda: JsonCodec(
                FieldMap(values=("a",), timezone="UTC", time_format="unix_s"), streams=["s"]
            ),
        ),
        ("fields.channels", lambda: FieldMap(values=("a", "b"), channels=3)),
        ("fields.channels", lambda: FieldMap(values=("a",), channels=0)),
        ("fields.outputs", lambda: FieldMap(values=("a",), outputs=0)),
        (
            "fields.time_format",
            lambda: JsonCodec(FieldMap(values=("a",), time_format="unix"), streams=["s"]),
        ),
        ("fields.label", lambda: JsonCodec(FieldMap(values=("a",)), streams=["s", "labels"])),
        (
            "fields.label_id",
            lambda: JsonCodec(FieldMap(values=("a",), label="y"), streams=["s", "labels"]),
        ),
    ],
)
def test_wrong_settings_name_their_path(path: str, make: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.path == path


ALL = FieldMap(
    values=("a", "b.c"),
    time="t",
    time_format="unix_s",
    key="k",
    id="i",
    label="y",
    text_numbers=True,
)
JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["a", "b", "c", "b.c", "t", "k", "i", "y"]), inner)
    ),
)


@given(st.binary() | JSONISH.map(lambda v: json.dumps(v).encode()), st.sampled_from(["cgm", "bg"]))
def test_decoding_gives_only_entries_labels_and_entry_errors(raw: bytes, stream: str) -> None:
    for fields in (
        ALL,
        replace(ALL, time_format="iso8601", missing_as_null=True, text_numbers=False),
    ):
        codec = JsonCodec(fields, streams=["cgm", "bg"])
        try:
            got = codec.decode(record(raw, stream))
        except EntryError as error:
            refusal = error
            assert isinstance(refusal.reason, Reason)
            assert "\n" not in refusal.detail
        else:
            row = got.values if isinstance(got, Entry) else got.value
            assert row.dtype == np.float64
            assert not np.isinf(row).any()
            got.id.encode()


def test_predictions_are_written_as_readable_json() -> None:
    row = np.array([[1.5, np.nan]], np.float32)
    rows = np.array([[1.5], [2.0]], np.float32)
    p = Prediction(
        Position("cgm", 1, 7),
        "r1",
        "k",
        T0 + 1,
        row,
        row,
        {"base": row},
        {"base": 1.0},
        ("adwin:loss",),
    )
    assert json.loads(encode_prediction(p)) == {
        "id": "cgm[1]@7",
        "entry": "r1",
        "key": "k",
        "time": T0 + 1,
        "served": [1.5, None],
        "base": [1.5, None],
        "weights": {"base": 1.0},
        "drifts": ["adwin:loss"],
    }
    assert json.loads(encode_prediction(p, experts=True))["experts"] == {"base": [1.5, None]}
    assert json.loads(encode_prediction(replace(p, served=rows)))["served"] == [[1.5], [2.0]]
