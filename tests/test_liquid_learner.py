"""The liquid learner: a live state in event time, and steps of truncated backpropagation, both
against a manual computation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from core_helpers import base, built, spec_of
from liquid_helpers import CPU, SECOND, SMALL, base_output_at, scaled_spec, stream
from torch import Tensor

from streamadapt.config.registry import prepare
from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners import BaseOutput, Learner, Liquid
from streamadapt.learners.liquid import LTC, CfC
from streamadapt.learners.liquid.learner import FLOOR, MAX_GAP, MIN_GAP, Network
from streamadapt.testing.checks.cases import CASES, state_bytes


def randomise(learner: Any, seed: int = 0) -> None:
    """Set a readout that is not zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in learner.net.readout.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))


def twin(cell: str, channels: int, units: int, outputs: int, learner: Any) -> Any:
    """Return a separate network with the learner's weights."""
    made = (
        CfC(channels, units, projection=outputs, backbone=(6,))
        if cell == "cfc"
        else LTC(channels, units, projection=outputs)
    )
    made.load_state_dict(learner.net.state_dict())
    return made


def settings_of(cell: str) -> dict[str, Any]:
    return {
        "cell": cell,
        "units": 5,
        "network": SMALL if cell == "cfc" else None,
        "time_unit": 2.0,
    }


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("cell", ["cfc", "ltc"])
def test_the_state_advances_as_by_hand(cell: str, window: int) -> None:
    spec = scaled_spec(window=window)
    learner = built(Liquid(**settings_of(cell)), spec)
    randomise(learner)
    net = twin(cell, 2, 5, 2, learner)
    output = torch.tensor([[4.0, -1.0]])
    h, last = torch.zeros(1, 5), None
    for i, (inputs, times) in enumerate(stream(30, window, 2)):
        # The first window is processed from its start, then one step for each entry.
        for row, time in list(zip(inputs, times.tolist(), strict=True))[0 if i == 0 else -1 :]:
            dt = 1.0 if last is None else (time - last) / (2.0 * SECOND)
            x = (row - spec.input_loc) / spec.input_scale
            with torch.no_grad():
                correction, h = net(x[None, None], h, torch.tensor([[dt]]))
            last = time
        mine = learner.predict(inputs, base_output_at(times, output))
        learner.adapt(inputs, base_output_at(times, output))
        torch.testing.assert_close(mine, output + spec.output_scale * correction[:, 0])
        torch.testing.assert_close(learner.state, h)


def test_predictions_in_between_change_nothing() -> None:
    learners = [built(Liquid(**settings_of("cfc")), scaled_spec()) for _ in range(3)]
    for learner in learners:
        randomise(learner)
    asked, plain, silent = learners
    output, others = torch.zeros(1, 2), stream(20, 3, 2, seed=9)
    for (inputs, times), (other, later) in zip(stream(20, 3, 2), others, strict=True):
        base_output = base_output_at(times, output)
        asked.predict(other, base_output_at(later, output))
        first = asked.predict(inputs, base_output)
        asked.predict(other, base_output_at(later, output))
        asked.adapt(inputs, base_output)
        assert torch.equal(first, plain.predict(inputs, base_output))
        plain.adapt(inputs, base_output)
        silent.adapt(inputs, base_output)
    states = {state_bytes(learner.snapshot()) for learner in learners}
    assert len(states) == 1, (
        "adapt computes the same state whether or not predict has computed it before"
    )


