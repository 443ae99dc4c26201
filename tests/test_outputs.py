"""A command never destroys the files it reads, nor an earlier result before the new one is
complete."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_helpers import logging_as_before
from safetensors.torch import load_file

from streamadapt.app.commands import run_command

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
window = 2
[base]
kind = "linear"
weights = "base.safetensors"
[[learners]]
kind = "bias"
rate = 0.1
[sink]
kind = "files"
path = "run-out.jsonl"
"""
ROWS = 40
RESULT = b'{"id":"an earlier result"}\n'


@pytest.fixture(autouse=True)
def _logging():
    yield from logging_as_before()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a config, data, labels in a file of their own, a fitted base and an earlier
    result."""
    monkeypatch.chdir(tmp_path)
    table = [
        {"id": f"e{i}", "t": i, "x": (i * 7 % 11) / 3, "y": 2 * (i * 7 % 11) / 3}
        for i in range(ROWS)
    ]
    Path("c.toml").write_text(CONFIG)
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    labels = [{"id": row["id"], "t": row["t"] + 1, "y": row["y"]} for row in table]
    Path("labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    assert run_command(["fit", "c.toml", "data.jsonl"]).code == 0
    Path("earlier.jsonl").write_bytes(RESULT)
    Path("earlier.jsonl.dead-letters").write_bytes(b"")
    return tmp_path


def snapshot(folder):
    """Return name -> content of files, target of links, kind of the rest; the content of folders
    included."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        name = path.relative_to(folder).as_posix()
        if stat.S_ISLNK(mode):
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if stat.S_ISREG(mode) else stat.S_IFMT(mode)
    return found


@contextlib.contextmanager
def nothing_changes(folder):
    before = snapshot(folder)
    yield
    assert snapshot(folder) == before


def make(kind, name="odd"):
    """Make a path that is not a regular file."""
    if kind == "folder":
        Path(name).mkdir()
    elif kind == "pipe":
        os.mkfifo(name)
    elif kind == "loop":
        Path(name).symlink_to(name)
    elif kind == "link to a folder":
        Path("behind").mkdir()
        Path(name).symlink_to("behind")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)


ODD = ["folder", "pipe", "socket", "loop", "link to a folder"]


def spelled(how, name):
    """Return another name of the same file."""
    if how == "relative":
        return f"./{Path.cwd().name}/../../{Path.cwd().name}/{name}".replace(
            f"./{Path.cwd().name}/..", "./.", 1
        )
    if how == "absolute":
        return str(Path(name).absolute())
    other = Path(f"other-{how}.jsonl")
    if how == "link":
        other.symlink_to(name)
    elif how == "hard link":
        other.hardlink_to(name)
    elif how == "link to a link":
        Path("between").symlink_to(name)
        other.symlink_to("between")
    else:
        return name
    return str(other)


@pytest.mark.parametrize(
    "how", ["same", "relative", "absolute", "link", "hard link", "link to a link"]
)
@pytest.mark.parametrize("name", ["data.jsonl", "labels.jsonl", "c.toml", "base.safetensors"])
def test_a_replay_never_overwrites_its_inputs(folder, capsys, how, name):
    """Entries, labels, config and weights, under any name: exit code 2, and every file is
    unchanged."""
    out = spelled(how, name)
    capsys.readouterr()
    with nothing_changes(folder):
        assert (
            run_command(
                ["replay", "c.toml", "data.jsonl", "--labels", "labels.jsonl", "--out", out]
            ).code
            == 2
        )
    assert "config: --out: expected another file than" in capsys.readouterr().err


def test_the_dead_letter_file_of_a_replay_is_checked_too(folder, capsys):
    Path("out.jsonl.dead-letters").symlink_to("data.jsonl")
    with nothing_changes(folder):
        assert run_command(["replay", "c.toml", "data.jsonl", "--out", "out.jsonl"]).code == 2
    Path("out.jsonl.dead-letters").unlink()
    Path("out.jsonl.dead-letters").symlink_to("out.jsonl")
    with nothing_changes(folder):
        assert run_command(["replay", "c.toml", "data.jsonl", "--out", "out.jsonl"]).code == 2


