"""Atomic, versioned, pickle-free checkpoints of one partition on disk.

::

    path/.lock                          pid of the engine that owns the folder
    path/000000000042/manifest.json     format, positions, summary, checksums of the others and of itself
    path/000000000042/state.json        the state's tree (see `streamadapt.statetree`)
    path/000000000042/state.safetensors the state's tensors, arrays and blobs
    path/.tmp-*                         being written or being removed; never read

A checkpoint appears by one rename of a folder whose files are already on disk, and disappears by one rename too: at
any instant a reader finds whole checkpoints only. What a disk damages later, the checksums find.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from streamadapt import __version__
from streamadapt.durable import DamagedError, read, sync, write
from streamadapt.errors import CheckpointError
from streamadapt.manifest import MANIFEST, CheckpointInfo, Manifest, StoredFile, dump, finite, read_manifest
from streamadapt.ports import Clock, StreamPartition, SystemClock
from streamadapt.statetree import decode, encode

__all__ = ["FORMAT_VERSION", "CheckpointInfo", "CheckpointStore", "Loaded"]

FORMAT_VERSION = 3

_LOG = logging.getLogger(__name__)
_TREE, _TENSORS = "state.json", "state.safetensors"
_FOLDER = re.compile(r"\d{12}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that was read whole: the state bit for bit, and what the manifest says."""

    state: dict[str, Any] = field(repr=False)
    info: CheckpointInfo

    @property
    def positions(self) -> dict[StreamPartition, int]:
        """The offset of the first record that is not yet in the state, by partition."""
        return self.info.positions


