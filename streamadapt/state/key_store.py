"""Stores the packed states of evicted keys (`streamadapt.state.pack`) in files with checksums.

::

    path/000000000042.safetensors     the 42nd evicted state

A file never changes after a checkpoint refers to it. It is deleted when none of the last `keep`
checkpoints refers to it. Files that a crash has left have numbers that the replay uses again, and
are then overwritten.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from streamadapt.errors import CheckpointError
from streamadapt.files import DamagedError
from streamadapt.state.folder import Folder, LocalFolder, folder_of

__all__ = ["DirectoryKeyStore", "KeyStore"]


class KeyStore(ABC):
    """Stores the states of evicted keys. Used from one thread.

    A checkpoint refers to these states by name and checksum. So a state never changes after it is
    written, and a released state is kept as long as a stored checkpoint may refer to it.
    """

    @abstractmethod
    def begin(self, live: Collection[str]) -> None:
        """Start from a checkpoint that refers to the names `live`; other files in the store are
        released.

        Raises
        ------
        CheckpointError
            If one of `live` is missing.
        """

    @abstractmethod
    def put(self, name: str, data: bytes) -> str:
        """Write a packed state and return its checksum; a file of this name that a crash has left
        is overwritten.

        Raises
        ------
        CheckpointError
            If it cannot be written; no checkpoint refers to it then.
        """

    @abstractmethod
    def get(self, name: str, checksum: str) -> bytes:
        """Return a packed state, bit for bit.

        Raises
        ------
        CheckpointError
            If it is missing or does not match its checksum.
        """

    @abstractmethod
    def release(self, name: str) -> None:
        """Record that later checkpoints do not refer to this state."""

    @abstractmethod
    def sync(self) -> None:
        """Return when all written states are durable; called before a checkpoint refers to
        them."""

    @abstractmethod
    def checkpointed(self) -> None:
        """Record that a checkpoint is complete, and delete files to which no stored checkpoint
        refers."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources. Idempotent."""


_FILE = re.compile(r"(\d{12})\.safetensors")


class DirectoryKeyStore(KeyStore):
    """A folder with one file per evicted key.

    In slow storage (`Folder.batch`), some states wait in memory and are written together. A key
    that is needed again while it waits costs no request.

    Parameters
    ----------
    path : Path, str, Folder or None
        A folder or its URL, for one pipeline only; it is created when it is first needed. None
        means a temporary folder, which `close` removes; for runs without checkpoints.
    keep : int, >= 0
        The number of stored checkpoints that may refer to a file. 0 means that there are no
        checkpoints: a released file is deleted at once.
    check_owner : callable (), optional
        For a folder that another process can take over: raises if this has happened. It is called
        before each write, which could otherwise overwrite a file of the new owner. Files are then
        deleted only after the next checkpoint, which only the owner can complete.

    Raises
    ------
    CheckpointError
        If `keep` is below 0.
    """

    def __init__(
        self,
        path: Path | str | Folder | None,
        *,
        keep: int = 3,
        check_owner: Callable[[], None] | None = None,
    ) -> None:
        if keep < 0:
            raise CheckpointError(f"{path}: keep must be at least 0 checkpoints, got {keep}")
        self.keep = keep
        self._temporary = (
            tempfile.TemporaryDirectory(prefix="streamadapt-keys-") if path is None else None
        )
        self.folder = (
            LocalFolder(Path(self._temporary.name))
            if self._temporary is not None
            else folder_of(path or "")
        )
        self._check_owner = check_owner
        self._waiting: dict[str, bytes] = {}  # not written yet
        # Written since the last `sync`: no checkpoint can refer to them.
        self._fresh: set[str] = set()
        # Name -> the number of checkpoints since `begin` after which the file is deleted.
        self._released: dict[str, int] = {}
        self._checkpoints = 0  # complete checkpoints since `begin`
        self._promised = False  # after `sync`, until its checkpoint is complete

    def begin(self, live: Collection[str]) -> None:
        """Find the files in the folder, and release those that are not in `live`: they may belong
        to older checkpoints, and are kept as long as these.

        Raises
        ------
        CheckpointError
            If one of `live` is missing.
        """
        self._fresh, self._released, self._checkpoints, self._promised = set(), {}, 0, False
        self._waiting = {}
        with self._reporting("list"):
            self.folder.make()
            found = {match[1] for name in self.folder.names() if (match := _FILE.fullmatch(name))}
        missing = sorted(set(live) - found)
        if missing:
            raise CheckpointError(
                f"{self.folder}: {len(missing)} of the {len(live)} keys to which the checkpoint "
                f"refers are missing, the first is {missing[0]}.safetensors; restore the folder "
                f"from a backup together with its checkpoints"
            )
        for name in found - set(live):
            self.release(name)

    def put(self, name: str, data: bytes) -> str:
        """Write a state; it becomes durable only with `sync`."""
        self._waiting[name] = data
        if len(self._waiting) >= self.folder.batch:
            self._write()
        self._released.pop(name, None)
        return hashlib.sha256(data).hexdigest()

    def get(self, name: str, checksum: str) -> bytes:
        """Read a state."""
        if name in self._waiting:
            return self._waiting[name]
        try:
            data = self.folder.read(_file(name))
            if hashlib.sha256(data).hexdigest() != checksum:
                raise DamagedError(f"it does not match its checksum ({len(data)} bytes)")
        except DamagedError as exc:
            raise CheckpointError(
                f"{self.folder}/{_file(name)}: a key's state is damaged: {exc}; restore it from "
                "a backup, or roll back to a checkpoint that is older than this file"
            ) from exc
        return data

    def release(self, name: str) -> None:
        """Delete a state, at once or after `keep` more checkpoints."""
        if self._waiting.pop(name, None) is not None:
            return
        if self.keep == 0 or (name in self._fresh and self._check_owner is None):
            self._fresh.discard(name)
            self._delete(name)
        else:
            self._released[name] = self._checkpoints + self.keep + self._promised

    def sync(self) -> None:
        """Make all states durable that were written since the last call."""
        if self._waiting:
            self._write()
        with self._reporting("sync"):
            if self._fresh:
                self.folder.sync(map(_file, sorted(self._fresh)))
        self._fresh.clear()
        self._promised = True

    def checkpointed(self) -> None:
        """Count a checkpoint, and delete files that none of the last `keep` refers to."""
        self._checkpoints += 1
        self._promised = False
        for name in [name for name, until in self._released.items() if until <= self._checkpoints]:
            del self._released[name]
            self._delete(name)

    def close(self) -> None:
        """Remove a temporary folder."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def _write(self) -> None:
        files = {_file(name): data for name, data in self._waiting.items()}
        if self._check_owner is not None:
            self._check_owner()
        with self._reporting(f"write {', '.join(self._waiting)}"):
            self.folder.write(files)
        self._fresh |= self._waiting.keys()
        self._waiting = {}

    def _delete(self, name: str) -> None:
        with self._reporting(f"delete {name}"):
            self.folder.delete(_file(name))

    @contextmanager
    def _reporting(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise CheckpointError(f"{self.folder}: cannot {doing}: {exc}") from exc


def _file(name: str) -> str:
    return f"{name}.safetensors"
