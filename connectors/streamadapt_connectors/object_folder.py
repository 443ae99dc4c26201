"""Checkpoints and keys in an object store, or any other file system that fsspec knows:
``s3://bucket/state``.

The layout is that of a folder on disk, file by file. A folder cannot be renamed here, so a
checkpoint's files are written under its number first and its manifest last: a checkpoint exists if
its manifest does, and leftovers without one are never read. It is removed manifest first. An
object store has a file whole or not at all; where fsspec writes into true files (``local``,
``sftp``, ``smb``), which a crash can tear, the manifest is written aside and renamed.

Ownership goes by fencing tokens alone (`streamadapt.state.fence`): a new engine takes over.
Tokens and manifests are written so that they replace nothing (``mode="create"``): S3, Google and
Azure refuse in one step what is there already. Where fsspec can only look first and write then, or
a server ignores the wish, two could create the same token at the same instant: the later one's
word stands in it, the earlier one reads that before it writes a manifest, and is fenced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Self

from streamadapt.config.secrets import remember, scrubbed, without_credentials
from streamadapt.errors import CheckpointError
from streamadapt.files import DamagedError
from streamadapt.state.folder import NUMBERED, Folder, numbered
from streamadapt.state.manifest import MANIFEST

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["ObjectFolder"]

_ASIDE = f".tmp-{MANIFEST}"
_MISSING = (FileNotFoundError, NotADirectoryError)


class _FileSystem:
    """A URL's file system: connected when first used, and with errors that hold no credentials.

    Parameters
    ----------
    url : str

    Raises
    ------
    ImportError
        If fsspec or its driver for this scheme is not installed.
    ValueError
        If the URL is none of a plain file system.
    """

    def __init__(self, url: str) -> None:
        remember("url", url)
        scheme = url.partition("://")[0].lower()
        if "::" in url or any(sign in url for sign in "?*[]"):
            raise ValueError("not a chain of them, and without ? * [ ] in it")
        try:
            from fsspec import get_filesystem_class
        except ImportError as error:
            raise ImportError("pip install 'streamadapt[object-store]'") from error
        try:
            get_filesystem_class(scheme)
        except ImportError as error:
            raise ImportError(f"{error}{_cure(scheme)}") from error
        self._url = url

    @cached_property
    def _opened(self) -> tuple[AbstractFileSystem, str]:
        from fsspec.core import url_to_fs

        with self.asking():
            # Not the instance that others share: what this one lists must never come from a cache.
            fs, root = url_to_fs(self._url, skip_instance_cache=True)
            fs.dircache.use_listings_cache = False
        return fs, root.rstrip("/")

    @property
    def fs(self) -> AbstractFileSystem:
        """What fsspec made."""
        return self._opened[0]

    @property
    def tears(self) -> bool:
        """Whether a file is there before it is whole: those that are sent in one piece have their
        own way to do it."""
        from fsspec import AbstractFileSystem

        # Of the instance: fsspec hangs the methods of asynchronous drivers on that.
        return getattr(self.fs.pipe_file, "__func__", None) is AbstractFileSystem.pipe_file

    @property
    def root(self) -> str:
        """The URL as a path in it."""
        return self._opened[1]

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Turn what a driver raises, which need not be an `OSError`, into one; keep what is
        missing or there apart."""
        try:
            yield
        except (*_MISSING, FileExistsError) as error:
            kind = FileExistsError if isinstance(error, FileExistsError) else FileNotFoundError
            raise kind(_text(error)) from None
        except CheckpointError:
            raise
        except Exception as error:
            raise OSError(_text(error)) from None


