"""Every error that streamadapt raises on purpose.

::

    StreamadaptError
    +-- ConfigError        a setting is wrong: its path, its value and what was expected
    +-- EntryError         one record is bad: it goes to the dead letters with its reason
    |   +-- LabelError     only the label in an entry's record is bad: the entry is predicted
    +-- ShapeError         an array or tensor does not have the expected shape
    +-- CheckpointError    a checkpoint cannot be written, read or trusted
    +-- ConnectorError     a source or a sink failed for good (it retries what can be retried)
    |   +-- TransactionLostError   a transaction is void: its partitions restart from their
    |                              last commit
    +-- BadShareError      nearly all records are refused: a wrong config, not bad records
    +-- RepairError        a line in a file of repaired dead letters has a wrong form
    +-- BusyError          a pipeline was called during one of its own calls
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Any

__all__ = [
    "BadShareError",
    "BusyError",
    "CheckpointError",
    "ConfigError",
    "ConnectorError",
    "EntryError",
    "LabelError",
    "Loss",
    "Reason",
    "RepairError",
    "ShapeError",
    "StreamadaptError",
    "TransactionLostError",
]


class StreamadaptError(Exception):
    """Root of the tree: catching it catches all that streamadapt raises on purpose."""


class ConfigError(StreamadaptError, ValueError):
    """A setting is wrong.

    Parameters
    ----------
    path : str
        The path of the setting, e.g. ``learners[1].lr``.
    value : object
        The value that was given.
    expected : str
        The accepted values, with the unit.
    """

    def __init__(self, path: str, value: object, expected: str) -> None:
        super().__init__(path, value, expected)
        self.path = path
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, got {self.value!r}"


class Reason(StrEnum):
    """Why a record became a dead letter; the values are metric labels and headers, so they never
    change."""

    EMPTY_VALUE = "empty_value"
    TOO_LARGE = "too_large"
    TOO_DEEP = "too_deep"
    NOT_JSON = "not_json"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    WRONG_WIDTH = "wrong_width"
    NOT_FINITE = "not_finite"
    BAD_TIME = "bad_time"
    TIME_BACKWARDS = "time_backwards"
    DUPLICATE_ID = "duplicate_id"
    UNKNOWN_LABEL = "unknown_label"
    DUPLICATE_LABEL = "duplicate_label"
    LATE_LABEL = "late_label"
    BAD_CLASS = "bad_class"
    LATE_RECORD = "late_record"
    UNKNOWN_SENSOR = "unknown_sensor"
    TOO_MANY_SENSORS = "too_many_sensors"
    BASE_FAILED = "base_failed"
    DUPLICATE_KEY = "duplicate_key"
    NO_KEY = "no_key"


class EntryError(StreamadaptError):
    """One record is bad. Raised before any state has changed.

    Parameters
    ----------
    reason : Reason
        The reason; it is also a header of the dead letter and a metric label.
    detail : str
        One line for a person: the field's path, the value and what was expected. Never the whole
        payload.
    position : Position or None
        The record's position in its source.
    """

    def __init__(self, reason: Reason, detail: str, position: Any = None) -> None:
        super().__init__(reason, detail, position)
        self.reason = reason
        self.detail = detail
        self.position = position

    def __str__(self) -> str:
        place = f"{self.position}: " if self.position is not None else ""
        return f"{place}{self.reason.value}: {self.detail}"


class LabelError(EntryError):
    """The label in an entry's record is bad. Only the label is refused; the entry is predicted."""


class ShapeError(StreamadaptError, ValueError):
    """An array or tensor does not have the expected shape."""


class CheckpointError(StreamadaptError):
    """A checkpoint cannot be written, read or trusted."""


class ConnectorError(StreamadaptError):
    """A source or a sink failed for good."""


class Loss(StrEnum):
    """Why a transaction was lost; the values are metric labels, so they never change."""

    NO_ANSWER = "no_answer"
    TAKEN = "taken"
    EXPIRED = "expired"
    REFUSED = "refused"
    FAILED = "failed"


class TransactionLostError(ConnectorError):
    """Predictions that were written since the last commit of some partitions never become visible.

    A sink can raise this from any of its methods. The engine then restarts these partitions from
    their last commit.

    Parameters
    ----------
    partitions : collection of int
        The input's partitions whose transactions are lost.
    cause : Loss
        ``NO_ANSWER``: the broker did not answer in time. ``TAKEN``: another producer writes under
        this name, or the broker ended the transaction. ``EXPIRED``: the broker no longer knows
        the name. ``REFUSED``: the broker refused a record, which the sink will not send again.
        ``FAILED``: any other cause.
    text : str
        What happened, for a person.
    """

    def __init__(self, partitions: Collection[int], cause: Loss, text: str) -> None:
        super().__init__(text)
        self.partitions = tuple(sorted(partitions))
        self.cause = cause


class BadShareError(StreamadaptError):
    """More of the recent records were refused than ``limits.max_bad_share`` tolerates: the engine
    stops."""


class RepairError(StreamadaptError):
    """A line in a file of repaired dead letters has a wrong form; the message names what was
    expected."""


class BusyError(StreamadaptError, RuntimeError):
    """A pipeline was called during one of its own calls: by `on_rejected`, a learner or the
    base."""
