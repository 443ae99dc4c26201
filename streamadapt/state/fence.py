"""Fencing tokens: a process that was thought dead, and is not, finds out before it writes.

::

    path/.fence-000007      made by the seventh owner, with its host and pid inside

The highest number owns the folder.

A token is taken by creating its file, which no two processes can both do, on shared storage too; a
lock would be held for ever by a process that is stopped, and is not to be had everywhere. Where
storage may let two create one file, the later one's word stands in it, and the other finds that
out: each token has a word of its own inside.
"""

from __future__ import annotations

import os
import re
import socket
import uuid

from streamadapt.errors import CheckpointError
from streamadapt.files import DamagedError
from streamadapt.state.folder import Folder

__all__ = ["Fence", "FencedError"]

_TOKEN = re.compile(r"\.fence-(\d{6,})")
_TRIES = 100
"""Attempts to take a token: after these, others were always faster, or the folder's listing is
wrong."""


class FencedError(CheckpointError):
    """Another engine has taken over; this one must not write any more."""


class Fence:
    """The right to write to a folder, until another process takes over the folder.

    Parameters
    ----------
    folder : Folder
        It exists.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._word = f"pid {os.getpid()} on {socket.gethostname()}\n{uuid.uuid4().hex}\n"
        self.token = 0

    def take(self) -> int:
        """Take the folder over from whoever has it; return the new token, higher than every one
        before.

        Raises
        ------
        OSError
            If the folder cannot be written to.
        """
        for _ in range(_TRIES):
            before = self._tokens()
            token = max(before, default=0) + 1
            try:
                self._folder.create(_file(token), self._word.encode())
            except FileExistsError:  # another process was faster: try the next number
                continue
            for old in before:
                self._folder.delete(_file(old))
            self.token = token
            return token
        raise OSError(f"{_file(token)} is there, but not listed")

    def check(self) -> None:
        """Raise `FencedError` if another process has taken over the folder since `take`."""
        newest = max(self._tokens(), default=0)
        if newest <= self.token and (
            newest < self.token or self._folder.exclusive or self._said(newest) == self._word
        ):
            return
        owner = self._said(newest).partition("\n")[0].strip()[:200] or "unknown"
        raise FencedError(
            f"{self._folder}: fenced by another engine ({owner}): it has taken over (token "
            f"{newest}, this one has "
            f"{self.token}); this one was paused or cut off for longer than the session "
            f"time-out, or two groups, or "
            "two engines without one, use one checkpoint path; start it again to go on"
        )

    def _tokens(self) -> list[int]:
        return [
            int(match[1]) for name in self._folder.names() if (match := _TOKEN.fullmatch(name))
        ]

    def _said(self, token: int) -> str:
        try:
            return self._folder.read(_file(token)).decode("utf-8", "replace")
        except DamagedError:
            return ""


def _file(token: int) -> str:
    return f".fence-{token:06d}"
