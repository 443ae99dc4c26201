"""Keep the secrets of a config out of errors, logs and the output of ``repr``."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

__all__ = ["HIDDEN", "is_secret", "masked", "remember", "scrubbed", "without_credentials"]

HIDDEN: Final = "<hidden>"
SECRET_NAMES: Final = ("sasl_plain_password", "ssl_password", "password", "passphrase")
SECRET_WORDS: Final = re.compile(
    r"pass?(?:w|phrase|$)|pwd|secret|token|credential|(?:api|access|account|private|shared)_?key|connection_?string",
    re.IGNORECASE,
)
PASSWORD_IN_URL: Final = re.compile(
    r"(?P<user>(?:^|[\s,;'\"/])[^\s/@:,]*:)(?P<secret>(?!//)[^\s@,]+)(?=@)"
)
PARAMETER_IN_URL: Final = re.compile(r"(?P<name>[?&;][\w.%-]+)=(?P<secret>[^&;\s#]+)")
SIGNATURE_NAME: Final = re.compile(r"sig(?:nature)?$", re.IGNORECASE)

MIN_SECRET_CHARS: Final = 4
"""A shorter secret is hidden at its own setting, but is not searched for in other texts: it would
hide half of every line."""
MAX_SECRETS: Final = 256


def is_secret(name: str) -> bool:
    """Whether the value of a setting with this name must be hidden; a misspelt ``password``
    counts too."""
    return SECRET_WORDS.search(name) is not None or bool(
        difflib.get_close_matches(name.lower(), SECRET_NAMES, n=1, cutoff=0.75)
    )


def masked(path: str, value: Any) -> Any:
    """Return `value` in the form that may be shown: hidden if its path names a secret, also inside
    tables and lists."""
    *tables, name = re.split(r"[.\[\]]+", path.rstrip("]"))
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {key: masked(f"{path}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(path, item) for item in value]
    # A text in the place of the table of credentials may contain all of them.
    if name == "security" or any(map(is_secret, (*tables, name))):
        return HIDDEN
    return without_credentials(value) if isinstance(value, str) else value


def without_credentials(text: str) -> str:
    """Return a text with the passwords of its URLs hidden: ``//user:password@``, ``?token=``."""
    text = PASSWORD_IN_URL.sub(lambda match: f"{match['user']}{HIDDEN}", text)
    return PARAMETER_IN_URL.sub(
        lambda m: f"{m['name']}={HIDDEN}" if _names_one(m["name"]) else m[0], text
    )


def _names_one(name: str) -> bool:
    return is_secret(name) or SIGNATURE_NAME.search(name) is not None


def secrets_in(text: str) -> Iterator[str]:
    """Yield the passwords that `without_credentials` would hide."""
    yield from (match["secret"] for match in PASSWORD_IN_URL.finditer(text))
    yield from (
        match["secret"] for match in PARAMETER_IN_URL.finditer(text) if _names_one(match["name"])
    )


class _Remembered:
    """The last `MAX_SECRETS` secrets of this process, in every form in which a text may show
    them."""

    def __init__(self) -> None:
        self._forms: dict[str, tuple[str, ...]] = {}
        self._pattern: re.Pattern[str] | None = None

    def add(self, secret: str) -> None:
        if len(secret) < MIN_SECRET_CHARS:
            return
        self._forms.pop(secret, None)
        shown = repr(secret)[1:-1], repr(secret.encode())[2:-1]
        # For a text whose quotes are of the other kind.
        both = (form.replace("'", "\\'") for form in shown)
        self._forms[secret] = (
            secret,
            *shown,
            *both,
            json.dumps(secret)[1:-1],
            quote(secret, safe=""),
        )
        while len(self._forms) > MAX_SECRETS:
            del self._forms[next(iter(self._forms))]
        every = {form for forms in self._forms.values() for form in forms}
        # The longest form first: a shorter one may be the start of it.
        self._pattern = re.compile("|".join(map(re.escape, sorted(every, key=len, reverse=True))))

    def hide(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub(HIDDEN, text)


_REMEMBERED = _Remembered()


def remember(path: str, value: Any) -> None:
    """Remember every secret of a setting for `scrubbed`; the setting's name shows it, or it is
    part of a URL."""
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
    """Return a text from any source, such as a client library's error, without the secrets of
    this process."""
    return _REMEMBERED.hide(text)
