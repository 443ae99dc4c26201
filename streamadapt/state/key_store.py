"""Keys that left memory, each a file with its packed state (`streamadapt.state.pack`), believed by
its checksum.

::

    path/000000000042.safetensors     the 42nd evicted state

A file is never changed once a checkpoint refers to it. It is deleted when no checkpoint that is
kept can, the engine's last `keep` ones. Files that a crash left behind have numbers that the
replay uses again, and are written over.
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

    A checkpoint's state refers to what lies here by name and checksum. So nothing is changed once
    it is written, and what is released stays as long as a checkpoint that is kept may refer to it.
    """

    @abstractmethod
    def begin(self, live: Collection[str]) -> None:
        """Start from a state that refers to `live`; anything else found here is left over.

        Raises
        ------
        CheckpointError
            If one of them is missing.
        """

    @abstractmethod
    def put(self, name: str, data: bytes) -> str:
        """Write a packed state and return its checksum; what a crash left under the name is
        written over.

        Raises
        ------
        CheckpointError
            If it cannot be written; nothing refers to it then.
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
        """Take note that the state no longer refers to this file."""

    @abstractmethod
    def sync(self) -> None:
        """Return once everything written is durable, before a checkpoint refers to it."""

    @abstractmethod
    def checkpointed(self) -> None:
        """Take note of a complete checkpoint; delete files that no kept checkpoint refers to."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent."""


_FILE = re.compile(r"(\d{12})\.safetensors")


class DirectoryKeyStore(KeyStore):
    """A folder with one file per evicted key.

    Where asking takes long (`Folder.batch`), a few states wait in memory to be written together: a
    key that comes back soon costs nothing.

    Parameters
    ----------
    path : Path, str, Folder or None
        A folder or its URL; made when first needed. One pipeline's own. None: a temporary folder,
        gone with `close`; for runs without checkpoints.
    keep : int, >= 0
        How many checkpoints are kept that may refer to a file. 0: there are none, and what is
        released goes at once.
    check_owner : callable (), optional
        For a folder that somebody may take over: raises if he has. Asked before anything is
        written, since it could be over what he wrote; and nothing is deleted then before the next
        checkpoint, which comes only to the owner.

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
        self._released: dict[
            str, int
        ] = {}  # name -> how many checkpoints there must be before it can go
        self._checkpoints = 0  # complete ones since `begin`
        self._promised = False  # a state was taken, and its checkpoint is not complete yet

    def begin(self, live: Collection[str]) -> None:
        """Look at what is there; what `live` does not name may belong to older checkpoints, and
        stays as long as they.

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
                f"{self.folder}: {len(missing)} of the {len(live)} keys that the checkpoint "
                f"refers to are missing, the "
                f"first is {missing[0]}.safetensors; restore the folder from a backup together "
                f"with its checkpoints"
            )
        for name in found - set(live):
            self.release(name)

    def put(self, name: str, data: bytes) -> str:
        """Write a state; it is durable only after `sync`."""
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
                f"a backup, or roll "
                "back to a checkpoint from before it was written"
            ) from exc
        return data

    def release(self, name: str) -> None:
        """Delete it, at once or after `keep` more checkpoints."""
        if self._waiting.pop(name, None) is not None:
            return
        if self.keep == 0 or (name in self._fresh and self._check_owner is None):
            self._fresh.discard(name)
            self._delete(name)
        else:
            self._released[name] = self._checkpoints + self.keep + self._promised

    def sync(self) -> None:
        """Make everything written since the last call durable."""
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
