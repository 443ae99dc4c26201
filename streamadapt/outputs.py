"""The output files of a command: checked before any change, and put in place when complete."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from streamadapt.config.convert import join
from streamadapt.config.tables import Config
from streamadapt.errors import ConfigError, ConnectorError
from streamadapt.files import kind_of, sync_folder
from streamadapt.state.folder import LocalFolder, folder_of

__all__ = [
    "Replacement",
    "check_output",
    "check_outputs",
    "inputs_of",
    "letters_of",
    "write_whole",
]

PART: Final = ".streamadapt-part"
"""The end of the name of a file that is still being written."""
LONGEST: Final = 160
"""Bytes of the final name that the temporary name keeps: a file name has at most 255 bytes."""
FILES: Final = re.compile(r"(.*_)?path|.*file|weights|scaling|fisher|source")
"""Names of the settings that contain one or several paths of input files."""


def check_output(
    setting: str, path: Path | str, inputs: Mapping[str, Path | str], *, make_folders: bool = False
) -> Path:
    """Check an output path, and return its file with links followed. Opens and changes nothing.

    Parameters
    ----------
    setting : str
        The setting or option that named the path, for the error.
    inputs : mapping of str to path
        Files that must not be overwritten: description -> path.
    make_folders : bool
        Whether the writer creates missing folders; otherwise they are an error.

    Raises
    ------
    ConfigError
        If it is one of the inputs (also through links or another spelling), standard output or
        standard error of this process, not a regular file, or not writable.
    """
    target = Path(os.path.realpath(path))
    found = _status(setting, path)
    for what, other in inputs.items():
        if _same(found, target, other):
            raise ConfigError(setting, str(path), f"another file than {what}, {str(other)!r}")
    if found is None:
        _check_folder(setting, path, target.parent, make_folders=make_folders)
        return target
    if not stat.S_ISREG(found.st_mode):
        expected = f"a regular file, or a new one ({kind_of(found.st_mode)} is there)"
        raise ConfigError(setting, str(path), expected)
    for descriptor, name in ((1, "standard output"), (2, "standard error")):
        with suppress(OSError):
            if os.path.samestat(found, os.fstat(descriptor)):
                raise ConfigError(setting, str(path), f"another file than this command's {name}")
    if not os.access(target, os.W_OK):
        raise ConfigError(setting, str(path), f"a file that can be written ({_why_not(target)})")
    return target


def _why_not(path: Path) -> str:
    """Return why a file, or a file in a folder, cannot be written."""
    read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    return os.strerror(errno.EROFS if read_only else errno.EACCES)


def _status(setting: str, path: Path | str) -> os.stat_result | None:
    try:
        return Path(path).stat()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(setting, str(path), f"a file that can be written ({why})") from error


def _same(found: os.stat_result | None, target: Path, other: Path | str) -> bool:
    if os.path.realpath(other) == str(target):
        return True
    if found is None:
        return False
    try:
        return os.path.samestat(found, Path(other).stat())
    except (OSError, ValueError):  # it does not exist
        return False


def _check_folder(setting: str, path: Path | str, folder: Path, *, make_folders: bool) -> None:
    if not make_folders and not folder.is_dir():
        raise ConfigError(setting, str(path), "a file in a folder that is there")
    while not folder.exists():
        folder = folder.parent
    why = _why_not(folder) if folder.is_dir() else f"{folder} is no folder"
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(setting, str(path), f"a file that can be written ({why})")


# -- what a config reads and writes


def inputs_of(config: Config, origin: Path | None = None) -> dict[str, Path]:
    """Return the files that a config reads: setting -> path.

    Parameters
    ----------
    origin : Path or None
        The config file itself.
    """
    found = {} if origin is None else {"the config": origin}
    tables = {name: getattr(config, name) for name in ("source", "base", "learners")}
    for name in ("sink", "dead_letters"):
        tables[f"{name}.security"] = (getattr(config, name) or {}).get("security")
    for name, table in tables.items():
        found |= {at: Path(text) for at, text in _named_files(name, table)}
    return found


def _named_files(path: str, value: Any, *, named: bool = False) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            named = FILES.fullmatch(str(key)) is not None
            yield from _named_files(join(path, str(key)), item, named=named)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _named_files(f"{path}[{i}]", item, named=named)
    elif named and isinstance(value, str) and value and "\0" not in value:
        yield path, value


def check_outputs(config: Config, origin: Path | None = None) -> None:
    """Raise if a config's output files (predictions, dead letters, states) would overwrite its
    input files.

    Parameters
    ----------
    origin : Path or None
        The config file itself.

    Raises
    ------
    ConfigError
        See `check_output`; also if two of the outputs are the same file.
    """
    taken: dict[str, Path | str] = dict(inputs_of(config, origin))
    for setting, place in _folders(config):
        found = _status(setting, place)
        if found is not None and not stat.S_ISDIR(found.st_mode):
            expected = f"a folder, or a new one ({kind_of(found.st_mode)} is there)"
            raise ConfigError(setting, str(place), expected)
        for what, other in taken.items():
            if os.path.realpath(place) == os.path.realpath(other):
                raise ConfigError(
                    setting, str(place), f"another place than {what}, {str(other)!r}"
                )
        taken[setting] = place
    for setting, file in _files(config):
        check_output(setting, file, taken, make_folders=True)
        taken[setting] = file


def letters_of(config: Config) -> dict[str, Path]:
    """Return the file of the dead letters as description -> path; empty if they go elsewhere."""
    found = [Path(path) for _, path in _letter_files(config)]
    return {"the dead letters": found[0]} if found else {}


def _folders(config: Config) -> Iterator[tuple[str, Path]]:
    places = {
        "checkpoint.path": None if config.checkpoint is None else config.checkpoint.path,
        "keys.path": None if config.keys is None else config.keys.path,
    }
    for setting, place in places.items():
        folder = None if place is None else folder_of(place, setting)
        if isinstance(folder, LocalFolder):
            yield setting, folder.path


def _files(config: Config) -> Iterator[tuple[str, str]]:
    for name, path in _output_files("sinks", config.sink).items():
        yield f"sink.{name}", path
    yield from _letter_files(config)


def _letter_files(config: Config) -> Iterator[tuple[str, str]]:
    from streamadapt.wiring import dead_letters_table  # loads numpy, which `init` does without

    try:
        table = dead_letters_table(config)
    except ConfigError:  # said where the sinks are made
        return
    place = "sink" if config.dead_letters is None else "dead_letters"
    for name, path in _output_files("dead_letters", table).items():
        yield f"{place}.{name}", path


def _output_files(group: str, table: Mapping[str, Any]) -> Mapping[str, str]:
    from streamadapt.wiring import ask  # see above

    files: Mapping[str, str] = ask(group, table, "output_files", lambda settings: {})(table)
    return files


# -- writing


class Replacement:
    """A file that is written under a temporary name, and renamed to its target by `put`.

    A context manager. Until `put`, an existing target stays unchanged. A process that is killed
    leaves the temporary file (``NAME.….streamadapt-part``), which the next process removes.

    Parameters
    ----------
    target : Path
        The final path; not a link, see `check_output`.

    Attributes
    ----------
    path : Path
        The temporary path to write to.

    Raises
    ------
    ConnectorError
        If the file cannot be written or renamed.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        begin = os.fsdecode(os.fsencode(target.name)[:LONGEST])
        self._begin = f"{begin}."
        self.path = target.with_name(f"{begin}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
        self._lock = -1

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._remove_left_behind()
            self._lock = os.open(self.path, flags, 0o666)
            # A file system without locks: it is removed only by this process.
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise self._error(error) from error
        return self

    def put(self) -> None:
        """Store the file on the disk, and replace the target with it."""
        try:
            with suppress(FileNotFoundError):
                before = self.target.lstat()
                if not stat.S_ISREG(before.st_mode):  # created after the check
                    raise OSError(f"{kind_of(before.st_mode)} is there")
                os.chmod(self.path, stat.S_IMODE(before.st_mode))
                with suppress(OSError):  # only root may give files away
                    os.chown(self.path, before.st_uid, before.st_gid)
            _sync_file(self.path)
            os.replace(self.path, self.target)
            sync_folder(self.target.parent)
        except OSError as error:
            raise self._error(error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _remove_left_behind(self) -> None:
        """Remove temporary files of killed processes; a process that still writes holds a lock."""
        for entry in os.scandir(self.target.parent):
            name = entry.name
            if not name.startswith(self._begin) or not name.endswith(PART):
                continue
            with suppress(OSError):
                if not entry.is_file(follow_symlinks=False):
                    continue
                file = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)
                finally:
                    os.close(file)

    def _error(self, error: OSError) -> ConnectorError:
        return ConnectorError(f"file {self.target}: cannot be written: {error.strerror or error}")


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(target: Path, data: bytes) -> None:
    """Write a file completely or not at all; `target` is not a link, see `check_output`.

    Raises
    ------
    ConnectorError
        If it cannot be written.
    """
    with Replacement(target) as replacement:
        try:
            replacement.path.write_bytes(data)
        except OSError as error:
            raise ConnectorError(f"file {target}: cannot be written: {error.strerror}") from error
        replacement.put()
