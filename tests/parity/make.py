"""Write the golden files: ``PYTHONPATH=tests python -m parity.make [--only NAME ...]``.

The files are those of the code that they are made with: `manifest.json` names its commit, and a
changed working tree is refused. Once the code that is to be compared has gone, they are never made
again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from parity import files
from parity.all_cases import CASES
from parity.machine import machine
from parity.model_files import write_models
from parity.models import FOLDER

ROOT = Path(__file__).parent.parent.parent


def main() -> int:
    asked = _parser().parse_args()
    torch.set_num_threads(1)
    if not asked.draft and _git("status", "--porcelain"):
        print("the working tree has changes: commit them first, or use --draft", file=sys.stderr)
        return 1
    made_by = {
        "commit": _git("rev-parse", "HEAD") + (" and changes" if asked.draft else ""),
        "tree of streamadapt": _git("rev-parse", "HEAD:streamadapt"),
        "machine": machine(),
    }
    FOLDER.mkdir(exist_ok=True)
    write_models(FOLDER)
    start = time.process_time()
    for name in asked.only or CASES:
        _write(name)
    _write_manifest(made_by)
    print(f"{time.process_time() - start:.0f} s of CPU time", file=sys.stderr)
    return 0


def _write(name: str) -> None:
    start = time.process_time()
    work = Path(tempfile.mkdtemp())
    try:
        target = FOLDER / f"{name}.zip"
        files.write_case(CASES[name], target, work)
    finally:
        shutil.rmtree(work)
    took = time.process_time() - start
    print(f"{name}: {target.stat().st_size} bytes, {took:.1f} s", file=sys.stderr)


def _write_manifest(made_by: dict[str, Any]) -> None:
    """Write which code made the files, on what, and their checksums."""
    sums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(FOLDER.iterdir())
        if path != files.MANIFEST
    }
    files.MANIFEST.write_text(json.dumps(made_by | {"files": sums}, indent=1) + "\n")


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return ran.stdout.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m parity.make", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME")
    parser.add_argument("--draft", action="store_true", help="also from a changed working tree")
    return parser


if __name__ == "__main__":
    sys.exit(main())
