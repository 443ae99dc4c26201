"""``streamadapt dlq list|replay``: what an operator sees, and what a run does with replayed
records."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from cli_helpers import CONFIG, lines, logging_as_before, rows
from dlq_helpers import (
    EVIL,
    control_characters,
    entry,
    fill,
    go,
    label,
    listed,
    repaired,
    state_of,
    write_lines,
)
from streamadapt_connectors.files import JsonlDeadLetterReader

from streamadapt.app.dlq import replay as dlq_replay
from streamadapt.app.terminal import safe
from streamadapt.engine.dead_letter_ports import ReplayMark, Returned
from streamadapt.records import Position

_logging = pytest.fixture(autouse=True)(logging_as_before)

SOURCE = 'kind = "files"\npath = "x.jsonl"\nlabel_path = "y.jsonl"'
SINK = 'kind = "files"\npath = "predictions.jsonl"'
LETTERS = "predictions.jsonl.dead-letters"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A finished run over entries and labels, some of them bad."""
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path, SOURCE, SINK)


# -- list


def test_the_table_shows_reason_position_and_value_without_terminal_control_codes(folder, capsys):
    """JSON lines have none either, and they hold the exact value."""
    state_of(capsys)
    out = go(capsys, "dlq", "list", "config.toml").out
    for text in (
        "wrong_type",
        "x.jsonl[0]@101",
        "$.x: expected number",
        "y.jsonl[0]@393",
        "\\x1b[2J",
        "\\u202e",
    ):
        assert text in out
    assert f"5 in file {LETTERS}: wrong_type 4, not_json 1" in out
    assert control_characters(out) == []
    out = go(capsys, "dlq", "list", "config.toml", "--json").out
    assert control_characters(out) == []
    letter = json.loads(out.splitlines()[1])
    assert json.loads(letter["value"])["x"] == EVIL
    assert letter["reason"] == "wrong_type"
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("x.jsonl", 0, 101)


def test_list_filters_by_reason_and_number(folder, capsys):
    state_of(capsys)
    assert [x["reason"] for x in listed(capsys, "--reason", "not_json")] == ["not_json"]
    assert len(listed(capsys, "--reason", "not_json", "--reason", "wrong_type")) == 5
    assert [x["offset"] for x in listed(capsys, "--limit", 2)] == [394, 395]
    assert "the newest 2 shown" in go(capsys, "dlq", "list", "config.toml", "--limit", 2).out
    assert (
        "did you mean 'not_json'"
        in go(capsys, "dlq", "list", "config.toml", "--reason", "notjson", code=2).err
    )
    assert "--limit" in go(capsys, "dlq", "list", "config.toml", "--since", "2h", code=2).err


def test_list_without_any_letters(folder, capsys):
    """An empty list is not an error; a missing file is named."""
    output = go(capsys, "dlq", "list", "config.toml")
    assert "no dead letters" in output.out
    assert f"file {LETTERS} does not exist" in output.err
    assert listed(capsys) == []


def test_foreign_records_among_the_dead_letters_are_marked(folder, capsys):
    """Text that is not JSON, other JSON, invalid UTF-8, a torn last line: none hides a real dead
    letter."""
    state_of(capsys)
    junk = [
        b"\x1b[31mnope",
        b"{}",
        b"[1]",
        b"null",
        b'{"reason": "x", "topic": "t", "partition": "a"}',
        b"\xff\xfe",
    ]
    junk.append(b"[" * 100_000)
    good = (folder / LETTERS).read_bytes()
    (folder / LETTERS).write_bytes(b"\n".join(junk) + b"\n" + good + b'{"reason": "torn')
    out = go(capsys, "dlq", "list", "config.toml").out
    assert control_characters(out) == []
    assert f"foreign {len(junk)}" in out
    assert next(x["letter"] for x in listed(capsys, "--reason", "foreign")) == f"{LETTERS}[0]@1"
    assert len(listed(capsys)) == len(junk) + 5
    foreign = write_lines(folder / "f.jsonl", listed(capsys, "--reason", "foreign"))
    assert (
        "foreign: expected a letter of streamadapt"
        in go(capsys, "dlq", "replay", "config.toml", foreign, code=1).out
    )


