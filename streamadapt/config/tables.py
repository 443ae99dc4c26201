"""The tables of a config file: what to read, predict, learn and write.

The same objects can be made in Python.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamadapt.config.convert import check_keys, convert
from streamadapt.config.digest import ConfigDigest
from streamadapt.config.overrides import apply_environment, apply_settings
from streamadapt.config.renamed import use_new_names, with_old_names
from streamadapt.config.secret_files import read_secret_files
from streamadapt.config.secrets import masked, remember
from streamadapt.errors import ConfigError
from streamadapt.files import MAX_CONFIG_BYTES, MAX_WEIGHTS_BYTES, read_regular, read_text

__all__ = [
    "BaseKeys",
    "CheckpointTable",
    "Config",
    "KeysTable",
    "LabelsTable",
    "LimitKeys",
    "MetricsTable",
    "SourceKeys",
    "load_config",
    "parse_config",
]

REQUIRED_TABLES = ("source", "fields", "task", "base", "sink")


class CheckpointTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where and how often the state is saved; without this table it is not saved.

    Attributes
    ----------
    path : str
        A folder, or a URL such as ``s3://bucket/state``.
    every : duration, > 0
        A checkpoint is written at least this often while records come.
    every_entries : int, >= 1
        A checkpoint is also written after this number of entries.
    keep : int, >= 1
        The number of checkpoints that are kept for each partition; at least 2 with
        ``exactly-once``.
    """

    path: str
    every: str = "10s"
    every_entries: int | None = None
    keep: int = 3


class KeysTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Every key has a pipeline of its own: its own learners and its own guard.

    Attributes
    ----------
    max_keys : int, >= 1
        The largest number of keys in memory, and in a checkpoint. The key that was used least
        recently is moved to the disk first.
    max_stored : int, >= 1
        The largest number of keys on the disk. Beyond it the key that was used least recently is
        forgotten.
    path : str
        The folder, or the URL, for the keys that are not in memory. Default: inside the folder of
        the checkpoints.
    """

    max_keys: int = 1000
    max_stored: int = 100_000
    path: str | None = None


class LabelsTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Which labels to ask for, if labels cost money or time. Each prediction shows whether its
    label is requested.

    Attributes
    ----------
    rate : float, in (0, 1]
        Labels asked for, per prediction: 0.1 asks for one label in ten.
    floor : float, in (0, 1]
        The share of the requested labels that is chosen at random; 1 chooses all at random.
    """

    rate: float = 0.1
    floor: float = 0.2


class MetricsTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where Prometheus reads the metrics, and where ``/live`` and ``/ready`` answer.

    Attributes
    ----------
    port : int, from 0 to 65535
        The HTTP port; 0 takes a free one.
    host : str
        The address to listen on; ``0.0.0.0`` is every address of the machine.
    """

    port: int
    host: str = "0.0.0.0"


class SourceKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of ``[source]`` that every kind of source takes.

    Attributes
    ----------
    label_wait : duration
        How long an entry waits for a label stream that has nothing more to read.
    delimiter : str, one character
        The character between the cells of a CSV file. This key and the following ones say how
        files are written:
        the files of ``kind = "files"``, and those given to ``streamadapt replay`` and
        ``streamadapt fit``.
    columns : list of str
        The names of the columns, for CSV files without a header.
    comment : str
        Lines of a CSV file that begin with this text are passed over.
    encoding : str
        The encoding of the text, by Python's names, such as ``cp1252``. Default: UTF-8. A
        byte-order mark at the start of a file has priority.
    """

    label_wait: str = "2s"
    delimiter: str = ","
    columns: Sequence[str] = ()
    comment: str = ""
    encoding: str | None = None


class BaseKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of ``[base]`` that every kind of base takes.

    Attributes
    ----------
    scaling : str
        A file with the usual location and scale of inputs and outputs, for a base that does not
        know them; written by ``streamadapt fit``.
    """

    scaling: str | None = None


class LimitKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on the size and the time of records, and when a run is stopped.

    Attributes
    ----------
    record_bytes : int, >= 1, bytes
        Larger records are refused.
    depth : int, >= 1
        Records with more levels of nested arrays and objects are refused.
    width : int, >= 1
        Records with more fields, or with longer arrays, are refused.
    id_bytes : int, >= 1, bytes
        Longer ids and keys are refused.
    max_buffer : int, >= 1, records
        A partition with this number of records waiting is not read until some are processed.
    max_ahead : duration
        An entry that is dated further ahead of the newest entry is refused, until other records
        agree with it.
    max_behind : duration
        An entry that is older than the newest entry by more than this is refused.
    max_bad_share : float, in (0, 1]
        The run stops with exit code 3 when more than this share of the last 5,000 records was
        refused. 1.0 never stops.
    stuck_after : duration, > 0
        A run that does not move for this long is reported by ``/ready``, by a metric and in the
        log.
    """

    record_bytes: int = 1 << 20
    depth: int = 64
    width: int = 10_000
    id_bytes: int = 4096
    max_buffer: int = 10_000
    max_ahead: Any = "1d"  # Any: a duration, which says itself what it expects
    max_behind: Any = "5s"
    max_bad_share: float = 0.95
    stuck_after: Any = "60s"


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A whole config file.

    Tables with a ``kind`` are open: their other keys are the arguments of the class that the kind
    names.

    Attributes
    ----------
    source : table
        Where entries and labels are read from.
    fields : table
        The fields of a record that have the time, the values, the label and the id, and how these
        are written.
    task : table
        What is predicted, from what, and when the truth is known.
    base : table
        The frozen model whose predictions are corrected; it is never written to.
    sink : table
        Where predictions are written to.
    dead_letters : table
        Where refused records are written to, with the reason. Default: beside the predictions.
    learners : list of tables
        The learners, one table each. Default: a set of learners that suits the task.
    drift : list of tables
        The drift monitors and their reactions, one table each. Default: none.
    labels : table
        Which labels to ask for.
    guard : table
        How the base and the learners are mixed into the prediction that is served.
    intervals : table
        Prediction intervals around the served prediction. Default: none.
    checkpoint : table
        Where and how often the state is saved.
    metrics : table
        Where Prometheus reads the metrics.
    limits : table
        Limits on the size and the time of records.
    keys : table
        A pipeline for each key, instead of one for all entries.
    panel : table
        Assembles the records of single sensors into entries by their times.
    guarantee : {"at-least-once", "effectively-once", "exactly-once"}
        What a reader of the predictions sees after a crash; docs/delivery.md explains the three.
    device : str
        Where tensors live: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. ``auto`` takes a GPU for
        large outputs only.
    seed : int, from 0 to 2^63 - 1
        The seed of all random numbers.
    threads : int, from 1 to 1024
        Threads of torch. Steps are small: one thread is usually the fastest.
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
        """Return the digest of the settings that the learned state depends on, without the places
        that data is read from and written to.

        A weights file counts by its content: a moved file is the same base, a newly fitted file is
        another base. Renamed keys count by their old names, so that no checkpoint is refused.
        """
        relevant = {
            name: getattr(self, name)
            for name in ("task", "learners", "drift", "guard", "fields", "seed")
        }
        if self.labels is not None:
            relevant["labels"] = self.labels
        base = {k: _content(v) if k in ("weights", "path") else v for k, v in self.base.items()}
        if (
            self.base.get("kind") == "onnx"
            and (beside := Path(f"{self.base.get('path')}.data")).exists()
        ):
            base["data"] = _content(beside)
        if self.keys is not None:
            relevant["keys"] = [self.keys.max_keys, self.keys.max_stored]
        if self.panel is not None:
            relevant["panel"] = self.panel
        if self.intervals is not None:
            relevant["intervals"] = self.intervals
        topics = {
            k: v
            for k, v in self.source.items()
            if k in ("topic", "label_topic", "path", "label_path")
        }
        return ConfigDigest(with_old_names(relevant | {"base": base, "source": topics}))


def _content(path: object) -> object:
    try:
        return hashlib.sha256(read_regular(Path(str(path)), MAX_WEIGHTS_BYTES)).hexdigest()
    except OSError:
        return str(path) if isinstance(path, Path) else path


def load_config(
    path: Path,
    environment: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
    warn: Callable[[str], None] | None = None,
) -> Config:
    """Read a config file; the environment overrides the file, and `settings` override both.

    Parameters
    ----------
    environment : mapping, optional
        Default: the environment of this process. ``STREAMADAPT__SOURCE__SERVERS=host:9092`` sets
        ``source.servers``; a value that is valid TOML is parsed, any other value is text. Lists of
        tables take an index: ``STREAMADAPT__LEARNERS__0__LR=1e-3``. A secret may be in a file:
        ``STREAMADAPT__SOURCE__SECURITY__SASL_PLAIN_PASSWORD_FILE=/run/secrets/x``.
    settings : sequence of str
        ``source.servers=host:9092``, ``learners.0.lr=1e-3``, as on the command line.
    warn : callable (str) -> None, optional
        Takes one line for each key that has its old name. Default: a `FutureWarning`.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not TOML, or a setting is wrong.
    """
    try:
        text = read_text(path, MAX_CONFIG_BYTES)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("config", str(path), f"a readable UTF-8 file ({exc})") from exc
    environment = os.environ if environment is None else environment
    return parse_config(text, environment, settings, origin=str(path), warn=warn)


def parse_config(
    text: str,
    environment: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
    *,
    origin: str = "text",
    warn: Callable[[str], None] | None = None,
) -> Config:
    """Parse TOML text; see `load_config`. Without `environment`, no variable is read."""
    try:
        table = tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as exc:  # not TOML, too many digits, too many brackets
        raise ConfigError("config", origin, f"TOML ({exc})") from exc
    renamed: list[str] = []
    use_new_names(table, renamed.append)
    use_new_names(table, renamed.append, apply_environment(table, environment or {}))
    use_new_names(table, renamed.append, apply_settings(table, settings))
    for line in dict.fromkeys(renamed):
        if warn is None:
            warnings.warn(line, FutureWarning, stacklevel=2)
        else:
            warn(line)
    read_secret_files(table)
    remember("", table)
    check_keys("", table, Config.__struct_fields__)
    for name in REQUIRED_TABLES:
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
        raise ConfigError(
            path, value, f"a whole number >= {low}" + ("" if high is None else f" and <= {high}")
        )