@pytest.mark.parametrize("command", ["replay", "fit"])
def test_dead_letter_files_of_runs_are_never_overwritten(folder, command):
    """Beside the sink's file, or at the configured path."""
    Path("run-out.jsonl.dead-letters").write_bytes(RESULT)
    own = ["--set", 'dead_letters={kind="files", path="earlier.jsonl"}']
    with nothing_changes(folder):
        assert (
            run_command(
                [command, "c.toml", "data.jsonl", "--out", "run-out.jsonl.dead-letters"]
            ).code
            == 2
        )
        assert (
            run_command([command, "c.toml", "data.jsonl", "--out", "earlier.jsonl", *own]).code
            == 2
        )


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize(
    "arguments",
    [
        ["replay", "c.toml", "data.jsonl", "--out", "odd"],
        ["run", "c.toml", "--set", "sink.path=odd"],
        ["check", "c.toml", "--set", "sink.path=odd"],
        ["run", "c.toml", "--set", 'dead_letters={kind="files", path="odd"}'],
        ["fit", "c.toml", "data.jsonl", "--out", "odd"],
        ["init", "--force", "odd"],
        ["demo", "--json", "odd"],
    ],
)
def test_a_path_that_is_not_a_regular_file_is_refused_unopened(folder, capsys, kind, arguments):
    """By every command that writes: a pipe would block forever, and a folder or device would be
    lost."""
    make(kind)
    with nothing_changes(folder):
        assert run_command(arguments).code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_device_is_refused_unopened(folder, monkeypatch):
    """It is recognised by its status alone, which the test makes up."""
    real = os.stat

    def made_up(path, *args, **more):
        found = real(path, *args, **more)
        if os.fspath(path) == "earlier.jsonl":
            return os.stat_result((stat.S_IFCHR | 0o666, *found[1:]))
        return found

    monkeypatch.setattr(os, "stat", made_up)
    assert run_command(["replay", "c.toml", "data.jsonl", "--out", "earlier.jsonl"]).code == 2
    monkeypatch.undo()
    assert (folder / "earlier.jsonl").read_bytes() == RESULT


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["data.jsonl", "--set", "task.window=0"], 2),
        (["data.jsonl", "--set", "base.weights=nosuch"], 2),
        (["nosuch.jsonl"], 1),
        (["data.jsonl", "--labels", "nosuch.jsonl"], 1),
        (["torn.jsonl.gz"], 1),
        (["pipe.jsonl"], 1),
    ],
)
def test_a_replay_that_fails_leaves_the_earlier_result(folder, more, code):
    """Whether it fails before the first record or in the middle; no partial file is left."""
    Path("torn.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00rest")
    os.mkfifo("pipe.jsonl")
    with nothing_changes(folder):
        assert run_command(["replay", "c.toml", *more, "--out", "earlier.jsonl"]).code == code


def test_a_replay_follows_a_link_and_keeps_its_file_s_mode(folder):
    Path("earlier.jsonl").chmod(0o640)
    Path("link.jsonl").symlink_to("earlier.jsonl")
    Path("dangling.jsonl").symlink_to("new.jsonl")
    for name in ("link.jsonl", "dangling.jsonl"):
        assert run_command(["replay", "c.toml", "data.jsonl", "--out", name]).code == 0
        assert Path(name).is_symlink()
    written = Path("earlier.jsonl").read_text().splitlines()
    assert len(written) == ROWS - 1, "one prediction for every full window"
    assert Path("new.jsonl").read_text().splitlines() == written
    assert stat.S_IMODE(Path("earlier.jsonl").stat().st_mode) == 0o640
    assert [path.name for path in folder.iterdir() if "part" in path.name] == []


def test_a_config_with_a_guarantee_can_be_replayed(folder):
    """A replay uses no checkpoints, which the guarantee needs."""
    more = ["--set", "guarantee=effectively-once", "--set", 'checkpoint={path="state"}']
    assert (
        run_command(["replay", "c.toml", "data.jsonl", "--out", "earlier.jsonl", *more]).code == 0
    )
    assert not Path("state").exists()


def test_a_replay_that_predicts_nothing_leaves_the_earlier_result(folder):
    """An empty file in its place would hide the failure."""
    Path("bad.jsonl").write_text('{"id":"a","t":1,"x":"no number"}\n' * 9)
    with nothing_changes(folder):
        assert run_command(["replay", "c.toml", "bad.jsonl", "--out", "earlier.jsonl"]).code == 3


