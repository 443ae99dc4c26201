"""Imports go one way, from the top layer down; only the app knows a client library or a
connector."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import streamadapt
from streamadapt.config.registry import kinds

FLOORS = (  # the lowest first; a room is a folder, or a file beside the folders
    ("arguments", "errors", "kernel_cache", "kernel_folder", "version"),
    ("clock", "compiled", "files", "records"),
    ("cholesky", "columns", "holders", "numbers"),
    ("config",),
    ("models", "state"),
    ("tasks",),
    ("guard", "learners"),
    ("drift",),
    ("pipeline",),
    ("public",),
    ("__init__",),
    ("engine",),
    ("testing",),
    ("wiring",),
    ("outputs",),
    ("build",),
    ("app",),
    ("__main__",),
)
"""A room may import from itself and from lower floors."""
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
BELOW_CONNECTORS = FLOOR["engine"]
"""The highest floor that connectors may import from."""
CONNECTORS = "streamadapt_connectors"
FORBIDDEN = {
    "kafka", "confluent_kafka", "prometheus_client", "httpx", "requests", "fsspec", CONNECTORS,
}  # fmt: skip

# A new interpreter: in this one the tests themselves have imported almost everything. Not
# pkgutil.walk_packages: it imports every package it visits, the app too. Prints module -> the
# modules imported with it.
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


def modules_of(package: Path) -> dict[str, Path]:
    """Every module of a package, by its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Return the imports of each module: at its top, within functions, for types only."""
    found = {}
    for module, path in modules.items():
        taken: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                taken |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                taken |= inner & modules.keys() or {node.module or ""}
        found[module] = (taken & modules.keys()) - {module}
    return found


def room_of(module: str) -> str:
    """Return the room of a module of the package."""
    return module.split(".")[1] if "." in module else "__init__"


def upward_imports(imports: dict[str, set[str]]) -> list[str]:
    """Return every import that does not go down."""
    found = []
    for module, others in imports.items():
        for other in sorted(others):
            package, connectors = module.partition(".")[0], other.startswith(CONNECTORS)
            if package == CONNECTORS:
                wrong = not connectors and FLOOR[room_of(other)] > BELOW_CONNECTORS
            elif connectors:
                wrong = room_of(module) != "app"
            else:
                here, there = room_of(module), room_of(other)
                wrong = here != there and not FLOOR[there] < FLOOR[here]
            if wrong:
                found.append(f"{module} imports {other}")
    return found


def all_modules() -> dict[str, Path]:
    root = Path(streamadapt.__path__[0])
    return modules_of(root) | modules_of(root.parent / "connectors" / CONNECTORS)


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module) for module in all_modules() if not module.startswith(CONNECTORS)}
    assert rooms == set(FLOOR)


def test_imports_go_down() -> None:
    assert upward_imports(imports_of(all_modules())) == []


def test_there_are_no_import_cycles() -> None:
    graphlib.TopologicalSorter(imports_of(all_modules())).prepare()


@pytest.mark.parametrize(
    "code",
    [
        "from streamadapt.engine import ports",
        "from streamadapt.engine.ports import Source",
        "import streamadapt.engine.ports",
        "def late():\n    from streamadapt.engine.ports import Source",
        "if TYPE_CHECKING:\n    from streamadapt.engine.ports import Source",
        "from streamadapt.guard.rules import Rule",  # another room on the same floor
        "from streamadapt_connectors.kafka import KafkaSource",
    ],
)
def test_an_upward_import_would_be_detected(tmp_path: Path, code: str) -> None:
    files = {"learners/rule.py": code, "engine/ports.py": "", "guard/rules.py": ""}
    imports = imports_of(made(tmp_path, files))
    assert [one.split()[0] for one in upward_imports(imports)] == ["streamadapt.learners.rule"]


def test_a_connector_that_imports_the_app_would_be_detected(tmp_path: Path) -> None:
    modules = made(tmp_path, {"app/cli.py": "", "engine/ports.py": ""})
    code = "from streamadapt.app.cli import main\nfrom streamadapt.engine.ports import Source\n"
    (tmp_path / CONNECTORS / "kafka.py").write_text(code)
    modules |= modules_of(tmp_path / CONNECTORS)
    wrong = upward_imports(imports_of(modules))
    assert wrong == ["streamadapt_connectors.kafka imports streamadapt.app.cli"]


def test_an_import_cycle_would_be_detected(tmp_path: Path) -> None:
    one = "def late():\n    from streamadapt.state import two\n"
    files = {"state/one.py": one, "state/two.py": "from streamadapt.state.one import x\n"}
    with pytest.raises(graphlib.CycleError, match=r"streamadapt\.state\.one"):
        graphlib.TopologicalSorter(imports_of(made(tmp_path, files))).prepare()


def made(folder: Path, files: dict[str, str]) -> dict[str, Path]:
    """Write a package of that name, and connectors, and return their modules."""
    for name, text in files.items():
        path = folder / "streamadapt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    connectors = folder / CONNECTORS
    connectors.mkdir()
    (connectors / "kafka.py").write_text("")
    (connectors / "__init__.py").write_text("")
    return modules_of(folder / "streamadapt") | modules_of(connectors)


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
    assert bare == [], "folders without __init__.py are not checked"


def test_a_violation_would_be_detected(tmp_path: Path) -> None:
    package = tmp_path / "culprit"
    (package / "inner").mkdir(parents=True)
    (package / "app").mkdir()
    (package / "__init__.py").write_text("")
    (package / "app" / "__init__.py").write_text("import wave\n")  # the app may
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "late.py").write_text("import chunky_client.part\n")
    (tmp_path / "chunky_client").mkdir()
    (tmp_path / "chunky_client" / "__init__.py").write_text("")
    (tmp_path / "chunky_client" / "part.py").write_text("")
    found = imported_with("culprit", {"chunky_client", "wave"}, tmp_path)
    assert found == {"culprit": [], "culprit.inner": [], "culprit.inner.late": ["chunky_client"]}
    (package / "inner" / "late.py").write_text("import culprit.app\n")
    assert imported_with("culprit", {"x"}, tmp_path)["culprit.inner.late"] == ["culprit.app"]


def test_nothing_below_the_app_knows_a_connector_by_name() -> None:
    named = {point.name for group in ("sources", "sinks") for point in kinds(group).values()}
    assert named >= {"files", "kafka"}
    root = Path(streamadapt.__path__[0])
    found = [
        f"{path.relative_to(root)}:{node.lineno}: {node.value}"
        for path in sorted(root.rglob("*.py"))
        if "demo" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in named
    ]
    keys = [one for one in found if one.startswith("app/commands.py:")]  # of `check --json`
    assert found == keys, "differences belong into an attribute or a class method of the connector"
    assert all(one.endswith("files") for one in keys)
