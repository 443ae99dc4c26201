"""Files as streams, sinks that append, and histories."""

from __future__ import annotations

import base64
import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from kafka_helpers import opened, read
from streamadapt_connectors.codecs import FieldMap, JsonCodec
from streamadapt_connectors.files import FilesSource, JsonlDeadLetters, JsonlSink, read_history

from streamadapt.errors import ConfigError, ConnectorError, EntryError
from streamadapt.records import DeadLetter, Position, Prediction, Record, StreamPartition

CSV = 'id,speed,note\n1,2.5,"two\nlines"\n\n2,,x\n3,7\n4,8,x,too many\n'


def prediction(offset: int) -> Prediction:
    row = np.ones((1, 1), np.float32)
    return Prediction(Position("in", 0, offset), "", "", 0, row, row, {}, {})


def values(source: FilesSource) -> list[bytes | None]:
    with opened(source):
        records: list[Record] = []
        while source.state != "ended":
            records += source.poll(0.1)
    return [r.value for r in records]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_csv_rows_become_objects_of_text_cells(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"speeds.csv{suffix}"
    raw = b"\xef\xbb\xbf" + CSV.encode()  # spreadsheets write a byte-order mark
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    got = [json.loads(v or b"") for v in values(FilesSource(path))]
    assert got == [
        {"id": "1", "speed": "2.5", "note": "two\nlines"},
        {"id": "2", "speed": "", "note": "x"},
        {"id": "3", "speed": "7"},
        {"id": "4", "speed": "8", "note": "x", "": ["too many"]},
    ]


def test_bad_csv_records_are_refused_by_the_codec_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "speeds.csv"
    huge = "9" * (csv.field_size_limit() + 1)
    path.write_bytes(
        b"speed,note\n1,a\n" + f"{huge},b\n".encode() + b"\xff\xfe,c\n4,d,e\n,f\n5,g\n"
    )
    codec = JsonCodec(FieldMap(values=("speed",), text_numbers=True), streams=["speeds.csv"])
    outcomes = []
    for i, value in enumerate(values(FilesSource(path))):
        try:
            outcomes.append(
                str(codec.decode(Record(Position("speeds.csv", 0, i), None, value, i)).values[0])
            )  # type: ignore[union-attr]
        except EntryError as error:
            outcomes.append(error.reason.value)
    assert outcomes == ["1.0", "not_json", "wrong_type", "wrong_width", "nan", "5.0"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_are_delivered_unchanged_even_invalid_ones(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    raw = b'{"a":1}\r\n\n{broken\n{"a":2}'
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    assert values(FilesSource(path)) == [b'{"a":1}', b"{broken", b'{"a":2}']


def test_several_files_are_one_stream_and_labels_another(tmp_path: Path) -> None:
    for name, rows in {"a.jsonl": "1\n2\n", "b.jsonl": "3\n", "y.jsonl": "4\n"}.items():
        (tmp_path / name).write_text(rows)
    source = FilesSource([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "y.jsonl")
    with opened(source):
        assert source.lag() == {}
        got = [(str(r.position), r.value, r.time) for r in read(source, 4)]
        assert source.poll(0) == []
        assert source.lag() == {StreamPartition("a.jsonl", 0): 0, StreamPartition("y.jsonl", 0): 0}
    assert got == [
        ("a.jsonl[0]@0", b"1", 0),
        ("a.jsonl[0]@1", b"2", 1),
        ("a.jsonl[0]@2", b"3", 2),
        ("y.jsonl[0]@0", b"4", 0),
    ]


def test_a_position_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("1\n2\n")
    source = FilesSource(tmp_path / "a.jsonl")
    with (
        opened(source, {0: 3}),
        pytest.raises(ConnectorError, match=r"a.jsonl\[0\]: position 3 is outside .* 0 to 2"),
    ):
        source.poll(1)


def test_errors_name_wrong_names_missing_files_and_truncated_archives(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source.path: expected a file named .csv"):
        FilesSource(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"source.path: expected at least one file"):
        FilesSource([])
    with (
        pytest.raises(ConnectorError, match=r"gone.jsonl: not found"),
        opened(FilesSource(tmp_path / "gone.jsonl")),
    ):
        pass
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(b"1\n" * 5000)[:-9])
    with pytest.raises(ConnectorError, match=r"torn.jsonl.gz: cannot be read after \d+ records"):
        values(FilesSource(torn))


def test_a_sink_appends_and_removes_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.jsonl"
    sink = JsonlSink(path)
    sink.write([prediction(0), prediction(1)])
    sink.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])  # killed in the middle of a line
    again = JsonlSink(path)
    again.write([prediction(2)])
    again.flush()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [
        "in[0]@0",
        "in[0]@1",
        "in[0]@2",
    ]
    again.close()


def test_a_complete_last_line_without_a_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"id":"a"}')
    sink = JsonlSink(path)
    sink.write([prediction(1)])
    sink.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "in[0]@1"]