@pytest.mark.parametrize("change", ["learn", "restore", "swap"])
def test_the_cached_state_of_predict_is_used_only_while_valid(change: str) -> None:
    learner, honest = (
        built(Liquid(**settings_of("cfc"), lr=0.1), scaled_spec()) for _ in range(2)
    )
    steps = stream(12, 3, 2)
    target, known = torch.tensor([[9.0, -9.0]]), torch.ones(1, 2, dtype=torch.bool)
    for each in (learner, honest):
        randomise(each)
        for inputs, times in steps[:10]:
            each.adapt(inputs, base_output_at(times, torch.zeros(1, 2)))
    start = honest.snapshot()
    inputs, times = steps[10]
    base_output = base_output_at(times, torch.zeros(1, 2))
    if change == "restore":
        learner.adapt(inputs, base_output)
        learner.predict(inputs, base_output)
        learner.restore(start)
    elif change == "learn":
        learner.predict(inputs, base_output)
        for each in (learner, honest):
            each.learn(inputs, base_output, target, known)
    else:
        zeros = {name: torch.zeros_like(p) for name, p in learner.named_parameters()}
        weight = learner.net.readout.weight
        # They differ in content, not only in age.
        while zeros["net.readout.weight"]._version < weight._version:
            zeros["net.readout.weight"].zero_()
        torch.func.functional_call(
            _Call(learner), {f"of.{k}": v for k, v in zeros.items()}, (inputs, base_output)
        )
    for each in (learner, honest):
        each.adapt(inputs, base_output)
    assert state_bytes(learner.snapshot()) == state_bytes(honest.snapshot())


class _Call(torch.nn.Module):
    def __init__(self, of: Learner) -> None:
        super().__init__()
        self.of = of

    def forward(self, inputs: Tensor, base_output: BaseOutput) -> Tensor:
        return self.of.predict(inputs, base_output)


@pytest.mark.parametrize("loss", ["mae", "mse"])
@pytest.mark.parametrize(("window", "unroll"), [(4, 2), (2, 2), (1, 3)])
@pytest.mark.parametrize("cell", ["cfc", "ltc"])
def test_steps_equal_torch_by_hand(cell: str, window: int, unroll: int, loss: Any) -> None:
    """Forecasts of three rows: an example is learned from the state before its entry's last
    inputs."""
    rows, k = 3, min(unroll, window)
    spec = scaled_spec("forecast", window, rows, 2)
    learner = built(Liquid(**settings_of(cell), unroll=unroll, lr=0.02, clip=0.5, loss=loss), spec)
    randomise(learner)
    net = twin(cell, 2, 5, rows * 2, learner)
    adam = torch.optim.Adam(net.parameters(), lr=0.02)
    g = torch.Generator().manual_seed(2)
    steps, states, clipped = stream(24, window, 2), [], 0
    for i, (inputs, times) in enumerate(steps):
        if i >= rows:
            seen, stamps = steps[i - rows]
            output, target = (
                torch.randn(rows, 2, generator=g),
                3.0 * torch.randn(rows, 2, generator=g),
            )
            mask = torch.rand(rows, 2, generator=g) > 0.3
            learner.learn(
                seen, base_output_at(stamps, output), torch.where(mask, target, torch.nan), mask
            )
            # The state after entry i - rows - k, if there is one; entry numbers count from the
            # first prediction.
            at = i - rows - k
            h = states[at] if at >= 0 else torch.zeros(1, 5)
            known = [*([steps[at][1][-1]] if at >= 0 else []), *stamps][-k - 1 :]
            gaps = [(b - a).item() / (2.0 * SECOND) for a, b in pairwise(known)]
            dt = torch.tensor([[1.0] * (k - len(gaps)) + gaps])
            x = ((seen - spec.input_loc) / spec.input_scale)[-k:]
            correction = net(x[None], h, dt)[0][0, -1].view(rows, 2)
            error = (output + correction * spec.output_scale - target) / spec.output_scale
            adam.zero_grad()
            (error.abs() if loss == "mae" else error**2)[mask].mean().backward()
            clipped += torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5).item() > 0.5
            adam.step()
            torch.testing.assert_close(
                learner.net.state_dict(), net.state_dict(), rtol=1e-4, atol=1e-5
            )
        learner.adapt(inputs, base_output_at(times, torch.zeros(rows, 2)))
        states.append(learner.state.clone())
    assert clipped > 0, "the clip was active"


