"""Functions that numba compiles, and the folder that keeps what it compiled.

`compiled` marks a function of numbers and arrays. Called from Python it is plain Python, so that a
debugger and coverage work; called from a kernel it is compiled into that kernel. `Kernel` is a
function that Python calls and numba compiles. It is compiled at its first call, and kept in a
folder whose name is a digest of everything the compiled code was made from: code that has changed
since is never used. With the environment variable ``STREAMADAPT_COMPILE=0`` nothing is compiled,
and numba is not imported.
"""

from __future__ import annotations

import atexit
import dis
import functools
import hashlib
import inspect
import logging
import os
import platform
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, ModuleType
from typing import Any, Final, TypeVar

import numpy as np
from filelock import FileLock

__all__ = ["ENABLED", "Kernel", "cache_folder", "compiled", "fingerprint"]

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger(__name__)

ENABLED: Final = (
    os.environ.get("STREAMADAPT_COMPILE", "1") != "0"
    and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
)
"""Whether kernels are compiled."""
if ENABLED:
    # Intel's vector library, where it is installed, has an exp with other last bits than Python's.
    os.environ.setdefault("NUMBA_DISABLE_INTEL_SVML", "1")
OPTIONS: Final = {"error_model": "numpy"}
"""How numba compiles: a division by zero is no error, as it is none for numpy's numbers."""
MARKED_OPTIONS: Final = OPTIONS | {"_nrt": False}
"""How it compiles marked functions: without counting references, which costs more than small
functions do, and so without a way to make an array."""
_PLAIN: Final = (int, float, complex, str, bytes, slice, EllipsisType)
READY: Final = "ready"
"""The file in the folder of a kernel that has been compiled."""
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_LIBRARIES: Final = ("numba", "llvmlite", "numpy")
_marked: list[Callable[..., Any]] = []
_lock = threading.RLock()


def compiled(function: F) -> F:
    """Mark a function that kernels call; from Python it stays what it is.

    It may use numbers, arrays, named tuples of them, `math` and other marked functions. To give
    the same bits both ways it must not use numpy's functions (``np.exp``, ``.sum()``, ``@``), nor
    `math` outside the domain of its functions, where Python raises, nor ``float``, which leaves a
    float32 as it is once compiled: ``np.float64`` casts.

    Examples
    --------
    >>> @compiled
    ... def clip(x, limit):
    ...     return min(max(x, -limit), limit)
    >>> clip(3.0, 1.0)
    1.0
    """
    if ENABLED:
        _marked.append(function)
    return function


def _register_marked() -> None:
    """Tell numba of the functions marked since the last call: importing them is free until a
    kernel is needed."""
    from numba.extending import register_jitable

    while _marked:
        register_jitable(**MARKED_OPTIONS)(_marked.pop())


def fingerprint(*functions: Callable[..., Any]) -> str:
    """Return a digest of functions, of all functions and constants that they use, and of the
    versions of the compiler.

    Parameters
    ----------
    *functions : function
        The globals, closures and defaults that they use are followed, into other modules too.

    Raises
    ------
    TypeError
        If one of them uses an object whose change could not be seen.

    Examples
    --------
    >>> rate = 0.5
    >>> def step(x):
    ...     return rate * x
    >>> before = fingerprint(step)
    >>> rate = 0.25
    >>> fingerprint(step) == before
    False
    """
    digest = hashlib.sha256(repr((_versions(), sorted(MARKED_OPTIONS.items()))).encode())
    seen: set[int] = set()
    for function in functions:
        for part in _parts(function, seen):
            digest.update(repr(part).encode())
    return digest.hexdigest()[:24]


