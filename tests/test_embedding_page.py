"""The examples of docs/embedding.md run, and their assertions hold."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "embedding.md"


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    """The examples run one after the other, as the page says, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 5
    assert all("assert " in block for block in blocks)
    session: dict[str, object] = {"__name__": "embedding"}
    for i, block in enumerate(blocks):
        exec(compile(block, f"embedding.md, example {i + 1}", "exec"), session)
    assert session["refused"] == []
