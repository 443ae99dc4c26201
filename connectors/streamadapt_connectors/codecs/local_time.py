"""Reads event times, also local times: times without an offset from UTC, in a time zone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from streamadapt.errors import ConfigError, Reason
from streamadapt_connectors.codecs.fields import FieldError, shown, time_reader

__all__ = ["moment_reader"]

Moment = tuple[int, int | None]
SECOND_NS: Final = 1_000_000_000


def moment_reader(
    time_format: str, timezone: str | None, text_numbers: bool, decimal: str
) -> Callable[[Any, str], Moment]:
    """Return ``read(value, path) -> (time, or_time)``, in ns; see `streamadapt.records.Entry`.

    ``or_time`` is None for a time with an offset. Without `timezone` it is always None, and a time
    without an offset is UTC.

    Raises
    ------
    ConfigError
        If the format or the time zone is invalid, or times in this format are always UTC.
    """
    read = time_reader(time_format, "fields.time_format", text_numbers, decimal)
    if timezone is None:
        return lambda value, path: (read(value, path), None)
    zone = _zone_of(timezone)
    if time_format.startswith("unix_"):
        raise ConfigError(
            "fields.timezone",
            timezone,
            f"no such key here: {time_format} times do not depend on a time zone",
        )

    def read_local(value: Any, path: str) -> Moment:
        ns = read(value, path)  # a time without an offset is read as UTC
        text = value.strip() if text_numbers else value
        moment = (
            datetime.fromisoformat(text)
            if time_format == "iso8601"
            else datetime.strptime(text, time_format)
        )
        if moment.tzinfo is not None:
            return ns, None
        try:
            first, second = (_offset_ns(moment.replace(tzinfo=zone, fold=fold)) for fold in (0, 1))
        except OverflowError:  # on the first and the last day of datetime's range
            first = second = 0
        if first < second:
            detail = f"$.{path}: {shown(value)} is in the hour that {timezone} skips in spring"
            raise FieldError(Reason.BAD_TIME, detail)
        return ns - first, ns - second

    return read_local


def _offset_ns(moment: datetime) -> int:
    offset = moment.utcoffset()
    assert offset is not None, "it has a zone"
    return offset // timedelta(microseconds=1) * 1000


def _zone_of(name: str) -> ZoneInfo:
    try:
        zone = ZoneInfo(name)
        zone.utcoffset(datetime(2000, 1, 1, tzinfo=UTC).replace(tzinfo=zone))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        expected = "a time zone such as 'Europe/Berlin' or 'UTC'"
        raise ConfigError(
            "fields.timezone", name, f"{expected} ({type(error).__name__})"
        ) from None
    return zone
