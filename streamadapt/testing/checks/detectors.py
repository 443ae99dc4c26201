"""What every drift detector must do, as small functions: run them over your own, as the tests do
over the built-in.

A maker returns a new `DriftMonitor`, or anything with its `signal`, `update`, `state_dict`,
`load_state_dict` and `boost`, with the same settings each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from streamadapt.drift.monitor import DriftMonitor
from streamadapt.testing.checks.cases import require, state_bytes, through_a_checkpoint

__all__ = ["DetectorCheck", "Make", "check_detector", "yield_detector_checks"]

Make = Callable[[], DriftMonitor]
DetectorCheck = Callable[[Make], None]

JUMP_AT = 600
"""Where the mean of the test stream jumps by fifty standard deviations."""
DELAY = 300
"""How many values later a clear jump must have been seen."""


def check_detector(make: Make) -> None:
    """Run every check.

    Raises
    ------
    AssertionError
        Naming what the detector did.
    """
    for check in yield_detector_checks():
        check(make)


def yield_detector_checks() -> Iterator[DetectorCheck]:
    """Yield the checks, the most basic first."""
    yield check_clear_jump_is_seen
    yield check_constant_input_is_quiet
    yield check_nonfinite_input_is_refused
    yield check_detector_state_round_trips
    yield check_boost_decays_to_one


def check_clear_jump_is_seen(make: Make) -> None:
    """A jump of many standard deviations is seen within `DELAY` values, and nothing is seen before
    it.

    What watches errors sees them go from one in ten to nine in ten.
    """
    fired = _alarms(make(), _jump(make))
    early = [i for i in fired if i < JUMP_AT]
    require(not early, f"alarms at {early}, the mean jumps at {JUMP_AT} only")
    require(
        any(i < JUMP_AT + DELAY for i in fired),
        f"no alarm within {DELAY} values of the jump at {JUMP_AT}: {fired}",
    )


def check_constant_input_is_quiet(make: Make) -> None:
    """A constant, of whatever size, is no drift."""
    for level in (0.0, 1.0) if make().signal == "error" else (0.0, 1.0, -1e6, 1e-9):
        fired = _alarms(make(), [level] * 2_000)
        require(not fired, f"alarms at {fired[:5]} on the constant {level}")


def check_nonfinite_input_is_refused(make: Make) -> None:
    """NaN and infinite values raise no alarm, and every later alarm comes where it would have come
    without them."""
    values = _jump(make)
    clean, dirty = make(), make()
    for i, value in enumerate(values):
        if i % 50 == 20:
            for bad in (math.nan, math.inf, -math.inf):
                require(not dirty.update(bad), f"an alarm at value {i}, on {bad}")
        one, other = clean.update(value), dirty.update(value)
        said = f"value {i}: alarm {one}, but {other} where NaN and infinite values came in between"
        require(one == other, said)


def check_detector_state_round_trips(make: Make) -> None:
    """A detector loaded from a checkpoint on disk goes on as the saved one does, wherever it was
    saved."""
    values = _jump(make)
    for stop in (0, 1, JUMP_AT - 100, JUMP_AT + 10):
        saved, fresh = make(), make()
        _alarms(saved, values[:stop])
        fresh.load_state_dict(through_a_checkpoint(saved.state_dict()))
        one, other = _alarms(saved, values[stop:]), _alarms(fresh, values[stop:])
        require(one == other, f"saved at {stop}: alarms {one} values later, loaded {other}")
        same = state_bytes(saved.state_dict()) == state_bytes(fresh.state_dict())
        require(same, f"saved at {stop}: the states differ at the end")


def check_boost_decays_to_one(make: Make) -> None:
    """A boost is 1 until the alarm, jumps, and then falls with every value, refused ones too, to
    1."""
    monitor = make()
    if monitor.boost is None:
        return
    values = _jump(make)
    for value in values:
        require(monitor.boost.level == 1.0, f"boost {monitor.boost.level} before any alarm")
        if monitor.update(value):
            break
    level = monitor.boost.level
    require(level > 1.0, f"boost {level} right after the alarm")
    for i in range(math.ceil(50 * monitor.boost.half_life)):
        fired = monitor.update(math.nan if i % 2 else values[-1])
        now = monitor.boost.level
        require(fired or 1.0 <= now <= level, f"boost rose from {level} to {now} without an alarm")
        level = now
    require(level < 1.0 + 1e-9, f"boost is still {level} after 50 half-lives")


def _jump(make: Make) -> list[float]:
    """Numbers whose mean jumps; errors that become the rule, for what watches those."""
    rng = np.random.default_rng(0)
    if make().signal == "error":
        often = np.where(np.arange(2 * JUMP_AT) < JUMP_AT, 0.1, 0.9)
        return [float(wrong) for wrong in rng.random(2 * JUMP_AT) < often]
    noise = rng.normal(0.0, 0.1, 2 * JUMP_AT)
    noise[JUMP_AT:] += 5.0
    values: list[float] = noise.tolist()
    return values


def _alarms(monitor: DriftMonitor, values: Sequence[float]) -> list[int]:
    return [i for i, value in enumerate(values) if monitor.update(value)]
