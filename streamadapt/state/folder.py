"""Storage for checkpoints and keys: a folder on disk, or another store of named bytes.

`Folder` is the interface, and `LocalFolder` its implementation for a disk. Other implementations
are entry points in the group ``streamadapt.folders``: the scheme of a URL is the name of the entry
point. The entry point ``fsspec`` serves every scheme without an entry point of its own.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from filelock import FileLock, Timeout

from streamadapt.config.convert import config_error
from streamadapt.config.registry import kinds
from streamadapt.errors import CheckpointError
from streamadapt.files import read_untrusted, sync_folder, write_durably

__all__ = ["NUMBERED", "Folder", "LocalFolder", "folder_of", "numbered"]

NUMBERED = re.compile(r"\d{12}")
"""The name of one checkpoint's folder."""
LOCK: Final = ".lock"
"""The file that an owner keeps locked; it contains the owner's pid."""
MAX_STATE_BYTES: Final = 1 << 36
"""The largest file of a state that is read: 64 GiB."""
_STALE = re.compile(r"\.tmp-(?:old-)?(\d{12})")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://")
_NEARLY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_DISK = "file://"


def numbered(number: int) -> str:
    """Return the name of one checkpoint's folder."""
    return f"{number:012d}"


def folder_of(place: Folder | Path | str, setting: str = "checkpoint.path") -> Folder:
    """Return the folder that a setting names: a path, or a URL such as ``s3://bucket/state``.

    This does not connect to anything. ``file:///path`` is the same folder as the path, with the
    same lock.

    Raises
    ------
    ConfigError
        If the text is neither a path nor a URL, or no installed package can read the URL; the
        error names a package to install.
    """
    if isinstance(place, Folder):
        return place
    if isinstance(place, Path):
        return LocalFolder(place)
    url = _URL.match(place)
    if url is None or url[1].lower() == "file":
        return LocalFolder(_path_of(place, setting))
    points = kinds("folders")
    point = points.get(url[1].lower(), points.get("fsspec"))
    try:
        if point is None:
            raise ImportError("pip install 'streamadapt[object-store]'")
        made: Folder = point.load()(place)
    except (ImportError, ValueError) as error:
        raise config_error(
            setting, place, f"a folder, or a URL whose file system is installed ({error})"
        ) from error
    return made


def _path_of(place: str, setting: str) -> Path:
    """Return the path that a text means; raise `ConfigError` if the text was probably meant as
    something else."""
    if place[: len(_DISK)].lower() == _DISK:
        place = place[len(_DISK) :]
        if not place.startswith("/"):
            raise config_error(
                setting,
                _DISK + place,
                "file:/// and the rest of an absolute path, or a plain path",
            )
    if not place:
        raise config_error(setting, place, "a folder or a URL, not an empty text")
    if place.startswith("~"):
        raise config_error(setting, place, "a path without ~, which only a shell replaces")
    if _NEARLY_URL.match(place):
        raise config_error(setting, place, "a folder, or a URL with two slashes: scheme://...")
    return Path(place)


