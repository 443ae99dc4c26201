"""TOML that may have been written to be awkward: what the standard reader does not survive is refused first."""

from __future__ import annotations

import errno
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

from streamadapt.files import decoded, read_most

__all__ = ["parse_toml", "read_config"]

MOST_BYTES: Final = 1 << 22
"""The largest config: 4 MiB. `parse_toml` counts characters, of which there are at most as many."""
DEEPEST: Final = 64
"""The most parts of a dotted key: each costs memory with the square of their number."""
WORD: Final = re.compile(r"[\w.\-\"']+")


def read_config(path: Path) -> str:
    """Read a config: a regular file, or a pipe, which is what a shell makes of ``<(command)``.

    Raises
    ------
    OSError, UnicodeDecodeError
        If it cannot be read, is something else, larger than 4 MiB, or neither UTF-8 nor what its byte-order mark says.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer is at its end
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise OSError(errno.EINVAL, "no regular file")
        os.set_blocking(descriptor, True)
        data = read_most(file, MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MOST_BYTES} bytes")
    return decoded(data)


def parse_toml(text: str) -> dict[str, Any]:
    """Return the table that `text` says.

    Raises
    ------
    tomllib.TOMLDecodeError
        If it is not TOML, or too large, too deep, or a number has too many digits.
    """
    if len(text) > MOST_BYTES:
        raise tomllib.TOMLDecodeError(f"more than {MOST_BYTES} characters")
    text = text.removeprefix("\ufeff")
    for number, line in enumerate(text.replace(" ", "").replace("\t", "").splitlines(), 1):
        if line.count(".") > DEEPEST and any(word.count(".") > DEEPEST for word in WORD.findall(line)):
            raise tomllib.TOMLDecodeError(f"a key of more than {DEEPEST} parts (at line {number})")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (ValueError, RecursionError) as exc:  # too many digits, too many brackets
        raise tomllib.TOMLDecodeError(str(exc)) from None
