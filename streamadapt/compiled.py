"""Functions that numba compiles, and the folder that keeps what it compiled.

`compiled` marks a function of numbers and arrays. Called from Python it is plain Python, so that a
debugger and coverage work; called from a kernel it is compiled into that kernel. `Kernel` is a
function that Python calls and numba compiles. It is compiled at its first call, and kept in a
folder whose name is a digest of everything the compiled code was made from: code that has changed
since is never used. With the environment variable ``STREAMADAPT_COMPILE=0`` nothing is compiled,
and numba is not imported.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, ModuleType
from typing import Any, Final, TypeVar

import numpy as np

from streamadapt.kernel_folder import (
    KernelFolder,
    cache_folder,
    is_kept,
    kernel_folder,
    mark_as_kept,
)

__all__ = [
    "ENABLED",
    "Kernel",
    "cache_folder",
    "compilations",
    "compiled",
    "compiling",
    "fingerprint",
    "inlined",
    "not_kept",
]

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
_LIBRARIES: Final = ("numba", "llvmlite", "numpy")
_marked: list[Callable[..., Any]] = []
_inlined: set[Callable[..., Any]] = set()
_lock = threading.RLock()
_compiling: set[str] = set()
_announced = threading.Event()
_not_kept: list[str] = []
_begun = [0]


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


def inlined(function: F) -> F:
    """Mark a function as `compiled` does, for a copy of its code in place of each call.

    A call writes the fields of all its arrays to the stack. Small functions that are called for
    each number cost less than that; so do the steps of a guard, which have dozens of arrays. A
    copy takes time to compile: a function of many lines is inlined only if one place calls it.
    """
    _inlined.add(function)
    return compiled(function)


def _register_marked() -> None:
    """Tell numba of the functions marked since the last call: importing them is free until a
    kernel is needed."""
    from numba.extending import register_jitable

    while _marked:
        function = _marked.pop()
        register_jitable(**MARKED_OPTIONS, forceinline=function in _inlined)(function)


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
    yield function.__module__, function.__qualname__  # compiled code imports the module again
    yield function in _inlined
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

    def prepare(self, *given: Any) -> None:
        """Call it with arguments for which it does nothing, so that it is loaded, or compiled."""
        self.call(*given)

    @property
    def ready(self) -> bool:
        """Whether it need not be compiled."""
        return not ENABLED or is_kept(self._digest)

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
                function, result = self._load(given)
                self.call = function
                return result
        return self.call(*given)

    def _load(self, given: tuple[Any, ...]) -> tuple[Callable[..., Any], Any]:
        """Return the function in its compiled form, and the result of its first call."""
        try:
            folder: Any = kernel_folder(self._digest)
        except OSError as error:  # its source cannot be read
            folder = nullcontext(KernelFolder(None, str(error)))
        with folder as found:
            if found.distrusted is not None:
                logger.warning(
                    "%s can be written to by others: it is compiled again", found.distrusted
                )
            function, cache = _dispatcher(self.function, self.name, found)
            try:
                result = function(*given)
            finally:
                _compiling.discard(self.name)
            if cache.complete and found.path is not None:
                try:
                    mark_as_kept(found.path)
                except OSError as error:
                    _warn_once(str(error))
        return function, result


def compiling() -> bool:
    """Return whether a kernel is being compiled right now, in any thread."""
    return bool(_compiling)


def compilations() -> int:
    """Return how many times this process has begun to compile a kernel."""
    return _begun[0]


def not_kept() -> str:
    """Return why code that this process compiled is not kept; empty if all of it is."""
    return _not_kept[0] if _not_kept else ""


def _dispatcher(
    function: Callable[..., Any], name: str, folder: KernelFolder
) -> tuple[Callable[..., Any], Any]:
    """Return numba's form of a function, and what keeps its code in `folder`."""
    import numba

    from streamadapt.kernel_cache import Watcher, kernel_cache

    def begin() -> None:
        _begun[0] += 1
        _announce(name, kept=not folder.problem)
        _compiling.add(name)

    def end(problem: str) -> None:
        _compiling.discard(name)
        if problem:
            _warn_once(problem)

    _register_marked()
    found: Any = numba.njit(nogil=True, **OPTIONS)(function)
    found._cache = kernel_cache(function, folder.path, folder.problem, Watcher(begin, end))
    return found, found._cache


def _announce(name: str, *, kept: bool) -> None:
    """Log that a kernel is compiled; for the first one, what that means."""
    logger.debug("compiling %s", name)
    if kept and not _announced.is_set():
        _announced.set()
        logger.info(
            "compiling learners and guard: predictions wait for up to a minute, once for each "
            "installation; streamadapt warm does it beforehand"
        )


def _warn_once(problem: str) -> None:
    """Warn that compiled code is not kept: once for each process, since one cause concerns all."""
    logger.debug("compiled code is not kept: %s", problem)
    _not_kept.append(problem)
    if len(_not_kept) == 1:
        logger.warning(
            "compiled code cannot be kept (%s): each start compiles learners and guard again, and "
            "predictions wait for up to a minute. To mend this, let STREAMADAPT_CACHE name a "
            "folder that only this user can write to, or one that streamadapt warm has filled",
            problem,
        )
