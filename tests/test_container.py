"""Promises of the image and compose.yaml: no root, a read-only file system except for the
state."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import CONFIG, ROWS, logging_as_before, prepare

from streamadapt.app.demo.broker import free_port
from streamadapt.compiled import ENABLED

_logging = pytest.fixture(autouse=True)(logging_as_before)

ROOT = Path(__file__).parent.parent
UID = 10001

# In namespaces of their own, invisible to other processes and removed with the process: every
# file system is read-only, /tmp too, except for one folder (and /proc, which is the kernel's, and
# shared memory, which container engines provide: joblib makes a semaphore when it is imported);
# then as a user without root or special rights.
CONFINED = f"""
set -e
mount --bind "$1" "$1"
[ ! -d /dev/shm ] || mount -t tmpfs none /dev/shm
for at in $(awk '{{print $2}}' /proc/self/mounts | sort -u); do
    case "$at" in "$1"|/proc*|/dev/shm) continue;; esac
    mount -o remount,bind,ro "$at"
done
shift
exec unshare --user --map-user={UID} --map-group={UID} -- "$@"
"""
ALONE = ("unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c", CONFINED, "sh")


def confined(writable, *command, cwd=None, **variables):
    """Run a command that can write to one folder only, without a home folder."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PYTHON", "STREAMADAPT", "HOME", "XDG", "TMP"))
    }
    # PYTHONDONTWRITEBYTECODE is not set: the run must work without it.
    environment = kept | {"HOME": "/nonexistent"} | variables
    return subprocess.run(
        [*ALONE, str(writable), *map(str, command)],
        capture_output=True, text=True, check=False, timeout=300, cwd=cwd, env=environment,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    for name in ("state", "elsewhere"):
        (tmp_path / name).mkdir()
    sink = 'kind = "files"\npath = "state/predictions.jsonl"'
    text = CONFIG.format(source='kind = "files"\npath = "entries.csv"', sink=sink).replace(
        '"state"', '"state/saved"'
    )
    metrics = f'[metrics]\nport = {free_port()}\nhost = "127.0.0.1"\n'
    (tmp_path / "config.toml").write_text(text + metrics)
    probe = (
        "id -u; grep CapEff /proc/self/status; touch state/x && rm state/x; touch x || "
        "touch /tmp/x || echo refused"
    )
    try:
        tried = confined(tmp_path / "state", "sh", "-c", probe, cwd=tmp_path)
    except FileNotFoundError:
        pytest.skip("this machine has no unshare")
    if tried.returncode or tried.stdout.split() != [str(UID), "CapEff:", "0" * 16, "refused"]:
        pytest.skip(
            f"this machine gives us no read-only root of our own: {tried.stdout} {tried.stderr}"
        )
    return tmp_path


COMMAND = (
    sys.executable, "-m", "streamadapt", "run", "config.toml", "--json", "--log-json",
    "--log-level", "debug",
)  # fmt: skip


def run(folder, writable, **variables):
    return confined(folder / writable, *COMMAND, cwd=folder, **variables)


def messages(done, *levels):
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    return [line["message"] for line in lines if line["level"] in levels]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_needs_no_root_and_writes_to_its_state_only(folder):
    """Not to its home, the temporary folder or its own code; and a second run resumes from the
    state."""
    done = run(folder, "state")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["entries"] == ROWS
    *unkept, refused = messages(done, "warning", "error")
    assert "refused entries.csv[0]@150" in refused, "the only bad record"
    assert len(unkept) == ENABLED, "one line for all kernels"
    for line in unkept:
        assert "/nonexistent/.cache/streamadapt cannot be made: Read-only file system" in line
        assert "STREAMADAPT_CACHE" in line
    assert len((folder / "state" / "predictions.jsonl").read_text().splitlines()) > ROWS / 2
    again = run(folder, "state", STREAMADAPT_COMPILE="0")  # the compiler takes most of the time
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["entries"] == ROWS


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not ENABLED, reason="nothing is compiled")
def test_a_run_reads_compiled_code_from_a_folder_that_it_cannot_write_to(folder):
    """As in the image, whose kernels were compiled when it was built."""
    cache = {"STREAMADAPT_CACHE": str(folder / "state" / "cache")}
    first = run(folder, "state", **cache)
    assert first.returncode == 0, first.stderr
    assert any(line.startswith("compiling") for line in messages(first, "info"))
    shutil.move(folder / "state" / "cache", folder / "cache")
    shutil.rmtree(folder / "state" / "saved")
    done = run(folder, "state", STREAMADAPT_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["entries"] == ROWS
    (refused,) = messages(done, "warning", "error")
    assert "refused entries.csv[0]@150" in refused
    assert not [one for one in messages(done, "info", "debug") if one.startswith("compiling")]


@pytest.mark.slow
def test_a_run_without_a_writable_state_folder_names_the_folder(folder):
    """This shows that the read-only root is effective."""
    done = run(folder, "elsewhere")
    assert done.returncode == 2
    assert "Read-only file system" in done.stderr
    assert "state/predictions.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


# -- the texts; a container engine may not be available here


def service(name):
    """Return the lines of one service of compose.yaml."""
    text = (ROOT / "compose.yaml").read_text()
    found = re.search(rf"^  {name}:\n(?P<body>(?:(?:    .*)?\n)*)", text, re.MULTILINE)
    assert found is not None
    return found["body"]


def test_the_image_runs_as_a_numeric_user_that_owns_only_the_state():
    """By number, since an orchestrator that forbids root cannot resolve a name."""
    last = (ROOT / "Dockerfile").read_text().split("\nFROM ")[-1]
    users = re.findall(r"^USER (\S+)$", last, re.MULTILINE)
    assert users
    assert int(users[-1]) == UID
    assert re.search(rf"useradd .*--uid {UID} ", last)
    assert last.index("USER") > max(last.rindex("RUN"), last.rindex("COPY")), (
        "built files belong to root"
    )
    assert re.findall(r"^VOLUME (\S+)$", last, re.MULTILINE) == ["/state"]
    assert re.findall(r"^WORKDIR (\S+)$", last, re.MULTILINE) == ["/state"]
    assert not re.search(r"chmod|sudo|--chown|ENV .*(PASSWORD|SECRET|TOKEN)", last)


def test_compose_gives_the_engine_nothing_it_does_not_need():
    body = service("streamadapt")
    for line in (
        "read_only: true",
        'tmpfs: ["/tmp"]',
        'cap_drop: ["ALL"]',
        'security_opt: ["no-new-privileges:true"]',
        "- ./config.toml:/config.toml:ro",
        "- state:/state",
    ):
        assert f"{line}\n" in body
    assert not re.search(r"privileged|user:|cap_add|network_mode|pid:|docker\.sock", body)


def test_compose_does_not_restart_permanent_errors_and_has_a_health_check():
    """Exit codes 2 and 3 would repeat; and nothing overrides the source's default."""
    body = service("streamadapt")
    assert "restart: on-failure:5\n" in body
    assert "SINK" not in body
    asked = re.search(r"^ *- (import .*)$", body, re.MULTILINE)
    assert asked is not None
    compile(asked[1], "healthcheck", "exec")
    assert "/ready" in asked[1]
    assert (port := re.search(r'METRICS__PORT: "(\d+)"', body)) is not None
    assert f":{port[1]}/" in asked[1]


def test_the_broker_and_the_scraper_are_reachable_only_locally():
    """They require no password."""
    for name in ("kafka", "prometheus"):
        ports = re.findall(r"ports: \[(.*)\]", service(name))
        assert ports
        assert all(
            port.strip().startswith('"127.0.0.1:') for found in ports for port in found.split(",")
        )
