"""Durations in written form: ``250ms``, ``10s``, ``5m``, ``6h``, ``1d``."""

from __future__ import annotations

import re

from streamadapt.errors import ConfigError

__all__ = ["UNITS_NS", "duration_ns", "duration_s"]

UNITS_NS = {"ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def duration_ns(path: str, value: object) -> int:
    """Return a duration in nanoseconds; raise `ConfigError` with the setting's `path` if the value
    is no duration."""
    match = _FORM.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(
            path, value, 'a duration with its unit, such as "250ms", "10s", "5m", "6h" or "1d"'
        )
    nanoseconds = round(float(match[1]) * UNITS_NS[match[2]])
    if not nanoseconds < 2**62:
        raise ConfigError(path, value, "a duration of less than 146 years")
    return nanoseconds


def duration_s(path: str, value: object) -> float:
    """Return a duration in seconds; see `duration_ns`."""
    return duration_ns(path, value) / 1e9
