"""One TOML file: what to read, predict, learn and write. The same objects can be made in Python."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from streamadapt.errors import ConfigError
from streamadapt.registry import check_keys, convert

__all__ = ["CheckpointTable", "Config", "MetricsTable", "load_config", "parse_config"]

ENVIRONMENT_PREFIX = "STREAMADAPT__"


class CheckpointTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``[checkpoint]``: where and how often the state is saved."""

    path: str
    every: str = "10s"
    every_entries: int | None = None
    keep: int = 3


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
    guard: dict[str, Any] = msgspec.field(default_factory=lambda: {"kind": "two-layer"})
    checkpoint: CheckpointTable | None = None
    metrics: MetricsTable | None = None
    limits: dict[str, Any] = msgspec.field(default_factory=dict)
    device: str = "auto"
    seed: int = 0
    threads: int = 1

    def digest(self) -> str:
        """Digest of what the learned state depends on; where it is read from and written to is left out."""
        relevant = {
            name: getattr(self, name) for name in ("task", "base", "learners", "drift", "guard", "fields", "seed")
        }
        topics = {k: v for k, v in self.source.items() if k in ("topic", "label_topic", "path", "label_path")}
        text = msgspec.json.encode(relevant | {"source": topics}, order="sorted")
        return hashlib.sha256(text).hexdigest()[:16]


def load_config(path: Path, environment: Mapping[str, str] | None = None) -> Config:
    """Read a config file; settings in the environment win over the file.

    Parameters
    ----------
    environment : mapping, optional
        Default: the process's. ``STREAMADAPT__SOURCE__SERVERS=host:9092`` sets ``source.servers``; values are TOML
        where they parse as such, else text. Lists of tables take an index: ``STREAMADAPT__LEARNERS__0__LR=1e-3``.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not TOML, or a setting is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("config", str(path), f"a readable UTF-8 file ({exc})") from exc
    return parse_config(text, os.environ if environment is None else environment, origin=str(path))


def parse_config(text: str, environment: Mapping[str, str] | None = None, *, origin: str = "text") -> Config:
    """Parse TOML text; see `load_config`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError("config", origin, f"TOML ({exc})") from exc
    for name, value in sorted((environment or {}).items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            _put(table, name[len(ENVIRONMENT_PREFIX) :].lower().split("__"), _toml_value(value), name)
    check_keys("", table, Config.__struct_fields__)
    for name in ("source", "fields", "task", "base", "sink"):
        if name not in table:
            raise ConfigError(name, None, f"a table [{name}]")
    config: Config = Config(**{k: convert(v, _hint(k), k) for k, v in table.items()})
    if not config.threads >= 1:
        raise ConfigError("threads", config.threads, "a whole number >= 1")
    return config


def _hint(name: str) -> Any:
    return next(field.type for field in msgspec.structs.fields(Config) if field.name == name)


def _put(table: dict[str, Any], keys: list[str], value: Any, name: str) -> None:
    where: Any = table
    for key, following in zip(keys, [*keys[1:], ""], strict=True):
        last = not following and key is keys[-1]
        if isinstance(where, list):
            if not key.isdigit() or int(key) >= len(where):
                raise ConfigError(name, value, f"an index from 0 to {len(where) - 1} where it says {key!r}")
            if last:
                where[int(key)] = value
                return
            where = where[int(key)]
        elif isinstance(where, dict):
            if last:
                where[key] = value
                return
            where = where.setdefault(key, {})
        else:
            raise ConfigError(name, value, f"a table where the config has {where!r}")


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
