"""Seeded streams, the same to the bit on every machine.

Only raw integers of PCG64, and additions, multiplications and divisions of single numbers, each
of which IEEE 754 rounds in one way. No function such as `sin` or `exp`, and no sum over an axis:
their last bit may differ between processors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from streamadapt import Entry, Label, Position

Item = Entry | Label
Values = np.ndarray[Any, np.dtype[np.float64]]

MINUTE = 60 * 10**9
STEP = 30 * MINUTE
"""From one entry to the next, in ns; 48 entries are a day."""
DAY = 48
JUMP = 900
"""The entry at which every stream changes its level: within the entries that are replayed."""


class Numbers:
    """Seeded random numbers, from the raw integers of PCG64."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def below(self, limit: int, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return whole numbers from 0 to `limit` - 1."""
        return (self._bits.random_raw(n) % np.uint64(limit)).astype(np.int64)

    def chance(self, percent: int, n: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return True for about this share."""
        return self.below(100, n) < percent

    def noise(self, n: int, columns: int) -> Values:
        """Return numbers with mean 0 and standard deviation 1, bell-shaped: sums of four whole
        numbers, (n, columns)."""
        four = [self.below(4096, n * columns) for _ in range(4)]
        total = four[0] + four[1] + four[2] + four[3] - 8190
        return (total / 2365.0).reshape(n, columns)


def walk(numbers: Numbers, n: int, columns: int, *, keep: float = 0.9) -> Values:
    """Return a walk that returns to 0, (n, columns)."""
    noise = numbers.noise(n, columns) * 0.5
    z = np.zeros((n, columns))
    for t in range(1, n):
        z[t] = keep * z[t - 1] + noise[t]
    return z


def triangle(n: int, period: int = DAY) -> Values:
    """Return a wave of straight lines between -1 and 1, (n,)."""
    phase = np.arange(n) % period
    return np.abs(2 * phase - period) * 2.0 / period - 1.0


def times(numbers: Numbers, n: int) -> list[int]:
    """Return event times in ns: one every 30 minutes, up to five minutes late; some are left
    out."""
    late = numbers.below(300, n)
    left_out = np.cumsum(numbers.chance(3, n))
    return [int((t + int(left_out[t])) * STEP + int(late[t]) * 10**9) for t in range(n)]


def in_order(items: Sequence[Item]) -> list[Item]:
    """Sort by time; a label before an entry of the same time."""
    return sorted(items, key=lambda item: (item.time, isinstance(item, Entry)))


def entry(i: int, values: Any, time: int, **more: Any) -> Entry:
    return Entry(np.asarray(values, np.float64), time, f"e{i}", position=_at(i), **more)


def label(i: int, value: Any, time: int) -> Label:
    return Label(f"e{i}", np.atleast_1d(np.asarray(value, np.float64)), time, _at(i))


def _at(i: int) -> Position:
    return Position("golden", 0, i)


# -- one stream for each task


def series(
    seed: int = 1, n: int = 1500, channels: int = 2, *, level: float = 10.0, missing: int = 3
) -> list[Item]:
    """A forecast's entries: a daily wave, a walk, a jump; `missing` per cent are NaN."""
    numbers = Numbers(seed)
    values = walk(numbers, n, channels) + level
    for c in range(channels):
        values[:, c] += triangle(n) * (3.0 - c) + np.where(np.arange(n) >= JUMP, 2.0 + c, 0.0)
    values[numbers.chance(missing, n * channels).reshape(n, channels)] = np.nan
    return [entry(i, values[i], time) for i, time in enumerate(times(numbers, n))]


def regression(
    seed: int = 2,
    n: int = 1500,
    outputs: int = 1,
    *,
    delay: int = 6,
    level: float = 0.0,
    label_level: float = 0.0,
    wild: bool = False,
) -> list[Item]:
    """Entries of two channels with labels `delay` steps late, of which some never come.

    With two outputs, a label often has one of them only; the other comes one step later.

    Parameters
    ----------
    wild : bool
        Whether some values and labels are far outside of the range of the stream.
    """
    numbers = Numbers(seed)
    x = walk(numbers, n, 2)
    noise = numbers.noise(n, outputs) * 0.2
    y = _targets(x, outputs) + noise + label_level
    if wild:
        x[numbers.chance(2, n), 0] = 1e6
        y[numbers.chance(2, n)] = -1e7
    at = times(numbers, n)
    items: list[Item] = [entry(i, x[i] + level, at[i]) for i in range(n)]
    comes, part = numbers.chance(85, n), numbers.chance(40, n)
    for i in range(n):
        if comes[i]:
            items += _labels(i, y[i], at[i] + delay * STEP, partial=outputs > 1 and bool(part[i]))
    return in_order(items)


def _targets(x: Values, outputs: int) -> Values:
    slope = 1.5 + np.where(np.arange(len(x)) >= JUMP, 0.75, 0.0)
    y = np.zeros((len(x), outputs))
    y[:, 0] = slope * x[:, 0] - x[:, 1] + 2.0
    if outputs > 1:
        y[:, 1] = 0.5 * x[:, 0] + x[:, 1] * slope - 4.0
    return y


def _labels(i: int, y: Values, time: int, *, partial: bool) -> list[Item]:
    if not partial:
        return [label(i, y, time)]
    first, second = y.copy(), y.copy()
    first[1], second[0] = np.nan, np.nan
    return [label(i, first, time), label(i, second, time + STEP)]


def corrections(seed: int = 3, n: int = 1500) -> list[Item]:
    """A regression whose labels are often corrected one step later."""
    items = regression(seed, n)
    chosen = Numbers(seed + 100).chance(30, n)
    more = [
        label(item.position.offset, item.value + 0.5, item.time + STEP)
        for item in items
        if isinstance(item, Label) and chosen[item.position.offset]
    ]
    return in_order([*items, *more])


def classes(seed: int = 4, n: int = 1500, *, delay: int = 4, percent: int = 60) -> list[Item]:
    """Entries of two channels of three classes; `percent` get a label, `delay` steps late."""
    numbers = Numbers(seed)
    x = walk(numbers, n, 2)
    score = x[:, 0] + 0.5 * x[:, 1] + numbers.noise(n, 1)[:, 0] * 0.3
    score = score + np.where(np.arange(n) >= JUMP, 0.8, 0.0)
    truth = (score > -0.5).astype(np.int64) + (score > 0.7)
    at = times(numbers, n)
    items: list[Item] = [entry(i, x[i], at[i]) for i in range(n)]
    comes = numbers.chance(percent, n)
    items += [label(i, float(truth[i]), at[i] + delay * STEP) for i in range(n) if comes[i]]
    return in_order(items)


def features(
    seed: int = 5, n: int = 1500, channels: int = 6, *, labelled: int = 0, binary: bool = False
) -> list[Item]:
    """Entries of many channels for a network: from the entry 300 on they are scaled and
    shifted."""
    numbers = Numbers(seed)
    truth = numbers.below(2 if binary else 3, n)
    x = numbers.noise(n, channels)
    for i in range(n):
        x[i, truth[i]] += 1.5
    x[300:] = x[300:] * 1.5 + 0.75
    at = times(numbers, n)
    items: list[Item] = [entry(i, x[i], at[i]) for i in range(n)]
    comes = numbers.chance(labelled, n)
    items += [label(i, float(truth[i]), at[i] + 4 * STEP) for i in range(n) if comes[i]]
    return in_order(items)


def clicks(seed: int = 6, n: int = 1500) -> list[Item]:
    """Entries of which about one in four becomes a positive: soon, late, or too late."""
    numbers = Numbers(seed)
    x = walk(numbers, n, 2)
    positive = (x[:, 0] > 0.3) & numbers.chance(60, n)
    late = numbers.below(12, n) + 1
    at = times(numbers, n)
    items: list[Item] = [entry(i, x[i], at[i]) for i in range(n)]
    items += [label(i, 1.0, at[i] + int(late[i]) * STEP) for i in range(n) if positive[i]]
    return in_order(items)


def keyed(make: Callable[[int], list[Item]], keys: Sequence[str]) -> list[Item]:
    """One stream for each key, merged by time; ids are those of their key."""
    items: list[Item] = []
    for k, key in enumerate(keys):
        for item in make(20 + k):
            at = Position("golden", 0, item.position.offset * len(keys) + k)
            if isinstance(item, Entry):
                items.append(
                    Entry(item.values, item.time + k, f"{key}-{item.id}", key, position=at)
                )
            else:
                items.append(Label(f"{key}-{item.id}", item.value, item.time + k, at))
    return in_order(items)


def sensors(seed: int = 7, n: int = 1500) -> list[Item]:
    """Records of two sensors, each with one value; some are left out, some come out of order."""
    numbers = Numbers(seed)
    values = walk(numbers, n, 2) + 10.0
    there = numbers.chance(95, 2 * n)
    items: list[Item] = []
    for i in range(n):
        for c, key in enumerate(("east", "west")):
            if there[2 * i + c]:
                time = i * STEP + (c + 1) * MINUTE
                items.append(entry(2 * i + c, values[i, c : c + 1], time, key=key))
    for i in range(0, len(items) - 3, 10):
        items[i], items[i + 1] = items[i + 1], items[i]
    return items


def digest(items: Sequence[Item]) -> str:
    """Return a checksum of a stream: a different one says that the streams differ, and not the
    predictions."""
    found = hashlib.sha256()
    for item in items:
        found.update(f"{item.id} {item.time} {getattr(item, 'key', '')} ".encode())
        value = item.values if isinstance(item, Entry) else item.value
        found.update(np.asarray(value, "<f8").tobytes())
    return found.hexdigest()
