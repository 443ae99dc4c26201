"""The folder that keeps compiled code between processes, and its part for one kernel.

What lies there is run, so it is used only if no other user can write to it. Everything here may
fail without harm: a kernel without a folder is compiled for its process only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from filelock import FileLock

__all__ = [
    "CacheFolder",
    "KernelFolder",
    "cache_folder",
    "is_kept",
    "kernel_folder",
    "mark_as_kept",
]

READY: Final = "ready"
"""The file in the folder of a kernel that has been compiled."""
LOCK_S: Final = 300.0
"""How long a process waits for another one that compiles the same kernel."""
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class CacheFolder(NamedTuple):
    """The folder of all kernels.

    Attributes
    ----------
    path : Path or None
        None if compiled code can be neither read nor written.
    problem : str
        Why compiled code cannot be written; empty if it can.
    """

    path: Path | None
    problem: str = ""


class KernelFolder(NamedTuple):
    """The folder of one kernel.

    Attributes
    ----------
    path : Path or None
        None if the kernel's code can be neither read nor written.
    problem : str
        Why its code cannot be written; empty if it can.
    distrusted : Path or None
        What was removed, since others could write to it.
    """

    path: Path | None
    problem: str = ""
    distrusted: Path | None = None


@functools.cache
def cache_folder() -> CacheFolder:
    """Find the folder for compiled code.

    ``STREAMADAPT_CACHE``, or ``streamadapt`` in ``XDG_CACHE_HOME`` (``~/.cache``). It is made if
    it is missing. A folder that others can write to is not used.
    """
    named = os.environ.get("STREAMADAPT_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not named and home.startswith("~"):
        return CacheFolder(None, "this user has no home folder")
    folder = Path(named) if named else Path(home, "streamadapt")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        trusted, writable = _is_trusted(folder), os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        return CacheFolder(None, f"{folder} cannot be made: {error.strerror or error}")
    if not trusted:
        return CacheFolder(
            None, f"{folder} can be written to by others, or belongs to another user"
        )
    return CacheFolder(folder, "" if writable else f"{folder} cannot be written to")


def is_kept(name: str) -> bool:
    """Return whether the folder has a kernel's compiled code."""
    folder = cache_folder().path
    try:
        return folder is not None and (folder / name / READY).is_file()
    except OSError:
        return False


@contextlib.contextmanager
def kernel_folder(name: str) -> Iterator[KernelFolder]:
    """Give one kernel its folder, to this process alone if it can be written to.

    Parameters
    ----------
    name : str
        The kernel's digest.
    """
    cache = cache_folder()
    if cache.path is None or cache.problem:
        yield _read_only(cache, name)
        return
    lock = None
    try:
        found = _writable(cache.path / name)
        # One process compiles it; others wait, and read it.
        lock = FileLock(cache.path / name / "lock", timeout=LOCK_S)
        lock.acquire()
    except (OSError, RuntimeError) as error:  # RuntimeError: a file system without locks
        found = KernelFolder(None, f"{cache.path / name}: {error}")
    try:
        yield found
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                lock.release()


def mark_as_kept(folder: Path) -> None:
    """Note that a kernel has been compiled; let others read its code, and not write it, whatever
    the process's umask.

    Raises
    ------
    OSError
    """
    (folder / READY).touch()
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode & ~_OTHERS_WRITE)
    folder.chmod(0o755)


def _read_only(cache: CacheFolder, name: str) -> KernelFolder:
    folder = None if cache.path is None else cache.path / name
    with contextlib.suppress(OSError):
        if folder is not None and _is_trusted(folder, *folder.rglob("*")):
            return KernelFolder(folder, cache.problem)
    return KernelFolder(None, cache.problem)


def _writable(folder: Path) -> KernelFolder:
    distrusted = folder.is_dir() and not _is_trusted(folder, *folder.rglob("*"))
    if distrusted:
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return KernelFolder(folder, "", folder if distrusted else None)


def _is_trusted(*paths: Path) -> bool:
    """Return whether these are there, and only root and this user can put code into them."""
    if sys.platform == "win32":
        return all(path.exists() for path in paths)
    found = [path.stat() for path in paths if path.exists()]
    return len(found) == len(paths) and all(
        each.st_uid in (0, os.getuid()) and not each.st_mode & _OTHERS_WRITE for each in found
    )