def test_dead_letters_repeated_after_a_crash_are_shown_once(folder, capsys):
    state_of(capsys)
    (folder / LETTERS).write_bytes((folder / LETTERS).read_bytes() * 2)
    assert len(listed(capsys)) == 5
    assert "5 more are repetitions" in go(capsys, "dlq", "list", "config.toml").out


def test_safe_text_keeps_ordinary_characters():
    assert safe("grün 温度 [red]") == "grün 温度 [red]"
    assert safe(EVIL) == "\\x1b[2J\\x1b]0;owned\\x07\\u202e\\u2028\\x9b31m\\x7fend"
    assert safe("\U000e0041\n\t") == "\\U000e0041\\n\\t"


# -- replay on files


def test_a_repaired_label_is_learned(folder, capsys):
    """Its prediction is still pending: the run that reads the label learns it, and the list omits
    replayed records."""
    before = state_of(capsys)
    assert before["dead_letters"] == {"wrong_type": 4, "not_json": 1}
    fixed = repaired(capsys, folder)
    output = go(capsys, "dlq", "replay", "config.toml", fixed, "--yes").out
    assert "3 lines: 3 ready" in output
    assert "sent 3 of 3" in output
    assert "refused again" not in output.replace("cannot", "").split("note:")[0]
    after = state_of(capsys)
    assert after["labels"]["learned"] == before["labels"]["learned"] + 3
    assert after["pending"] == before["pending"] - 3
    assert after["dead_letters"] == before["dead_letters"]
    assert [x["topic"] for x in listed(capsys)] == ["x.jsonl", "x.jsonl"]
    assert len(listed(capsys, "--all")) == 5
    assert "3 more were fed back" in go(capsys, "dlq", "list", "config.toml").out


def test_a_repaired_old_entry_is_announced_as_refused_and_is_refused(folder, capsys):
    """Newer entries have been read: the same reason is shown before sending and given by the
    engine."""
    state_of(capsys)
    found = [letter for letter in listed(capsys) if letter["topic"] == "x.jsonl"]
    for letter in found:
        letter["value"] = entry(rows()[letter["offset"]])
    write_lines(folder / "fixed.jsonl", found)
    output = go(capsys, "dlq", "replay", "config.toml", "fixed.jsonl", "--dry-run").out
    assert "line 1: x.jsonl[0]@100: will be refused again: time_backwards: " in output
    assert "time_backwards (with [panel]: late_record)" in output
    go(capsys, "dlq", "replay", "config.toml", "fixed.jsonl", "--yes")
    assert state_of(capsys)["dead_letters"]["time_backwards"] == 2
    assert [x["offset"] for x in listed(capsys)] == [393, 394, 395, 400, 401]


def test_entries_of_a_forecast(folder, capsys):
    """A repaired entry at the end of the stream is accepted, with its old time; one in the middle
    is refused again, as announced."""
    text = (
        (folder / "config.toml")
        .read_text()
        .replace('label = "y"\n', "")
        .replace('label_path = "y.jsonl"\n', "")
    )
    text = text.replace(
        'kind = "supervised"\nwindow = 3', 'kind = "forecast"\nwindow = 3\nhorizon = 2'
    )
    text = text.replace('kind = "linear"\nweights = "base.safetensors"', 'kind = "persistence"')
    (folder / "config.toml").write_text(text)
    table = rows()
    log = [entry(r) for r in table[:20]]
    log[9], log[19] = entry(table[9], x="?"), entry(table[19], x="?")
    (folder / "x.jsonl").write_text("\n".join(log))  # without a newline at the end
    before = state_of(capsys)
    found = listed(capsys)
    for letter in found:
        letter["value"] = entry(table[letter["offset"]])
    write_lines(folder / "fixed.jsonl", found)
    output = go(capsys, "dlq", "replay", "config.toml", "fixed.jsonl", "--yes").out
    assert "line 1: x.jsonl[0]@9: will be refused again: time_backwards" in output
    assert "line 2" not in output
    after = state_of(capsys)
    assert after["entries"] == before["entries"] + 1
    assert after["dead_letters"] == {"wrong_type": 2, "time_backwards": 1}


