"""Keys that left memory, each a file with its packed state (`streamadapt.statepack`), believed by its checksum.

::

    path/000000000042.safetensors     the 42nd state put away

A file is never changed once a checkpoint refers to it. It is deleted when no checkpoint that is kept can, the engine's
last `keep` ones. Files that a crash left behind have numbers that the replay uses again, and are written over.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from streamadapt.durable import DamagedError, read, sync
from streamadapt.errors import CheckpointError
from streamadapt.keyed import KeyStore

__all__ = ["DirectoryKeyStore"]

_FILE = re.compile(r"(\d{12})\.safetensors")


class DirectoryKeyStore(KeyStore):
    """A folder with one file per key that was put away.

    Parameters
    ----------
    path : Path or None
        Made when first needed. One pipeline's own. None: a temporary folder, gone with `close`; for runs without
        checkpoints.
    keep : int, >= 0
        How many checkpoints are kept that may refer to a file. 0: there are none, and what is released goes at once.

    Raises
    ------
    CheckpointError
        If `keep` is below 0.
    """

    def __init__(self, path: Path | None, *, keep: int = 3) -> None:
        if keep < 0:
            raise CheckpointError(f"{path}: keep must be at least 0 checkpoints, got {keep}")
        self.keep = keep
        self._temporary = tempfile.TemporaryDirectory(prefix="streamadapt-keys-") if path is None else None
        self.path = Path(self._temporary.name if self._temporary is not None else path or "")
        self._fresh: set[str] = set()  # written since the last `sync`: no checkpoint can refer to them
        self._released: dict[str, int] = {}  # name -> how many checkpoints there must be before it can go
        self._checkpoints = 0  # complete ones since `begin`
        self._promised = False  # a state was taken, and its checkpoint is not complete yet

    def begin(self, live: Collection[str]) -> None:
        """Look at what is there; what `live` does not name may belong to older checkpoints, and stays as long as they.

        Raises
        ------
        CheckpointError
            If one of `live` is missing.
        """
        self._fresh, self._released, self._checkpoints, self._promised = set(), {}, 0, False
        with self._reporting("list"):
            self.path.mkdir(parents=True, exist_ok=True)
            found = {match[1] for name in os.listdir(self.path) if (match := _FILE.fullmatch(name))}
        missing = sorted(set(live) - found)
        if missing:
            raise CheckpointError(
                f"{self.path}: {len(missing)} of the {len(live)} keys that the checkpoint refers to are missing, the "
                f"first is {missing[0]}.safetensors; restore the folder from a backup together with its checkpoints"
            )
        for name in found - set(live):
            self.release(name)

    def put(self, name: str, data: bytes) -> str:
        """Write a state; not on the disk for sure before `sync`."""
        with self._reporting(f"write {name}"):
            # No link is followed: it could lead anywhere.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with open(os.open(self._file(name), flags, 0o644), "wb") as file:
                file.write(data)
        self._released.pop(name, None)
        self._fresh.add(name)
        return hashlib.sha256(data).hexdigest()

    def get(self, name: str, checksum: str) -> bytes:
        """Read a state."""
        file = self._file(name)
        try:
            data = read(self.path, file.name)
            if hashlib.sha256(data).hexdigest() != checksum:
                raise DamagedError(f"it does not match its checksum ({len(data)} bytes)")
        except DamagedError as exc:
            raise CheckpointError(
                f"{file}: a key's state is damaged: {exc}; restore it from a backup, or roll back to a checkpoint from "
                "before it was written"
            ) from exc
        return data

    def release(self, name: str) -> None:
        """Delete it, at once or after `keep` more checkpoints."""
        if name in self._fresh or self.keep == 0:
            self._fresh.discard(name)
            self._delete(name)
        else:
            self._released[name] = self._checkpoints + self.keep + self._promised

    def sync(self) -> None:
        """Bring everything written since the last time to the disk."""
        with self._reporting("sync"):
            if self._fresh:
                for name in sorted(self._fresh):
                    _sync_file(self._file(name))
                sync(self.path)
        self._fresh.clear()
        self._promised = True

    def checkpointed(self) -> None:
        """Count a checkpoint, and delete what only older ones than the last `keep` refer to."""
        self._checkpoints += 1
        self._promised = False
        for name in [name for name, until in self._released.items() if until <= self._checkpoints]:
            del self._released[name]
            self._delete(name)

    def close(self) -> None:
        """Remove a temporary folder."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def _delete(self, name: str) -> None:
        with self._reporting(f"delete {name}"):
            self._file(name).unlink(missing_ok=True)

    @contextmanager
    def _reporting(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise CheckpointError(f"{self.path}: cannot {doing}: {exc}") from exc


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
