"""Write the golden files: ``PYTHONPATH=tests python -m parity.make [--only NAME ...]``.

The files are those of the code that they are made with: `manifest.json` names the commit of each,
and a changed working tree is refused. Cases that have a file are left as they are. Once the code
that is to be compared has gone, no file is ever made again.
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

import torch
from filelock import FileLock

from parity import files
from parity.all_cases import CASES
from parity.machine import machine
from parity.model_files import write_models
from parity.models import FOLDER

ROOT = Path(__file__).parent.parent.parent


GOLDEN = ("tests/parity/files", "tests/parity/scenarios")


def main() -> int:
    asked = _parser().parse_args()
    torch.set_num_threads(1)
    if not asked.draft and changes():
        print("the working tree has changes: commit them first, or use --draft", file=sys.stderr)
        return 1
    made_by = commit() + (" and changes" if asked.draft else "")
    FOLDER.mkdir(exist_ok=True)
    if not (FOLDER / "liquid.safetensors").exists():
        write_models(FOLDER)
        _state(sorted(path.name for path in FOLDER.glob("*.safetensors")), made_by)
    for name in asked.only or CASES:
        if not (FOLDER / f"{name}.zip").exists():
            _write(name)
            _state([f"{name}.zip"], made_by)
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
    print(f"{name}: {target.stat().st_size} bytes, {took:.1f} s", file=sys.stderr, flush=True)


def _state(names: list[str], made_by: str) -> None:
    """Write into the manifest which code made some files, on what, and their checksums."""
    of_product = _git("rev-parse", "HEAD:streamadapt")
    made = {
        name: {
            "commit": made_by,
            "streamadapt": of_product,
            "sha256": hashlib.sha256((FOLDER / name).read_bytes()).hexdigest(),
        }
        for name in names
    }
    with FileLock(Path(tempfile.gettempdir()) / "streamadapt-golden.lock"):
        there = json.loads(files.MANIFEST.read_text()) if files.MANIFEST.exists() else {}
        stated = {"machine": machine(), "files": {**there.get("files", {}), **made}}
        stated["files"] = dict(sorted(stated["files"].items()))
        files.MANIFEST.write_text(json.dumps(stated, indent=1) + "\n")


def changes() -> str:
    """Return what is not committed, besides golden files."""
    return _git("status", "--porcelain", "--", ".", *(f":!{folder}" for folder in GOLDEN))


def commit() -> str:
    return _git("rev-parse", "HEAD")


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
