"""Labels of a classification in the forms that people have, through the command line: names,
numbers, true and false."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_helpers import lines, logging_as_before

from streamadapt import Bias, Entry, Label, Pipeline, Supervised, TwoLayer, Unlabelled
from streamadapt.app.commands import run_command
from streamadapt.errors import ConfigError, EntryError, LabelError, Reason
from streamadapt.pipeline.keyed import KeyedPipeline

CONFIG = """
[source]
kind = "files"
path = "in.jsonl"
[fields]
values = ["x"]
channels = 2
id = "id"
time = "t"
time_format = "unix_s"
label = "y"
[task]
kind = "supervised"
classes = {classes}
[base]
kind = "module"
factory = "{module}:make"
softmax = {softmax}
[[learners]]
kind = "bias"
rate = 0.1
[sink]
kind = "files"
path = "out.jsonl"
[checkpoint]
path = "state"
"""
MODULE = """
import torch
class M(torch.nn.Module):
    def forward(self, x):
        return torch.stack([torch.zeros(x.shape[0]), x[:, -1, 0]], 1)
def make():
    return M()
"""
N = 60

_logging = pytest.fixture(autouse=True)(logging_as_before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "two_logits_model.py").write_text(MODULE)
    return tmp_path


def config(folder, classes="2", softmax="true", module="two_logits_model"):
    text = CONFIG.format(classes=classes, module=module, softmax=softmax)
    (folder / "c.toml").write_text(text)


def truth():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(N, 2)).round(3)
    return x.tolist(), (x[:, 0] + 0.5 * rng.normal(size=N) > 0).astype(int).tolist()


def write(folder, label_of, name="in.jsonl", **other):
    """Write a stream. `label_of` turns the class into the label."""
    x, y = truth()
    rows = [
        {"id": f"e{i}", "t": 1000 + i, "x": x[i], "y": label_of(y[i])} | other for i in range(N)
    ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def summary(capsys, *arguments):
    capsys.readouterr()
    code = run_command(
        ["replay", "c.toml", "in.jsonl", "--json", "--out", "replayed.jsonl", *arguments]
    ).code
    output = capsys.readouterr()
    return code, json.loads(output.out), output.err


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        ("2", [False, True]),
        ('["DOWN", "UP"]', ["DOWN", "UP"]),
        ("[-1, 1]", [-1, 1]),
        ("[-1, 1]", [-1.0, 1.0]),
        ("[-1, 1]", ["-1", "1"]),
        ("[1, 2]", [1, 2]),
        ('["1", "2"]', [1, 2]),
        ("[0, 1]", [False, True]),
        ("[false, true]", [False, True]),
        ('["None", "Fire"]', ["None", "Fire"]),
        ('["off", 1]', ["off", 1]),
        ("[2.5, 3.5]", [2.5, 3.5]),
    ],
)
def test_the_names_of_the_classes_do_not_change_the_results(folder, capsys, classes, names):
    """All losses equal those of the same stream with labels 0 and 1, bit for bit, and nothing is
    refused."""
    config(folder)
    write(folder, lambda c: c)
    _, plain, _ = summary(capsys)
    config(folder, classes)
    write(folder, lambda c: names[c])
    code, found, _ = summary(capsys)
    assert code == 0
    assert (found["experts"], found["served"]) == (plain["experts"], plain["served"])
    assert found["labels"] == plain["labels"] == {"learned": N - 1}
    assert (found["dead_letters"], found["labels_used"]) == ({}, {})


@pytest.mark.parametrize(
    ("classes", "cells"),
    [
        ("2", ["False", "True"]),
        ("2", ["false", "TRUE"]),
        ('["DOWN", "UP"]', ["DOWN", " UP"]),
        ("[-1, 1]", ["-1", "1.0"]),
        ("[2.5, 3.5]", ["2,5", "3,5"]),
        ('["-", "NA"]', ["-", "NA"]),
    ],
)
def test_names_of_classes_in_csv(folder, capsys, classes, cells):
    x, y = truth()
    config(folder)
    write(folder, lambda c: c)
    _, plain, _ = summary(capsys)
    config(folder, classes)
    table = (
        f"e{i};{1000 + i};{str(a).replace('.', ',')};{str(b).replace('.', ',')}"
        for i, (a, b) in enumerate(x)
    )
    rows = "".join(f"{row};{cells[c]}\n" for row, c in zip(table, y, strict=True))
    (folder / "in.csv").write_text("id;t;a;b;y\n" + rows)
    capsys.readouterr()
    form = ["source.delimiter=;", "fields.decimal=,", 'fields.values=["a", "b"]']
    given = [part for setting in form for part in ("--set", setting)]
    assert run_command(["replay", "c.toml", "in.csv", "--json", *given]).code == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["served"], found["dead_letters"]) == (plain["served"], {})


def test_a_prediction_names_the_likeliest_class(folder, capsys):
    config(folder, '["DOWN", "UP"]')
    write(folder, lambda c: ["DOWN", "UP"][c])
    summary(capsys)
    found = lines(folder / "replayed.jsonl")
    assert len(found) == N
    for row in found:
        assert row["classes"] == ["DOWN", "UP"]
        assert row["class"] == ("UP" if row["served"][1] > row["served"][0] else "DOWN")
    assert {row["class"] for row in found} == {"DOWN", "UP"}
    config(folder)
    summary(capsys)
    assert "class" not in lines(folder / "replayed.jsonl")[0]


@pytest.mark.parametrize(
    "classes",
    [
        '["a"]',
        '["a", "a"]',
        '["1", 1]',
        "[1, 1.0]",
        "[true, 1]",
        '[true, "true"]',
        '["a", " "]',
        "[1, nan]",
        "1",
        '"ab"',
    ],
)
def test_indistinguishable_classes_are_a_wrong_setting(folder, capsys, classes):
    config(folder, classes)
    write(folder, lambda c: c)
    assert run_command(["check", "c.toml"]).code == 2
    assert "task.classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "bad", "reason"),
    [
        ("2", -1, "bad_class"),
        ("2", 0.5, "bad_class"),
        ("2", "UP", "wrong_type"),
        ("2", [1, 0], "wrong_width"),
        ("2", {}, "wrong_type"),
        ("3", True, "wrong_type"),
        ('["DOWN", "UP"]', "up", "bad_class"),
        ('["DOWN", "UP"]', 1, "bad_class"),
        ('["DOWN", "UP"]', True, "bad_class"),
        ("[-1, 1]", True, "bad_class"),
        ("[-1, 1]", 0, "bad_class"),
    ],
)
def test_an_entry_with_a_bad_label_is_predicted_and_the_label_refused(
    folder, capsys, classes, bad, reason
):
    """As if the entry had no label: the same predictions, one dead letter, and the report of
    losses says how many labels they use."""
    names = [0, 1] if classes in ("2", "3") else json.loads(classes)
    (folder / "three_logits_model.py").write_text(
        MODULE.replace("x[:, -1, 0]]", "x[:, -1, 0], x[:, -1, 1]]")
    )
    config(folder, classes, module="three_logits_model" if classes == "3" else "two_logits_model")
    known = truth()[1]

    def labels(of_the_bad):
        return [of_the_bad if i in (20, 40) else names[c] for i, c in enumerate(known)]

    def predictions(of_the_bad):
        label_texts = iter(labels(of_the_bad))
        write(folder, lambda c: next(label_texts))
        found = summary(capsys)[1]
        rows = lines(folder / "replayed.jsonl")
        return found, [(row["served"], row["weights"]) for row in rows]

    without, calm = predictions(None)
    found, served = predictions(bad)
    assert len(served) == N
    assert served == calm
    assert found["served"] == without["served"]
    assert found["dead_letters"] == {reason: 2}
    assert found["labels_used"] == {"used": N - 3, "of": N - 1, "refused": {reason: 2}}
    letters = lines(folder / "replayed.jsonl.dead-letters")
    assert [(letter["stage"], letter["offset"]) for letter in letters] == [
        ("label", 20),
        ("label", 40),
    ]
    assert all("the entry itself is predicted" in letter["detail"] for letter in letters)


def test_the_table_says_how_many_labels_the_losses_use(folder, capsys):
    """Labels -1 and 1 with two numbered classes: the learned half gives a better figure than all
    labels would."""
    config(folder)
    write(folder, lambda c: [-1, 1][c])
    capsys.readouterr()
    run_command(["replay", "c.toml", "in.jsonl"])
    ones = sum(truth()[1])
    learned = ones - truth()[1][-1]  # the last label is not followed by an entry
    output = " ".join(capsys.readouterr().out.split())
    assert (
        f"over {learned} of {learned + N - ones} labels: refused were {N - ones} bad_class"
        in output
    )


def test_labels_of_their_own_file_are_counted_when_refused(folder, capsys):
    config(folder, '["DOWN", "UP"]')
    x, y = truth()
    rows = [{"id": f"e{i}", "t": 1000 + i, "x": x[i]} for i in range(N)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    label_rows = [
        {"id": f"e{i}", "t": 1001 + i, "y": "sideways" if i < 10 else ["DOWN", "UP"][c]}
        for i, c in enumerate(y)
    ]
    (folder / "labels.jsonl").write_text(
        "\ufeff" + "".join(json.dumps(row) + "\n" for row in label_rows)
    )
    _, found, _ = summary(capsys, "--labels", "labels.jsonl")
    assert found["labels_used"] == {"used": N - 10, "of": N, "refused": {"bad_class": 10}}


def test_a_repaired_label_is_learned_and_its_entry_is_not_repeated(folder, capsys):
    config(folder, '["DOWN", "UP"]')
    write(folder, lambda c: ["DOWN", "UP"][c])
    rows = lines(folder / "in.jsonl")
    rows[-3]["y"] = "UPP"
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_command(["run", "c.toml"]).code == 0
    capsys.readouterr()
    assert run_command(["dlq", "list", "c.toml", "--json"]).code == 0
    (letter,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (letter["stage"], letter["reason"]) == ("label", "bad_class")
    write_letter = (folder / "fixed.jsonl").write_text
    write_letter("\ufeff" + json.dumps(letter) + "\n")
    assert run_command(["dlq", "replay", "c.toml", "fixed.jsonl", "--yes"]).code == 1, (
        "the label is still bad"
    )
    assert "still bad: bad_class" in capsys.readouterr().out
    letter["value"] = json.dumps(rows[-3] | {"y": "UP"})
    write_letter("\ufeff" + json.dumps(letter) + "\n")
    assert run_command(["dlq", "replay", "c.toml", "fixed.jsonl", "--yes"]).code == 0
    assert "will be refused" not in capsys.readouterr().out
    assert len(lines(folder / "in.jsonl")) == N + 1
    assert run_command(["run", "c.toml", "--json"]).code == 0
    found = json.loads(capsys.readouterr().out)
    # The label inside the last entry is learned at the next arrival, here the repaired label.
    assert found["labels"]["learned"] == N
    assert found["predictions"] == len(lines(folder / "out.jsonl")) == N
    assert found["dead_letters"] == {"bad_class": 1}


def test_an_entry_without_an_id_is_not_replayed_for_its_label(folder, capsys):
    config(folder)
    (folder / "c.toml").write_text((folder / "c.toml").read_text().replace('id = "id"\n', ""))
    write(folder, lambda c: 7)
    assert run_command(["run", "c.toml"]).code == 3, "nothing was learned"
    capsys.readouterr()
    run_command(["dlq", "list", "c.toml", "--json", "--limit", "1"])
    letter = json.loads(capsys.readouterr().out)
    letter["value"] = letter["value"].replace('"y": 7', '"y": 1')
    (folder / "fixed.jsonl").write_text(json.dumps(letter) + "\n")
    assert run_command(["dlq", "replay", "c.toml", "fixed.jsonl", "--yes"]).code == 1
    assert "fields.id" in capsys.readouterr().out
    assert len(lines(folder / "in.jsonl")) == N


def test_logits_in_place_of_probabilities_are_refused_by_check_and_at_the_first_entry(
    folder, capsys
):
    config(folder, softmax="false")
    write(folder, lambda c: c)
    for command in (["check", "c.toml"], ["replay", "c.toml", "in.jsonl"], ["run", "c.toml"]):
        # A width that only the entries show: check has no window to test.
        if command[0] != "check":
            (folder / "c.toml").write_text(
                (folder / "c.toml").read_text().replace("channels = 2\n", "")
            )
        assert run_command(command).code == 2
        assert "base.softmax: expected true" in capsys.readouterr().err


def test_rounded_probabilities_are_accepted():
    for probabilities in (
        [0.5, 0.5],
        [0.3334, 0.6667],
        [1.0 + 1e-6, -1e-7],
        [np.float16(0.3), np.float16(0.7)],
    ):
        pipeline = Pipeline(
            Supervised(classes=2),
            lambda x, probabilities=probabilities: np.array([probabilities], np.float32),
            [Bias(0.1)],
        )
        assert len(pipeline.observe([Entry(np.zeros(1, np.float32), 1)])) == 1
    for probabilities in ([0.0, 0.0], [2.0, -1.0], [-0.7, -0.7], [0.9, 0.9]):
        pipeline = Pipeline(
            Supervised(classes=2),
            lambda x, probabilities=probabilities: np.array([probabilities], np.float32),
            [Bias(0.1)],
        )
        with pytest.raises(ConfigError, match=r"base\.softmax"):
            pipeline.observe([Entry(np.zeros(1, np.float32), 1)])


def in_process(**other):
    task = Supervised(classes=["DOWN", "UP"])
    return Pipeline(task, lambda x: np.array([[0.4, 0.6]], np.float32), [Bias(0.1)], **other)


def test_in_python_a_name_becomes_a_label():
    pipeline = in_process()
    up = pipeline.task.label("UP")
    assert up.tolist() == [1.0]
    (prediction,) = pipeline.observe([Entry(np.zeros(1, np.float32), 1, "a", label=up)])
    assert prediction.classes == ("DOWN", "UP")
    pipeline.observe([Entry(np.zeros(1, np.float32), 2, "b")])
    assert pipeline.stats.labels == {"learned": 1}
    with pytest.raises(ConfigError, match="SIDEWAYS"):
        pipeline.task.label("SIDEWAYS")


@pytest.mark.parametrize("keyed", [False, True])
def test_in_python_the_label_alone_is_refused_with_on_rejected(keyed):
    rejected = []
    pipeline = KeyedPipeline(in_process) if keyed else in_process()
    bad = Entry(np.zeros(1, np.float32), 1, "a", label=np.array([5.0], np.float32))
    with pytest.raises(EntryError, match="bad_class"):
        pipeline.observe([bad])
    assert pipeline.stats.entries == 0, "without on_rejected nothing has changed"
    pipeline.on_rejected = lambda item, error: rejected.append((item, error))
    assert len(pipeline.observe([bad])) == 1
    ((item, error),) = rejected
    assert item is bad
    assert isinstance(error, LabelError)
    assert error.reason is Reason.BAD_CLASS
    assert pipeline.stats.rejected == {"bad_class": 2}
    assert pipeline.observe([Label("a", np.array([1.0], np.float32), 2)]) == []
    assert pipeline.stats.labels == {"learned": 1}, "a valid label can still arrive"


def test_an_entry_refused_with_its_label_counts_once():
    rejected = []
    pipeline = in_process(on_rejected=lambda item, error: rejected.append(error.reason))
    good = Entry(np.zeros(1, np.float32), 60 * 10**9, "a")
    bad = Entry(np.zeros(1, np.float32), 1, "b", label=np.array([5.0], np.float32))
    pipeline.observe([good, bad])
    assert rejected == [Reason.TIME_BACKWARDS]
    assert pipeline.stats.rejected == {"time_backwards": 1}


def test_a_refused_label_does_not_become_a_negative():
    """If only positives are reported, an unreadable label does not count as a missing positive."""
    rejected = []
    task = Supervised(classes=2, negative_after=10, ttl=1000)
    pipeline = Pipeline(task, lambda x: np.array([[0.5, 0.5]], np.float32), [Bias(0.1)])
    pipeline.on_rejected = lambda item, error: rejected.append(error.reason)
    bad = Entry(np.zeros(1, np.float32), 1, "bad", label=np.array([5.0], np.float32))
    pipeline.observe([bad, Entry(np.zeros(1, np.float32), 2, "silent")])
    again = Pipeline(
        Supervised(classes=2, negative_after=10, ttl=1000), pipeline.base, [Bias(0.1)]
    )
    again.load_state_dict(pipeline.state_dict())
    for one in (pipeline, again):
        one.observe([Entry(np.zeros(1, np.float32), 500, "c")])
        assert one.stats.labels["negative"] == 1


def test_a_repaired_label_of_a_csv_file_is_a_row_of_its_own(folder, capsys):
    """The lines that dlq replay writes for the label have the file's delimiter, and no values."""
    config(folder, '["DOWN", "UP"]')
    x, y = truth()
    names = [["DOWN", "UP"][c] for c in y]
    names[-2] = "UPP"
    rows = [f"e{i} ; {1000 + i};{a};{b};{names[i]}\n" for i, (a, b) in enumerate(x)]
    (folder / "in.csv").write_text("id;t;a;b;y\n" + "".join(rows))
    text = (
        (folder / "c.toml")
        .read_text()
        .replace('path = "in.jsonl"', 'path = "in.csv"\ndelimiter = ";"')
    )
    (folder / "c.toml").write_text(text.replace('values = ["x"]', 'values = ["a", "b"]'))
    assert run_command(["run", "c.toml"]).code == 0
    capsys.readouterr()
    run_command(["dlq", "list", "c.toml", "--json"])
    letter = json.loads(capsys.readouterr().out)
    assert letter["detail"].startswith(
        "its label: column 'y': expected one of the classes 'DOWN', 'UP'"
    )
    letter["value"] = letter["value"].replace("UPP", "UP")
    # As PowerShell writes text.
    (folder / "fixed.jsonl").write_bytes(json.dumps(letter).encode("utf-16"))
    assert (
        run_command(["dlq", "replay", "c.toml", "fixed.jsonl", "--yes", "--out", "add.csv"]).code
        == 0
    )
    assert (folder / "add.csv").read_text() == f"e{N - 2};{1000 + N - 2};;;UP\n"
    with (folder / "in.csv").open("a") as file:
        file.write((folder / "add.csv").read_text())
    capsys.readouterr()
    assert run_command(["run", "c.toml", "--json"]).code == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["labels"]["learned"], found["predictions"]) == (N, N)


def test_unlabelled_predictions_name_their_classes_too():
    task, probabilities = Unlabelled(classes=["DOWN", "UP"]), np.array([[0.4, 0.6]], np.float32)
    pipeline = Pipeline(task, lambda x: probabilities, guard=TwoLayer(prior={"base": 1.0}))
    (prediction,) = pipeline.observe([Entry(np.zeros(1, np.float32), 1)])
    assert prediction.classes == ("DOWN", "UP")