class ObjectFolder(Folder):
    """A prefix of an object store, or a folder of any file system that fsspec knows.

    Options of the driver, such as the endpoint of an S3 that is not Amazon's, come from fsspec's
    own configuration (``FSSPEC_S3_ENDPOINT_URL``), credentials from wherever the driver looks for
    them.

    Parameters
    ----------
    url : str
        ``scheme://...``.

    Raises
    ------
    ImportError
        If fsspec or its driver for this scheme is not installed.
    ValueError
        If the URL is none of a plain file system.
    """

    path: str
    locks = False
    exclusive = False
    batch = 64
    owner_check_interval_s = 1.0

    def __init__(self, url: str) -> None:
        self._system = _FileSystem(url)
        self._below = ""
        self.path = without_credentials(url if url.endswith("://") else url.rstrip("/"))
        # Checkpoints whose manifest was seen: only their owner removes one.
        self._whole: set[int] = set()

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    def child(self, name: str) -> Self:
        """Return a folder in this one, there or not."""
        made = type(self).__new__(type(self))
        made._system = self._system
        made._below = f"{self._below}/{name}"
        made.path = f"{self.path}/{name}"
        made._whole = set()
        return made

    def folders(self) -> Sequence[str]:
        """Return the names of the folders in it, in order."""
        return sorted(name for name, kind in self._list().items() if kind == "directory")

    def make(self) -> None:
        """Nothing: the first file makes it."""

    def lock(self) -> None:
        """There are no locks."""
        raise NotImplementedError("an object store has no locks")

    def unlock(self) -> None:
        """Nothing."""

    # -- files

    def names(self) -> Sequence[str]:
        """Return the names of the files and folders in it."""
        return list(self._list())

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return a file; that an object store cannot be reached does not make it a damaged one."""
        try:
            if most is not None:  # one more request: not for what is read all the time
                with self._system.asking():
                    size = self._system.fs.info(self._at(name))["size"] or 0
                if size > most:
                    raise DamagedError(f"{name} is larger than {most} bytes")
            return self._get(name)
        except _MISSING as error:
            raise DamagedError(f"{name} cannot be read: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{self.child(name)}: cannot be read: {error}") from error

    def create(self, name: str, data: bytes) -> None:
        """Write a new file."""
        try:
            with self._system.asking():
                self._writing(lambda: self._create(self._at(name), data))
        except FileExistsError:
            # A driver that tries again after an answer was lost finds what it has written itself.
            if self._get(name) != data:
                raise

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files, replacing existing ones; in one batch if the driver can."""
        with self._system.asking():
            at = {self._at(name): data for name, data in files.items()}
            self._writing(lambda: self._system.fs.pipe(at))

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        with suppress(*_MISSING), self._system.asking():
            self._system.fs.rm_file(self._at(name))

    def sync(self, names: Iterable[str] = ()) -> None:
        """Do nothing: written files are already visible."""

    # -- checkpoints

    def numbers(self) -> Sequence[int]:
        """Return the numbers of the checkpoints whose manifest exists, in order."""
        return sorted(number for number, whole in self._look().items() if whole)

    def publish(
        self,
        number: int,
        files: Mapping[str, bytes],
        check: Callable[[], None],
        step: Callable[[str], None],
    ) -> None:
        """Write the files, and the manifest last: with it the checkpoint appears."""
        folder = self.child(numbered(number))
        *data, manifest = files
        for name in data:
            step(f"write {name}")
            folder.write({name: files[name]})
        step(f"write {manifest}")
        if self._system.tears:
            folder.write({_ASIDE: files[manifest]})
            check()
            with self._system.asking():
                self._system.fs.mv(folder._at(_ASIDE), folder._at(manifest))
        else:
            check()
            folder.create(manifest, files[manifest])

    def remove(self, number: int) -> None:
        """Delete the manifest, with which the checkpoint disappears, and then the rest."""
        self.child(numbered(number)).delete(MANIFEST)
        self._whole.discard(number)
        self._clear(number)

    def sweep(self, number: int) -> None:
        """Delete what has no manifest, up to this number."""
        for left, whole in self._look().items():
            if not whole and left <= number:
                self._clear(left)

    # -- what these are made of

    def _at(self, name: str) -> str:
        return f"{self._here}/{name}"

    @property
    def _here(self) -> str:
        return self._system.root + self._below

    def _list(self) -> dict[str, str]:
        """Return name -> ``file`` or ``directory``."""
        try:
            with self._system.asking():
                self._system.fs.invalidate_cache()
                found = self._system.fs.ls(self._here, detail=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry["type"] for entry in found}

    def _get(self, name: str) -> bytes:
        with self._system.asking():
            return bytes(self._system.fs.cat_file(self._at(name)))

    def _create(self, path: str, data: bytes) -> None:
        fs = self._system.fs
        if getattr(fs, "local_file", False):  # there, "create" looks first and writes then
            with fs.open(path, "xb") as file:
                file.write(data)
        else:
            fs.pipe_file(path, data, mode="create")

    def _writing(self, write: Callable[[], None]) -> None:
        try:
            write()
        except FileNotFoundError:  # a file system with real folders; a bucket is never made
            self._make(self._here)
            write()

    def _make(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if not parent.strip("/"):
            raise FileNotFoundError(f"{path} is not there")
        with suppress(FileExistsError):
            try:
                self._system.fs.mkdir(path, create_parents=False)
            except FileNotFoundError:
                self._make(parent)
                self._system.fs.mkdir(path, create_parents=False)

    def _look(self) -> dict[int, bool]:
        """Return number -> whether its manifest exists."""
        found = sorted(int(name) for name in self._list() if NUMBERED.fullmatch(name))
        self._whole = {
            number for number in found if number in self._whole or self._has_manifest(number)
        }
        return {number: number in self._whole for number in found}

    def _has_manifest(self, number: int) -> bool:
        # Not `exists`: it takes every error for a no, and what has no manifest is swept away.
        try:
            with self._system.asking():
                self._system.fs.info(self._at(f"{numbered(number)}/{MANIFEST}"))
        except FileNotFoundError:
            return False
        return True

    def _clear(self, number: int) -> None:
        with suppress(*_MISSING), self._system.asking():
            self._system.fs.rm(self._at(numbered(number)), recursive=True)


def _cure(scheme: str) -> str:
    from fsspec.registry import known_implementations

    package = known_implementations.get(scheme, {}).get("class", "fsspec").partition(".")[0]
    return "" if package == "fsspec" else f": pip install {package}"


def _text(error: BaseException) -> str:
    if type(error) is OSError:  # says what it is
        return scrubbed(without_credentials(str(error)))
    return scrubbed(
        without_credentials(": ".join(filter(None, (type(error).__name__, str(error)))))
    )
