"""Judges a run by its result: it must accept most records, and it must predict and learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from streamadapt.app.exit_codes import EXIT_REFUSED
from streamadapt.errors import Reason

__all__ = ["MAX_REFUSED_SHARE", "Problem", "hint_of", "problem_of", "refusals"]

MAX_REFUSED_SHARE: Final = 0.5
"""If a larger share of the records is refused, the config is probably wrong."""

HINTS: Final[Mapping[str, str]] = {
    Reason.EMPTY_VALUE: "the records have no value: keep such records (Kafka tombstones) out of "
    "the stream",
    Reason.TOO_LARGE: "limits.record_bytes is the size of the largest record that is accepted, "
    "limits.id_bytes that of the longest id or key",
    Reason.TOO_DEEP: "limits.depth is the largest depth of nested arrays and objects",
    Reason.NOT_JSON: "records must be JSON objects: check [source]; the name of a file must end "
    "in .csv or .jsonl",
    Reason.MISSING_FIELD: "[fields] must contain the names of the fields in the records "
    "(fields.missing_as_null = true accepts a record without one of its values)",
    Reason.WRONG_TYPE: "[fields] may contain the name of a wrong field; numbers written as text "
    "need fields.text_numbers = true",
    Reason.WRONG_WIDTH: "fields.values, fields.channels, fields.outputs and limits.width set the "
    "number of values",
    Reason.NOT_FINITE: "a number is infinite or too large: the producer should send null, or no "
    "field, for a missing number",
    Reason.BAD_TIME: "fields.time and fields.time_format set how times are written; "
    "limits.max_ahead is how far the time of a record may be ahead of the following records",
    Reason.TIME_BACKWARDS: "entries must come in the order of their times: sort them, or set "
    "limits.max_behind; independent sources in one stream need [keys]",
    Reason.DUPLICATE_ID: "fields.id must be a field that is different for each entry",
    Reason.UNKNOWN_LABEL: "fields.label_id must be the fields.id of an entry, and the time of the "
    "label later than the entry's",
    Reason.DUPLICATE_LABEL: "an entry has one label: check fields.label_id",
    Reason.LATE_LABEL: "task.ttl is how long a prediction waits for its label",
    Reason.BAD_CLASS: "task.classes lists the classes",
    Reason.LATE_RECORD: "panel.lateness is how late a record may be",
    Reason.UNKNOWN_SENSOR: "panel.sensors lists the known sensors",
    Reason.TOO_MANY_SENSORS: "panel.max_sensors is the largest number of sensors",
    Reason.BASE_FAILED: "the model of the base raised an error, or returned no output, for these "
    "entries: the log has the traceback",
    Reason.DUPLICATE_KEY: "a key is in the same JSON object twice, and it is unknown which of the "
    "two is right: the producer must write each key once",
    Reason.NO_KEY: "the output topic is compacted (cleanup.policy) and accepts no predictions "
    "without a key: send entries with keys, or use an output topic that is not compacted",
}
"""Reason -> the setting that would fix it."""


def hint_of(reason: str) -> str:
    """Return the setting that would fix a reason for refusals; a general hint if none is
    known."""
    return HINTS.get(reason, "streamadapt dlq list CONFIG shows the refused records")


MIN_ENTRIES: Final = 3
"""If an earlier run has made predictions, a run is judged only from this number of entries on."""


class Problem(NamedTuple):
    """A problem of a finished run.

    Attributes
    ----------
    text : str
        One line for a person.
    facts : dict
        The same as plain values: ``what``, ``count``, ``of``, ``share``, ``reason``, ``position``,
        ``detail``, ``setting``; each may be None.
    code : int
        The exit code for this problem.
    """

    text: str
    facts: dict[str, Any]
    code: int


@dataclass(frozen=True)
class _Refused:
    kind: str
    count: int
    of: int
    reason: str

    @property
    def share(self) -> float:
        return self.count / self.of


def problem_of(run: Mapping[str, Any]) -> Problem | None:
    """Judge a run by its facts (see `Engine.summary`); None if nothing is wrong with it.

    With ``limits.max_bad_share = 1.0`` all records may be refused: this is reported, but is not a
    failure.
    """
    refused = [_Refused(kind, *_most(run, kind)) for kind in ("entries", "labels")]
    worst = [one for one in refused if one.count and one.share > MAX_REFUSED_SHARE]
    failed = _nothing_predicted(run, worst) or _nothing_learned(run, worst)
    if not worst and failed is None:
        return None
    shown = worst or [one for one in refused if one.count]
    first = max(shown, key=lambda one: one.share, default=None)
    parts = [
        f"{one.share:.0%} of the {one.kind} were refused ({one.count:,} of {one.of:,})"
        for one in worst
    ]
    text = "; ".join([*parts, *([] if failed is None else [failed])])
    facts: dict[str, Any] = dict.fromkeys(
        ("what", "count", "of", "share", "reason", "position", "detail", "setting")
    )
    if first is not None:
        example = run["examples"][first.reason]
        hint = hint_of(first.reason)
        text += (
            f"; most as {first.reason}, for example {example['position']}: "
            f"{example['detail']}. {hint}"
        )
        facts |= {"what": first.kind, "count": first.count, "of": first.of, "share": first.share}
        facts |= {
            "reason": first.reason,
            "position": example["position"],
            "detail": example["detail"],
        }
        facts["setting"] = hint
    agreed = run["all_may_be_refused"] and bool(worst)
    return Problem(text, {"text": text, **facts}, 0 if failed is None or agreed else EXIT_REFUSED)


def _most(run: Mapping[str, Any], kind: str) -> tuple[int, int, str]:
    """Return the number of refused items of a kind, the number of all, and the most frequent
    reason."""
    reasons: Mapping[str, int] = run["refused"][kind]
    reason = max(reasons, key=lambda name: reasons[name], default="")
    count = sum(reasons.values())
    return count, max(run["read"][kind], count), reason


def _nothing_predicted(run: Mapping[str, Any], worst: list[_Refused]) -> str | None:
    if run["predictions"] or run["learned"] or not run["read"]["entries"]:
        return None
    if not run["ended"] and not any(one.kind == "entries" for one in worst):
        return None  # stopped while the first window was filling
    if run["ever_predicted"] and run["read"]["entries"] < MIN_ENTRIES:
        return None  # the config has worked
    if not run["entries"]:
        return "nothing was predicted"
    window = run["window"]
    return (
        f"nothing was predicted: {run['entries']:,} entries were accepted, and task.window is "
        f"{window:,}"
    )


def _nothing_learned(run: Mapping[str, Any], worst: list[_Refused]) -> str | None:
    # The label of the newest entry is learned when the next one comes.
    if not run["expects_labels"] or run["learned"] or run["predictions"] < 2:
        return None
    if any(one.kind == "labels" for one in worst):
        return "nothing was learned"
    if run["ended"] and not run["ever_learned"]:
        return "nothing was learned: there was no usable label (fields.label, fields.label_id)"
    return None


def refusals(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the reasons of this run's refusals, most frequent first: count, first example and
    setting."""
    counts: dict[str, int] = {}
    for reasons in run["refused"].values():
        for reason, count in reasons.items():
            counts[reason] = counts.get(reason, 0) + count
    return [
        {"reason": reason, "count": count, **run["examples"][reason], "setting": hint_of(reason)}
        for reason, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
