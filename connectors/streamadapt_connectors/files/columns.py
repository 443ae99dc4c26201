"""Checks before reading whether a file contains the fields of the config; the error explains what
to change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from streamadapt.config.convert import did_you_mean
from streamadapt.errors import ConfigError, EntryError
from streamadapt.records import Position, Record
from streamadapt_connectors.codecs.fields import GROUPED, Missing, number_of
from streamadapt_connectors.codecs.json_codec import FieldMap, JsonCodec
from streamadapt_connectors.files.reading import (
    FileFormat,
    header_of,
    is_csv,
    shown_columns,
    values_of,
)

__all__ = ["check_columns", "look_at"]

SAMPLE: Final = 20  # records
DELIMITERS: Final = (",", ";", "\t", "|", ":")


def look_at(
    path: Path, codec: JsonCodec, stream: str, form: FileFormat, setting: str
) -> dict[str, Any]:
    """Read the beginning of a file, and return facts about it as plain values.

    Returns
    -------
    dict
        ``path``; ``columns`` (for JSON lines: the keys of the first record); ``records``: the
        number of records that were read; ``refused``: the number of them that the codec refuses;
        ``example``: the first reason; ``note``: a warning.

    Raises
    ------
    ConfigError
        If a column that the fields name is missing, or numbers are written with the other decimal
        sign.
    ConnectorError
        If the file cannot be read.
    """
    columns = check_columns(path, codec.fields, form, setting, labels=stream == codec.label_stream)
    values = list(islice(values_of(path, form), SAMPLE))
    if columns is None:
        columns = next((list(cells) for value in values if (cells := _object(value))), [])
    else:
        _check_decimal(path, codec, [cells for value in values if (cells := _object(value))])
    problems = []
    for number, value in enumerate(values):
        try:
            item = codec.decode(Record(Position(stream, 0, number), None, value, number))
            refused = getattr(item, "refused", None)
            problem = None if refused is None else f"{refused.reason.value}: {refused.detail}"
        except EntryError as error:
            problem = str(error)
        if problem is not None:
            problems.append(problem)
    facts: dict[str, Any] = {
        "path": str(path),
        "columns": columns,
        "records": len(values),
        "refused": len(problems),
    }
    label = codec.fields.label
    if (
        label is not None
        and codec.label_stream is None
        and is_csv(path)
        and label.strip() not in columns
    ):
        facts["note"] = f"it has no column {label!r}: its entries would have no labels"
    return facts | ({"example": problems[0]} if problems else {})


def check_columns(
    path: Path, fields: FieldMap, form: FileFormat, setting: str, *, labels: bool = False
) -> list[str] | None:
    """Return the names of a CSV file's columns; None for JSON lines.

    Parameters
    ----------
    setting : str
        The setting that names the file, for errors.
    labels : bool
        Whether its rows are labels.

    Raises
    ------
    ConfigError
        If a column that is needed is missing.
    ConnectorError
        If the columns cannot be read, or two columns have the same name.
    """
    if not is_csv(path):
        return None
    columns = [name for name in header_of(path, form) if name]
    if not columns:
        return columns  # an empty file is accepted
    needed = _needed(fields, labels=labels)
    absent = [name for name in needed if name.strip() not in columns]
    if (
        not labels
        and fields.missing_as_null
        and not set(map(str.strip, fields.values)).isdisjoint(columns)
    ):
        absent = [name for name in absent if name not in fields.values]
    if absent:
        which = "none of them" if len(absent) == len(needed) else f"no {_listed(absent)}"
        expected = (
            f"a file with the columns {_listed(needed)}: {path} has "
            f"{which}{_hint(columns, absent, form)}"
        )
        raise ConfigError(setting, _Shown(shown_columns(columns)), expected)
    return columns


class _Shown(str):
    """A text that `repr` shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _needed(fields: FieldMap, *, labels: bool) -> list[str]:
    names: tuple[str | None, ...] = (*fields.values, fields.time, fields.key, fields.id)
    if labels:
        names = fields.label, fields.label_id or fields.id, fields.label_time or fields.time
    return [name for name in dict.fromkeys(names) if name is not None]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _hint(columns: Sequence[str], absent: Sequence[str], form: FileFormat) -> str:
    """Return a guess at the cause, and what to change."""
    line = form.delimiter.join(columns)
    for delimiter in DELIMITERS:
        if delimiter != form.delimiter and {cell.strip() for cell in line.split(delimiter)} & set(
            absent
        ):
            return f"; is its delimiter {delimiter!r}? Set source.delimiter"
    mark = re.match(r"#|//|%|--", line)
    if mark and columns[0][len(mark[0]) :].strip() not in absent:
        return f'; is its first line a comment? Set source.comment = "{mark[0]}"'
    if any(number_of(name) is not None for name in columns):
        return "; is its first line already a record? Give its columns in source.columns"
    if "\\x" in line:
        return "; it is not UTF-8: set source.encoding"
    by_case = {name.lower(): name for name in columns}
    for name in absent:
        if (column := by_case.get(name.strip().lower())) is not None:
            return f"; {name!r} is called {column!r} there: change [fields]"
    return did_you_mean(absent[0], columns)


def _object(value: bytes) -> dict[str, Any] | None:
    try:
        decoded = msgspec.json.decode(value.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def _is_number_with(sign: str, other: str, cell: str) -> bool:
    return (
        cell.count(sign) == 1
        and other not in cell
        and number_of(cell.replace(sign, ".")) is not None
    )


def _check_decimal(path: Path, codec: JsonCodec, rows: Sequence[dict[str, Any]]) -> None:
    """Raise `ConfigError` if the numbers of a column are written with the other decimal sign."""
    fields = codec.fields
    sign, other = fields.decimal, "," if fields.decimal == "." else "."
    missing = Missing(fields.missing, text_numbers=True)
    numeric = (*fields.values, fields.label) if fields.classes is None else fields.values
    for name in filter(None, numeric):
        cells = [str(row.get(name, row.get(name.strip(), ""))).strip() for row in rows]
        cells = [cell for cell in cells if not missing.says(cell)]
        wrong = [cell for cell in cells if _is_number_with(other, sign, cell)]
        plain = sum(sign in cell for cell in cells)
        if (
            wrong
            and not plain
            and 2 * len(wrong) >= len(cells)
            and not all(map(GROUPED.fullmatch, wrong))
        ):
            expected = (
                f"{other!r}: the column {name!r} of {path} has numbers such as {wrong[0][:40]!r}"
            )
            raise ConfigError("fields.decimal", sign, expected)