def test_classes_are_learned_by_cross_entropy() -> None:
    spec = spec_of("classification", 1, 2, 1, 3)
    learner = built(Liquid("cfc", 5, network=SMALL, lr=0.05, clip=9.0), spec)
    randomise(learner)
    net = twin("cfc", 2, 5, 3, learner)
    adam = torch.optim.Adam(net.parameters(), lr=0.05)
    p, x, target = (
        torch.tensor([[0.7, 0.3, 0.0]]),
        torch.randn(1, 2),
        torch.tensor([[0.0, 0.0, 1.0]]),
    )
    logits = net(x[None])[0][0] + p.clamp_min(FLOOR).log()
    torch.testing.assert_close(learner.predict(x, base(p)), torch.softmax(logits, -1).detach())
    torch.nn.functional.cross_entropy(logits, torch.tensor([2])).backward()
    adam.step()
    learner.learn(x, base(p), target, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(learner.net.state_dict(), net.state_dict(), rtol=1e-4, atol=1e-5)
    for _ in range(100):
        learner.learn(x, base(p), target, torch.ones(1, 3, dtype=torch.bool))
    assert learner.predict(x, base(p))[0, 2] > 0.9, (
        "a class with probability 0 in the base can be learned"
    )


@pytest.mark.parametrize("cell", ["cfc", "ltc"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.kind}-{c.window}")
def test_it_starts_as_the_base_bit_for_bit(case: Any, cell: Any) -> None:
    learner = built(Liquid(cell, 6), case.spec(CPU))
    for step in case.steps(20, "path", CPU):
        assert torch.equal(learner.predict(step.inputs, step.base), step.base.output)
        learner.adapt(step.inputs, step.base)
    assert learner.state.abs().max() > 0.0


def test_unknown_targets_do_not_touch_the_state() -> None:
    learner = built(Liquid("cfc", 5), scaled_spec())
    inputs, times = stream(1, 3, 2)[0]
    learner.adapt(inputs, base_output_at(times, torch.zeros(1, 2)))
    before = state_bytes(learner.snapshot())
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    learner.learn(
        inputs, base_output_at(times, torch.zeros(1, 2)), torch.full((1, 2), torch.nan), nothing
    )
    assert state_bytes(learner.snapshot()) == before, "Adam's moments do not decay either"


def gaps_seen(learner: Any, stamps: Sequence[int], window: int) -> list[list[float]]:
    """Return the time gaps that the network receives at each entry."""
    seen: list[list[float]] = []
    learner.net.register_forward_pre_hook(lambda _, args: seen.append(args[2][0].tolist()))
    for i in range(window, len(stamps) + 1):
        learner.adapt(
            torch.zeros(window, 2),
            base_output_at(torch.tensor(stamps[i - window : i]), torch.zeros(1, 2)),
        )
    return seen


@pytest.mark.parametrize(
    ("window", "unit", "stamps", "expected"),
    [
        (3, None, [10, 14, 20, 25], [[1.0, 0.8, 1.2], [1.0]]),  # the mean gap of the first window
        (
            1,
            None,
            [10, 10, 14, 16],
            [[1.0], [1.0], [1.0], [0.5]],
        ),  # the first gap; none between equal times
        (1, 2e-9, [10, 10, 14], [[1.0], [MIN_GAP], [2.0]]),
        (1, 1e-9, [10, 10**18], [[1.0], [MAX_GAP]]),
        (2, None, [7, 7, 9, 12], [[1.0, 1.0], [1.0], [1.5]]),
    ],
)
def test_time_gaps_are_in_time_units(
    window: int, unit: float | None, stamps: list[int], expected: Any
) -> None:
    learner = built(Liquid("cfc", 5, time_unit=unit), scaled_spec(window=window))
    found = gaps_seen(learner, stamps, window)
    assert [[round(gap, 4) for gap in gaps] for gaps in found] == expected


def test_without_times_every_gap_is_one() -> None:
    learner = built(Liquid("cfc", 5), scaled_spec(window=2))
    seen: list[list[float]] = []
    learner.net.register_forward_pre_hook(lambda _, args: seen.append(args[2][0].tolist()))
    for _ in range(2):
        learner.adapt(torch.zeros(2, 2), base(torch.zeros(1, 2)))
    learner.learn(
        torch.zeros(2, 2), base(torch.zeros(1, 2)), torch.ones(1, 2), torch.ones(1, 2) > 0
    )
    assert seen == [[1.0, 1.0], [1.0], [1.0, 1.0]]


@pytest.mark.parametrize(("late", "kept"), [(3, True), (2, False)])
def test_a_late_label_is_learned_from_the_state_of_its_time(late: int, kept: bool) -> None:
    learner = built(Liquid("cfc", 5, max_label_delay=late, unroll=2), scaled_spec())
    starts, states, steps = [], [], stream(12, 3, 2)
    for inputs, times in steps:
        learner.adapt(inputs, base_output_at(times, torch.zeros(1, 2)))
        states.append(learner.state.clone())
    learner.net.register_forward_pre_hook(lambda _, args: starts.append(args[1].clone()))
    inputs, times = steps[8]  # three entries ago
    learner.learn(
        inputs, base_output_at(times, torch.zeros(1, 2)), torch.ones(1, 2), torch.ones(1, 2) > 0
    )
    assert torch.equal(starts[0], states[6] if kept else torch.zeros(1, 5))


# -- settings


@pytest.mark.parametrize(
    ("bad", "path"),
    [
        ({"cell": "gru"}, "cell"),
        ({"update": "all"}, "update"),
        ({"loss": "l3"}, "loss"),
        ({"units": 0}, "units"),
        ({"unroll": 0}, "unroll"),
        ({"max_label_delay": -1}, "max_label_delay"),
        ({"lr": float("nan")}, "lr"),
        ({"clip": 0.0}, "clip"),
        ({"time_unit": -1.0}, "time_unit"),
        ({"network": Network(mode="fast")}, "mode"),  # type: ignore[arg-type]
        ({"network": Network(wiring="autoncp", motors=31)}, "outputs"),
        ({"network": Network(wiring="autoncp", backbone=(3,))}, "network.backbone"),
        ({"network": Network(wiring="ring")}, "network.wiring"),  # type: ignore[arg-type]
        ({"cell": "ltc", "network": Network(mode="pure")}, "network.mode"),
    ],
)
def test_bad_settings(bad: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Liquid(**bad)
    assert caught.value.path == path


def test_names_distinguish_learners_with_different_settings() -> None:
    siblings = [
        Liquid(), Liquid("ltc"), Liquid(units=64), Liquid(lr=1e-4), Liquid(residual=False),
        Liquid(unroll=8), Liquid(network=Network(mode="pure")),
        Liquid("ltc", network=Network(wiring="autoncp")),
    ]  # fmt: skip
    assert [n for learner in siblings for n in learner.names] == [
        "liquid-cfc", "liquid-ltc", "liquid-cfc-64", "liquid-cfc-0.0001", "liquid-cfc-direct",
        "liquid-cfc-unroll8", "liquid-cfc-pure", "liquid-ltc-autoncp",
    ]  # fmt: skip


def test_a_config_can_set_every_option() -> None:
    table = {
        "kind": "liquid", "cell": "cfc", "units": 12, "time_unit": 300, "residual": False,
        "network": {"wiring": "random", "sparsity": 0.25, "mode": "no_gate"},
    }  # fmt: skip
    learner = built(prepare("learners", "learners[0]", table)(), scaled_spec())
    assert learner.names == ("liquid-cfc-no_gate-random-12-direct",)
    assert learner.clock.tolist() == [0, 0, 300 * SECOND]
    dense = prepare(
        "learners", "learners[0]", {"kind": "liquid", "network": {"backbone": [8, 4]}}
    )()
    assert len(built(dense, scaled_spec()).net.layers[0].backbone) == 2
    with pytest.raises(ConfigError, match=r"learners\[0\]\.network\.moed.*did you mean 'mode'"):
        prepare("learners", "learners[0]", {"kind": "liquid", "network": {"moed": "pure"}})()


def test_wrong_shapes_are_refused() -> None:
    learner = built(Liquid("cfc", 5), scaled_spec())
    with pytest.raises(ShapeError, match=r"inputs must be \(3, 2\), got \(2, 2\)"):
        learner.predict(torch.zeros(2, 2), base(torch.zeros(1, 2)))
    with pytest.raises(ShapeError, match=r"base.output must be \(1, 2\), got \(2, 1\)"):
        learner.predict(torch.zeros(3, 2), base(torch.zeros(2, 1)))