def test_a_closed_sink_and_an_unwritable_path_are_errors(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "out.jsonl")
    sink.close()
    with pytest.raises(ConnectorError, match=r"out.jsonl"):
        sink.write([prediction(0)])
    with pytest.raises(ConnectorError, match="cannot be written"):
        JsonlSink(tmp_path)


def test_closing_on_a_full_disk_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    """It is not the raw error of the close, which writes the rest once more; afterwards nothing is
    left to close."""
    (tmp_path / "out.jsonl").symlink_to("/dev/full")
    sink = JsonlSink(tmp_path / "out.jsonl")
    sink.write([prediction(0)])
    with pytest.raises(ConnectorError, match=r"out\.jsonl: cannot be written: .*No space left"):
        sink.close()
    sink.close()


def test_dead_letters_keep_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    sink = JsonlDeadLetters(path)
    sink.write(
        [
            DeadLetter(
                Record(Position("in", 3, 9), b"k", b"\xff\n", 11),
                "not_json",
                "decode",
                "$: broken",
            )
        ]
    )
    sink.flush()
    assert json.loads(path.read_text()) == {
        "reason": "not_json",
        "stage": "decode",
        "detail": "$: broken",
        "topic": "in",
        "partition": 3,
        "offset": 9,
        "time": 11,
        "key": "k",
        "value": base64.b64encode(b"\xff\n").decode(),
        "value_encoding": "base64",
    }
    sink.close()


def test_history_keeps_good_rows_and_counts_bad_ones(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text("t,a,b\n1,10,1\n2,oops,1\n3,,2\nx,1,1\n")
    found = read_history(path, FieldMap(values=("a", "b"), time="t", time_format="unix_s"))
    np.testing.assert_array_equal(found.batch.values, np.array([[10, 1], [np.nan, 2]], np.float32))
    assert found.batch.times.tolist() == [1_000_000_000, 3_000_000_000]
    assert found.batch.channels == ("a", "b")
    assert found.batch.labels is None
    assert (found.rows, dict(found.rejected)) == (4, {"wrong_type": 1, "bad_time": 1})


def test_history_joins_labels_from_their_own_file(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        '{"id":"p","v":[1,2]}\n{"id":"q","v":[3,4]}\n{"id":"r","v":[5]}\n'
    )
    (tmp_path / "y.jsonl").write_text('{"id":"q","y":7}\n{"id":"nobody","y":7}\n')
    fields = FieldMap(values=("v",), id="id", label="y")
    found = read_history(tmp_path / "x.jsonl", fields, label_path=tmp_path / "y.jsonl")
    assert found.batch.labels is not None
    np.testing.assert_array_equal(found.batch.labels, np.array([[np.nan], [7]], np.float32))
    assert dict(found.rejected) == {"wrong_width": 1, "unknown_label": 1}


def test_history_without_a_good_row_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("v\nx\n")
    with pytest.raises(ConnectorError, match=r"no valid row among 1: .*wrong_type"):
        read_history(tmp_path / "x.csv", FieldMap(values=("v",)))
