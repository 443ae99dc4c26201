"""Ctrl-C and SIGTERM while a command starts: one line and the signal's exit code, at any
import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from fault_counts import trials

# Sends a signal at the n-th module that is imported after one of SIGNAL_FROM. Put on the path as
# sitecustomize, so that the command is started as usual.
SITE = """
import os, sys

class Finder:
    seen = -1

    def find_spec(self, name, path=None, target=None):
        if self.seen < 0 and name not in os.environ["SIGNAL_FROM"].split(","):
            return None
        self.seen += 1
        if self.seen == int(os.environ["SIGNAL_AT"]):
            print(name, flush=True)
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
        return None

sys.meta_path.insert(0, Finder())
"""


def start(tmp_path, arguments, at, number, code=None, first="streamadapt.app.commands,torch"):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
    env = os.environ | {"PYTHONPATH": path, "SIGNAL_FROM": first, "SIGNAL_AT": str(at)}
    env["SIGNAL"] = str(int(number))
    command = [sys.executable, *(["-c", code] if code else ["-m", "streamadapt"]), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False
    )


IMPORTS = [0, 1, 5, 20, 60, 150, 400, 700, 1000, 1300]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["run", "nowhere.toml"], ["replay", "nowhere.toml", "x.jsonl"]]
)
def test_an_interrupt_at_any_import_is_one_line(tmp_path, arguments):
    count = trials(3, len(IMPORTS))
    for i, at in enumerate(IMPORTS[:: max(1, len(IMPORTS) // count)]):
        number = (signal.SIGINT, signal.SIGTERM)[i % 2]
        done = start(tmp_path, arguments, at, number)
        if not done.stdout:  # there were fewer imports
            continue
        assert (done.returncode, done.stderr) == (128 + number, "streamadapt: interrupted\n"), (
            at,
            done.stdout,
        )


@pytest.mark.parametrize("first", ["streamadapt.app.commands", "typer", "rich", "torch"])
def test_an_interrupt_at_the_first_slow_imports(tmp_path, first):
    arguments = ["--nonsense"] if first == "rich" else ["run", "nowhere.toml"]
    done = start(tmp_path, arguments, 0, signal.SIGTERM, first=first)
    assert (done.stdout, done.returncode, done.stderr) == (
        f"{first}\n",
        143,
        "streamadapt: interrupted\n",
    )


def test_the_installed_command_behaves_the_same(tmp_path):
    """The script that pip creates imports the command line itself."""
    code = "import sys; sys.argv[0] = 'streamadapt'; from streamadapt.app.cli import main; main()"
    done = start(tmp_path, ["run", "nowhere.toml"], 2, signal.SIGINT, code)
    assert (done.returncode, done.stderr) == (130, "streamadapt: interrupted\n"), done.stdout


def test_the_command_line_is_loaded_before_anything_slow():
    """Signals are handled from there on: neither torch nor numpy, rich or typer may be loaded with
    it."""
    code = (
        "import sys; before = set(sys.modules); import streamadapt.app.cli; "
        "print(*sorted({n.partition('.')[0] for n in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "rich", "typer", "msgspec", "river"}.isdisjoint(done.stdout.split())


COMMAND = """
import sys
from streamadapt.app.cli import main
sys.argv = ["streamadapt", *sys.argv[1:]]
try:
    main()
finally:
    came = {name.partition(".")[0] for name in sys.modules}
    print(*sorted(came & {"torch", "numpy", "river", "kafka", "safetensors"}), file=sys.__stderr__)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0), (["--version"], 0), ([], 2), (["run", "--help"], 0),
        (["dlq", "replay", "--help"], 0), (["checkpoint", "--help"], 0), (["nonsense"], 2),
        (["run", "a.toml", "--nonsense"], 2), (["run"], 2), (["init", "config.toml"], 0),
    ],
)  # fmt: skip
def test_commands_without_numbers_load_nothing_slow(tmp_path, arguments, code):
    """Help, version, usage errors and a new config are immediate: torch alone takes two seconds to
    load."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == ""


def test_every_name_of_the_package_exists():
    """Names are looked up at their first use, also modules of the package, as after an import of
    everything."""
    import streamadapt

    for name in streamadapt.__all__:
        found = getattr(streamadapt, name)
        assert found.__name__ == name
    assert set(streamadapt.__all__) <= set(dir(streamadapt))
    assert streamadapt.errors.ConfigError is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = streamadapt.nonsense
