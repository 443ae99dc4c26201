"""A run that refused most records, or predicted or learned nothing, reports it first, and in its
exit code."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import logging_as_before

from streamadapt import Bias, Entry, Label, Pipeline, Position, Supervised
from streamadapt.app.commands import run_command
from streamadapt.app.outcome import HINTS
from streamadapt.engine.engine import Engine
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import Reason
from streamadapt.testing import (
    IdentityCodec,
    ManualClock,
    MemoryDeadLetters,
    MemorySink,
    MemorySource,
)

CONFIG = """
[source]
kind = "files"
path = "data.jsonl"
[fields]
id = "id"
time = "t"
time_format = "unix_s"
values = ["x"]
label = "y"
[task]
kind = "supervised"
window = 3
[base]
kind = "linear"
weights = "base.safetensors"
[[learners]]
kind = "bias"
rate = 0.1
[sink]
kind = "files"
path = "out.jsonl"
[checkpoint]
path = "state"
"""


@pytest.fixture(autouse=True)
def _logging():
    yield from logging_as_before()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(CONFIG)
    write("history.jsonl", GOOD)
    assert run_command(["fit", "c.toml", "history.jsonl"]).code == 0
    return tmp_path


def row(i, **changed):
    return {"id": f"e{i}", "t": i, "x": i % 5, "y": i % 5 + 1} | changed


def write(name, rows):
    Path(name).write_text("".join(json.dumps(one) + "\n" for one in rows))


GOOD = [row(i) for i in range(20)]
BAD = [row(i, x="n/a?") for i in range(100, 130)]


def go(capsys, *arguments):
    """Run a command; return its exit code, standard output and standard error."""
    capsys.readouterr()
    outcome = run_command(list(arguments))
    output = capsys.readouterr()
    return outcome.code, output.out, output.err


@pytest.mark.parametrize("command", ["replay", "run"])
def test_if_most_entries_were_refused_the_first_line_says_so(folder, capsys, command):
    """With the share, an example and a setting; since predictions were made, the exit code stays
    0."""
    write("data.jsonl", GOOD + BAD)
    given = [command, "c.toml", *(["data.jsonl"] if command == "replay" else [])]
    code, out, _ = go(capsys, *given)
    assert code == 0
    first = out.splitlines()[0]
    assert "60% of the entries were refused (30 of 50)" in first
    assert "data.jsonl[0]@20: $.x: expected number" in first
    assert "[fields]" in first
    code, out, _ = go(capsys, *given, "--json", "--set", "checkpoint.path=other")
    problem = json.loads(out)["problem"]
    assert (code, problem["what"], problem["count"], problem["of"], problem["share"]) == (
        0,
        "entries",
        30,
        50,
        0.6,
    )
    assert (problem["reason"], problem["position"]) == ("wrong_type", "data.jsonl[0]@20")
    assert "[fields]" in problem["setting"]


def test_a_normal_run_has_no_such_line(folder, capsys):
    """Half is not most; an example of each reason is shown all the same."""
    write("data.jsonl", [*GOOD, *BAD[:19], row(5)])
    code, out, _ = go(capsys, "replay", "c.toml", "data.jsonl")
    assert code == 0
    assert not re.search("entries were refused|nothing was", out)
    assert "wrong_type (19): data.jsonl[0]@20: $.x" in out
    assert "time_backwards (1): data.jsonl[0]@39: time is" in out
    code, out, _ = go(capsys, "replay", "c.toml", "data.jsonl", "--json")
    result = json.loads(out)
    assert result["problem"] is None
    assert [(one["reason"], one["count"]) for one in result["refused"]] == [
        ("wrong_type", 19),
        ("time_backwards", 1),
    ]
    assert all(one["setting"] and one["detail"] for one in result["refused"])


NOTHING = {
    "all refused": (
        BAD,
        "100% of the entries were refused (30 of 30); nothing was predicted",
        "entries",
    ),
    "one record, refused": (BAD[:1], "nothing was predicted", "entries"),
    "shorter than a window": (
        GOOD[:2],
        "nothing was predicted: 2 entries were accepted, and task.window is 3",
        None,
    ),
    "no label at all": (
        [{k: v for k, v in one.items() if k != "y"} for one in GOOD],
        "nothing was learned",
        None,
    ),
}


@pytest.mark.parametrize("command", ["replay", "run"])
@pytest.mark.parametrize("case", NOTHING)
def test_nothing_predicted_or_learned_is_an_exit_code(folder, capsys, command, case):
    rows, message, _ = NOTHING[case]
    write("data.jsonl", rows)
    given = [command, "c.toml", *(["data.jsonl"] if command == "replay" else [])]
    code, out, _ = go(capsys, *given)
    assert code == 3
    assert message in out.splitlines()[0]
    code, out, err = go(capsys, *given, "--json", "--set", "checkpoint.path=other")
    assert code == 3
    assert message in json.loads(out)["problem"]["text"]
    assert message in err, "standard output is for a machine"


@pytest.mark.parametrize(
    ("labels", "code", "message"),
    [
        (
            [{"id": f"x{i}", "t": i + 1, "y": 1.0} for i in range(20)],
            3,
            "100% of the labels were refused (20 of 20)",
        ),
        (
            [{"id": f"e{i}", "t": i + 1, "y": "?"} for i in range(20)],
            3,
            "100% of the labels were refused (20 of 20)",
        ),
        (
            [{"id": f"{'e' if i < 6 else 'x'}{i}", "t": i + 1, "y": 1.0} for i in range(20)],
            0,
            "70% of the labels",
        ),
        (
            [{"id": f"{'e' if i < 16 else 'x'}{i}", "t": i + 1, "y": 1.0} for i in range(20)],
            0,
            None,
        ),
    ],
)
def test_labels_of_their_own_file_are_judged_separately(folder, capsys, labels, code, message):
    """All entries are good, so less than half of all records is refused."""
    write("data.jsonl", [{k: v for k, v in one.items() if k != "y"} for one in GOOD])
    write("labels.jsonl", labels)
    found, out, _ = go(capsys, "replay", "c.toml", "data.jsonl", "--labels", "labels.jsonl")
    assert found == code
    assert (message in out.splitlines()[0]) if message else ("were refused" not in out)
    # The same in one file, where only the records show whether they are labels.
    rows = [item for pair in zip(GOOD, labels, strict=True) for item in pair]
    write(
        "both.jsonl",
        [{k: v for k, v in one.items() if k != "y" or "x" not in one} for one in rows],
    )
    found, out, _ = go(capsys, "replay", "c.toml", "both.jsonl")
    assert found == code or "?" in labels[0].values()


def test_a_run_with_nothing_new_to_read_is_fine(folder, capsys):
    """Resumed behind its last record; and with labels still to arrive, after earlier ones were
    learned."""
    write("data.jsonl", GOOD)
    assert go(capsys, "run", "c.toml")[0] == 0
    assert go(capsys, "run", "c.toml")[0] == 0
    write(
        "data.jsonl", GOOD + [{k: v for k, v in row(i).items() if k != "y"} for i in range(20, 30)]
    )
    assert go(capsys, "run", "c.toml")[0] == 0
    write("empty.jsonl", [])
    assert (
        go(
            capsys,
            "run",
            "c.toml",
            "--set",
            "source.path=empty.jsonl",
            "--set",
            "checkpoint.path=new",
        )[0]
        == 0
    )


class Stopped(MemorySource):
    """A source that never ends by itself: the engine is stopped when everything was delivered."""

    def poll(self, timeout_s):
        records = super().poll(timeout_s)
        if not records:
            self._owner.stop()
        return records


def judged(items, labels=None, source=MemorySource, **more):
    from streamadapt.app.outcome import problem_of

    source = source(items, labels, finite=source is MemorySource, **more)
    make = lambda: Pipeline(Supervised(3), lambda x: x[-1:, :1], [Bias(0.1)])  # noqa: E731
    settings = EngineSettings(label_wait_s=0.0)
    engine = Engine(
        source, make, MemorySink(), IdentityCodec(), MemoryDeadLetters(), settings=settings
    )
    found = problem_of(engine.run()["run"])
    return 0 if found is None else found.code


def entry(i, label=None):
    return Entry(floats(i % 5), i, f"e{i}", "", label, Position("memory", 0, i))


def floats(*values):
    return np.array(values, np.float32)


def test_a_run_ended_by_a_signal_is_judged_by_its_refused_records():
    """A quiet topic, a first window still incomplete, labels still to arrive: 0.

    Everything refused: 3.
    """
    assert judged([], source=Stopped) == 0
    assert judged([entry(0), entry(1)], source=Stopped) == 0
    assert judged([entry(0), entry(1)]) == 3, "at the end of a file the code is 3"
    assert judged([entry(i) for i in range(9)], [], source=Stopped) == 0
    assert judged([entry(i) for i in range(9)], []) == 3
    assert judged([b"nonsense"], source=Stopped) == 3
    wrong = [Label(f"x{i}", floats(1.0), i) for i in range(9)]
    assert judged([entry(i) for i in range(9)], wrong, source=Stopped) == 3


def test_a_few_refused_records_after_a_good_run_are_not_a_config_error(folder, capsys):
    """Three refused records on their own are one; if limits.max_bad_share allows all to be
    refused, it is reported but not an error."""
    write("data.jsonl", GOOD)
    assert go(capsys, "run", "c.toml")[0] == 0
    write("data.jsonl", GOOD + BAD[:2])
    code, out, _ = go(capsys, "run", "c.toml")
    assert (code, "100% of the entries were refused (2 of 2)" in out.splitlines()[0]) == (0, True)
    write("data.jsonl", GOOD + BAD[:5])
    assert go(capsys, "run", "c.toml")[0] == 3
    write("data.jsonl", BAD)
    code, out, _ = go(
        capsys, "replay", "c.toml", "data.jsonl", "--set", "limits.max_bad_share=1.0"
    )
    assert (code, "100% of the entries were refused (30 of 30)" in out.splitlines()[0]) == (
        0,
        True,
    )


def test_every_reason_has_a_setting_that_would_help():
    assert {str(reason) for reason in Reason} - {str(reason) for reason in HINTS} == set()


# -- fit


def test_fit_refuses_a_history_if_most_rows_are_refused(folder, capsys):
    """Nothing is written without --force; the first line gives the reason, and each reason has an
    example and a setting."""
    config = ["--out", "w"]
    write("history.jsonl", GOOD + BAD)
    code, out, err = go(capsys, "fit", "c.toml", "history.jsonl", *config)
    assert (code, out, Path("w").exists()) == (3, "", False)
    first, *more = err.splitlines()
    assert "60% of the rows were refused (30 of 50)" in first
    assert "--force" in first
    assert "wrong_type (30): history.jsonl, record 20: $.x: expected number" in more[0]
    assert "[fields]" in more[0]
    code, out, _ = go(capsys, "fit", "c.toml", "history.jsonl", *config, "--force")
    assert (code, Path("w").exists()) == (0, True)
    assert "60% of the rows were refused" in out.splitlines()[0]
    code, out, _ = go(capsys, "fit", "c.toml", "history.jsonl", *config, "--force", "--json")
    assert json.loads(out)["refused"]["wrong_type"]["count"] == 30


def test_fit_shows_the_refused_rows_of_a_good_history(folder, capsys):
    config = ["--out", "w"]
    write("history.jsonl", GOOD + BAD[:2])
    code, out, _ = go(capsys, "fit", "c.toml", "history.jsonl", *config)
    assert code == 0
    assert out.splitlines()[0] == "fitted on 20 rows (2 refused), wrote w"
    assert "wrong_type (2): history.jsonl, record 20: $.x" in out
    write(
        "y.jsonl",
        [{"id": f"x{i}", "t": 1, "y": 1.0} for i in range(15)] + [{"id": "e0", "t": 1, "y": 1.0}],
    )
    write("history.jsonl", [{k: v for k, v in one.items() if k != "y"} for one in GOOD])
    code, _, err = go(capsys, "fit", "c.toml", "history.jsonl", "--labels", "y.jsonl", *config)
    assert code == 3
    assert "94% of the labels were refused (15 of 16)" in err


def test_the_line_is_red_on_a_terminal_and_plain_elsewhere(folder, capsys, monkeypatch):
    from streamadapt.app.printing import print_alert

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    print_alert("text with [brackets]")
    assert re.fullmatch(r"\x1b\[1;31mtext with \[brackets\]\x1b\[0m\n", capsys.readouterr().out)
    monkeypatch.delenv("FORCE_COLOR")
    print_alert("text with [brackets]")
    assert capsys.readouterr().out == "text with [brackets]\n"


# -- the log of a long run


def bad_record(value):
    return json.dumps({"time": 1, "values": value}).encode()


def log_of(caplog):
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "streamadapt"
    ]


def test_the_first_dead_letter_is_logged_at_once_then_one_line_a_minute(caplog):
    """By the engine's clock: the first of each reason, then one line a minute with the count, and
    a heartbeat."""
    clock = ManualClock()
    source = MemorySource([], finite=False)
    make = lambda: Pipeline(Supervised(1), lambda x: x[-1:, :1], [Bias(0.1)])  # noqa: E731
    engine = Engine(source, make, MemorySink(), IdentityCodec(), MemoryDeadLetters(), clock=clock)
    source.open(engine)
    engine.step()
    caplog.set_level(logging.INFO, "streamadapt")
    caplog.clear()
    source.append(*[b"nonsense"] * 5)
    engine.step()
    assert len(log_of(caplog)) == 1
    level, first = log_of(caplog)[0]
    assert level == "WARNING"
    assert first.startswith("refused memory[0]@0 as not_json: ")
    source.append(*[b"nonsense"] * 3, bad_record("text"))
    engine.step()
    assert [text.partition(":")[0] for _, text in log_of(caplog)[1:]] == [
        "refused memory[0]@8 as wrong_type"
    ]
    caplog.clear()
    clock.advance(59)
    engine.step()
    assert log_of(caplog) == []
    source.append(*[entry(i, floats(i)) for i in range(10)])
    clock.advance(1)
    engine.step()
    logged = [text for _, text in log_of(caplog)]
    assert logged[0].startswith("refused 7 more as not_json in 60 s, the newest memory[0]@7: ")
    assert logged[1].startswith(
        "10 entries, 10 predictions, 9 dead letters in 60 s, lag 0, mean loss served "
    )
    assert len(logged) == 2
    caplog.clear()
    clock.advance(60)
    engine.step()
    assert [text for _, text in log_of(caplog)] == [
        "0 entries, 0 predictions, 0 dead letters in 60 s, lag 0"
    ]


def test_the_log_of_a_flood_is_bounded(caplog):
    """A thousand refused records a second, for ten minutes: one line a minute."""
    clock = ManualClock()
    source = MemorySource([], finite=False, batch=1000)
    make = lambda: Pipeline(Supervised(1), lambda x: x[-1:, :1], [Bias(0.1)])  # noqa: E731
    settings = EngineSettings(max_bad_share=1.0)
    engine = Engine(
        source,
        make,
        MemorySink(),
        IdentityCodec(),
        MemoryDeadLetters(),
        settings=settings,
        clock=clock,
    )
    source.open(engine)
    caplog.set_level(logging.WARNING, "streamadapt")
    for _ in range(100):
        source.append(*[b"nonsense"] * 100)
        clock.advance(6)
        engine.step()
    logged = [text for _, text in log_of(caplog)]
    assert len(logged) == 10
    assert (
        sum(int(number) for text in logged for number in re.findall(r"refused (\d+) more", text))
        > 8000
    )
