"""Stores checkpoints and keys in an object store, or in any other file system that fsspec
supports: ``s3://bucket/state``.

The files and their names are the same as in a folder on disk. But a folder cannot be renamed in an
object store. So the files of a checkpoint are written first, under its number, and its manifest
last: a checkpoint exists if its manifest exists, and files without a manifest are never read. A
removal begins with the manifest. A file in an object store is complete or absent. If fsspec writes
to real files (``local``, ``sftp``, ``smb``), which a crash can leave incomplete, the manifest is
written under another name and renamed.

The owner is determined by fencing tokens alone (`streamadapt.state.fence`): a new engine takes
over. Tokens and manifests are written so that they never replace a file (``mode="create"``): S3,
Google Cloud Storage and Azure refuse an existing name atomically. If fsspec can only check first
and write then, or a server ignores the mode, two engines could create the same token at the same
moment. Then the token contains the text of the later engine; the earlier engine reads this before
it writes a manifest, and is fenced.
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
    """The file system of a URL. It connects when it is first used, and its errors contain no
    credentials.

    Parameters
    ----------
    url : str

    Raises
    ------
    ImportError
        If fsspec or its driver for this scheme is not installed.
    ValueError
        If the URL chains several file systems, or has special characters.
    """

    def __init__(self, url: str) -> None:
        remember("url", url)
        scheme = url.partition("://")[0].lower()
        if "::" in url or any(sign in url for sign in "?*[]"):
            raise ValueError("not a chain of URLs, and without ? * [ ]")
        try:
            from fsspec import get_filesystem_class
        except ImportError as error:
            raise ImportError("pip install 'streamadapt[object-store]'") from error
        try:
            get_filesystem_class(scheme)
        except ImportError as error:
            raise ImportError(f"{error}{_remedy(scheme)}") from error
        self._url = url

    @cached_property
    def _opened(self) -> tuple[AbstractFileSystem, str]:
        from fsspec.core import url_to_fs

        with self.asking():
            # Not the shared instance of fsspec: its listings must never come from a cache.
            fs, root = url_to_fs(self._url, skip_instance_cache=True)
            fs.dircache.use_listings_cache = False
        return fs, root.rstrip("/")

    @property
    def fs(self) -> AbstractFileSystem:
        """The file system object of fsspec."""
        return self._opened[0]

    @property
    def tears(self) -> bool:
        """Whether a file can be visible before it is complete: true for drivers without a method
        of their own that sends a file in one request."""
        from fsspec import AbstractFileSystem

        # Read from the instance, where fsspec sets the methods of asynchronous drivers.
        return getattr(self.fs.pipe_file, "__func__", None) is AbstractFileSystem.pipe_file

    @property
    def root(self) -> str:
        """The URL as a path in the file system."""
        return self._opened[1]

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Convert any error of a driver to an `OSError`; errors for missing and existing files
        keep their types."""
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
    """A prefix of an object store, or a folder of any file system that fsspec supports.

    Options of the driver, such as the endpoint of an S3 server that is not Amazon's, come from the
    configuration of fsspec (``FSSPEC_S3_ENDPOINT_URL``). Credentials come from the places that the
    driver documents.

    Parameters
    ----------
    url : str
        ``scheme://...``.

    Raises
    ------
    ImportError
        If fsspec or its driver for this scheme is not installed.
    ValueError
        If the URL chains several file systems, or has special characters.
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
        # Checkpoints whose manifest was seen: only the owner removes a manifest.
        self._whole: set[int] = set()

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    def child(self, name: str) -> Self:
        """Return a sub-folder, which need not exist."""
        child = type(self).__new__(type(self))
        child._system = self._system
        child._below = f"{self._below}/{name}"
        child.path = f"{self.path}/{name}"
        child._whole = set()
        return child

    def folders(self) -> Sequence[str]:
        """Return the names of the folders in it, sorted."""
        return sorted(name for name, kind in self._list().items() if kind == "directory")

    def make(self) -> None:
        """Do nothing: the first file creates the folder."""

    def lock(self) -> None:
        """Raise `NotImplementedError`: an object store has no locks."""
        raise NotImplementedError("an object store has no locks")

    def unlock(self) -> None:
        """Do nothing: there are no locks."""

    # -- files

    def names(self) -> Sequence[str]:
        """Return the names of the files and folders in it."""
        return list(self._list())

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return the contents of a file; if the store cannot be reached, this raises
        `CheckpointError`, not `DamagedError`."""
        try:
            if (
                most is not None
            ):  # this costs a request, so files that are read often have no limit
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
        """Write a new file; raise `FileExistsError` if it exists already."""
        try:
            with self._system.asking():
                self._writing(lambda: self._create(self._at(name), data))
        except FileExistsError:
            # If an answer was lost, the driver repeats the request and finds its own file.
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
        """Return the numbers of the checkpoints whose manifest exists, sorted."""
        return sorted(number for number, whole in self._checkpoints().items() if whole)

    def publish(
        self,
        number: int,
        files: Mapping[str, bytes],
        check: Callable[[], None],
        step: Callable[[str], None],
    ) -> None:
        """Write the files, and last the manifest, which publishes the checkpoint."""
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
        """Delete the manifest first, which removes the checkpoint, and then the other files."""
        self.child(numbered(number)).delete(MANIFEST)
        self._whole.discard(number)
        self._clear(number)

    def sweep(self, number: int) -> None:
        """Delete checkpoints without a manifest, up to this number."""
        for left, whole in self._checkpoints().items():
            if not whole and left <= number:
                self._clear(left)

    # -- helpers

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
                entries = self._system.fs.ls(self._here, detail=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry["type"] for entry in entries}

    def _get(self, name: str) -> bytes:
        with self._system.asking():
            return bytes(self._system.fs.cat_file(self._at(name)))

    def _create(self, path: str, data: bytes) -> None:
        fs = self._system.fs
        if getattr(fs, "local_file", False):  # here, mode="create" would not be atomic
            with fs.open(path, "xb") as file:
                file.write(data)
        else:
            fs.pipe_file(path, data, mode="create")

    def _writing(self, write: Callable[[], None]) -> None:
        try:
            write()
        except FileNotFoundError:  # a file system with real folders; buckets are never created
            self._make(self._here)
            write()

    def _make(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if not parent.strip("/"):
            raise FileNotFoundError(f"{path} does not exist")
        with suppress(FileExistsError):
            try:
                self._system.fs.mkdir(path, create_parents=False)
            except FileNotFoundError:
                self._make(parent)
                self._system.fs.mkdir(path, create_parents=False)

    def _checkpoints(self) -> dict[int, bool]:
        """Return number of a checkpoint -> whether its manifest exists."""
        numbers = sorted(int(name) for name in self._list() if NUMBERED.fullmatch(name))
        self._whole = {
            number for number in numbers if number in self._whole or self._has_manifest(number)
        }
        return {number: number in self._whole for number in numbers}

    def _has_manifest(self, number: int) -> bool:
        # Not `exists`: it returns False for every error, and `sweep` would delete the checkpoint.
        try:
            with self._system.asking():
                self._system.fs.info(self._at(f"{numbered(number)}/{MANIFEST}"))
        except FileNotFoundError:
            return False
        return True

    def _clear(self, number: int) -> None:
        with suppress(*_MISSING), self._system.asking():
            self._system.fs.rm(self._at(numbered(number)), recursive=True)


def _remedy(scheme: str) -> str:
    from fsspec.registry import known_implementations

    package = known_implementations.get(scheme, {}).get("class", "fsspec").partition(".")[0]
    return "" if package == "fsspec" else f": pip install {package}"


def _text(error: BaseException) -> str:
    if type(error) is OSError:  # its message is sufficient
        return scrubbed(without_credentials(str(error)))
    return scrubbed(
        without_credentials(": ".join(filter(None, (type(error).__name__, str(error)))))
    )
