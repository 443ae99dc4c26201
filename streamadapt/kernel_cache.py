"""How numba keeps the compiled code of one kernel: in a folder of ours, which it may only be able
to read. What fails costs only the keeping, never the call.

Importing this imports numba.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from numba.core import config
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    NullCache,
    UserProvidedCacheLocator,
)

__all__ = ["Watcher", "kernel_cache"]


class Watcher(NamedTuple):
    """What is called when a kernel is compiled.

    Attributes
    ----------
    begin : callable () -> None
        Its code was not found, so it is compiled now.
    end : callable (problem) -> None
        It has been compiled; `problem` says why its code was not kept, or is empty.
    """

    begin: Callable[[], None]
    end: Callable[[str], None]


class _Locator(UserProvidedCacheLocator):  # type: ignore[misc]
    def ensure_cache_path(self) -> None:
        """Accept a folder that can only be read: numba would refuse it."""


class _Files(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)


class _Kept(FunctionCache):  # type: ignore[misc]
    """Attribute `complete`: whether code was compiled and kept."""

    _impl_class = _Files

    def __init__(self, function: Callable[..., Any], problem: str, watcher: Watcher) -> None:
        super().__init__(function)
        self._problem, self._watcher = problem, watcher
        self.complete = False

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return compiled code, or None if there is none that can be used."""
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # a damaged file: unpickling it may raise anything
            found = None
            with suppress(OSError):
                self.flush()  # otherwise no other code could be kept in its place
        if found is None:
            self._watcher.begin()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep compiled code, if that is possible."""
        problem = self._problem
        if not problem:
            try:
                os.makedirs(self.cache_path, exist_ok=True)
                super().save_overload(sig, data)
                self.complete = True
            except MemoryError:
                raise
            except Exception as error:  # whatever numba's files raise
                problem = str(error) or type(error).__name__
        self._watcher.end(problem)


class _NotKept(NullCache):  # type: ignore[misc]
    complete = False

    def __init__(self, problem: str, watcher: Watcher) -> None:
        self._problem, self._watcher = problem, watcher

    def load_overload(self, sig: Any, target_context: Any) -> None:
        """Return None: it has to be compiled."""
        del sig, target_context
        self._watcher.begin()

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep nothing."""
        del sig, data
        self._watcher.end(self._problem)


def kernel_cache(
    function: Callable[..., Any], folder: Path | None, problem: str, watcher: Watcher
) -> Any:
    """Return where numba looks for the compiled code of a function, and keeps it.

    Parameters
    ----------
    folder : Path or None
        None: code is neither read nor written.
    problem : str
        Why nothing can be written; empty if it can.
    """
    if folder is None:
        return _NotKept(problem, watcher)
    try:
        with _numba_folder(folder):
            return _Kept(function, problem, watcher)
    except (OSError, RuntimeError) as error:  # the function has no file
        return _NotKept(problem or str(error), watcher)


@contextmanager
def _numba_folder(folder: Path) -> Iterator[None]:
    """Let numba keep what is declared inside in `folder`; a program's other functions stay where
    they are."""
    names = ("CACHE_DIR", "CACHE_LOCATOR_CLASSES")
    before = {name: getattr(config, name, "") for name in names}
    config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = str(folder), ""
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
