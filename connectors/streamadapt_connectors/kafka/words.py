"""Words of messages: numbers with their noun, topics that are missing, and requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["absent", "counted", "deleted", "request_name", "with_article"]

_WORD: Final = re.compile(r"[A-Z][a-z]*")
_WRITTEN: Final = {"txn": "transaction", "api": "API", "id": "ID", "sasl": "SASL"}


def counted(count: int, noun: str) -> str:
    """Return a number with its noun.

    Examples
    --------
    >>> counted(1, "record"), counted(2, "record")
    ('1 record', '2 records')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def absent(topics: Sequence[str]) -> str:
    """Return that topics do not exist.

    Examples
    --------
    >>> absent(["a"]), absent(["a", "b"])
    ('topic a does not exist', 'topics a and b do not exist')
    """
    if len(topics) == 1:
        return f"topic {topics[0]} does not exist"
    return f"topics {', '.join(topics[:-1])} and {topics[-1]} do not exist"


def deleted(topics: Sequence[str]) -> str:
    """Return that topics were deleted, and are waited for.

    Examples
    --------
    >>> deleted(["a"])
    'topic a does not exist: it was deleted; waiting for it to be created again'
    """
    they, them = ("it was", "it") if len(topics) == 1 else ("they were", "them")
    return f"{absent(topics)}: {they} deleted; waiting for {them} to be created again"


def request_name(kind: type) -> str:
    """Return what a kind of request is called, from the name of kafka-python's class.

    Examples
    --------
    >>> class AddOffsetsToTxnRequest: ...
    >>> request_name(AddOffsetsToTxnRequest)
    'add offsets to transaction'
    """
    name = kind.__name__.removesuffix("Request")
    words = [word.lower() for word in _WORD.findall(name)]
    return " ".join(_WRITTEN.get(word, word) for word in words)


def with_article(name: str) -> str:
    """Return a name with its article.

    Examples
    --------
    >>> with_article("fetch"), with_article("API versions"), with_article("end transaction")
    ('a fetch', 'an API versions', 'an end transaction')
    """
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
