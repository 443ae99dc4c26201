"""ADWIN and Page-Hinkley as compiled functions: river's own decisions and numbers, at every value;
states of river's objects are taken over."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import drift

from streamadapt import DriftMonitor
from streamadapt.compiled import Kernel
from streamadapt.drift import adwin, page_hinkley
from streamadapt.drift.compiled import COMPILED
from streamadapt.drift.detectors import DETECTORS, LEVELS
from streamadapt.errors import CheckpointError, ConfigError
from streamadapt.state.river_pickle import dumps_river
from streamadapt.testing.checks.cases import through_a_checkpoint

PARAMS: dict[str, Any] = {
    "adwin": st.fixed_dictionaries(
        {},
        optional={
            "delta": st.sampled_from([0.002, 0.3, 1e-6, 1.0, 3.0]),
            "clock": st.sampled_from([1, 7, 32]),
            "max_buckets": st.integers(2, 8),
            "min_window_length": st.integers(0, 20),
            "grace_period": st.integers(0, 40),
        },
    ),
    "page-hinkley": st.fixed_dictionaries(
        {},
        optional={
            "min_instances": st.integers(0, 50),
            "delta": st.sampled_from([0.0, 0.005, 1.0]),
            "threshold": st.sampled_from([1.0, 5, 50.0]),
            "alpha": st.sampled_from([0.9999, 1.0, 0.9]),
            "mode": st.sampled_from(["up", "down", "both"]),
        },
    ),
}


@cache
def _loop(detector: str) -> Kernel:
    update = COMPILED[detector].update

    def run(p: Any, s: Any, key: int, values: Any, flags: Any) -> None:
        for e in range(values.shape[0]):
            flags[e] = update(p, s, key, values[e])

    return Kernel(run)


def rivers(detector: str, params: Any = None) -> Any:
    return getattr(drift, DETECTORS[detector])(**(params or {}))


def stream(seed: int, n: int = 3000) -> Any:
    """Numbers whose mean, spread and kind change now and then."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(rng.integers(1, 12)):
        size, mean = rng.integers(1, 900), rng.normal() * rng.choice([0.1, 1.0, 10.0, 1e4])
        part = mean + rng.choice([0.0, 0.01, 1.0, 3.0]) * rng.normal(size=size)
        kind = rng.integers(5)
        if kind == 0:
            part = (rng.random(size) < rng.random()) * 1.0
        elif kind == 1:
            part += np.linspace(0.0, 5.0, size)
        elif kind == 2:
            part = np.round(part)
        parts.append(part)
    return np.concatenate(parts)[:n] * rng.choice([1.0, 1e-9])