def test_a_record_that_is_still_bad_is_not_sent(folder, capsys):
    """It is named with its line and reason, and the exit code shows it; the good records are
    sent."""
    state_of(capsys)
    fixed = repaired(capsys, folder)
    found = lines(fixed)
    found[1]["value"] = label(rows()[396], y="high")
    write_lines(fixed, found)
    before = (folder / "y.jsonl").read_bytes()
    output = go(capsys, "dlq", "replay", "config.toml", fixed, "--dry-run", code=1).out
    assert (
        "line 2: y.jsonl[0]@394: still bad: wrong_type: $.y: expected number, got str 'high'"
        in output
    )
    assert (folder / "y.jsonl").read_bytes() == before
    assert not (folder / f"{LETTERS}.replays").exists()
    output = go(capsys, "dlq", "replay", "config.toml", fixed, "--yes", "--json", code=1)
    result = json.loads(output.out)
    assert [x["line"] for x in result["still_bad"]] == [2]
    assert [x["position"] for x in result["sent"]] == ["y.jsonl[0]@393", "y.jsonl[0]@395"]
    added = (folder / "y.jsonl").read_bytes()[len(before) :].decode().splitlines()
    assert added == [found[0]["value"], found[2]["value"]]


def test_a_second_replay_of_the_same_file_is_noticed(folder, capsys):
    """Nothing is sent the second time, and that is not an error; --again sends it."""
    state_of(capsys)
    fixed = repaired(capsys, folder)
    go(capsys, "dlq", "replay", "config.toml", fixed, "--yes")
    before = (folder / "y.jsonl").read_bytes()
    assert "fed back before, 20" in go(capsys, "dlq", "replay", "config.toml", fixed, "--yes").out
    assert (folder / "y.jsonl").read_bytes() == before
    go(capsys, "dlq", "replay", "config.toml", fixed, "--yes", "--again")
    assert (folder / "y.jsonl").read_bytes().count(b"\n") == before.count(b"\n") + 3
    assert "duplicate_label" in go(capsys, "run", "config.toml").out


def test_a_killed_replay_is_noticed(folder, capsys, monkeypatch):
    """The records that it was about to send may have been sent: they are sent again only with
    --again."""
    state_of(capsys)
    fixed = repaired(capsys, folder)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(
            "streamadapt_connectors.files.dead_letters.FilesStreamWriter.write", killed
        )
        output = go(capsys, "dlq", "replay", "config.toml", fixed, "--yes", code=130)
    assert "sent 0 of 3" in output.out
    output = go(capsys, "dlq", "replay", "config.toml", fixed, "--yes", code=1).out
    assert "perhaps fed back already" in output
    assert [x.get("replayed", "")[:7] for x in listed(capsys)] == [
        "",
        "",
        "perhaps",
        "perhaps",
        "perhaps",
    ]
    assert (
        "sent 3 of 3" in go(capsys, "dlq", "replay", "config.toml", fixed, "--yes", "--again").out
    )
    assert "fed back before" in go(capsys, "dlq", "replay", "config.toml", fixed, "--yes").out


def test_a_partial_failure_reports_the_records_sent(folder, capsys, monkeypatch):
    """The rest is not tried, and the next replay sends exactly the missing records."""
    state_of(capsys)
    fixed = repaired(capsys, folder)
    monkeypatch.setattr(dlq_replay, "BATCH", 2)
    written = "streamadapt_connectors.files.dead_letters.FilesStreamWriter.write"
    refuse = [Returned("sent", "there"), Returned("not-sent", "the disk is full")]
    with monkeypatch.context() as patched:
        patched.setattr(written, lambda self, records: refuse[: len(records)])
        output = go(capsys, "dlq", "replay", "config.toml", fixed, "--yes", code=1).out
    assert "line 2: y.jsonl[0]@394: not sent: the disk is full" in output
    assert "sent 1 of 3; the last 1 were not tried" in output
    output = go(capsys, "dlq", "replay", "config.toml", fixed, "--yes").out
    assert "line 1: y.jsonl[0]@393: fed back before" in output
    assert "sent 2 of 2" in output