MODEL = """
import os, signal
calls = 0
def make():
    def model(x):
        global calls
        calls += 1
        if calls == 20:
            os.kill(os.getpid(), int(os.environ["THE_SIGNAL"]))
        return x[-1:, :1]
    return model
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_replay_that_is_killed_leaves_the_earlier_result(folder, number):
    """Killed in the middle; the next replay removes what SIGKILL leaves, and a shell sees the
    signal's exit code."""
    (folder / "mine.py").write_text(MODEL)
    own = ["--set", 'base={kind="module", factory="mine:make"}', "--out", "earlier.jsonl"]
    before = snapshot(folder)
    done = subprocess.run(
        [sys.executable, "-m", "streamadapt", "replay", "c.toml", "data.jsonl", *own],
        env=os.environ
        | {
            "THE_SIGNAL": str(int(number)),
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (-number if number == signal.SIGKILL else 128 + number), done.stderr
    assert "Traceback" not in done.stderr
    now = {
        name: what for name, what in snapshot(folder).items() if not name.startswith("__pycache__")
    }
    left = sorted(now.keys() - before.keys())
    assert {name: now[name] for name in before} == before
    assert len(left) == (2 if number == signal.SIGKILL else 0)
    assert all(
        name.startswith("earlier.jsonl.") and name.endswith(".streamadapt-part") for name in left
    )
    assert run_command(["replay", "c.toml", "data.jsonl", "--out", "earlier.jsonl"]).code == 0
    assert [name for name in snapshot(folder) if "part" in name] == []


def test_the_unfinished_file_of_another_replay_is_left_alone(folder):
    """The other replay holds a lock on its file; a file of the user's own is not ours, whatever
    its name begins with."""
    Path("earlier.jsonl.part").write_text("mine")
    busy = Path("earlier.jsonl.99-abc.streamadapt-part")
    with busy.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_command(["replay", "c.toml", "data.jsonl", "--out", "earlier.jsonl"]).code == 0
        assert busy.exists()
    assert Path("earlier.jsonl.part").read_text() == "mine"


# -- the other commands


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    "settings",
    [
        ["sink.path=data.jsonl"],
        ["sink.path=link"],
        ["sink.path=labels.jsonl", "source.label_path=labels.jsonl"],
        ["sink.path=nosuch.jsonl", "source.path=nosuch.jsonl"],
        ["sink.path=c.toml"],
        ["sink.path=base.safetensors"],
        ['dead_letters={kind="files", path="data.jsonl"}'],
        ['dead_letters={kind="files", path="run-out.jsonl"}'],
        ["sink.path=x", "source.path=x.dead-letters"],
        ['checkpoint={path="data.jsonl"}'],
        ['checkpoint={path="run-out.jsonl"}'],
    ],
)
def test_a_run_never_overwrites_its_inputs(folder, capsys, command, settings):
    """`check` reports it, too; and nothing is appended to any input."""
    Path("link").symlink_to("data.jsonl")
    Path("x.dead-letters").write_bytes(Path("data.jsonl").read_bytes())
    given = [word for setting in settings for word in ("--set", setting)]
    with nothing_changes(folder):
        assert run_command([command, "c.toml", *given]).code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_appends_to_its_own_file_and_to_no_foreign_file(folder, capsys):
    assert run_command(["run", "c.toml"]).code == 0
    once = Path("run-out.jsonl").read_bytes()
    assert run_command(["run", "c.toml"]).code == 0
    assert Path("run-out.jsonl").read_bytes() == once * 2
    Path("notes.txt").write_bytes(b"a line\nno line break at the end")
    with nothing_changes(folder):
        assert run_command(["run", "c.toml", "--set", "sink.path=notes.txt"]).code == 1
    assert "its last line is not a JSON object" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["data.jsonl", "labels.jsonl", "c.toml", "link"])
def test_a_fit_never_overwrites_its_inputs(folder, out):
    Path("link").symlink_to("data.jsonl")
    with nothing_changes(folder):
        assert (
            run_command(
                ["fit", "c.toml", "data.jsonl", "--labels", "labels.jsonl", "--out", out]
            ).code
            == 2
        )


def test_a_fit_follows_a_link_and_changes_no_other_file(folder):
    before = load_file("base.safetensors")
    Path("base.safetensors.part").write_text("mine")
    Path("link").symlink_to("elsewhere")
    assert run_command(["fit", "c.toml", "data.jsonl", "--out", "link"]).code == 0
    assert Path("link").is_symlink()
    torch.testing.assert_close(load_file("elsewhere"), before)
    assert Path("base.safetensors.part").read_text() == "mine"
    assert run_command(["fit", "c.toml", "data.jsonl"]).code == 0, (
        "its own earlier weights may be replaced"
    )


def test_init_follows_a_link_and_overwrites_only_with_force(folder):
    Path("link").symlink_to("target.toml")
    assert run_command(["init", "link"]).code == 0
    assert Path("link").is_symlink()
    written = Path("target.toml").read_bytes()
    Path("target.toml").write_text("mine")
    assert run_command(["init", "link"]).code == 2
    assert Path("target.toml").read_text() == "mine"
    assert run_command(["init", "link", "--force"]).code == 0
    assert (Path("link").is_symlink(), Path("target.toml").read_bytes()) == (True, written)


@pytest.mark.parametrize("kind", ["same", "pipe", "folder", "nowhere/x"])
def test_dlq_replay_writes_lines_into_new_files_only(folder, kind):
    Path("data.jsonl").write_text(
        '{"id":"a","t":1,"x":"no number","y":1}\n' + Path("data.jsonl").read_text()
    )
    assert run_command(["run", "c.toml"]).code == 0
    letter = json.loads(Path("run-out.jsonl.dead-letters").read_text())
    Path("fixed.jsonl").write_text(
        json.dumps(letter | {"value": '{"id":"a","t":1,"x":1,"y":1}'}) + "\n"
    )
    out = "fixed.jsonl" if kind == "same" else "nowhere/x" if "/" in kind else "odd"
    if out == "odd":
        make(kind)
    with nothing_changes(folder):
        assert (
            run_command(["dlq", "replay", "c.toml", "fixed.jsonl", "--yes", "--out", out]).code
            == 1
        )
    assert (
        run_command(["dlq", "replay", "c.toml", "fixed.jsonl", "--yes", "--out", "new.jsonl"]).code
        == 0
    )
    assert json.loads(Path("new.jsonl").read_text())["x"] == 1