class CheckpointStore:
    """The checkpoints of one partition. One writer at a time, across processes.

    Parameters
    ----------
    path : Path
        The partition's own folder; made when first needed.
    keep : int, >= 1
        How many checkpoints stay.
    format_version : int
        What to write, and the newest format that is read.
    clock : Clock
        Where the time stamps come from.

    Raises
    ------
    CheckpointError
        If `keep` is below 1.
    """

    def __init__(
        self, path: Path, *, keep: int = 3, format_version: int = FORMAT_VERSION, clock: Clock | None = None
    ) -> None:
        if keep < 1:
            raise CheckpointError(f"{path}: keep must be at least 1 checkpoint, got {keep}")
        self.path = Path(path)
        self.keep = keep
        self.format_version = format_version
        self._clock = clock or SystemClock()
        self._lock: int | None = None

    def acquire(self) -> None:
        """Become the folder's only writer, until `close`. Idempotent.

        Raises
        ------
        CheckpointError
            If another store, here or in another process, is; the text names its pid.
        """
        if self._lock is not None:
            return
        with self._reporting("lock"):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            owner = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise CheckpointError(
                f"{self.path}: another engine (pid {owner}) writes checkpoints here; stop it or use another path"
            ) from exc
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock

    def close(self) -> None:
        """Let others write here. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)  # releases the lock; the file stays, since removing it would race with the next owner
            self._lock = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def save(
        self,
        state: Mapping[str, Any],
        positions: Mapping[StreamPartition, int],
        *,
        config_digest: str,
        summary: Mapping[str, Any],
        on_step: Callable[[str], None] | None = None,
    ) -> CheckpointInfo:
        """Write `state` and the positions it has reached as one unit, durably, and prune the oldest.

        Parameters
        ----------
        state : mapping
            Nested dicts, lists and tuples of tensors, arrays, numbers, text, bools, None and bytes.
        summary : mapping of JSON values
            Readable without torch; non-finite floats become null.
        on_step : callable of str, optional
            Called before each step with its name; fault-injection tests raise from it.

        Raises
        ------
        CheckpointError
            If the state holds something without a safe form, the disk refuses, or another engine owns the folder.
        """
        import safetensors.torch

        step = on_step or (lambda name: None)
        self.acquire()
        step("encode")
        tree, table = encode(state)
        files = {_TENSORS: safetensors.torch.save(table), _TREE: dump(tree)}
        with self._reporting("write"):
            self._sweep()
            sequence = max(self.sequences(), default=0) + 1
            manifest = Manifest(
                format=self.format_version,
                streamadapt=__version__,
                sequence=sequence,
                time_ns=self._clock.time_ns(),
                config_digest=config_digest,
                positions=[(stream, partition, offset) for (stream, partition), offset in positions.items()],
                summary=finite(summary),
                files={name: StoredFile(len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()},
            )
            self._publish(sequence, files | {MANIFEST: manifest.to_json()}, step)
            step("prune")
            for old in self.sequences()[: -self.keep]:
                self._remove(old)
        return manifest.info(self.path / _name(sequence))

    def load_latest(self, config_digest: str | None = None) -> Loaded | None:
        """Read the newest whole checkpoint; None where there is none at all.

        A damaged one is skipped with a warning in the log. `config_digest`, where given, must be the checkpoint's own.

        Raises
        ------
        CheckpointError
            If all are damaged, the newest whole one has a newer format, or it belongs to another configuration.
        """
        sequences = self.sequences()
        for sequence in reversed(sequences):
            try:
                return self.load(sequence, config_digest)
            except DamagedError as exc:
                _LOG.warning("skipping the damaged checkpoint %s: %s", self.path / _name(sequence), exc)
        if sequences:
            raise CheckpointError(
                f"{self.path}: none of the {len(sequences)} checkpoints can be read (the log says why for each); "
                "restore them from a backup, or move the folder away to start from nothing"
            )
        return None

    def load(self, sequence: int, config_digest: str | None = None) -> Loaded:
        """Read one checkpoint. See `load_latest`, which most callers want."""
        import safetensors.torch

        folder = self.path / _name(sequence)
        manifest = self._manifest(sequence)
        if config_digest is not None and manifest.config_digest != config_digest:
            raise CheckpointError(
                f"{folder}: written with configuration {manifest.config_digest}, but this one is {config_digest}; "
                "use the old configuration, or another checkpoint path to start from nothing"
            )
        files = self._files(manifest)
        try:
            state = decode(json.loads(files[_TREE]), safetensors.torch.load(files[_TENSORS]))
        except (CheckpointError, ValueError, RecursionError, safetensors.SafetensorError) as exc:
            raise DamagedError(f"its state cannot be decoded: {exc}") from exc
        return Loaded(state, manifest.info(folder))

    def list(self) -> list[CheckpointInfo]:
        """Return what is there, oldest first, from the manifests alone; damaged ones are left out with a warning."""
        infos = []
        for sequence in self.sequences():
            try:
                infos.append(self.info(sequence))
            except DamagedError as exc:
                _LOG.warning("leaving out the damaged checkpoint %s: %s", self.path / _name(sequence), exc)
        return infos

    def info(self, sequence: int) -> CheckpointInfo:
        """Return what one manifest says; `DamagedError` if that cannot be believed."""
        return self._manifest(sequence).info(self.path / _name(sequence))

    def verified(self, sequence: int) -> CheckpointInfo:
        """Return what one manifest says, its files held against it, not decoded; `DamagedError` if one differs."""
        manifest = self._manifest(sequence)
        self._files(manifest)
        return manifest.info(self.path / _name(sequence))

    def sequences(self) -> Sequence[int]:
        """Return the numbers of what is there, damaged ones too, in order."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise CheckpointError(f"{self.path}: cannot list the checkpoints: {exc}") from exc
        return sorted(int(name) for name in names if _FOLDER.fullmatch(name))

    def rollback(self, sequence: int) -> None:
        """Remove every checkpoint newer than `sequence`, newest first.

        Raises
        ------
        CheckpointError
            If `sequence` is not there or damaged (nothing is removed then), or another engine owns the folder.
        """
        self.acquire()
        try:
            self.load(sequence)
        except DamagedError as exc:
            raise CheckpointError(f"{self.path / _name(sequence)}: cannot roll back to it: {exc}") from exc
        with self._reporting("roll back"):
            for newer in reversed([found for found in self.sequences() if found > sequence]):
                self._remove(newer)
            sync(self.path)

    def _manifest(self, sequence: int) -> Manifest:
        manifest = read_manifest(self.path / _name(sequence), self.format_version)
        # The names are this module's own, so none that the manifest holds is ever used to open a file.
        if set(manifest.files) != {_TENSORS, _TREE}:
            raise DamagedError(f"{MANIFEST} lists the files {sorted(manifest.files)}")
        if manifest.sequence != sequence:
            raise DamagedError(f"{MANIFEST} belongs to checkpoint {manifest.sequence}")
        return manifest

    def _files(self, manifest: Manifest) -> dict[str, bytes]:
        folder = self.path / _name(manifest.sequence)
        files = {name: read(folder, name) for name in (_TENSORS, _TREE)}
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
                raise DamagedError(f"{name} does not match its checksum ({len(data)} bytes)")
        return files

    def _publish(self, sequence: int, files: Mapping[str, bytes], step: Callable[[str], None]) -> None:
        temporary = self.path / f".tmp-{_name(sequence)}"
        step("mkdir")
        temporary.mkdir()
        for name, data in files.items():
            step(f"write {name}")
            write(temporary / name, data)
        step("sync folder")
        sync(temporary)
        step("rename")
        temporary.rename(self.path / _name(sequence))
        step("sync parent")
        sync(self.path)

    def _remove(self, sequence: int) -> None:
        # Out of sight in one step first, so that a crash half way leaves no half checkpoint to warn about.
        doomed = self.path / f".tmp-old-{_name(sequence)}"
        (self.path / _name(sequence)).rename(doomed)
        shutil.rmtree(doomed)

    def _sweep(self) -> None:
        for stale in self.path.glob(".tmp-*"):
            shutil.rmtree(stale)

    @contextlib.contextmanager
    def _reporting(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise CheckpointError(f"{self.path}: cannot {doing}: {exc}") from exc


def _name(sequence: int) -> str:
    return f"{sequence:012d}"
