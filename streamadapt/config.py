"""One TOML file: what to read, predict, learn and write. The same objects can be made in Python."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamadapt.convert import check_keys, convert
from streamadapt.digest import ConfigDigest
from streamadapt.errors import ConfigError
from streamadapt.files import MOST_CONFIG, MOST_WEIGHTS, read_regular, read_text
from streamadapt.masking import masked, remember
from streamadapt.overrides import apply_environment, apply_settings
from streamadapt.secret_files import read_secret_files

__all__ = ["CheckpointTable", "Config", "KeysTable", "LabelsTable", "MetricsTable", "load_config", "parse_config"]

NEEDED = ("source", "fields", "task", "base", "sink")


class CheckpointTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``[checkpoint]``: where and how often the state is saved."""

    path: str
    every: str = "10s"
    every_entries: int | None = None
    keep: int = 3


class KeysTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``[keys]``: every key has a pipeline of its own; see `streamadapt.keyed`."""

    max_keys: int = 1000
    max_stored: int = 100_000
    path: str | None = None


class LabelsTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``[labels]``: how many labels to ask for, a prediction, and which share of them at random."""

    rate: float = 0.1
    floor: float = 0.2


class MetricsTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``[metrics]``: where Prometheus scrapes."""

    port: int
    host: str = "0.0.0.0"


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A whole config file.

    Tables with a ``kind`` are open: their other keys are the arguments of what the kind names.
    """

    source: dict[str, Any]
    fields: dict[str, Any]
    task: dict[str, Any]
    base: dict[str, Any]
    sink: dict[str, Any]
    dead_letters: dict[str, Any] | None = None
    learners: list[dict[str, Any]] | None = None
    drift: list[dict[str, Any]] = msgspec.field(default_factory=list)
    labels: LabelsTable | None = None
    guard: dict[str, Any] = msgspec.field(default_factory=lambda: {"kind": "two-layer"})
    intervals: dict[str, Any] | None = None
    checkpoint: CheckpointTable | None = None
    metrics: MetricsTable | None = None
    limits: dict[str, Any] = msgspec.field(default_factory=dict)
    keys: KeysTable | None = None
    panel: dict[str, Any] | None = None
    guarantee: str = "at-least-once"
    device: str = "auto"
    seed: int = 0
    threads: int = 1

    def __repr__(self) -> str:
        """Show everything but secrets."""
        return f"Config({masked('config', msgspec.to_builtins(self))})"

    def digest(self) -> ConfigDigest:
        """Digest of what the learned state depends on; where it is read from and written to is left out.

        A weights file counts by its content: moved it is the same base, fitted anew it is another.
        """
        relevant = {name: getattr(self, name) for name in ("task", "learners", "drift", "guard", "fields", "seed")}
        if self.labels is not None:
            relevant["labels"] = self.labels
        base = {k: _content(v) if k in ("weights", "path") else v for k, v in self.base.items()}
        if self.base.get("kind") == "onnx" and (beside := Path(f"{self.base.get('path')}.data")).exists():
            base["data"] = _content(beside)
        if self.keys is not None:
            relevant["keys"] = [self.keys.max_keys, self.keys.max_stored]
        if self.panel is not None:
            relevant["panel"] = self.panel
        if self.intervals is not None:
            relevant["intervals"] = self.intervals
        topics = {k: v for k, v in self.source.items() if k in ("topic", "label_topic", "path", "label_path")}
        return ConfigDigest(relevant | {"base": base, "source": topics})


def _content(path: object) -> object:
    try:
        return hashlib.sha256(read_regular(Path(str(path)), MOST_WEIGHTS)).hexdigest()
    except OSError:
        return str(path) if isinstance(path, Path) else path


def load_config(path: Path, environment: Mapping[str, str] | None = None, settings: Sequence[str] = ()) -> Config:
    """Read a config file; settings in the environment win over the file, and given ones over both.

    Parameters
    ----------
    environment : mapping, optional
        Default: the process's. ``STREAMADAPT__SOURCE__SERVERS=host:9092`` sets ``source.servers``; values are TOML
        where they parse as such, else text. Lists of tables take an index: ``STREAMADAPT__LEARNERS__0__LR=1e-3``.
        A secret may stand in a file: ``STREAMADAPT__SOURCE__SECURITY__SASL_PLAIN_PASSWORD_FILE=/run/secrets/x``.
    settings : sequence of str
        ``source.servers=host:9092``, ``learners.0.lr=1e-3``: as from the command line.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not TOML, or a setting is wrong.
    """
    try:
        text = read_text(path, MOST_CONFIG)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("config", str(path), f"a readable UTF-8 file ({exc})") from exc
    environment = os.environ if environment is None else environment
    return parse_config(text, environment, settings, origin=str(path))


def parse_config(
    text: str,
    environment: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
    *,
    origin: str = "text",
) -> Config:
    """Parse TOML text; see `load_config`. Without `environment` there is none."""
    try:
        table = tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as exc:  # not TOML, too many digits, too many brackets
        raise ConfigError("config", origin, f"TOML ({exc})") from exc
    apply_environment(table, environment or {})
    apply_settings(table, settings)
    read_secret_files(table)
    remember("", table)
    check_keys("", table, Config.__struct_fields__)
    for name in NEEDED:
        if name not in table:
            raise ConfigError(name, None, f"a table [{name}]")
    hints = {field.name: field.type for field in msgspec.structs.fields(Config)}
    config = Config(**{k: convert(v, hints[k], k) for k, v in table.items()})
    _check_ranges(config)
    return config


def _check_ranges(config: Config) -> None:
    _within("threads", config.threads, 1, 1024)
    _within("seed", config.seed, 0, 2**63 - 1)
    if config.checkpoint is not None:
        _within("checkpoint.keep", config.checkpoint.keep, 1)
        if config.checkpoint.every_entries is not None:
            _within("checkpoint.every_entries", config.checkpoint.every_entries, 1)
    if config.keys is not None:
        _within("keys.max_keys", config.keys.max_keys, 1)
        _within("keys.max_stored", config.keys.max_stored, 1)
    if config.metrics is not None:
        _within("metrics.port", config.metrics.port, 0, 65535)


def _within(path: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        raise ConfigError(path, value, f"a whole number >= {low}" + ("" if high is None else f" and <= {high}"))