@functools.cache
def _versions() -> tuple[str, ...]:
    return (*map(version, _LIBRARIES), platform.python_version(), platform.machine())


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield what a digest of `value` is made from."""
    yield getattr(value, "targetoptions", None)  # of a function that numba wraps
    value = getattr(value, "py_func", value)
    if value is None or isinstance(value, _PLAIN):
        yield value
    elif isinstance(value, tuple):
        yield type(value).__qualname__, len(value)
        for item in value:
            yield from _parts(item, seen)
    elif isinstance(value, frozenset):
        yield sorted(map(repr, value))
    elif isinstance(value, np.ndarray | np.generic):
        yield value.dtype.str, value.shape, value.tobytes()
    elif _has_a_version(value):
        yield getattr(value, "__qualname__", None) or repr(value)
    elif isinstance(value, FunctionType):
        if id(value) not in seen:
            seen.add(id(value))
            yield from _parts_of_function(value, seen)
    elif isinstance(value, type):
        yield value.__qualname__, getattr(value, "_fields", ()), _members(value)
        yield from _parts(tuple(getattr(value, "_field_defaults", {}).values()), seen)
    else:
        raise TypeError(
            f"a kernel may use functions, numbers, arrays and tuples of them, not {value!r}"
        )


def _members(value: type) -> list[Any]:
    return [(m.name, m.value) for m in value] if issubclass(value, Enum) else []


def _has_a_version(value: Any) -> bool:
    """Return whether `value` belongs to a library in `_versions`, or is code of Python's."""
    root = (getattr(value, "__module__", None) or type(value).__module__).partition(".")[0]
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return root in _LIBRARIES or (root in sys.stdlib_module_names and root != "__main__")
    return root in _LIBRARIES


def _parts_of_function(function: FunctionType, seen: set[int]) -> Iterator[Any]:
    yield function.__qualname__
    defaults = (
        function.__defaults__ or (),
        tuple(sorted((function.__kwdefaults__ or {}).items())),
    )
    yield from _parts(defaults, seen)
    for cell in function.__closure__ or ():
        yield from _parts(cell.cell_contents, seen)
    for code in _codes(function.__code__):
        plain = tuple(c for c in code.co_consts if not isinstance(c, CodeType))
        yield code.co_code, code.co_names, code.co_varnames, code.co_freevars
        yield from _parts(plain, seen)
        for name, value in _globals(code, function.__globals__):
            yield name
            yield from _parts(value, seen)


def _globals(code: CodeType, known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the globals that code uses; of a module, the attributes that it uses."""
    name, value = "", None
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, ModuleType):
            name, value = f"{name}.{step.argval}", getattr(value, step.argval)
        elif step.opname != "EXTENDED_ARG":
            if name:
                yield name, value
            found = step.opname == "LOAD_GLOBAL" and step.argval in known
            name, value = (step.argval, known[step.argval]) if found else ("", None)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


class Kernel:
    """A function that is compiled at its first call.

    Parameters
    ----------
    function : callable
        Marked functions may be in its closure: one source of a loop serves many learners.
    name : str
        What it computes, for the log.

    Examples
    --------
    >>> import numpy as np
    >>> def total(values):
    ...     result = 0.0
    ...     for value in values:
    ...         result += value
    ...     return result
    >>> Kernel(total)(np.arange(4.0))
    6.0
    """

    def __init__(self, function: Callable[..., Any], name: str = "") -> None:
        self.function, self.name = function, name or function.__name__
        functools.update_wrapper(self, function)
        # From its first call on, the compiled function itself.
        plain = np.errstate(all="ignore")(function)  # compiled code does not warn either
        self.call: Callable[..., Any] = self._prepare if ENABLED else plain

    def __repr__(self) -> str:
        return f"Kernel({self.name})"

    def __call__(self, *given: Any) -> Any:
        """Call it, compiled."""
        return self.call(*given)

    @property
    def folder(self) -> Path:
        """Where its compiled code is kept."""
        return cache_folder() / self._digest

    def prepare(self, *given: Any) -> None:
        """Call it with arguments for which it does nothing, so that it is loaded, or compiled."""
        if self.call == self._prepare and not self.ready:
            logger.info(
                "compiling %s: predictions wait for up to a minute, once for each installation; "
                "streamadapt warm does it beforehand",
                self.name,
            )
        self.call(*given)

    @property
    def ready(self) -> bool:
        """Whether it need not be compiled."""
        return not ENABLED or any((f / self._digest / READY).is_file() for f in _folders())

    @functools.cached_property
    def _digest(self) -> str:
        """The digest of its code, and of what numba knows its file by."""
        file, line = inspect.getsourcefile(self.function), self.function.__code__.co_firstlineno
        source = Path(file).read_bytes() if file and os.path.isfile(file) else b""
        place = f"{self.name} {file}:{line}".encode() + source
        code = fingerprint(self.function)
        return f"{code}-{hashlib.sha256(place).hexdigest()[:8]}"

    def _prepare(self, *given: Any) -> Any:
        with _lock:
            if self.call == self._prepare:
                try:
                    folder = _prepared_folder(self._digest)
                    # One process compiles it; others wait, and read it.
                    with FileLock(folder / "lock"):
                        function = _dispatcher(self.function, folder)
                        result = function(*given)
                        (folder / READY).touch()
                        _forbid_writing(folder)
                except OSError as error:
                    logger.warning("%s: compiled code cannot be kept (%s)", self, error)
                    function = _dispatcher(self.function, None)
                    result = function(*given)
                self.call = function
                return result
        return self.call(*given)


def _dispatcher(function: Callable[..., Any], folder: Path | None) -> Callable[..., Any]:
    """Return numba's form of a function, with its code kept in `folder`."""
    import numba

    _register_marked()
    compile_ = numba.njit(cache=folder is not None, nogil=True, **OPTIONS)
    try:
        with _numba_folder(folder):
            found: Callable[..., Any] = compile_(function)
    except RuntimeError as error:  # numba finds no file of the function, or cannot write
        raise OSError(str(error)) from error
    if folder is not None and not Path(found.stats.cache_path).is_relative_to(folder):  # type: ignore[attr-defined]
        raise OSError(f"{folder} cannot be written to")
    return found


@contextmanager
def _numba_folder(folder: Path | None) -> Iterator[None]:
    """Let numba keep what is declared inside in `folder`; a program's other functions stay where
    they are."""
    from numba.core import config

    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder or "")
    try:
        yield
    finally:
        config.CACHE_DIR = before


