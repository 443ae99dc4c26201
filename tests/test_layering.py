"""The arrows go one way: what is not the shell knows no client library and no connector."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import streamadapt

FORBIDDEN = {
    "kafka",
    "confluent_kafka",
    "prometheus_client",
    "httpx",
    "requests",
    "fsspec",
    "streamadapt_connectors",
}

# A fresh interpreter: in this one the tests themselves have imported almost everything. Not
# pkgutil.walk_packages: it imports every package it walks, the shell too. Prints module -> what
# came with it.
CODE = """
import importlib, json, pkgutil, sys
package, forbidden = sys.argv[1], set(sys.argv[2].split(","))
shell, found = package + ".app", {}

def visit(name):
    module = importlib.import_module(name)
    loaded = set(sys.modules)
    found[name] = sorted({n.partition(".")[0] for n in loaded} & forbidden | {shell} & loaded)
    for info in pkgutil.iter_modules(getattr(module, "__path__", []), name + "."):
        if info.name != shell:
            visit(info.name)

visit(package)
print(json.dumps(found))
"""


def imported_with(
    package: str, forbidden: set[str], path: Path | None = None
) -> dict[str, list[str]]:
    env = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, "-c", CODE, package, ",".join(sorted(forbidden))],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_core_and_runtime_import_no_client_library() -> None:
    found = imported_with("streamadapt", FORBIDDEN)
    assert {name: came for name, came in found.items() if came} == {}
    root = Path(streamadapt.__path__[0])
    folders = {path.parent for path in root.rglob("*.py")}
    bare = sorted(
        folder.relative_to(root).as_posix()
        for folder in folders
        if not (folder / "__init__.py").exists()
    )
    assert bare == [], "folders without __init__.py go unchecked"


def test_a_violation_would_be_seen(tmp_path: Path) -> None:
    package = tmp_path / "culprit"
    (package / "inner").mkdir(parents=True)
    (package / "app").mkdir()
    (package / "__init__.py").write_text("")
    (package / "app" / "__init__.py").write_text("import wave\n")  # the shell may
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "late.py").write_text("import chunky_client.part\n")
    (tmp_path / "chunky_client").mkdir()
    (tmp_path / "chunky_client" / "__init__.py").write_text("")
    (tmp_path / "chunky_client" / "part.py").write_text("")
    found = imported_with("culprit", {"chunky_client", "wave"}, tmp_path)
    assert found == {"culprit": [], "culprit.inner": [], "culprit.inner.late": ["chunky_client"]}
    (package / "inner" / "late.py").write_text("import culprit.app\n")
    assert imported_with("culprit", {"x"}, tmp_path)["culprit.inner.late"] == ["culprit.app"]