@given(st.data(), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("detector", COMPILED)
def test_every_decision_and_number_is_rivers(detector: str, data: Any, seed: int) -> None:
    params, values = data.draw(PARAMS[detector]), stream(seed)
    form, theirs = COMPILED[detector], rivers(detector, params)
    p = form.settings(**params)
    state, flags = form.empty(3, p), np.zeros(len(values), np.bool_)
    untouched = form.save(state, 0), form.save(state, 2)
    step = int(data.draw(st.integers(1, 400)))
    for first in range(0, len(values), step):
        part = slice(first, first + step)
        _loop(detector)(p, state, 1, values[part], flags[part])
        expected = []
        for value in values[part].tolist():
            theirs.update(value)
            expected.append(theirs.drift_detected)
        assert flags[part].tolist() == expected
        mine, its = form.save(state, 1), form.of_river(theirs)
        assert mine.keys() == its.keys()
        for name, number in mine.items():
            np.testing.assert_allclose(number, its[name], rtol=1e-12, atol=0.0)
    if detector == "adwin":
        assert float(state.width[1]) == theirs.width
        estimation = state.total[1] / state.width[1]
        assert estimation == pytest.approx(theirs.estimation, rel=1e-12)
        assert float(state.variance[1]) == pytest.approx(theirs.variance, rel=1e-12)
    for key, before in zip((0, 2), untouched, strict=True):
        for name, number in form.save(state, key).items():
            assert np.array_equal(number, before[name]), "another key has changed"


@pytest.mark.parametrize("detector", COMPILED)
def test_plain_python_gives_the_same_bits(detector: str) -> None:
    form = COMPILED[detector]
    values = np.random.default_rng(3).normal(size=2000) + np.repeat([0.0, 3.0, -1.0, 2.0], 500)
    p = form.settings()
    found = []
    for run in (_loop(detector), _loop(detector).function):
        state, flags = form.empty(1, p), np.zeros(len(values), np.bool_)
        run(p, state, 0, values, flags)
        found.append((flags, state))
    assert np.array_equal(found[0][0], found[1][0])
    assert found[0][0].any()
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("channels", ["mean", "each"])
@pytest.mark.parametrize("detector", COMPILED)
def test_a_state_of_rivers_objects_is_taken_over(detector: Any, channels: Any) -> None:
    """As checkpoints had them while the detectors were river's."""
    if channels == "each" and detector not in LEVELS:
        return
    count = 3 if channels == "each" else 1
    values = np.stack([np.resize(stream(seed), 900) for seed in (21, 22, 23)[:count]], axis=1)
    values = np.clip(values, -5.0, 5.0)
    signal = "input" if channels == "each" else "loss"
    level = {"delta": 0.002 / count} if detector == "adwin" else {}
    for stop in (0, 1, 300, len(values) - 100):
        whole, loaded = (DriftMonitor(detector, signal, channels=channels) for _ in range(2))
        theirs = [rivers(detector, level) for _ in range(count)]
        whole.update_many(values[:stop])
        for one, column in zip(theirs, values[:stop].T, strict=True):
            for value in column.tolist():
                one.update(value)
        state = {**whole.state_dict(), "detectors": [dumps_river(one) for one in theirs]}
        loaded.load_state_dict(through_a_checkpoint(state))
        expected = whole.update_many(values[stop:])
        assert np.array_equal(loaded.update_many(values[stop:]), expected)


def test_many_values_at_once_are_alarms_where_single_values_are() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1200, 2)) + 4.0 * (np.arange(1200) % 400 >= 200)[:, None]
    values[rng.random(values.shape) < 0.1] = np.nan
    values[50] = np.inf
    for detector, boost in itertools.product(("adwin", "kswin"), ("alert", "boost")):
        made: list[Any] = [
            DriftMonitor(detector, "input", boost, channels="each", cool_down=100)  # type: ignore[arg-type]
            for _ in range(2)
        ]
        one, many = made
        expected = [one.update(row) for row in values]
        cuts = np.split(values, [1, 1, 300, 700])
        assert [flag for part in cuts for flag in many.update_many(part)] == expected
        assert sum(expected) > 1
        assert (one.refused, one.fired_channels) == (many.refused, many.fired_channels)
        assert one.boost is None or one.boost.level == many.boost.level


def test_a_full_window_loses_its_oldest_values() -> None:
    p = adwin.adwin_settings(max_buckets=2)
    state, values = adwin.empty_adwin(1, p, levels=3), np.ones(100)
    flags = np.zeros(100, np.bool_)
    _loop("adwin")(p, state, 0, values, flags)
    assert not flags.any()
    assert 2 * (1 + 2 + 4) >= state.width[0] > 8
    assert state.width[0] == (state.counts[0] * [1, 2, 4]).sum() == state.total[0]


@pytest.mark.parametrize(
    ("detector", "params"),
    [
        ("adwin", {"delta": "high"}),
        ("adwin", {"delta": 0.0}),
        ("adwin", {"clock": 0}),
        ("adwin", {"max_buckets": 1.5}),
        ("adwin", {"threshold": 3.0}),
        ("page-hinkley", {"mode": "sideways"}),
        ("page-hinkley", {"threshold": "high"}),
        ("page-hinkley", {"clock": 3}),
    ],
)
def test_wrong_parameters_are_refused(detector: Any, params: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(params))):
        DriftMonitor(detector, params=params)


def test_a_window_of_another_shape_is_refused() -> None:
    saved, other = DriftMonitor("adwin"), DriftMonitor("adwin", params={"max_buckets": 6})
    saved.update(1.0)
    with pytest.raises(CheckpointError, match="ADWIN"):
        other.load_state_dict(saved.state_dict())
    theirs = drift.ADWIN(max_buckets=4)
    with pytest.raises(CheckpointError, match="ADWIN"):
        other.load_state_dict({**saved.state_dict(), "detectors": [dumps_river(theirs)]})


def test_the_extremes_of_page_hinkley_are_part_of_its_state() -> None:
    p = page_hinkley.page_hinkley_settings()
    state = page_hinkley.empty_page_hinkley(1, p)
    saved = through_a_checkpoint(page_hinkley.save_page_hinkley(state, 0))
    assert saved["min_increase"] == np.inf
    page_hinkley.load_page_hinkley(state, 0, saved)
    assert page_hinkley.save_page_hinkley(state, 0) == saved
