"""File systems of fsspec that fail, for tests of object stores."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

from fsspec import register_implementation
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem


class Broken(Exception):
    """An error of a driver that is not an `OSError`."""


class FailingFileSystem(MemoryFileSystem):
    """An object store in memory that counts its requests, and fails once.

    ``before``: refused. ``torn``: half of a file was written, as on a mounted file system.
    ``after``: it was done, and the answer was lost.
    """

    protocol = "failing"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012
    fail_at: int | None = None
    how = "before"
    inside = False

    @classmethod
    def set_up(cls, fail_at: int | None = None, how: str = "before") -> None:
        cls.asked, cls.fail_at, cls.how = [], fail_at, how

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("failing://"))

    def _ask(self, name: str, do: Any, path: str = "", data: bytes | None = None) -> Any:
        cls = type(self)
        if cls.inside:
            return do()
        cls.asked.append(name)
        fails = len(cls.asked) - 1 == cls.fail_at
        cls.inside = True
        try:
            if not fails:
                return do()
            if cls.how == "torn" and data is not None:
                super().pipe_file(path, data[: len(data) // 2])
            if cls.how == "after":
                with suppress(OSError):
                    do()
            raise Broken(f"no route to {path}")
        finally:
            cls.inside = False

    def ls(self, path, detail=True, **kwargs):
        return self._ask("ls", lambda: super(FailingFileSystem, self).ls(path, detail, **kwargs))

    def info(self, path, **kwargs):
        return self._ask("info", lambda: super(FailingFileSystem, self).info(path, **kwargs))

    def cat_file(self, path, start=None, end=None, **kwargs):
        return self._ask(
            "cat", lambda: super(FailingFileSystem, self).cat_file(path, start, end, **kwargs)
        )

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        write = super().pipe_file
        return self._ask(f"pipe {mode}", lambda: write(path, value, mode, **kwargs), path, value)

    def mv(self, path1, path2, **kwargs):
        return self._ask("mv", lambda: super(FailingFileSystem, self).mv(path1, path2, **kwargs))

    def rm_file(self, path):
        return self._ask("rm_file", lambda: super(FailingFileSystem, self).rm_file(path))

    def rm(self, path, recursive=False, maxdepth=None):
        return self._ask(
            "rm", lambda: super(FailingFileSystem, self).rm(path, recursive, maxdepth)
        )


class CarelessFileSystem(MemoryFileSystem):
    """A file system without "create", as an old driver or server may be."""

    protocol = "careless"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("careless://"))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        super().pipe_file(path, value)


class AsynchronousFileSystem(AsyncFileSystem):
    """Like s3fs and gcsfs, it sends a file in one piece, with a coroutine that fsspec turns into a
    plain method."""

    protocol = "asynchronous"

    async def _pipe_file(self, path, value, mode="overwrite", **kwargs):
        raise Broken("no route")


for made in (FailingFileSystem, CarelessFileSystem, AsynchronousFileSystem):
    register_implementation(made.protocol, made, clobber=True)


def fresh(kind: str, tmp_path: Any) -> str:
    """Return a URL under which nothing exists."""
    return (
        f"local://{tmp_path}/deep/state"
        if kind == "local"
        else f"{kind}://bucket/{uuid.uuid4().hex}/state"
    )
