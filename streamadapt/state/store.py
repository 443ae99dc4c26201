"""Atomic, versioned, pickle-free checkpoints of one partition, on disk or in an object store.

::

    path/.fence-000001                  the owner's fencing token (see `streamadapt.state.fence`)
    path/000000000042/manifest.json     format, positions, summary, checksums (its own, too)
    path/000000000042/state.json        the state's tree (see `streamadapt.state.tree`)
    path/000000000042/state.safetensors the state's tensors, arrays and blobs

A checkpoint appears and disappears as a whole (see `streamadapt.state.folder`): at any instant a
reader finds whole checkpoints only. What storage damages later, the checksums find.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from streamadapt.clock import Clock, SystemClock
from streamadapt.config.digest import misfit
from streamadapt.errors import CheckpointError
from streamadapt.files import DamagedError
from streamadapt.records import StreamPartition
from streamadapt.state.fence import Fence
from streamadapt.state.folder import Folder, folder_of, numbered
from streamadapt.state.manifest import (
    MANIFEST,
    CheckpointInfo,
    Manifest,
    dump,
    finite,
    read_manifest,
    stored_file,
)
from streamadapt.state.tree import decode, encode, table_bytes
from streamadapt.version import __version__

__all__ = ["FORMAT_VERSION", "CheckpointInfo", "CheckpointStore", "Loaded"]

FORMAT_VERSION = 3
EPOCH = 1_000_000
"""In a folder that goes from owner to owner, each counts its checkpoints from a multiple of this,
of its token's or a higher one: whatever a former owner still writes has a lower number, and can
neither stand in the way nor be taken for the newest."""

FRESH_S = 1.0
"""For so long, and the time between two glances, the word of the last look at the owner is
taken."""

_LOG = logging.getLogger(__name__)
_TREE, _TENSORS = "state.json", "state.safetensors"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A complete checkpoint: the state bit for bit, and the facts of its manifest."""

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
    path : Path, str or Folder
        The partition's own folder, or the URL of one; made when first needed.
    keep : int, >= 1
        How many checkpoints stay.
    format_version : int
        What to write, and the newest format that is read.
    clock : Clock
        Where the time stamps come from.
    shared : bool
        Ownership goes by a consumer group's word: whoever comes takes the folder over, and the one
        before it is fenced off. Otherwise the folder belongs to the process that has locked it;
        where there are no locks, to the newcomer.
    guarantee : str
        What the writer promises its readers; stands in the manifest, since it says when a
        checkpoint counts.

    Raises
    ------
    CheckpointError
        If `keep` is below 1.
    ConfigError
        If nothing that is installed can read the URL.
    """

    def __init__(
        self,
        path: Path | str | Folder,
        *,
        keep: int = 3,
        format_version: int = FORMAT_VERSION,
        clock: Clock | None = None,
        shared: bool = False,
        guarantee: str = "at-least-once",
    ) -> None:
        if keep < 1:
            raise CheckpointError(
                f"{folder_of(path)}: keep must be at least 1 checkpoint, got {keep}"
            )
        self.folder = folder_of(path)
        self.keep = keep
        self.format_version = format_version
        self.shared = shared
        self.guarantee = guarantee
        self._clock = clock or SystemClock()
        self._fence: Fence | None = None
        self._looked = 0.0
        self._first = 1
        self.damaged = 0
        """Number of checkpoints that `load_latest` has skipped."""

    @property
    def leased(self) -> bool:
        """Whether the owner holds no lock, so that another process may take over the folder at any
        time."""
        return self.shared or not self.folder.locks

    def acquire(self) -> None:
        """Become the folder's only writer, until `close`. Idempotent.

        Raises
        ------
        CheckpointError
            If another store, here or in another process, is; the text names its pid.
        """
        if self._fence is not None:
            return
        with self._reporting("lock"):
            self.folder.make()
            if not self.leased:
                self.folder.lock()
            fence = Fence(self.folder)
            fence.take()
        if self.leased:
            self._first = max(max(self.sequences(), default=0) // EPOCH + 1, fence.token) * EPOCH
        self._fence = fence
        self._looked = self._clock.monotonic()

    def check_owner(self) -> None:
        """Raise `FencedError` if another store has taken over the folder since `acquire`."""
        if self._fence is not None:
            with self._reporting("check the owner"):
                self._fence.check()
            self._looked = self._clock.monotonic()

    def check_owner_throttled(self) -> None:
        """Call `check_owner` if the folder has no lock and the last check is older than the
        folder's `owner_check_interval_s`; used between two checkpoints."""
        if (
            self.leased
            and self._clock.monotonic() - self._looked >= self.folder.owner_check_interval_s
        ):
            self.check_owner()

    def lease(self) -> Callable[[], None]:
        """Return what raises `FencedError` if another store has taken the folder over; it outlives
        `close`.

        For what was written a while ago and is sent now, from any thread. It looks only if the
        last look, by whoever, is older than `FRESH_S`: then the process may have stood still.
        """
        fence = self._fence
        if fence is None or not self.leased:
            return lambda: None
        fresh_s = FRESH_S + self.folder.owner_check_interval_s

        def check() -> None:
            if self._clock.monotonic() - self._looked >= fresh_s:
                with self._reporting("check the owner"):
                    fence.check()
                self._looked = self._clock.monotonic()

        return check

    def close(self) -> None:
        """Release the folder for other writers. Idempotent."""
        self._fence = None
        self.folder.unlock()

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
        identities: Mapping[StreamPartition, str] | None = None,
    ) -> CheckpointInfo:
        """Write `state` and the positions it has reached as one unit, durably, and prune the
        oldest.

        Parameters
        ----------
        state : mapping
            Nested dicts, lists and tuples of tensors, arrays, numbers, text, bools, None and
            bytes.
        summary : mapping of JSON values
            Readable without torch; non-finite floats become null.
        on_step : callable of str, optional
            Called before each step with its name; fault-injection tests raise from it.
        identities : mapping, optional
            What the streams of the positions are; see `CheckpointInfo`.

        Raises
        ------
        CheckpointError
            If the state holds something without a safe form, the disk refuses, or another engine
            owns the folder (`FencedError` where it has taken it over).
        """
        step = on_step or (lambda name: None)
        self.acquire()
        assert self._fence is not None, "acquired"
        step("encode")
        tree, table = encode(state)
        files = {_TENSORS: table_bytes(table), _TREE: dump(tree)}
        with self._reporting("write"):
            self._fence.check()
            sequence = max([*self.sequences(), self._first - 1]) + 1
            self.folder.sweep(sequence)
            manifest = Manifest(
                format=self.format_version,
                streamadapt=__version__,
                sequence=sequence,
                time_ns=self._clock.time_ns(),
                config_digest=str(config_digest),
                config=getattr(config_digest, "settings", {}),
                fence=self._fence.token,
                guarantee=self.guarantee,
                positions=[(*partition, offset) for partition, offset in positions.items()],
                identities=[
                    (*partition, known) for partition, known in (identities or {}).items()
                ],
                summary=finite(summary),
                files={name: stored_file(data) for name, data in files.items()},
            )
            self.folder.publish(
                sequence, files | {MANIFEST: manifest.to_json()}, self.check_owner, step
            )
            step("prune")
            for old in self.sequences()[: -self.keep]:
                self.folder.remove(old)
        return manifest.info(self._at(sequence))

    def load_latest(
        self,
        config_digest: str | None = None,
        not_beyond: Mapping[StreamPartition, int] | None = None,
    ) -> Loaded | None:
        """Read the newest whole checkpoint; None where there is none at all.

        A damaged one is skipped with a warning in the log. `config_digest`, where given, must be
        the checkpoint's own.

        Parameters
        ----------
        not_beyond : mapping, optional
            A checkpoint of an exactly-once run with a position beyond the one given, or not given,
            never came to count: it is removed. The folder must be this store's then (`acquire`).

        Raises
        ------
        CheckpointError
            If all are damaged, the newest whole one has a newer format, or it belongs to another
            configuration.
        """
        sequences = self.sequences()
        damaged = False
        for sequence in reversed(sequences):
            try:
                manifest = self._fitting(sequence, config_digest)
                if not_beyond is not None and _is_void(
                    manifest.info(self._at(sequence)), not_beyond
                ):
                    self._drop(sequence)
                    continue
                return self._decoded(manifest)
            except DamagedError as exc:
                damaged = True
                self.damaged += 1
                _LOG.warning("skipping the damaged checkpoint %s: %s", self._at(sequence), exc)
        if damaged:
            raise CheckpointError(
                f"{self.folder}: none of the {len(sequences)} checkpoints can be read (the log "
                f"says why for each); "
                "restore them from a backup, or move the folder away to start from nothing"
            )
        return None

    def load(self, sequence: int, config_digest: str | None = None) -> Loaded:
        """Read one checkpoint. See `load_latest`, which most callers want."""
        return self._decoded(self._fitting(sequence, config_digest))

    def _fitting(self, sequence: int, config_digest: str | None) -> Manifest:
        manifest = self._manifest(sequence)
        if config_digest is not None and (
            why := misfit(manifest.config_digest, manifest.config, config_digest)
        ):
            raise CheckpointError(f"{self._at(sequence)}: {why}")
        return manifest

    def _decoded(self, manifest: Manifest) -> Loaded:
        import safetensors.torch

        files = self._files(manifest)
        try:
            state = decode(json.loads(files[_TREE]), safetensors.torch.load(files[_TENSORS]))
        except (CheckpointError, ValueError, RecursionError, safetensors.SafetensorError) as exc:
            raise DamagedError(f"its state cannot be decoded: {exc}") from exc
        return Loaded(state, manifest.info(self._at(manifest.sequence)))

    def list(self) -> list[CheckpointInfo]:
        """Return the checkpoints, oldest first, from their manifests alone; damaged ones are left
        out with a warning."""
        infos = []
        for sequence in self.sequences():
            try:
                infos.append(self.info(sequence))
            except DamagedError as exc:
                _LOG.warning("leaving out the damaged checkpoint %s: %s", self._at(sequence), exc)
        return infos

    def info(self, sequence: int) -> CheckpointInfo:
        """Return the facts of one manifest; raises `DamagedError` if its checksum is wrong."""
        return self._manifest(sequence).info(self._at(sequence))

    def verified(self, sequence: int) -> CheckpointInfo:
        """Return the facts of one manifest, and compare its files with their checksums without
        decoding them; raises `DamagedError` if one differs."""
        manifest = self._manifest(sequence)
        self._files(manifest)
        return manifest.info(self._at(sequence))

    def sequences(self) -> Sequence[int]:
        """Return the numbers of all checkpoints in order, damaged ones included."""
        with self._reporting("list the checkpoints"):
            return self.folder.numbers()

    def rollback(self, sequence: int) -> None:
        """Remove every checkpoint newer than `sequence`, newest first.

        Raises
        ------
        CheckpointError
            If `sequence` is not there or damaged (nothing is removed then), or another engine owns
            the folder.
        """
        self.acquire()
        try:
            self.load(sequence)
        except DamagedError as exc:
            raise CheckpointError(f"{self._at(sequence)}: cannot roll back to it: {exc}") from exc
        with self._reporting("roll back"):
            for newer in reversed([found for found in self.sequences() if found > sequence]):
                self.folder.remove(newer)
            self.folder.sync()

    def newest(self) -> CheckpointInfo | None:
        """Return the facts of the newest undamaged manifest; None if there is none."""
        for sequence in reversed(self.sequences()):
            with contextlib.suppress(DamagedError):  # `load_latest` passes over it, and says so
                return self.info(sequence)
        return None

    def _drop(self, sequence: int) -> None:
        with self._reporting("drop what was not committed"):
            _LOG.info("dropping checkpoint %s: it was not committed", self._at(sequence))
            self.folder.remove(sequence)
            self.folder.sync()

    def _at(self, sequence: int) -> Folder:
        return self.folder.child(numbered(sequence))

    def _manifest(self, sequence: int) -> Manifest:
        manifest = read_manifest(self._at(sequence), self.format_version)
        # The names are this module's own, so none that the manifest holds is ever used to open a
        # file.
        if set(manifest.files) != {_TENSORS, _TREE}:
            raise DamagedError(f"{MANIFEST} lists the files {sorted(manifest.files)}")
        if manifest.sequence != sequence:
            raise DamagedError(f"{MANIFEST} belongs to checkpoint {manifest.sequence}")
        return manifest

    def _files(self, manifest: Manifest) -> dict[str, bytes]:
        folder = self._at(manifest.sequence)
        files = {name: folder.read(name, manifest.files[name].bytes) for name in (_TENSORS, _TREE)}
        for name, data in files.items():
            if stored_file(data).sha256 != manifest.files[name].sha256:
                raise DamagedError(f"{name} does not match its checksum ({len(data)} bytes)")
        return files

    @contextlib.contextmanager
    def _reporting(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise CheckpointError(f"{self.folder}: cannot {doing}: {exc}") from exc


def _is_void(info: CheckpointInfo, committed: Mapping[StreamPartition, int]) -> bool:
    ahead = any(offset > committed.get(at, 0) for at, offset in info.positions.items())
    return ahead and info.guarantee == "exactly-once"
