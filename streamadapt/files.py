"""Safe reading of files from unknown sources: only regular files, and only up to a size limit.

A named pipe would block the start, and a device never ends. Links are followed, since mounted
volumes consist of links; `read_untrusted` (for checkpoints) refuses them.
"""

from __future__ import annotations

import codecs
import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO, Final

from streamadapt.errors import CheckpointError

__all__ = [
    "MAX_CONFIG_BYTES",
    "MAX_WEIGHTS_BYTES",
    "DamagedError",
    "decoded",
    "encoding_of_mark",
    "kind_of",
    "open_regular",
    "open_to_append",
    "read_most",
    "read_regular",
    "read_text",
    "read_untrusted",
    "sync_folder",
    "write_durably",
]

MARKS: Final = (  # the longer marks first: the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

MAX_WEIGHTS_BYTES: Final = 1 << 36
"""The largest file of weights that is read: 64 GiB."""

MAX_CONFIG_BYTES: Final = 1 << 22
"""The largest config file: 4 MiB."""

CHUNK: Final = 1 << 24


def open_regular(file: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises
    ------
    OSError
        If it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    # Not blocking: a pipe would wait forever.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def open_to_append(file: Path) -> BinaryIO:
    """Open a regular file for reading and appending; create it if it is missing.

    Raises
    ------
    OSError
        If it cannot be opened, or if it is a folder, a pipe, a socket or a device; these are not
        opened at all.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(FileNotFoundError):
        _check_regular(file.stat().st_mode)  # opening a device can already have an effect
    descriptor = os.open(file, flags, 0o666)
    try:
        _check_regular(os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "ab+")


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"not a regular file but {kind_of(mode)}")


def kind_of(mode: int) -> str:
    """Return the type of a file in words, from its ``st_mode``."""
    words = {
        stat.S_IFREG: "a regular file",
        stat.S_IFDIR: "a folder",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a link",
    }
    return words.get(stat.S_IFMT(mode), "something that is not a file")


def read_regular(file: Path, most: int) -> bytes:
    """Read a whole regular file.

    Parameters
    ----------
    most : int, bytes

    Raises
    ------
    OSError
        As for `open_regular`, or if the file is larger than `most`.
    """
    with open_regular(file) as opened:
        data = read_most(opened, most + 1)  # do not rely on the file's size: it may grow
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes")
    return data


def read_text(file: Path, most: int) -> str:
    """Read the text of a regular file or of a pipe; a shell's ``<(command)`` is a pipe.

    Parameters
    ----------
    most : int, bytes

    Returns
    -------
    str
        The text without a byte-order mark.

    Raises
    ------
    OSError, UnicodeDecodeError
        If it cannot be read, is neither file nor pipe, is larger than `most`, or is not in the
        encoding of its byte-order mark (UTF-8 without a mark).
    """
    # Not blocking: a pipe without a writer is at its end.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise OSError(errno.EINVAL, "not a regular file")
        os.set_blocking(descriptor, True)
        data = read_most(opened, most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes")
    return decoded(data)


def read_most(file: IO[bytes], most: int) -> bytes:
    """Read at most `most` bytes; memory is allocated for the bytes read, not for `most`."""
    parts = []
    while most > 0 and (part := file.read(min(most, CHUNK))):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def encoding_of_mark(start: bytes) -> str | None:
    """Return the encoding of the byte-order mark at the start of a text; None without a mark."""
    return next((encoding for mark, encoding in MARKS if start.startswith(mark)), None)


def decoded(data: bytes) -> str:
    """Decode a text without its byte-order mark; UTF-8 unless the mark names another encoding.

    Raises
    ------
    UnicodeDecodeError
        If the bytes are not valid in that encoding.
    """
    return data.decode(encoding_of_mark(data[:4]) or "utf-8")


class DamagedError(CheckpointError):
    """One checkpoint is incomplete or damaged; the one before it may still be usable."""


def read_untrusted(folder: Path, name: str, most: int) -> bytes:
    """Read one regular file in a real folder; links are refused, since they could lead anywhere.

    Parameters
    ----------
    most : int, bytes
        A larger file counts as damaged.
    """
    try:
        if folder.is_symlink():
            raise DamagedError("the folder is a symbolic link")
        # Not blocking: a named pipe must not block the start.
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DamagedError(f"{name} is not a regular file")
            data = read_most(file, most + 1)
    except OSError as exc:
        raise DamagedError(f"{name} cannot be read: {exc}") from exc
    if len(data) > most:
        raise DamagedError(f"{name} is larger than {most} bytes")
    return data


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file, and return when it is stored on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Store the folder's entries on the disk: without this, a power failure can undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