def _prepared_folder(name: str) -> Path:
    """Return the folder of a kernel, with what a folder that cannot be written to has of it."""
    first, *others = _folders()
    folder = first / name
    if folder.is_dir() and not _is_trusted(folder, *folder.rglob("*")):
        logger.warning("%s can be written to by others: it is compiled again", folder)
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    for other in others:
        files = [file for file in (other / name).rglob("*") if file.is_file()]
        if not (folder / READY).is_file() and _is_trusted(other / name, *files):
            for file in files:
                copy = folder / file.relative_to(other / name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
    return folder


def _forbid_writing(folder: Path) -> None:
    """Let others read compiled code, and not write it, whatever the process's umask."""
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode & ~_OTHERS_WRITE)
    folder.chmod(0o755)


def cache_folder() -> Path:
    """Return the folder for compiled code.

    ``STREAMADAPT_CACHE``, or ``streamadapt`` in ``XDG_CACHE_HOME`` (``~/.cache``). What lies there
    is run, so a folder that others can write to is not used. If it cannot be written to, code is
    read from it, and what it lacks is kept in a temporary folder and lost at the end.
    """
    return _folders()[0]


@functools.cache
def _folders() -> tuple[Path, ...]:
    """Return where compiled code is written, and where else it is read."""
    named, home = os.environ.get("STREAMADAPT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = Path(named or home or os.path.expanduser("~/.cache")) / (
        "" if named else "streamadapt"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        trusted, writable = _is_trusted(folder), os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        trusted = writable = False
    if trusted and writable:
        return (folder,)
    own = Path(tempfile.mkdtemp(prefix="streamadapt-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    if trusted:
        return own, folder
    logger.warning(
        "%s can be written to by others, or cannot be made: what is compiled is kept for this "
        "process only; STREAMADAPT_CACHE names another folder",
        folder,
    )
    return (own,)


def _is_trusted(*paths: Path) -> bool:
    """Return whether these are there, and only root and this user can put code into them."""
    if sys.platform == "win32":
        return all(path.exists() for path in paths)
    found = [path.stat() for path in paths if path.exists()]
    return len(found) == len(paths) and all(
        each.st_uid in (0, os.getuid()) and not each.st_mode & _OTHERS_WRITE for each in found
    )
