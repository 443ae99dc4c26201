"""Real messages, broken by bytes, by tokens, and by real mistakes of producers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["Mutator"]

NUMBERS: Final = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
TOKENS: Final = re.compile(rb'"[^"]*"|-?\d+(?:\.\d+)?|[\[\]{},:]')
ODD_NUMBERS: Final = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"1" + b"0" * 400, b"0x10",
    b"1.", b".5", b"--1", b"1_000", b"\xef\xbc\x91", b"null", b"true", b'"1"', b"[]", b"{}",
    b"9223372036854775808", b"-0",
)  # fmt: skip
ODD_TEXTS: Final = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf", b'\\ud800', b"\\u0000",
    b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\r\n", b"'", b'"', b"\\", b"/*", b"__proto__",
    b"\xe2\x80\xae",
)  # fmt: skip
MOST_NESTED: Final = 3000
MOST_LONG: Final = 20_000

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


class Mutator:
    """Breaks messages; some stay valid, and the caller has to check that.

    Parameters
    ----------
    messages : sequence of bytes
        Real messages.
    seed : int
    """

    def __init__(self, messages: Sequence[bytes], seed: int) -> None:
        self._messages = messages
        self._random = random.Random(seed)

    def __call__(self) -> bytes:
        """Return one message after one to three mutations."""
        choose = self._random
        message = choose.choice(self._messages)
        for _ in range(choose.choice((1, 1, 1, 2, 3))):
            message = choose.choice(MUTATIONS)(choose, message, self._messages)
        return message


def _place(choose: random.Random, message: bytes) -> int:
    return choose.randint(0, len(message))


def _flip_bits(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    data = bytearray(message)
    for _ in range(choose.randint(1, 8) if data else 0):
        data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    return bytes(data)


def _truncate(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    return message[: _place(choose, message)]


def _cut_out(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    start = _place(choose, message)
    return message[:start] + message[start + choose.randint(1, 12) :]


def _double(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    start = _place(choose, message)
    end = start + choose.randint(1, 20)
    return message[:end] + message[start:]


def _insert(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    at = _place(choose, message)
    return message[:at] + choose.randbytes(choose.randint(1, 8)) + message[at:]


def _splice(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    other = choose.choice(others)
    return message[: _place(choose, message)] + other[_place(choose, other) :]


def _odd_number(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    return _replace(choose, NUMBERS, message, choose.choice(ODD_NUMBERS))


def _odd_text(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    at = _place(choose, message)
    return message[:at] + choose.choice(ODD_TEXTS) + message[at:]


def _drop_token(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    return _replace(choose, TOKENS, message, b"")


def _other_token(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    tokens = TOKENS.findall(message)
    return _replace(choose, TOKENS, message, choose.choice(tokens)) if tokens else message


def _nest(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    depth = choose.randint(1, MOST_NESTED)
    left, right = choose.choice(((b"[", b"]"), (b'{"a":', b"}")))
    closed = choose.random() < 0.5
    return _replace(
        choose, NUMBERS, message, left * depth + b"1" + right * (depth if closed else 0)
    )


def _long(choose: random.Random, message: bytes, others: Sequence[bytes]) -> bytes:
    many = choose.randint(1000, MOST_LONG)
    return _replace(
        choose,
        TOKENS,
        message,
        choose.choice((b'"' + b"a" * many + b'"', b"[" + b"1," * many + b"1]")),
    )


def _replace(
    choose: random.Random, pattern: re.Pattern[bytes], message: bytes, by: bytes
) -> bytes:
    found = list(pattern.finditer(message))
    if not found:
        return by
    at = choose.choice(found)
    return message[: at.start()] + by + message[at.end() :]


MUTATIONS: Final[tuple[Mutation, ...]] = (
    _flip_bits, _truncate, _cut_out, _double, _insert, _splice, _odd_number, _odd_text,
    _drop_token, _other_token, _nest, _long,
)  # fmt: skip