def test_without_confirmation_nothing_is_sent(folder, capsys, monkeypatch):
    state_of(capsys)
    fixed = repaired(capsys, folder)
    before = (folder / "y.jsonl").read_bytes()
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115 - closed by the test's end
    go(capsys, "dlq", "replay", "config.toml", fixed, code=1)
    sys.stdin.close()
    assert (folder / "y.jsonl").read_bytes() == before


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (EOFError, 1), (None, 1)])
def test_an_interrupt_at_the_question_has_another_exit_code_than_no(
    folder, capsys, monkeypatch, error, code
):
    """As for `checkpoint rollback`."""
    state_of(capsys)
    fixed = repaired(capsys, folder)

    class Answer(io.StringIO):
        def readline(self, *size):
            if error is not None:
                raise error
            return "n\n"

    monkeypatch.setattr(sys, "stdin", Answer())
    output = go(capsys, "dlq", "replay", "config.toml", fixed, code=code)
    assert ("interrupted" in output.err) == (code == 130)


GOOD = {
    "topic": "y.jsonl",
    "partition": 0,
    "offset": 393,
    "time": 393,
    "key": None,
    "value": label(rows()[395]),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b"nonsense", "expected one JSON object, got no JSON"),
        (b"\xff\xfe", "expected one JSON object, got no JSON"),
        (b"[" * 100_000, "expected one JSON object, got no JSON"),
        (b"[1]", "expected one JSON object, got a list"),
        ({"valeu": "1"}, "got 'valeu' too"),
        ({"topic": "z"}, "topic: expected 'x.jsonl' or 'y.jsonl', got 'z'"),
        ({"topic": 3}, "topic: expected"),
        ({"value": ...}, "value: expected, and missing"),
        ({"key": ...}, "key: expected, and missing"),
        (
            {"value": {"y": 1}},
            "value: expected text (in jq: .value |= tojson), or null, got an object",
        ),
        ({"value": "*", "value_encoding": "base64"}, "value: expected base64"),
        ({"value_encoding": "hex"}, "value_encoding: expected base64"),
        ({"offset": "7"}, "offset: expected a whole number >= 0, got text"),
        ({"offset": -1}, "offset: expected a whole number >= 0, got -1"),
        ({"partition": True}, "partition: expected a whole number"),
        ({"truncated": 70_000}, "put the whole value in"),
        ({"offset": 1, "topic": "y.jsonl"}, "the same record as line 1"),
    ],
)
def test_each_invalid_line_of_a_file_is_named(folder, capsys, change, message):
    """Nothing of the file is sent."""
    first = GOOD if b"the same" not in message.encode() else {**GOOD, "offset": 1}
    second = (
        change
        if isinstance(change, bytes)
        else {k: v for k, v in (GOOD | change).items() if v is not ...}
    )
    second = second if isinstance(second, bytes) else json.dumps({"offset": 5, **second}).encode()
    (folder / "dirty.jsonl").write_bytes(json.dumps(first).encode() + b"\n\n" + second + b"\n")
    before = (folder / "y.jsonl").read_bytes()
    found = go(capsys, "dlq", "replay", "config.toml", "dirty.jsonl", "--yes", code=1)
    assert "dirty.jsonl line 3: " in found.out
    assert message in found.out
    assert "1 of 2 lines are no letters; nothing was sent" in found.err
    assert (folder / "y.jsonl").read_bytes() == before


def test_a_missing_file_is_named(folder, capsys):
    assert (
        "nowhere: cannot be read"
        in go(capsys, "dlq", "replay", "config.toml", "nowhere", code=1).err
    )


