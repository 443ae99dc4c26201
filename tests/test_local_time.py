"""Local times with `fields.timezone`: the tests start from UTC, so the right answer is known."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from cli_helpers import lines, logging_as_before

from streamadapt.app.commands import run_command
from streamadapt.engine.local_time import LocalClock
from streamadapt.records import Entry

CONFIG = """
[source]
kind = "files"
path = "in.jsonl"
batch = {batch}
[fields]
values = ["v"]
time = "t"
timezone = "{zone}"
{fields}
[task]
kind = "forecast"
window = 1
horizon = 1
[base]
kind = "persistence"
[[learners]]
kind = "bias"
rate = 0.1
[sink]
kind = "files"
path = "out.jsonl"
[checkpoint]
path = "state"
"""
# In Berlin the hour from 2:00 on the 26th occurs twice.
AUTUMN = datetime(2025, 10, 25, 20, 0, tzinfo=UTC)
NS = 10**9

_logging = pytest.fixture(autouse=True)(logging_as_before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def utc_ns(moment):
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def write(folder, moments, zone="Europe/Berlin", form="%Y-%m-%dT%H:%M:%S", **other):
    local = [moment.astimezone(ZoneInfo(zone)).strftime(form) for moment in moments]
    rows = [{"t": t, "v": i} | {k: v[i] for k, v in other.items()} for i, t in enumerate(local)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(folder, batch=500, zone="Europe/Berlin", fields="", more=""):
    (folder / "c.toml").write_text(CONFIG.format(batch=batch, zone=zone, fields=fields) + more)


def times(folder):
    return [row["time"] for row in lines(folder / "out.jsonl")]


@pytest.mark.parametrize("minutes", [1, 5, 10, 15, 20, 30, 60, 90, 180])
@pytest.mark.parametrize("batch", [1, 500])
def test_the_repeated_hour_is_resolved_by_order(folder, minutes, batch):
    """For any step between records and any grouping; nothing is refused."""
    moments = [AUTUMN + timedelta(minutes=minutes * i) for i in range(600 // minutes)]
    write(folder, moments)
    config(folder, batch)
    assert run_command(["run", "c.toml"]).code == 0
    assert times(folder) == [utc_ns(moment) for moment in moments]


@pytest.mark.parametrize("stop", range(24, 33))
def test_a_restart_in_the_middle_changes_nothing(folder, stop):
    """The records of the hour are read by one process up to `stop`, and from there by another."""
    moments = [AUTUMN + timedelta(minutes=10 * i) for i in range(60)]
    config(folder)
    for n in (stop, 60):
        write(folder, moments[:n])
        assert run_command(["run", "c.toml"]).code == 0
    assert times(folder) == [utc_ns(moment) for moment in moments]


@pytest.mark.parametrize(
    ("zone", "start"),
    [
        ("America/New_York", datetime(2025, 11, 2, 2, 0, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2025, 4, 5, 11, 0, tzinfo=UTC)),  # by half an hour only
        ("Asia/Kolkata", AUTUMN),
    ],
)
def test_other_time_zones(folder, zone, start):
    moments = [start + timedelta(minutes=5 * i) for i in range(120)]
    write(folder, moments, zone)
    config(folder, zone=zone)
    assert run_command(["run", "c.toml"]).code == 0
    assert times(folder) == [utc_ns(moment) for moment in moments]


@pytest.mark.slow
def test_two_years_of_hours(folder):
    moments = [datetime(2024, 9, 1, tzinfo=UTC) + timedelta(hours=i) for i in range(17520)]
    write(folder, moments, form="%d.%m.%Y %H:%M")
    config(folder, fields='time_format = "%d.%m.%Y %H:%M"')
    assert run_command(["run", "c.toml"]).code == 0
    assert times(folder) == [utc_ns(moment) for moment in moments]


def test_an_offset_in_the_text_is_kept(folder):
    moments = [AUTUMN + timedelta(minutes=10 * i) for i in range(60)]
    write(folder, moments, form="%Y-%m-%dT%H:%M:%S%z")
    config(folder)
    assert run_command(["run", "c.toml"]).code == 0
    assert times(folder) == [utc_ns(moment) for moment in moments]


def test_without_the_setting_times_are_utc(folder):
    write(folder, [AUTUMN + timedelta(minutes=i) for i in range(5)])
    config(folder)
    (folder / "c.toml").write_text(
        (folder / "c.toml").read_text().replace('timezone = "Europe/Berlin"\n', "")
    )
    assert run_command(["run", "c.toml"]).code == 0
    assert times(folder)[0] == utc_ns(AUTUMN + timedelta(hours=2)), (
        "Berlin's local time, read as UTC"
    )


def test_a_skipped_local_time_is_refused(folder):
    write(folder, [datetime(2025, 3, 30, 0, i, tzinfo=UTC) for i in range(5)])
    with (folder / "in.jsonl").open("a") as file:
        file.write('{"t": "2025-03-30T02:30:00", "v": 1}\n{"t": "2025-03-30T03:00:00", "v": 2}\n')
    config(folder)
    assert run_command(["run", "c.toml"]).code == 0
    (letter,) = lines(folder / "out.jsonl.dead-letters")
    assert (letter["reason"], letter["offset"]) == ("bad_time", 5)
    assert "the hour that Europe/Berlin skips in spring" in letter["detail"]
    assert times(folder)[-1] == utc_ns(datetime(2025, 3, 30, 1, 0, tzinfo=UTC))


def test_sensors_of_a_file_interleaved_or_sorted(folder):
    """Records of the same time by several sensors, and a file that is sorted by sensor: each has
    both hours."""
    moments = [AUTUMN + timedelta(minutes=10 * i) for i in range(60)]
    for order in ([m for m in moments for _ in "abc"], moments * 3):
        keys = list("abc" * 60) if order[1] == order[0] else [k for k in "abc" for _ in moments]
        write(folder, order, k=keys)
        config(folder, fields='key = "k"', more="[keys]\nmax_keys = 3\n")
        (folder / "out.jsonl").unlink(missing_ok=True)
        assert run_command(["replay", "c.toml", "in.jsonl", "--out", "out.jsonl"]).code == 0
        assert times(folder) == [utc_ns(moment) for moment in order]


def test_labels_of_their_own_file_have_an_order_of_their_own(folder, capsys):
    """Each label is learned: none comes before its entry, although the same hour is read twice in
    both files."""
    moments = [AUTUMN + timedelta(minutes=10 * i) for i in range(60)]
    ids, later = (
        [f"e{i}" for i in range(60)],
        [moment + timedelta(minutes=4) for moment in moments],
    )
    write(folder, later, id=ids, y=[i % 7 for i in range(60)])
    (folder / "in.jsonl").rename(folder / "labels.jsonl")
    write(folder, moments, id=ids)
    supervised = CONFIG.format(batch=7, zone="Europe/Berlin", fields='id = "id"\nlabel = "y"')
    supervised = supervised.replace("forecast", "supervised").replace("horizon = 1\n", "")
    supervised = supervised.replace('"persistence"', '"linear"\nweights = "w.safetensors"')
    (folder / "s.toml").write_text(supervised)
    assert run_command(["fit", "s.toml", "labels.jsonl"]).code == 0
    capsys.readouterr()
    assert (
        run_command(["replay", "s.toml", "in.jsonl", "--labels", "labels.jsonl", "--json"]).code
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["labels"] == {"learned": 60}


def stamp(hour, minute, second=0):
    """Return a record of Berlin's 26th of October 2025, as the codec decodes it."""
    early = utc_ns(datetime(2025, 10, 26, hour, minute, second, tzinfo=UTC)) - 2 * 3600 * NS
    return Entry(np.zeros(1, np.float32), early, or_time=early + 3600 * NS if hour == 2 else early)


def test_two_clocks_slightly_apart_begin_the_hour_once():
    """A record that is late by seconds does not start the second hour, and neither does a late
    record of the first."""
    clock = LocalClock()
    given = [
        (1, 59, 0),
        (2, 0, 1),
        (2, 0, 0),
        (2, 30, 0),
        (2, 29, 50),
        (2, 59, 59),
        (2, 0, 1),
        (2, 59, 58),
        (2, 1, 0),
    ]
    second = [False, False, False, False, False, False, True, False, True]
    for i, (at, late) in enumerate(zip(given, second, strict=True)):
        item = stamp(*at)
        taken = clock.take(i, item)
        assert taken.or_time is None
        assert taken.time == (item.or_time if late else item.time), at
