"""A disk that is full, read-only or broken while a checkpoint is written."""

from __future__ import annotations

import builtins
import errno
import os
import random
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

from benchmarks.faults.counts import Counts
from benchmarks.faults.memory_job import Job, final_state, make_keyed, make_plain, written_by
from streamadapt.errors import CheckpointError
from streamadapt.testing import MemorySink

__all__ = ["FailingDisk", "disk", "file_size_limit"]

CODES = (errno.ENOSPC, errno.EROFS, errno.EIO)
ENTRIES = 220
EVERY = 75
QUICK_TRIALS = 18
LIMIT_TRIALS = 40
QUICK_LIMIT_TRIALS = 6
SEED = 3


def disk(quick: bool) -> Counts:
    """Refuse each single operation of every checkpoint of a run, one per trial; then limit the
    size of files.

    A trial survives if the engine reports it with a `CheckpointError` (it never continues past a
    failed checkpoint), and a restart, on a working disk, ends as an undisturbed run does.
    """
    counts, rng = Counts(), random.Random(SEED)
    counts.more |= {"operations": 0, "stopped": 0, "size_limits": 0}
    for make in (make_plain, make_keyed):
        job = Job(ENTRIES, make, EVERY)
        operations = _operations(job)
        counts.more["operations"] += len(operations)
        trials = [(at, code) for at in range(len(operations)) for code in CODES]
        for at, code in rng.sample(trials, QUICK_TRIALS) if quick else trials:
            counts.tried += 1
            counts.survived += _one(job, counts, FailingDisk(at, code))
        largest = _largest_file(job)
        for _ in range(QUICK_LIMIT_TRIALS if quick else LIMIT_TRIALS):
            counts.tried += 1
            counts.more["size_limits"] += 1
            counts.survived += _one(job, counts, file_size_limit(rng.randrange(largest)))
    return counts


class FailingDisk:
    """While entered, counts the write operations of this process, and refuses one of them.

    Parameters
    ----------
    fail_at : int or None
        The number of the refused operation, from 0.
    code : int
        The errno of the refusal. A refused write has put half of its bytes on the disk.

    Attributes
    ----------
    operations : list of str
        All operations, refused or not.
    """

    PATCHED = ("mkdir", "rename", "fsync", "unlink", "rmdir", "ftruncate", "write")

    def __init__(self, fail_at: int | None = None, code: int = errno.EIO) -> None:
        self.fail_at = fail_at
        self.code = code
        self.operations: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> FailingDisk:
        for name in self.PATCHED:
            self._stack.enter_context(
                mock.patch.object(os, name, self._counted(name, getattr(os, name)))
            )
        self._stack.enter_context(mock.patch.object(os, "open", self._os_open(os.open)))
        self._stack.enter_context(
            mock.patch.object(builtins, "open", self._files(builtins.open, "wb"))
        )
        self._stack.enter_context(mock.patch.object(Path, "open", self._files(Path.open, "wb")))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stack.close()

    def ask(self, name: str) -> None:
        """Count an operation; raise `OSError` if it is the one to refuse."""
        self.operations.append(name)
        if len(self.operations) - 1 == self.fail_at:
            raise OSError(self.code, os.strerror(self.code))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.ask(name)
            return real(*args, **kwargs)

        return call

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.ask("open")
            return real(path, flags, *args, **kwargs)

        return call

    def _files(self, real: Callable[..., Any], writing: str) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode != writing:
                return real(path, mode, *args, **kwargs)
            return _Writing(real(path, mode, *args, **kwargs), self)

        return call


class _Writing:
    """A file open for writing, on a disk that may refuse."""

    def __init__(self, file: Any, on: FailingDisk) -> None:
        self._file = file
        self._disk = on

    def write(self, data: bytes) -> int:
        try:
            self._disk.ask("file write")
        except OSError:
            self._file.write(data[: len(data) // 2])
            raise
        return int(self._file.write(data))

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return int(self._file.fileno())

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel refuse, with EFBIG, writes that would make a file of this process larger than
    `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _one(job: Job, counts: Counts, broken: Any) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        sinks: list[MemorySink] = []
        try:
            engine, sink = job.engine(Path(folder))
            sinks.append(sink)
            with broken:
                engine.run()
        except CheckpointError:
            counts.more["stopped"] += 1
        except Exception as error:
            counts.more.setdefault("unexpected", []).append(repr(error))
            return False
        engine, sink = job.engine(Path(folder))
        sinks.append(sink)
        try:
            engine.run()
        except Exception as error:
            counts.more.setdefault("unexpected", []).append(repr(error))
            return False
        return job.judge(counts, final_state(engine), written_by(*sinks))


def _operations(job: Job) -> list[str]:
    """Return the write operations of an undisturbed run, in order."""
    with tempfile.TemporaryDirectory() as folder:
        engine, _ = job.engine(Path(folder))
        with FailingDisk() as watched:
            engine.run()
    return watched.operations


def _largest_file(job: Job) -> int:
    with tempfile.TemporaryDirectory() as folder:
        job.engine(Path(folder))[0].run()
        return max(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
