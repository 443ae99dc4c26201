"""Shared by the tests of the dead letter commands: a run with bad records, its dead letters, and
their repair."""

from __future__ import annotations

import json
import unicodedata

from cli_helpers import CONFIG, rows, write_csv

from streamadapt.app.commands import run_command

EVIL = "\x1b[2J\x1b]0;owned\x07\u202e\u2028\x9b31m\x7fend"
BAD = {100: "hot", 101: EVIL}  # entries
BAD_LABELS = {395: "1,5", 396: "?", 397: None}


def entry(row, **other):
    return json.dumps({"id": row[0], "time": row[1], "x": row[2], **other}, ensure_ascii=False)


def label(row, **other):
    return json.dumps({"id": row[0], "time": row[1] + 600, "y": row[3], **other})


def streams(bad=True):
    table = rows()
    entries = [
        entry(r, **({"x": BAD[k]} if bad and k in BAD else {})) for k, r in enumerate(table)
    ]
    labels = [label(r) for r in table if r[0] not in ("e100", "e101")]
    if bad:
        for k, y in BAD_LABELS.items():
            labels[k - 2] = '{"id": "e397", y}' if y is None else label(table[k], y=y)
    return entries, labels


def fill(path, source, sink, more=""):
    (path / "config.toml").write_text(CONFIG.format(source=source, sink=sink) + more)
    write_csv(path / "history.csv", rows()[:90])
    assert run_command(["fit", "config.toml", "history.csv"]).code == 0
    for name, log in zip(("x.jsonl", "y.jsonl"), streams(), strict=True):
        (path / name).write_text("".join(line + "\n" for line in log))
    return path


def go(capsys, *arguments, code=0):
    """Run a command; return what it printed."""
    capsys.readouterr()
    exit_code = run_command([str(a) for a in arguments]).code
    output = capsys.readouterr()
    assert exit_code == code, output
    return output


def listed(capsys, *arguments):
    return [
        json.loads(line)
        for line in go(capsys, "dlq", "list", "config.toml", "--json", *arguments).out.splitlines()
    ]


def write_lines(path, letters):
    path.write_text("".join(json.dumps(letter) + "\n" for letter in letters))
    return path


def repaired(capsys, path):
    """Write the dead letters of labels, with the right labels in them."""
    letters = [letter for letter in listed(capsys) if letter["topic"].startswith("y")]
    table = dict(enumerate(rows()))
    for letter in letters:
        letter["value"] = label(table[letter["offset"] + 2])
    return write_lines(path / "fixed.jsonl", letters)


def state_of(capsys):
    return json.loads(go(capsys, "run", "config.toml", "--json").out)


def control_characters(text):
    return [
        c
        for c in text
        if c != "\n" and (unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp"))
    ]
