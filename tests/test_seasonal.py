"""The season ago, by entries and by the clock, looked up in the whole stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import base, built, spec_of, walk

from streamadapt import Entry, Forecast, NoGuard, Persistence, Pipeline, Seasonal
from streamadapt.errors import ConfigError
from streamadapt.learners import BaseOutput

MINUTE = 60 * 10**9


def predictions(
    values: Any, times: Any, period: Any, horizon: int, window: int = 2, **more: Any
) -> dict[int, Any]:
    pipeline = Pipeline(
        Forecast(window, horizon),
        Persistence(horizon),
        [Seasonal(period, **more)],
        NoGuard(),
        device="cpu",
    )
    items = [
        Entry(v, int(t), id=str(i)) for i, (v, t) in enumerate(zip(values, times, strict=True))
    ]
    return {int(p.id): p for p in pipeline.observe(items)}


@pytest.mark.parametrize("horizon", [1, 3, 5, 12])
@pytest.mark.parametrize(("period", "clock"), [(5, "5m"), (1, "1m"), (7, "7m")])
@pytest.mark.parametrize("by_clock", [False, True])
def test_it_is_the_value_of_a_period_ago(
    period: int, clock: str, by_clock: bool, horizon: int
) -> None:
    z = walk(40, 2)
    times = (np.arange(40) + 3) * MINUTE
    setting: dict[str, Any] = {"slots": period} if by_clock else {}
    found = predictions(z, times, clock if by_clock else period, horizon, **setting)
    name = clock if by_clock else period
    for t, p in found.items():
        said, drift = p.experts[f"seasonal-{name}"], p.experts[f"seasonal-drift-{name}"]
        if t < period + 1:  # the window's first entry is seen by no learner
            assert np.array_equal(said, p.base)
            assert np.array_equal(drift, p.base)
            continue
        for h in range(1, horizon + 1):
            ago = t + (h - 1) % period + 1 - period
            np.testing.assert_array_equal(said[h - 1], z[ago])
            np.testing.assert_allclose(drift[h - 1], z[t] + z[ago] - z[t - period], rtol=1e-5)


def test_a_gap_costs_a_period_of_entries() -> None:
    """By entries nothing is one period ago any more; what comes after the gap is counted anew."""
    learner = built(Seasonal(3), spec_of("forecast", 2, 1, 1, 1))
    z, t = torch.arange(20.0).view(-1, 1), list(range(8)) + list(range(30, 42))

    def said(i: int) -> BaseOutput:
        return BaseOutput(torch.full((1, 1), -1.0), None, torch.tensor([t[i - 1], t[i]]))

    usable = {}
    for i in range(1, 20):
        base_of = said(i)
        if i == 8:  # an entry that the learner never saw lies between
            base_of = base_of._replace(times=torch.tensor([29, 30]))
        usable[i] = learner.predict(z[i - 1 : i + 1], base_of)[0].item() != -1.0
        learner.adapt(z[i - 1 : i + 1], base_of)
    assert [i for i, yes in usable.items() if yes] == [
        4,
        5,
        6,
        7,
        11,
        12,
        13,
        14,
        15,
        16,
        17,
        18,
        19,
    ]


def test_by_the_clock_a_gap_costs_what_it_hides() -> None:
    z = walk(60, 1)
    times = np.arange(60) * MINUTE
    kept = np.r_[0:30, 33:60]  # minutes 30 to 32 are not there
    found = predictions(z[kept], times[kept], "10m", 1, slots=10)
    lost = []
    for i, p in found.items():
        minute = kept[i]
        said = p.experts["seasonal-10m"]
        if minute == 33:  # the newest step was four minutes, and so are those to come
            assert said.item() == z[27].item()
        elif minute >= 11 and not np.array_equal(said[0], z[minute + 1 - 10]):
            assert np.array_equal(said, p.base)
            lost.append(int(minute))
    assert {40, 41} <= set(lost) <= {39, 40, 41, 42}, (
        "the forecasts that would need the hidden minutes, or nearly"
    )


def test_by_the_clock_a_first_entry_has_no_past() -> None:
    """Also in a window of one, which does not tell when the entry before was."""
    learner = built(Seasonal("10m"), spec_of("forecast", 1, 1, 2, 1))
    said = BaseOutput(torch.full((2, 1), -1.0), None, torch.tensor([1_700_000_000 * 10**9]))
    assert learner.predict(torch.ones(1, 1), said).tolist() == [[[-1.0], [-1.0]]] * 2


def test_a_step_of_years_costs_a_forecast_and_no_more() -> None:
    """``rows`` such steps are more nanoseconds than an int64 holds."""
    learner = built(Seasonal("10m"), spec_of("forecast", 1, 1, 12, 1))
    for year in range(0, 240, 40):
        said = BaseOutput(torch.zeros(12, 1), None, torch.tensor([year * 365 * 86_400 * 10**9]))
        assert torch.isfinite(learner.predict(torch.ones(1, 1), said)).all()
        learner.adapt(torch.ones(1, 1), said)


def test_a_restored_learner_does_not_take_another_phase() -> None:
    learner = built(Seasonal(3), spec_of("forecast", 2, 1, 1, 1))
    z = torch.arange(30.0).view(-1, 1)

    def said(i: int) -> BaseOutput:
        return BaseOutput(torch.full((1, 1), -1.0), None, torch.tensor([i - 1, i]))

    for i in range(1, 10):
        learner.adapt(z[i - 1 : i + 1], said(i))
    snapshot = learner.snapshot()
    for i in range(10, 15):
        learner.adapt(z[i - 1 : i + 1], said(i))
    learner.restore(snapshot)
    for i in range(15, 22):
        wanted = -1.0 if i < 18 else z[i - 2].item()
        assert learner.predict(z[i - 1 : i + 1], said(i))[0].item() == wanted, i
        learner.adapt(z[i - 1 : i + 1], said(i))


def test_it_needs_no_labels() -> None:
    learner = built(Seasonal(2), spec_of("forecast", 2, 1, 1, 1))
    before = learner.snapshot()
    learner.learn(torch.ones(2, 1), base([[0.0]]), torch.ones(1, 1), torch.ones(1, 1) > 0)
    assert all(torch.equal(before[k], v) for k, v in learner.snapshot().items())
    assert not learner.needs_labels


def test_names() -> None:
    assert Seasonal(24).names == ("seasonal-24", "seasonal-drift-24")
    assert Seasonal().names == ("seasonal-1d", "seasonal-drift-1d")


@pytest.mark.parametrize(
    "bad",
    [
        {"period": 0},
        {"period": True},
        {"period": 1.5},
        {"period": "1 day"},
        {"period": "1d", "slots": 0},
    ],
)
def test_bad_settings(bad: Any) -> None:
    with pytest.raises(ConfigError):
        Seasonal(**bad)


def test_other_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="seasonal"):
        built(Seasonal(3), spec_of("regression", 1, 1, 1, 1))
