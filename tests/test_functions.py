"""No function has 50 lines or more, except those named here with a reason."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("streamadapt", "connectors")
FUNCTION_LINES = 49

# "path:qualified.name" -> why it is better in one piece.
SETTINGS = "a list of assignments without branches; a part of it would set half an object"
EXCEPTIONS: dict[str, str] = {
    "streamadapt/engine/engine.py:Engine.__init__": SETTINGS,
    "streamadapt/pipeline/pipeline.py:Pipeline.__init__": (
        "puts the parts of a pipeline together in the order in which they need each other"
    ),
    "streamadapt/pipeline/pipeline.py:Pipeline._step": (
        "the six steps of an entry on one screen, in the order of docs/architecture.md"
    ),
    "connectors/streamadapt_connectors/kafka/writer.py:Writer.__init__": SETTINGS,
}


def functions(node: ast.AST, prefix: str = "") -> list[tuple[str, int]]:
    """Yield every function below `node` with its lines: signature and body, without decorators and
    docstring."""
    found = []
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        name = f"{prefix}{child.name}" if named else prefix.rstrip(".")  # type: ignore[attr-defined]
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            first = child.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            found.append((name, (child.end_lineno or 0) - child.lineno + 1 - docstring))
        found += functions(child, f"{name}." if name else "")
    return found


def too_large(root: Path) -> dict[str, int]:
    """Return position -> lines, for every function above the limit."""
    found = {}
    for path in (path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))):
        text = path.read_text()
        place = path.relative_to(root).as_posix()
        found |= {
            f"{place}:{name}": n for name, n in functions(ast.parse(text)) if n > FUNCTION_LINES
        }
    return found


def test_functions_are_short() -> None:
    found = too_large(ROOT)
    assert {place: lines for place, lines in found.items() if place not in EXCEPTIONS} == {}
    assert set(EXCEPTIONS) <= set(found), "an exception that is no longer needed"
    assert all(EXCEPTIONS.values()), "an exception without a reason"


def test_a_long_function_would_be_detected(tmp_path: Path) -> None:
    folder = tmp_path / "streamadapt" / "deep"
    folder.mkdir(parents=True)
    body = "        x = 1\n"
    method = "class A:\n    def f(self):\n        '''One.\n\nMore.\n'''\n"
    (folder / "method.py").write_text(method + body * 49)
    (folder / "docs.py").write_text(method + body * 48)
    (folder / "nested.py").write_text("if True:\n    async def g():\n" + body * 49)
    assert too_large(tmp_path) == {
        "streamadapt/deep/method.py:A.f": 50,
        "streamadapt/deep/nested.py:g": 50,
    }
