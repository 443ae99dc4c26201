"""``streamadapt checkpoint list|inspect|rollback``: lists and inspects checkpoints, and goes back
to one of them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from streamadapt.config.digest import misfit
from streamadapt.config.tables import Config
from streamadapt.errors import CheckpointError
from streamadapt.files import DamagedError
from streamadapt.state.folder import LocalFolder, folder_of
from streamadapt.state.manifest import CheckpointInfo
from streamadapt.state.store import CheckpointStore

__all__ = ["described", "inspected", "listed", "listing", "resumable", "rolled_back", "stores"]


def stores(path: str) -> dict[str, CheckpointStore]:
    """Return the checkpoint store of each partition in a folder: name of the sub-folder -> store.

    Parameters
    ----------
    path : str
        A config's ``checkpoint.path``, or the folder of one partition in it.

    Raises
    ------
    CheckpointError
        If the folder has no checkpoints, or cannot be read.
    """
    root = folder_of(path)
    try:
        folders = [root.child(name) for name in root.folders()]
    except OSError as exc:
        raise CheckpointError(
            f"{root}: cannot be read as a folder of checkpoints: {exc.strerror or exc}"
        ) from exc
    for candidates in ([root], folders):
        found = [store for store in map(CheckpointStore, candidates) if store.sequences()]
        if found:
            return {store.folder.name: store for store in found}
    raise CheckpointError(
        f"{root}: no checkpoints here; give the config's checkpoint.path or a folder in it"
    )


def _one_store(path: str) -> CheckpointStore:
    """Return the checkpoint store of the only partition; `CheckpointError` if there are
    several."""
    found = stores(path)
    if len(found) > 1:
        raise CheckpointError(
            f"{folder_of(path)}: several partitions ({', '.join(found)}); give the folder of one"
        )
    return next(iter(found.values()))


def _check_exists(store: CheckpointStore, sequence: int) -> None:
    sequences = store.sequences()
    if sequence not in sequences:
        raise CheckpointError(
            f"{store.folder}: no checkpoint {sequence}; there are {', '.join(map(str, sequences))}"
        )


def listed(path: str) -> Iterator[dict[str, Any]]:
    """Yield the facts of every checkpoint, oldest first in each partition; of a damaged
    checkpoint, the reason."""
    for name, store in stores(path).items():
        for sequence in store.sequences():
            try:
                yield {"partition": name, **described(store.info(sequence))}
            except (DamagedError, CheckpointError) as exc:
                yield {"partition": name, "sequence": sequence, "problem": str(exc)}


def described(info: CheckpointInfo) -> dict[str, Any]:
    """Return the facts in a manifest as JSON values, without its summary (see `inspected`)."""
    return {
        "sequence": info.sequence,
        "written": datetime.fromtimestamp(info.time_ns / 1e9, UTC).isoformat(timespec="seconds"),
        "size_bytes": info.size_bytes,
        "positions": {
            f"{at.stream}[{at.partition}]": offset for at, offset in info.positions.items()
        },
        "entries": info.summary.get("entries"),
        "config_digest": info.config_digest,
        "streamadapt": info.version,
    }


def listing(rows: list[dict[str, Any]]) -> Table:
    """Return the rows of `listed` as a table."""
    table = Table("partition", "checkpoint", "written (UTC)", "KiB", "entries", "next offsets")
    for row in rows:
        if "problem" in row:
            table.add_row(
                row["partition"], str(row["sequence"]), f"damaged: {row['problem']}", "", "", ""
            )
            continue
        positions = ", ".join(f"{at} {offset}" for at, offset in row["positions"].items())
        written = row["written"].removesuffix("+00:00").replace("T", " ")
        size = f"{row['size_bytes'] / 1024:,.0f}"
        entries = "" if row["entries"] is None else f"{row['entries']:,}"
        table.add_row(row["partition"], str(row["sequence"]), written, size, entries, positions)
    return table


def inspected(path: str, sequence: int | None = None) -> dict[str, Any]:
    """Return all facts of a checkpoint except its tensors, including restored learners and guard.

    Raises
    ------
    CheckpointError
        If there is no checkpoint of that number, or its manifest is damaged, or a file does not
        match the manifest.
    """
    store = _one_store(path)
    sequence = store.sequences()[-1] if sequence is None else sequence
    _check_exists(store, sequence)
    try:
        info = store.verified(sequence)
    except DamagedError as exc:
        raise CheckpointError(f"{store.folder}: checkpoint {sequence} is damaged: {exc}") from exc
    return {
        **described(info),
        "path": str(info.path),
        "settings": info.settings,
        "summary": info.summary,
    }


def rolled_back(path: str, sequence: int) -> list[int]:
    """Remove the checkpoints that are newer than `sequence`; return their numbers, oldest first.

    Raises
    ------
    CheckpointError
        If the checkpoint does not exist or is damaged (then nothing is removed), or an engine is
        running on the folder.
    """
    store = _one_store(path)
    _check_exists(store, sequence)
    before = store.sequences()
    with store:
        store.rollback(sequence)
    return [newer for newer in before if newer > sequence]


def resumable(config: Config) -> list[dict[str, Any]]:
    """Return for each partition that has checkpoints on this machine whether a run of a config
    would resume from the newest complete checkpoint.

    Checkpoints in an object store are left out: this connects to nothing.
    """
    if config.checkpoint is None:
        return []
    folder = folder_of(config.checkpoint.path)
    if not isinstance(folder, LocalFolder) or not folder.path.is_dir():
        return []
    stores = (CheckpointStore(folder.child(name)) for name in folder.folders())
    return [_resumed(store, config) for store in stores if store.sequences()]


def _resumed(store: CheckpointStore, config: Config) -> dict[str, Any]:
    """Search a checkpoint as a start does: the newest first, and damaged ones are skipped."""
    found: dict[str, Any] = {"partition": store.folder.name}
    damaged: dict[int, str] = {}
    for sequence in reversed(store.sequences()):
        try:
            info = store.info(sequence)
            problem = misfit(info.config_digest, info.settings, config.digest())
            if not problem:
                store.verified(sequence)
        except DamagedError as exc:
            damaged[sequence] = str(exc)
            continue
        except CheckpointError as exc:
            problem = str(exc)
        found |= {"sequence": sequence, "resumes": not problem, "problem": problem}
        return found | ({"damaged": damaged} if damaged else {})
    newest = max(damaged)
    return found | {
        "sequence": newest,
        "resumes": False,
        "problem": "none can be read",
        "damaged": damaged,
    }
