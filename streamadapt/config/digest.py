"""The digest of all settings that a learned state depends on, and the settings that have changed
since a checkpoint was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from streamadapt.config.renamed import settings_with_new_names
from streamadapt.config.secrets import masked

__all__ = ["ConfigDigest", "changes", "misfit"]


class ConfigDigest(str):
    """A digest that also keeps the settings it was made from.

    Attributes
    ----------
    settings : dict of str to JSON value
        The settings by path, such as ``learners[1].lr``, with secrets hidden.
    """

    __slots__ = ("settings",)
    settings: dict[str, Any]

    def __new__(cls, content: Mapping[str, Any]) -> ConfigDigest:
        """Digest JSON values; the order of their keys does not matter."""
        text = msgspec.json.encode(content, order="sorted")
        made = super().__new__(cls, hashlib.sha256(text).hexdigest()[:16])
        made.settings = dict(_leaves("", msgspec.json.decode(text)))
        return made


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}" if path else key, item)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(f"{path}[{i}]", item)
    else:
        yield path, masked(path, value)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line for each setting that has changed: ``learners[0].lr: 0.001 -> 0.01``."""
    before, now = settings_with_new_names(before), settings_with_new_names(now)
    lines = []
    for path in sorted({*before, *now}):
        if path not in now:
            lines.append(f"{path}: {before[path]!r} -> not set")
        elif path not in before:
            lines.append(f"{path}: not set -> {now[path]!r}")
        elif before[path] != now[path]:
            lines.append(f"{path}: {before[path]!r} -> {now[path]!r}")
    return lines


def misfit(written: str, settings: Mapping[str, Any], now: str) -> str:
    """Return why a state learned under one configuration cannot be used under another; an empty
    text if it can.

    Parameters
    ----------
    written, now : str
        The digests of the configuration that the checkpoint was written with, and of the one in
        use.
    settings : mapping
        The settings that `written` is the digest of; empty if they were not saved.
    """
    if written == now:
        return ""
    changed = changes(settings, getattr(now, "settings", {})) if settings else []
    return (
        f"written with configuration {written}, but this one is {now}"
        + (f" (changed: {', '.join(changed)})" if changed else "")
        + "; the learned state depends on these settings: use the old settings, or another "
        "checkpoint path to start from nothing. Safe to change: servers, sinks, checkpoint, "
        "metrics, limits, guarantee, device, threads"
    )