class Folder(ABC):
    """Stores files by name and whole checkpoints by number. Used from one thread.

    Failures raise `OSError`, or `CheckpointError` with a message that explains what to do.

    Attributes
    ----------
    path : Path or str
        The path or URL of the folder, without credentials.
    locks : bool
        Whether `lock` is supported; if not, the owner of the folder is the process with the newest
        token.
    exclusive : bool
        Whether of two processes that `create` the same file only one can succeed. If not, an owner
        also reads its token.
    batch : int, >= 1
        The number of files that should be written together.
    owner_check_interval_s : float, s
        The shortest time between two checks for a newer owner, between two checkpoints.
    """

    path: Path | str
    locks: bool = True
    exclusive: bool = True
    batch: int = 1
    owner_check_interval_s: float = 0.0

    def __str__(self) -> str:
        return str(self.path)

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of its path."""

    @abstractmethod
    def child(self, name: str) -> Self:
        """Return a sub-folder, which need not exist."""

    @abstractmethod
    def folders(self) -> Sequence[str]:
        """Return the names of the folders in it, sorted."""

    @abstractmethod
    def make(self) -> None:
        """Create the folder, if this storage has real folders."""

    @abstractmethod
    def lock(self) -> None:
        """Lock the folder until `unlock`; raise `CheckpointError` if another process has locked
        it. Only for folders with `locks`."""

    @abstractmethod
    def unlock(self) -> None:
        """Release the lock. Idempotent."""

    # -- files

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return the names of the files and folders in it."""

    @abstractmethod
    def read(self, name: str, most: int | None = None) -> bytes:
        """Return the contents of a file; raise `DamagedError` if it is missing, larger than `most`
        bytes, or cannot be trusted."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """Write a new file durably; raise `FileExistsError` if it exists already."""

    @abstractmethod
    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, and replace existing ones; they are durable after `sync`."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""

    @abstractmethod
    def sync(self, names: Iterable[str] = ()) -> None:
        """Return when these files, and all deletions and renames in the folder, are durable."""

    # -- checkpoints

    @abstractmethod
    def numbers(self) -> Sequence[int]:
        """Return the numbers of the published checkpoints, sorted."""

    @abstractmethod
    def publish(
        self,
        number: int,
        files: Mapping[str, bytes],
        check: Callable[[], None],
        step: Callable[[str], None],
    ) -> None:
        """Publish a checkpoint durably and as a unit: `numbers` returns it only when all of its
        files are complete.

        Parameters
        ----------
        files : mapping of str to bytes
            The manifest is the last one.
        check : callable ()
            Called immediately before the checkpoint is published; it raises if this process is no
            longer the owner.
        step : callable of str
            Called before each step with its name.
        """

    @abstractmethod
    def remove(self, number: int) -> None:
        """Remove a checkpoint; `numbers` does not return it from the first step on."""

    @abstractmethod
    def sweep(self, number: int) -> None:
        """Delete incomplete checkpoints that crashes have left, up to this number; a higher number
        could belong to a newer owner."""


class LocalFolder(Folder):
    """A folder of this machine, or of a mounted file system.

    ::

        path/.lock       the pid of the engine that owns the folder
        path/.tmp-*      a checkpoint that is being written or removed; never read

    A checkpoint is published by one rename of a folder whose files are already on disk, and its
    removal begins with one rename, too.

    Parameters
    ----------
    path : Path
    """

    path: Path

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock: FileLock | None = None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    def child(self, name: str) -> Self:
        """Return a sub-folder, which need not exist."""
        return type(self)(self.path / name)

    def folders(self) -> Sequence[str]:
        """Return the names of the folders in it, sorted."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_dir())

    def make(self) -> None:
        """Create the folder and its parents."""
        self.path.mkdir(parents=True, exist_ok=True)

    def lock(self) -> None:
        """Lock the folder until `unlock`; raise `CheckpointError` with the pid of the process that
        has locked it."""
        # The system releases the lock when the process ends, even if it is killed. On a file
        # system without such locks this is an error: other locks would outlive a killed process.
        lock = FileLock(self.path / LOCK, timeout=0, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout as exc:
            raise CheckpointError(
                f"{self}: another engine (pid {self._owner()}) writes checkpoints here; stop it "
                f"or use another path"
            ) from exc
        self._lock = lock
        with open(
            os.open(self.path / LOCK, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), "wb"
        ) as file:
            file.write(f"{os.getpid()}\n".encode())

    def _owner(self) -> str:
        """Return the pid that the owner has written to the lock file."""
        try:
            return (
                read_untrusted(self.path, LOCK, 32).decode("ascii", "replace").strip() or "unknown"
            )
        except CheckpointError:
            return "unknown"

    def unlock(self) -> None:
        """Release the lock. Idempotent."""
        if self._lock is not None:
            self._lock.release()  # the file remains: its removal would race with the next owner
            self._lock = None

    def names(self) -> Sequence[str]:
        """Return the names of the files and folders in it."""
        return os.listdir(self.path)

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return a regular file; links are refused."""
        return read_untrusted(self.path, name, MAX_STATE_BYTES if most is None else most)

    def create(self, name: str, data: bytes) -> None:
        """Write a new file durably; raise `FileExistsError` if it exists already."""
        descriptor = os.open(
            self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, and replace existing ones; they are durable after `sync`."""
        for name, data in files.items():
            # Links are not followed: they could lead anywhere.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with open(os.open(self.path / name, flags, 0o644), "wb") as file:
                file.write(data)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        (self.path / name).unlink(missing_ok=True)

    def sync(self, names: Iterable[str] = ()) -> None:
        """Return when these files, and all deletions and renames in the folder, are on the
        disk."""
        for name in names:
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(self.path)

    def numbers(self) -> Sequence[int]:
        """Return the numbers of the published checkpoints, sorted."""
        try:
            names = self.names()
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if NUMBERED.fullmatch(name))

    def publish(
        self,
        number: int,
        files: Mapping[str, bytes],
        check: Callable[[], None],
        step: Callable[[str], None],
    ) -> None:
        """Publish a checkpoint by one rename of a folder whose files are already on disk."""
        temporary = self.path / f".tmp-{numbered(number)}"
        step("mkdir")
        temporary.mkdir()
        for name, data in files.items():
            step(f"write {name}")
            write_durably(temporary / name, data)
        step("sync folder")
        sync_folder(temporary)
        step("rename")
        check()
        temporary.rename(self.path / numbered(number))
        step("sync parent")
        sync_folder(self.path)

    def remove(self, number: int) -> None:
        """Remove a checkpoint."""
        # First renamed in one step: a crash during the removal must not leave an incomplete
        # checkpoint that the next start would warn about.
        doomed = self.path / f".tmp-old-{numbered(number)}"
        (self.path / numbered(number)).rename(doomed)
        shutil.rmtree(doomed)

    def sweep(self, number: int) -> None:
        """Delete incomplete checkpoints that crashes have left, up to this number."""
        for name in self.names():
            stale = _STALE.fullmatch(name)
            if stale is not None and int(stale[1]) <= number:
                shutil.rmtree(self.path / name)
