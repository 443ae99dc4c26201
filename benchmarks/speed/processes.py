"""Pipelines that run in processes of their own, and the checkout of the old commit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["OLD_COMMIT", "ROOT", "Job", "OldCommit", "Worker", "running"]

ROOT = Path(__file__).resolve().parents[2]
OLD_COMMIT = "87e55df7140d993c85b7acc11fab08c1ba031f6d"
"""The last commit before state became arrays and lots went through compiled loops."""
WORKER = Path(__file__).with_name("worker.py")

Job = dict[str, Any]


class OldCommit:
    """A checkout of `OLD_COMMIT`: the given one, or one made at first use and removed by `remove`.

    Parameters
    ----------
    folder : Path
        Where to make it.
    given : Path, optional
        A checkout that is already there.
    """

    def __init__(self, folder: Path, given: Path | None = None) -> None:
        self.folder, self.given, self._made = folder / "old-commit", given, False

    @property
    def path(self) -> Path:
        """The folder of the checkout.

        Raises
        ------
        RuntimeError
            If git cannot make it.
        """
        if self.given is not None:
            return self.given
        if not self._made:
            _git("worktree", "add", "--detach", str(self.folder), OLD_COMMIT)
            self._made = True
        return self.folder

    def remove(self) -> None:
        """Remove the checkout that was made."""
        if self._made:
            _git("worktree", "remove", "--force", str(self.folder))
            self._made = False


def _git(*arguments: str) -> None:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"git {arguments[0]} {arguments[1]}: {done.stderr.strip()}; give a checkout of "
            f"{OLD_COMMIT[:7]} with --old"
        )


class Worker:
    """A process that runs `benchmarks.speed.worker`.

    Parameters
    ----------
    root : Path
        The checkout whose `streamadapt` it runs.
    job : Job
    folder : Path
        Of its files.
    """

    def __init__(self, root: Path, job: Job, folder: Path) -> None:
        name = f"job-{len(list(folder.glob('job-*.json')))}"
        self.log = folder / f"{name}.log"
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**job, "root": str(root)}), encoding="utf-8")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(root)},
                text=True,
            )

    def ask(self, **work: int) -> dict[str, Any]:
        """Ask for work, and wait for the answer.

        Raises
        ------
        RuntimeError
            If the process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # its last words say why
            self.process.stdin.write(json.dumps(work) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            words = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(f"its process ended: {words[-1] if words else 'without a word'}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self.process.terminate()
        self.process.wait()


@contextmanager
def running(root: Path, job: Job, folder: Path) -> Iterator[Worker]:
    """Run a worker, and end it."""
    worker = Worker(root, job, folder)
    try:
        yield worker
    finally:
        worker.close()
