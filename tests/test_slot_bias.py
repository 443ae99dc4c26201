"""The bias by time of day against its formula, a cell at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import CPU, built, spec_of

from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners import BaseOutput, Bias, SlotBias
from streamadapt.testing.checks.cases import Case, drive

HOUR = 3600 * 10**9
RATES = (0.5, 0.1)


def at(output: Any, time: int | None) -> BaseOutput:
    times = None if time is None else torch.tensor([time])
    return BaseOutput(torch.as_tensor(np.asarray(output), dtype=torch.float32), None, times)


@pytest.mark.parametrize("step", [HOUR, 5 * 60 * 10**9, 3 * HOUR])
@pytest.mark.parametrize(("rows", "columns"), [(4, 3), (3, 3), (1, 1)])
def test_a_row_moves_the_slot_its_forecast_was_issued_in(
    rows: int, columns: int, step: int
) -> None:
    learner = built(SlotBias(RATES), spec_of("forecast", 2, columns, rows, columns))
    b = np.zeros((24, len(RATES), rows, columns))
    rng = np.random.default_rng(0)
    times: list[int] = []
    for i in range(60):
        times.append(17 * HOUR + i * step + int(rng.integers(0, step // 2)))
        said, target = (rng.normal(size=(rows, columns)).astype(np.float32) for _ in range(2))
        mask = rng.random((rows, columns)) < 0.7
        mask[i + 1 :] = False
        for h in range(min(rows, i + 1)):
            share = min(1.0, (times[i - h] - times[i - h - 1]) / HOUR) if i - h > 0 else 1.0
            slot = times[i - h] // HOUR % 24
            for v, rate in enumerate(RATES):
                error = target[h].astype(np.float64) - said[h] - b[slot, v, h]
                b[slot, v, h] += np.where(mask[h], rate * share * error, 0.0)
        given = torch.from_numpy(np.where(mask, target, np.nan))
        learner.learn(torch.zeros(2, columns), at(said, times[-1]), given, torch.from_numpy(mask))
        now = times[-1] + step
        mine = learner.predict(torch.zeros(2, columns), at(said, now)).numpy()
        np.testing.assert_allclose(mine, said + b[now // HOUR % 24], rtol=1e-4, atol=1e-4)
    assert np.count_nonzero(np.abs(b).sum((1, 2, 3))) > 4, "several slots were visited"


def test_labels_of_a_regression_go_to_the_slot_of_their_entry() -> None:
    """Also where they come out of order, and few: a label a visit moves by the whole rate."""
    learner = built(SlotBias(0.25, period=4.0, slots=4), spec_of("regression", 1, 1, 1, 1))
    ones = torch.ones(1, 1)
    for time in (1, 10, 7):  # seconds: slots 1, 2 and 3
        learner.learn(torch.zeros(1, 1), at([[0.0]], time * 10**9), ones, ones > 0)
    said = [learner.predict(torch.zeros(1, 1), at([[0.0]], s * 10**9)).item() for s in range(8)]
    assert said == [0.0, 0.25, 0.25, 0.25] * 2


def test_one_slot_is_a_bias() -> None:
    case = Case("forecast", 5, 3, 4, 3)
    steps = case.steps(80, "rows", CPU)  # entries a nanosecond apart
    slots = drive(built(SlotBias(RATES, period=1e-9, slots=1), case.spec(CPU)), steps)
    plain = drive(built(Bias(RATES), case.spec(CPU)), steps)
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(slots, plain, strict=True))


def test_without_times_it_is_a_bias() -> None:
    learner = built(SlotBias(0.5), spec_of("regression", 1, 1, 1, 1))
    ones = torch.ones(1, 1)
    for _ in range(2):
        learner.learn(torch.zeros(1, 1), at([[0.0]], None), ones, ones > 0)
    assert learner.predict(torch.zeros(1, 1), at([[0.0]], None)).item() == 0.75


def test_a_restored_learner_learns_nothing_from_entries_it_never_saw() -> None:
    learner = built(SlotBias(0.5), spec_of("forecast", 1, 1, 3, 1))
    ones = torch.ones(3, 1)
    for i in range(5):
        learner.learn(torch.zeros(1, 1), at(np.zeros((3, 1)), i * HOUR), ones, ones > 0)
    learner.restore(learner.snapshot())
    before = learner.state_dict()["bias"]
    learner.learn(torch.zeros(1, 1), at(np.zeros((3, 1)), 9 * HOUR), ones, ones > 0)
    moved = (learner.state_dict()["bias"] != before).nonzero()[:, [0, 2]].tolist()
    assert moved == [[9, 0]], "row 0 of the newest entry alone, in its own slot"


def test_boost_multiplies_the_rate_up_to_one() -> None:
    for boost, wanted in ((4.0, 0.4), (1e6, 1.0)):
        learner = built(SlotBias(0.1), spec_of("regression", 1, 1, 1, 1))
        learner.boost = boost
        learner.learn(torch.zeros(1, 1), at([[0.0]], 0), torch.ones(1, 1), torch.ones(1, 1) > 0)
        assert learner.predict(torch.zeros(1, 1), at([[0.0]], 0)).item() == pytest.approx(wanted)


def test_names() -> None:
    assert SlotBias((0.1, 0.03)).names == ("slot_bias-0.1", "slot_bias-0.03")
    assert SlotBias(0.1, period="7d", slots=7).names == ("slot_bias-604800s-7-0.1",)
    assert SlotBias(0.1, period=86_400).names == SlotBias(0.1).names, "a day in seconds is a day"


@pytest.mark.parametrize(
    "bad",
    [
        {"rate": 0.0}, {"rate": ()}, {"period": "1 day"}, {"period": 0.0},
        {"period": float("nan")}, {"slots": 0}, {"slots": 1.5}, {"slots": True},
        {"period": 1e-9, "slots": 2},
    ],
)  # fmt: skip
def test_bad_settings(bad: Any) -> None:
    with pytest.raises(ConfigError):
        SlotBias(**bad)


def test_classes_are_learned_per_slot_as_bias_learns_them() -> None:
    """Two biases that take turns, number for number."""
    rng = np.random.default_rng(3)
    mine = built(SlotBias((0.5, 0.1), period=2e-9, slots=2), spec_of("classification", 1, 1, 1, 3))
    theirs = [built(Bias((0.5, 0.1)), spec_of("classification", 1, 1, 1, 3)) for _ in range(2)]
    for t in range(60):
        said = at(rng.dirichlet(np.ones(3), 1), t)
        x = torch.zeros(1, 1)
        p = mine.predict(x, said)
        torch.testing.assert_close(p, theirs[t % 2].predict(x, said))
        assert p.sum(-1).flatten().tolist() == pytest.approx([1.0, 1.0])
        target = torch.eye(3)[[(t % 2) * int(rng.integers(1, 3))]]
        for learner in (mine, theirs[t % 2]):
            learner.learn(x, said, target, target > -1)


def test_wrong_shapes_are_refused() -> None:
    learner = built(SlotBias(), spec_of("forecast", 1, 1, 2, 1))
    with pytest.raises(ShapeError):
        learner.learn(
            torch.zeros(1, 1), at(np.zeros((2, 1)), 0), torch.zeros(1, 2), torch.zeros(1, 2) == 0
        )
