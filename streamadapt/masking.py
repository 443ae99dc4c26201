"""Keeps secrets of a config out of whatever is shown: errors, logs, what ``repr`` says."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["HIDDEN", "is_secret", "masked"]

HIDDEN: Final = "<hidden>"
KNOWN: Final = ("sasl_plain_password", "ssl_password", "password", "passphrase")
WORDS: Final = re.compile(r"pass?(?:w|phrase|$)|pwd|secret|token|credential|api_?key", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a setting of this name is to be hidden; a misspelt password is a password too."""
    return WORDS.search(name) is not None or bool(difflib.get_close_matches(name.lower(), KNOWN, n=1, cutoff=0.75))


def masked(path: str, value: Any) -> Any:
    """Return `value` as it may be shown: hidden if its path names a secret, and so within tables and lists."""
    *tables, name = re.split(r"[.\[\]]+", path.rstrip("]"))
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {key: masked(f"{path}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(path, item) for item in value]
    # A text where the table of credentials should be may hold them all.
    return HIDDEN if name == "security" or any(map(is_secret, (*tables, name))) else value
