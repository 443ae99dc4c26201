"""Keeps secrets of a config out of whatever is shown: errors, logs, what ``repr`` says."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

__all__ = ["HIDDEN", "is_secret", "masked", "remember", "scrubbed", "without_credentials"]

HIDDEN: Final = "<hidden>"
KNOWN: Final = ("sasl_plain_password", "ssl_password", "password", "passphrase")
WORDS: Final = re.compile(
    r"pass?(?:w|phrase|$)|pwd|secret|token|credential|(?:api|access|account|private|shared)_?key|connection_?string",
    re.IGNORECASE,
)
IN_A_URL: Final = re.compile(
    r"(?P<user>(?:^|[\s,;'\"/])[^\s/@:,]*:)(?P<secret>(?!//)[^\s@,]+)(?=@)"
)
IN_A_QUERY: Final = re.compile(r"(?P<name>[?&;][\w.%-]+)=(?P<secret>[^&;\s#]+)")
SIGNATURE: Final = re.compile(r"sig(?:nature)?$", re.IGNORECASE)

SHORTEST: Final = 4
"""A shorter one is hidden where it stands, but not looked for in other texts: it would hide half
of every line."""
MOST: Final = 256


def is_secret(name: str) -> bool:
    """Whether a setting of this name is to be hidden; a misspelt password is a password too."""
    return WORDS.search(name) is not None or bool(
        difflib.get_close_matches(name.lower(), KNOWN, n=1, cutoff=0.75)
    )


def masked(path: str, value: Any) -> Any:
    """Return `value` as it may be shown: hidden if its path names a secret, and so within tables
    and lists."""
    *tables, name = re.split(r"[.\[\]]+", path.rstrip("]"))
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {key: masked(f"{path}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(path, item) for item in value]
    # A text where the table of credentials should be may hold them all.
    if name == "security" or any(map(is_secret, (*tables, name))):
        return HIDDEN
    return without_credentials(value) if isinstance(value, str) else value


def without_credentials(text: str) -> str:
    """Return a text with the passwords of its URLs hidden: ``//user:password@``, ``?token=``."""
    text = IN_A_URL.sub(lambda match: f"{match['user']}{HIDDEN}", text)
    return IN_A_QUERY.sub(
        lambda m: f"{m['name']}={HIDDEN}" if _names_one(m["name"]) else m[0], text
    )


def _names_one(name: str) -> bool:
    return is_secret(name) or SIGNATURE.search(name) is not None


def secrets_in(text: str) -> Iterator[str]:
    """Yield the passwords that `without_credentials` would hide."""
    yield from (match["secret"] for match in IN_A_URL.finditer(text))
    yield from (
        match["secret"] for match in IN_A_QUERY.finditer(text) if _names_one(match["name"])
    )


class _Remembered:
    """The last `MOST` secrets that this process was given, in every form in which they may come up
    in a text."""

    def __init__(self) -> None:
        self._forms: dict[str, tuple[str, ...]] = {}
        self._pattern: re.Pattern[str] | None = None

    def add(self, secret: str) -> None:
        if len(secret) < SHORTEST:
            return
        self._forms.pop(secret, None)
        shown = repr(secret)[1:-1], repr(secret.encode())[2:-1]
        both = (
            form.replace("'", "\\'") for form in shown
        )  # where the text around it has the other kind of quotes
        self._forms[secret] = (
            secret,
            *shown,
            *both,
            json.dumps(secret)[1:-1],
            quote(secret, safe=""),
        )
        while len(self._forms) > MOST:
            del self._forms[next(iter(self._forms))]
        every = {form for forms in self._forms.values() for form in forms}
        # The longest first: one may be the start of another.
        self._pattern = re.compile("|".join(map(re.escape, sorted(every, key=len, reverse=True))))

    def hide(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub(HIDDEN, text)


_REMEMBERED = _Remembered()


def remember(path: str, value: Any) -> None:
    """Remember every secret in a setting, found by its name or as part of a URL, for
    `scrubbed`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            remember(f"{path}.{key}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            remember(path, item)
    elif isinstance(value, str):
        for secret in (value,) if masked(path, "") == HIDDEN else secrets_in(value):
            _REMEMBERED.add(secret)


def scrubbed(text: str) -> str:
    """Return a text of whatever origin, a client library's error for one, without the secrets of
    this process."""
    return _REMEMBERED.hide(text)
