"""Secrets of a config: read them from the files that settings name, and find those that are
written into the config itself."""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from streamadapt.config.convert import join
from streamadapt.config.overrides import PREFIX, apply_environment, apply_settings, setting_of
from streamadapt.config.secrets import HIDDEN, masked
from streamadapt.errors import ConfigError
from streamadapt.files import MAX_CONFIG_BYTES, decoded, read_text

__all__ = ["literal_secrets", "read_secret_files"]

MAX_SECRET_BYTES: Final = 64 << 10
"""A larger file is not a password."""


def read_secret_files(table: dict[str, Any], path: str = "") -> None:
    """Set ``NAME`` to the content of the file ``NAME_file``, for each secret and user name, at any
    depth.

    One line break at the end of a file is not part of the secret.

    Raises
    ------
    ConfigError
        If the file cannot be read, or both keys are given; with the file's path, never its
        content.
    """
    for key in list(table):
        value, here = table[key], join(path, str(key))
        name = setting_of(key)
        if name is not None:
            if name in table:
                raise ConfigError(join(path, name), HIDDEN, f"either {name} or {key}, not both")
            table[name] = _content(here, value)
            del table[key]
        elif isinstance(value, dict):
            read_secret_files(value, here)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, dict):
                    read_secret_files(item, f"{here}[{i}]")


def _content(path: str, given: object) -> str:
    if not isinstance(given, str) or not given:
        raise ConfigError(
            path, HIDDEN if given else given, "the path of a file that holds the secret"
        )
    file = Path(given)
    # The value may be the secret itself by mistake: only a value that looks like a path is shown.
    shown = given if len(file.parts) > 1 and file.parent.is_dir() else HIDDEN
    note = (
        "; the path is hidden in case it is the secret itself: look at the config"
        if shown is HIDDEN
        else ""
    )
    data = None
    try:
        if stat.S_ISREG(file.stat().st_mode):  # reading anything else, such as a pipe, may block
            with file.open("rb") as opened:
                data = opened.read(MAX_SECRET_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path"
        raise ConfigError(
            path, shown, f"a readable file that holds the secret ({reason}{note})"
        ) from None
    if data is None:
        raise ConfigError(path, shown, "a regular file that holds the secret")
    if len(data) > MAX_SECRET_BYTES:
        raise ConfigError(
            path, shown, f"a file that holds the secret, at most {MAX_SECRET_BYTES} bytes"
        )
    try:
        text = decoded(data)
    except UnicodeDecodeError:  # its message would show a part of the content
        raise ConfigError(path, shown, "a file that holds the secret, in UTF-8") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ConfigError(path, shown, "a file that holds the secret: this one is empty")
    return text


def literal_secrets(
    path: Path, environment: Mapping[str, str], settings: Sequence[str] = ()
) -> list[str]:
    """Return one line for each secret that is written in a config file or on the command line.

    Call it after the config was loaded without an error. For a config that came through a pipe the
    list is empty: a pipe cannot be read again.
    """
    if not path.is_file():
        return []
    table = tomllib.loads(read_text(path, MAX_CONFIG_BYTES))
    written = dict(_secrets("", table))
    apply_environment(table, environment)
    before = dict(_secrets("", table))
    apply_settings(table, settings)
    lines = []
    for at, value in _secrets("", table):
        if value != before.get(at):
            where = "on the command line, where every user of this machine sees it"
        elif at in written and written[at] == value:
            where = f"in {path}"
        else:
            continue
        lines.append(f"{at}: this secret is written {where}; {_better(at)}")
    return lines


def _better(path: str) -> str:
    keys = re.sub(r"\[(\d+)\]", r".\1", path).upper().split(".")
    variable = PREFIX + "__".join(keys)
    if setting_of(f"{path.rpartition('.')[2]}_file") is None:  # a part of a text, such as a URL
        return f"better put it in the environment: {variable}"
    return f"better put it in a file that {path}_file or the variable {variable}_FILE names"


def _secrets(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if setting_of(key) is None:
                yield from _secrets(join(path, str(key)), item)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _secrets(f"{path}[{i}]", item)
    elif (
        isinstance(value, str)
        and value
        and masked(path, value) != value
        and not path.endswith("security")
    ):
        yield path, value
