"""The settings of an engine, checked when they are created."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streamadapt.errors import ConfigError
from streamadapt.state.folder import Folder
from streamadapt.tasks.event_clock import DAY_NS, MAX_BEHIND_NS

__all__ = ["EngineSettings"]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The settings of an engine.

    Attributes
    ----------
    checkpoint_path : Path, str, Folder or None
        Folder (or its URL) with one sub-folder per partition; None: no checkpoints.
    checkpoint_every_s : float, s
        Longest time between two checkpoints.
    checkpoint_every_entries : int or None
        Largest number of records between two checkpoints; None: no limit.
    keep : int
        Checkpoints kept per partition.
    label_wait_s : float, s
        See `Merge`.
    poll_s : float, s
        Longest wait for records.
    turn_s : float, s
        Time for which records are processed before the engine checks the source, checkpoints and
        signals again. The partitions with waiting records share the time evenly; at least one
        record is processed each time.
    drain_s : float, s
        After `Engine.stop`, the time that a sink may still wait for deliveries before it gives
        up; see `Sink.break_off_when`.
    max_buffer : int, records
        A partition with this many waiting records is paused.
    max_ahead_ns, max_behind_ns : int, ns of event time
        See `Merge`.
    max_bad_share : float in (0, 1]
        The engine stops if more than this share of the last `BAD_SHARE_WINDOW` records was
        refused: then the config is wrong, not the records.
    config_digest : str
        Identifies the configuration; a checkpoint of another configuration is not loaded.
    guarantee : str
        One of `streamadapt.engine.guarantees.GUARANTEES`.
    keys_path : Path, str, Folder or None
        See `PartitionRunner`.
    """

    checkpoint_path: Path | str | Folder | None = None
    checkpoint_every_s: float = 10.0
    checkpoint_every_entries: int | None = None
    keep: int = 3
    label_wait_s: float = 2.0
    poll_s: float = 0.2
    turn_s: float = 1.0
    drain_s: float = 5.0
    max_buffer: int = 10_000
    max_ahead_ns: int = DAY_NS
    max_behind_ns: int = MAX_BEHIND_NS
    max_bad_share: float = 0.95
    config_digest: str = ""
    guarantee: str = "at-least-once"
    keys_path: Path | str | Folder | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoint_every_s", "poll_s"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(name, getattr(self, name), "a number of seconds > 0")
        if not self.drain_s >= 0.0:
            raise ConfigError("drain_s", self.drain_s, "a number of seconds >= 0")
        if not self.label_wait_s >= 0.0:
            raise ConfigError("label_wait", self.label_wait_s, "a number of seconds >= 0")
        if not 0.0 < self.max_bad_share <= 1.0:
            raise ConfigError("max_bad_share", self.max_bad_share, "a number in (0, 1]")
        if self.guarantee != "at-least-once" and self.checkpoint_path is None:
            raise ConfigError(
                "guarantee",
                self.guarantee,
                "at-least-once, or a table [checkpoint]: this guarantee needs checkpoints",
            )
        if self.guarantee == "exactly-once" and self.keep < 2:
            raise ConfigError(
                "checkpoint.keep", self.keep, "at least 2: the newest may have to be dropped"
            )
