"""Where checkpoints and keys lie: a folder on disk, or anything else that keeps bytes under names.

`Folder` is the seam; `LocalFolder` is what it means on a disk. Others are found by the scheme of a
URL among the entry points ``streamadapt.folders``, the one named ``fsspec`` serving every scheme
that has none of its own.
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
MOST_STATE: Final = 1 << 36
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

    Nothing connects.

    ``file:///path`` is the path: two engines that are given the one and the other keep each other
    out.

    Raises
    ------
    ConfigError
        If it is no such text, or nothing that is installed can read the URL, with what to install.
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
    """Return the path on a disk that a text means, unless it would become a folder that nobody
    meant."""
    if place[: len(_DISK)].lower() == _DISK:
        place = place[len(_DISK) :]
        if not place.startswith("/"):
            raise config_error(
                setting,
                _DISK + place,
                "file:/// and the rest of an absolute path, or a plain path",
            )
    if not place:
        raise config_error(setting, place, "a folder, or a URL: not nothing")
    if place.startswith("~"):
        raise config_error(setting, place, "a path without ~, which only a shell replaces")
    if _NEARLY_URL.match(place):
        raise config_error(setting, place, "a folder, or a URL with two slashes: scheme://...")
    return Path(place)


class Folder(ABC):
    """Bytes under names, and whole checkpoints under numbers. Used from one thread.

    Failures raise `OSError`, or `CheckpointError` with a message that says what to do.

    Attributes
    ----------
    path : Path or str
        Where it is, as it may be shown: without credentials.
    locks : bool
        Whether `lock` can be asked for; else a folder has no owner but the one with the newest
        token.
    exclusive : bool
        Whether `create` never lets two succeed. Where it may, an owner looks into its token as
        well.
    batch : int, >= 1
        So many files are worth being written together.
    owner_check_interval_s : float, s
        An owner looks for a successor no more often than this between two checkpoints.
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
        """Return the names of the folders in it, in order."""

    @abstractmethod
    def make(self) -> None:
        """Make it, if folders need to be made."""

    @abstractmethod
    def lock(self) -> None:
        """Keep all others out until `unlock`, or raise `CheckpointError`; for folders with `locks`
        only."""

    @abstractmethod
    def unlock(self) -> None:
        """Undo `lock`. Idempotent."""

    # -- files

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return the names of the files and folders in it."""

    @abstractmethod
    def read(self, name: str, most: int | None = None) -> bytes:
        """Return a file; raises `DamagedError` if it is not there, larger than `most` bytes, or
        not to be trusted."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """Write a new file, durably; raises `FileExistsError` if there is one."""

    @abstractmethod
    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, over what is there; durable after `sync`."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""

    @abstractmethod
    def sync(self, names: Iterable[str] = ()) -> None:
        """Return once these files, and what was deleted and moved here, is durable."""

    # -- checkpoints

    @abstractmethod
    def numbers(self) -> Sequence[int]:
        """Return the numbers of the checkpoints that were published, in order."""

    @abstractmethod
    def publish(
        self,
        number: int,
        files: Mapping[str, bytes],
        check: Callable[[], None],
        step: Callable[[str], None],
    ) -> None:
        """Let a checkpoint appear, durably: all of its files, or nothing that `numbers` would
        return.

        Parameters
        ----------
        files : mapping of str to bytes
            The manifest last.
        check : callable ()
            Called immediately before it appears; raises if it may not.
        step : callable of str
            Called before each step with its name.
        """

    @abstractmethod
    def remove(self, number: int) -> None:
        """Let a checkpoint disappear, at once for `numbers`."""

    @abstractmethod
    def sweep(self, number: int) -> None:
        """Delete what crashes have left of checkpoints up to this number; a higher one would be a
        successor's."""


class LocalFolder(Folder):
    """A folder of this machine, or of a file system that is mounted.

    ::

        path/.lock       pid of the engine that owns the folder
        path/.tmp-*      a checkpoint being written or being removed; never read

    A checkpoint appears by one rename of a folder whose files are already on disk, and disappears
    by one rename too.

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
        """Return the names of the folders in it, in order."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_dir())

    def make(self) -> None:
        """Make it, and those above it."""
        self.path.mkdir(parents=True, exist_ok=True)

    def lock(self) -> None:
        """Keep all others out until `unlock`, or raise `CheckpointError` that names their pid."""
        # The system releases it with the process, however that ends. A file system without such
        # locks is an error: a lock of another kind would outlive a killed process.
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
        """Return the pid that the owner wrote into the lock's file."""
        try:
            return (
                read_untrusted(self.path, LOCK, 32).decode("ascii", "replace").strip() or "unknown"
            )
        except CheckpointError:
            return "unknown"

    def unlock(self) -> None:
        """Undo `lock`. Idempotent."""
        if self._lock is not None:
            self._lock.release()  # the file stays: removing it would race with the next owner
            self._lock = None

    def names(self) -> Sequence[str]:
        """Return the names of the files and folders in it."""
        return os.listdir(self.path)

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return a regular file; links are refused."""
        return read_untrusted(self.path, name, MOST_STATE if most is None else most)

    def create(self, name: str, data: bytes) -> None:
        """Write a new file, durably."""
        descriptor = os.open(
            self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, over what is there; durable after `sync`."""
        for name, data in files.items():
            # No link is followed: it could lead anywhere.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with open(os.open(self.path / name, flags, 0o644), "wb") as file:
                file.write(data)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def sync(self, names: Iterable[str] = ()) -> None:
        """Return once these files, and what was deleted and moved here, is on the disk."""
        for name in names:
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(self.path)

    def numbers(self) -> Sequence[int]:
        """Return the numbers of the checkpoints that were published, in order."""
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
        """Let a checkpoint appear by one rename of a folder whose files are already on disk."""
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
        """Let a checkpoint disappear."""
        # Out of sight in one step first, so that a crash half way leaves no half checkpoint to
        # warn about.
        doomed = self.path / f".tmp-old-{numbered(number)}"
        (self.path / numbered(number)).rename(doomed)
        shutil.rmtree(doomed)

    def sweep(self, number: int) -> None:
        """Delete what crashes have left of checkpoints up to this number."""
        for name in self.names():
            stale = _STALE.fullmatch(name)
            if stale is not None and int(stale[1]) <= number:
                shutil.rmtree(self.path / name)
