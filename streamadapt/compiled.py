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
import functools
import hashlib
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
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, TypeVar

__all__ = ["ENABLED", "Kernel", "cache_folder", "compiled", "fingerprint"]

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger(__name__)

ENABLED: Final = os.environ.get("STREAMADAPT_COMPILE", "1") != "0"
"""Whether kernels are compiled."""
READY: Final = "ready"
"""The file in the folder of a kernel that has been compiled."""
_LIBRARIES: Final = ("numba", "llvmlite", "numpy")
_marked: list[Callable[..., Any]] = []
_lock = threading.RLock()


def compiled(function: F) -> F:
    """Mark a function that kernels call; from Python it stays what it is.

    It may use numbers, arrays, named tuples of them, `math` and other marked functions. To give
    the same bits both ways it must not use numpy's functions (``np.exp``, ``.sum()``, ``@``), nor
    `math` outside the domain of its functions, where Python raises.

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
        register_jitable(error_model="numpy", _nrt=False)(_marked.pop())


def fingerprint(*functions: Callable[..., Any]) -> str:
    """Return a digest of functions, of all functions and constants that they use, and of the
    versions of the compiler.

    Parameters
    ----------
    *functions : function
        Their modules, closures and defaults are followed; other objects count by their names.

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
    digest = hashlib.sha256(repr((_versions(), sys.implementation.cache_tag)).encode())
    seen: set[int] = set()
    for function in functions:
        for part in _parts(function, seen):
            digest.update(repr(part).encode())
    return digest.hexdigest()[:24]


@functools.cache
def _versions() -> tuple[str, ...]:
    return (*map(version, _LIBRARIES), platform.machine())


def _parts(value: Any, seen: set[int], names: tuple[str, ...] = ()) -> Iterator[Any]:
    """Yield what a digest of `value` is made from; `names` are the attributes used of a module."""
    value = getattr(value, "py_func", value)  # of a function that numba wraps
    if isinstance(value, FunctionType):
        if id(value) not in seen:
            seen.add(id(value))
            yield from _parts_of_function(value, seen)
    elif isinstance(value, ModuleType):
        yield value.__name__
        for name in names:
            if isinstance(found := getattr(value, name, None), FunctionType):
                yield from _parts(found, seen)
    elif isinstance(value, type):
        yield value.__qualname__, getattr(value, "_fields", ())
    elif isinstance(value, int | float | complex | str | bytes | tuple | frozenset | None):
        yield value
    elif hasattr(value, "tobytes"):
        yield value.dtype.str, value.shape, value.tobytes()
    else:
        yield type(value).__qualname__


def _parts_of_function(function: FunctionType, seen: set[int]) -> Iterator[Any]:
    yield function.__qualname__, function.__defaults__, function.__kwdefaults__
    for cell in function.__closure__ or ():
        yield from _parts(cell.cell_contents, seen)
    for code in _codes(function.__code__):
        plain = tuple(c for c in code.co_consts if not isinstance(c, CodeType))
        yield code.co_code, plain, code.co_names, code.co_varnames, code.co_freevars
        for name in code.co_names:
            if name in function.__globals__:
                yield name
                yield from _parts(function.__globals__[name], seen, code.co_names)


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
    *others : callable
        What else its code is made from, for the digest.

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

    def __init__(self, function: Callable[..., Any], *others: Callable[..., Any]) -> None:
        self.function, self.others = function, others
        functools.update_wrapper(self, function)
        # From its first call on, the compiled function itself.
        self.call: Callable[..., Any] = self._prepare if ENABLED else function

    def __repr__(self) -> str:
        return f"Kernel({self.function.__qualname__})"

    def __call__(self, *given: Any) -> Any:
        """Call it, compiled."""
        return self.call(*given)

    @property
    def folder(self) -> Path:
        """Where its compiled code is kept."""
        return cache_folder() / fingerprint(self.function, *self.others)

    @property
    def ready(self) -> bool:
        """Whether it need not be compiled."""
        return not ENABLED or (self.folder / READY).is_file()

    def _prepare(self, *given: Any) -> Any:
        with _lock:
            if self.call == self._prepare:
                folder, was_ready = self.folder, self.ready
                function = _dispatcher(self.function, folder)
                result = function(*given)
                if not was_ready:
                    (folder / READY).touch()
                self.call = function
                return result
        return self.call(*given)


def _dispatcher(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Return numba's form of a function, with its code kept in `folder`."""
    import numba

    _register_marked()
    folder.mkdir(parents=True, exist_ok=True)
    with _numba_folder(folder):
        found: Callable[..., Any] = numba.njit(cache=True, nogil=True, error_model="numpy")(
            function
        )
    return found


@contextmanager
def _numba_folder(folder: Path) -> Iterator[None]:
    """Let numba keep what is declared inside in `folder`; a program's other functions stay where
    they are."""
    from numba.core import config

    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


@functools.cache
def cache_folder() -> Path:
    """Return the folder for compiled code.

    ``STREAMADAPT_CACHE``, or ``streamadapt`` in ``XDG_CACHE_HOME`` (``~/.cache``). What lies there
    is run, so a folder that others can write to is not used. If it cannot be written to, a copy of
    it in a temporary folder is used, and compiled code that it lacks is lost at the end.
    """
    named = os.environ.get("STREAMADAPT_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(named) if named else Path(home) / "streamadapt"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        trusted, writable = _is_trusted(folder), os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        trusted = writable = False
    if trusted and writable:
        return folder
    copy = Path(tempfile.mkdtemp(prefix="streamadapt-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    why = "cannot be written to" if trusted else "can be written to by others, or cannot be made"
    logger.warning(
        "%s %s: compiled code is kept in %s for this process (STREAMADAPT_CACHE names a folder)",
        folder,
        why,
        copy,
    )
    if trusted:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
    return copy


def _is_trusted(folder: Path) -> bool:
    """Return whether only root and this user can put code into a folder."""
    found = folder.stat()
    mine = found.st_uid in (0, os.getuid())
    return mine and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
