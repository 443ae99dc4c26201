"""Files that are whole and on disk when we say so, and readers that trust nothing they find."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from streamadapt.errors import CheckpointError
from streamadapt.files import read_most

__all__ = ["DamagedError", "read", "sync", "write"]


class DamagedError(CheckpointError):
    """One checkpoint is torn or damaged: the one before it may still serve."""


def read(folder: Path, name: str, most: int) -> bytes:
    """Read one regular file that lies in a real folder; links could lead anywhere and are refused.

    Parameters
    ----------
    most : int, bytes
        A larger file is damaged.
    """
    try:
        if folder.is_symlink():
            raise DamagedError("the folder is a symbolic link")
        # Not blocking: a named pipe must not hang the start.
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DamagedError(f"{name} is no regular file")
            data = read_most(file, most + 1)
    except OSError as exc:
        raise DamagedError(f"{name} cannot be read: {exc}") from exc
    if len(data) > most:
        raise DamagedError(f"{name} is larger than {most} bytes")
    return data


def write(path: Path, data: bytes) -> None:
    """Write a new file and return once the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Make the folder's own entries durable: a rename without this can be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