def test_csv_and_gz_files_are_not_appended_to_but_lines_are_written_for_them(folder, capsys):
    """The refusal names --out, and its lines make a file whose record is read and learned."""
    table = rows()
    text = CONFIG.format(
        source='kind = "files"\npath = "x.jsonl"\nlabel_path = "y.csv"', sink=SINK
    )
    (folder / "config.toml").write_text(text)
    (folder / "x.jsonl").write_text("".join(entry(r) + "\n" for r in table))
    written = [f'"{i}",{t + 600},note,{"soon" if i == "e398" else y}\n' for i, t, _, y in table]
    (folder / "y.csv").write_text("id,time,remark,y\n" + "".join(written))
    before = state_of(capsys)
    (letter,) = listed(capsys)
    letter["value"] = json.dumps({**json.loads(letter["value"]), "y": "1.5", "remark": 'a "b", c'})
    write_lines(folder / "fixed.jsonl", [letter])
    said = go(capsys, "dlq", "replay", "config.toml", "fixed.jsonl", "--yes", code=1).err
    assert "only files of plain JSON lines are appended to. Use --out LINES" in said
    assert "cat LINES >> y.csv" in said
    assert not (folder / f"{LETTERS}.replays").exists()
    output = go(
        capsys, "dlq", "replay", "config.toml", "fixed.jsonl", "--yes", "--out", "add.csv"
    ).out
    assert "now: cat add.csv >> y.csv" in output
    assert (folder / "add.csv").read_text() == f'e398,{398 * 300 + 600},"a ""b"", c",1.5\n'
    subprocess.run("cat add.csv >> y.csv", shell=True, check=True)
    after = state_of(capsys)
    assert after["labels"]["learned"] == before["labels"]["learned"] + 1
    output = go(
        capsys,
        "dlq",
        "replay",
        "config.toml",
        "fixed.jsonl",
        "--yes",
        "--again",
        "--out",
        "add.csv",
        code=1,
    )
    assert "add.csv: expected a file that does not exist yet" in output.err


def test_many_old_labels_do_not_make_earlier_records_look_wrong(folder, capsys):
    """Three labels that are older than limits.max_ahead: the clock knows the times before the
    newest record."""
    state_of(capsys)
    fixed = repaired(capsys, folder)
    ahead = ["--set", "limits.max_ahead=5m"]
    found = lines(fixed)
    for letter in found:
        letter["value"] = json.dumps(json.loads(letter["value"]) | {"time": 1000})
    write_lines(fixed, found)
    assert (
        "limits.max_ahead"
        not in go(capsys, "dlq", "replay", "config.toml", fixed, "--yes", *ahead).out
    )
    elsewhere = [*ahead, "--set", "checkpoint.path=other", "--set", "sink.path=other.jsonl"]
    assert (
        json.loads(go(capsys, "run", "config.toml", "--json", *elsewhere).out)["dead_letters"].get(
            "bad_time", 0
        )
        == 0
    )


def test_without_a_checkpoint_the_outcome_is_reported_as_unknown(folder, capsys):
    found = write_lines(folder / "f.jsonl", [GOOD])
    said = go(capsys, "dlq", "replay", "config.toml", found, "--dry-run").out
    assert "no checkpoint in state/x.jsonl-0: cannot predict which records" in said
    assert "y.jsonl[0]@393: is no dead letter that" in said


def test_a_reader_survives_a_torn_line_of_notes(tmp_path):
    path = tmp_path / "letters"
    reader = JsonlDeadLetterReader(path)
    mark = ReplayMark("sent", 5, (Position("a[b]", 1, 2),))
    reader.mark(mark)
    notes = tmp_path / "letters.replays"
    notes.write_bytes(notes.read_bytes() + b'{"replay": "se')
    assert list(reader.read()) == [mark]
    reader.mark(mark)
    assert list(reader.read()) == [mark, mark]


# -- when nearly all records are bad


def test_a_wrong_config_stops_the_run_with_its_own_exit_code(folder, capsys):
    """The message has the share, the most frequent reason, an example and the remedy."""
    text = (folder / "config.toml").read_text().replace('values = ["x"]', 'values = ["speed"]')
    (folder / "config.toml").write_text(text.replace('label_path = "y.jsonl"\n', ""))
    log = [
        json.dumps({"id": f"e{i}", "time": i, "x": 1.0}) + "\n" if i % 50 else "no json\n"
        for i in range(6000)
    ]
    (folder / "x.jsonl").write_text("".join(log))
    done = subprocess.run(
        [sys.executable, "-m", "streamadapt", "run", "config.toml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("streamadapt: ")]
    assert (
        "5000 of the last 5000 records were refused (100.0%; limits.max_bad_share tolerates 95.0%)"
        in error
    )
    assert "4900 as missing_field, for example x.jsonl[0]@" in error
    assert "$.speed: missing" in error
    assert "check [fields] and [source]" in error
    assert "raise limits.max_bad_share" in error
    assert go(capsys, "run", "config.toml", "--set", "limits.max_bad_share=1.0")
