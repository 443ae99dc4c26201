"""A checkpoint's manifest: facts about the state, readable without torch, with checksums."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from streamadapt.errors import CheckpointError
from streamadapt.files import DamagedError
from streamadapt.records import StreamPartition
from streamadapt.state.folder import Folder
from streamadapt.version import __version__

__all__ = [
    "MANIFEST",
    "CheckpointInfo",
    "Manifest",
    "StoredFile",
    "checksum_of",
    "dump",
    "finite",
    "read_manifest",
    "stored_file",
]

MANIFEST = "manifest.json"
MOST_MANIFEST = 1 << 28
"""Bytes: the summary names every learner and detector of a pipeline, not of every key."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """The facts of a checkpoint's manifest.

    Attributes
    ----------
    sequence : int
        Its number, counting up from 1 within the folder.
    time_ns : int, ns since the Unix epoch
        When it was written.
    size_bytes : int
        All its files together, the manifest excepted.
    positions : dict of StreamPartition to int
        The offset of the first record that is not yet in the state.
    summary : dict
        What the writer wanted to be readable without torch; JSON values.
    config_digest : str
        Digest of the configuration that the state belongs to.
    guarantee : str
        The one that its writer gave.
    settings : dict
        What that is the digest of, by path, secrets hidden; empty if it was written before that
        was kept.
    version : str
        The streamadapt that wrote it.
    fence : int
        The writer's fencing token; 0 if it was written before there were any.
    identities : dict of StreamPartition to str
        The source's identities of its streams (see `streamadapt.engine.ports.Source.identities`);
        empty if the source has none.
    """

    sequence: int
    time_ns: int
    size_bytes: int
    positions: dict[StreamPartition, int]
    summary: dict[str, Any]
    config_digest: str
    version: str
    path: Path | str
    fence: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    guarantee: str = "at-least-once"
    identities: dict[StreamPartition, str] = field(default_factory=dict)


class StoredFile(msgspec.Struct, frozen=True):
    """Size in bytes and SHA-256 of one file beside the manifest."""

    bytes: int
    sha256: str


def stored_file(data: bytes) -> StoredFile:
    """Return the size and the SHA-256 of a file's content."""
    return StoredFile(len(data), hashlib.sha256(data).hexdigest())


class Manifest(msgspec.Struct, frozen=True):
    """The manifest's fields, `checksum` excepted; see `CheckpointInfo` for their meaning."""

    format: int
    streamadapt: str
    sequence: int
    time_ns: int
    config_digest: str
    positions: list[tuple[str, int, int]]
    summary: dict[str, Any]
    files: dict[str, StoredFile]
    fence: int = 0
    config: dict[str, Any] = {}
    guarantee: str = "at-least-once"
    identities: list[tuple[str, int, str]] = []

    def to_json(self) -> bytes:
        """Return the file's text, with the checksum of everything else in it."""
        content = msgspec.to_builtins(self)
        return dump(content | {"checksum": checksum_of(content)}, indent=1)

    def info(self, folder: Folder) -> CheckpointInfo:
        """Return the manifest as `CheckpointInfo`."""
        return CheckpointInfo(
            sequence=self.sequence,
            time_ns=self.time_ns,
            size_bytes=sum(file.bytes for file in self.files.values()),
            positions={
                StreamPartition(stream, partition): offset
                for stream, partition, offset in self.positions
            },
            summary=self.summary,
            config_digest=self.config_digest,
            version=self.streamadapt,
            path=folder.path,
            fence=self.fence,
            settings=self.config,
            guarantee=self.guarantee,
            identities={
                StreamPartition(stream, partition): known
                for stream, partition, known in self.identities
            },
        )


def read_manifest(folder: Folder, own_format: int) -> Manifest:
    """Read and check a manifest.

    Raises
    ------
    DamagedError
        If it is torn, altered or makes no sense.
    CheckpointError
        If it is whole, but of another format than `own_format`.
    """
    try:
        content = json.loads(folder.read(MANIFEST, MOST_MANIFEST))
        intact = content.pop("checksum") == checksum_of(content)
        # The checksum first: a flipped bit must not pass for a newer format.
        if intact and content["format"] != own_format:
            written, above = content["format"], content["format"] > own_format
            raise CheckpointError(
                f"{folder}: format {written} is {'newer' if above else 'older'} than format "
                f"{own_format}, the one that "
                f"streamadapt {__version__} reads; "
                + (
                    f"upgrade to at least streamadapt {content.get('streamadapt')}"
                    if above
                    else "use another checkpoint path to start from nothing"
                )
            )
        manifest = msgspec.convert(content, Manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise DamagedError(f"{MANIFEST} is damaged ({type(exc).__name__}: {exc})") from exc
    if not intact:
        raise DamagedError(f"{MANIFEST} does not match its checksum")
    return manifest


def finite(value: Any) -> Any:
    """Turn `value` into strict JSON values: tuples into lists, non-finite floats into None, keys
    into str."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise CheckpointError(
        f"the summary must hold JSON values, got a {type(value).__qualname__}: {value!r}"
    )


def dump(value: Any, indent: int | None = None) -> bytes:
    """Return strict JSON."""
    return json.dumps(
        value, allow_nan=False, indent=indent, separators=None if indent else (",", ":")
    ).encode("ascii")


def checksum_of(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content; the order of its keys does not matter."""
    return hashlib.sha256(
        json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode("ascii")
    ).hexdigest()
