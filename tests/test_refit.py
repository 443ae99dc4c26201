"""Incremental refitting against the same fits made manually, and its schedule."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_helpers import CPU, base, built, spec_of
from torch import Tensor, nn

from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners import Refit
from streamadapt.testing.checks.cases import Case, drive
from streamadapt.testing.checks.costs import count_work

CASES = [
    Case("forecast", 5, 3, 4, 3),
    Case("regression", 2, 3, 1, 4),
    Case("classification", 2, 4, 1, 3),
]
EVERY, MEMORY, BATCH, EPOCHS = 10, 25, 4, 3
STEPS = EPOCHS * MEMORY // BATCH  # 18 per fit: two at most entries, one at some


class ByHand:
    """A torch module, torch's own Adam, and a list of examples."""

    def __init__(self, case: Case, learner: Refit, *, direct: bool) -> None:
        self.case, self.spec, self.direct = case, case.spec(CPU, seed=3), direct
        sizes = [case.window * case.channels, *learner.hidden, case.rows * case.columns]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        with torch.no_grad():
            for i, layer in enumerate(layers):
                layer.weight.copy_(learner.serving[2 * i])
                layer.bias.copy_(learner.serving[2 * i + 1])
        self.net = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])
        self.adam = torch.optim.Adam(self.net.parameters(), lr=learner.lr)
        self.examples: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.number = self.seen = 0

    def x(self, inputs: Tensor) -> Tensor:
        z = (inputs - self.spec.input_loc) / self.spec.input_scale
        if self.case.kind == "forecast":
            z = torch.cat([z[:-1] - z[-1], z[-1:]])
        return z.flatten()

    def start(self, inputs: Tensor, output: Tensor) -> Tensor:
        if self.case.kind == "classification":
            logs = output.log()
            return torch.zeros_like(output) if self.direct else logs - logs.mean()
        if self.direct:
            return (
                inputs[-1:] if self.case.kind == "forecast" else self.spec.output_loc
            ).expand_as(output)
        return output

    def learn(self, inputs: Tensor, output: Tensor, target: Tensor, mask: Tensor) -> None:
        if not mask.any():
            return
        start = self.start(inputs, output)
        if self.case.kind == "classification":
            y = target
        else:
            y = torch.where(mask, (target - start) / self.spec.output_scale, 0.0)
        self.examples = [
            *self.examples,
            (self.x(inputs), start.flatten(), y.flatten(), mask.flatten()),
        ]
        turn = self.seen % EVERY
        self.seen += 1
        slots = min(self.seen, MEMORY)
        for _ in range((turn + 1) * STEPS // EVERY - turn * STEPS // EVERY):
            generator = torch.Generator().manual_seed((3 << 40) + self.number)
            self.number += 1
            places = torch.randint(slots, (BATCH,), generator=generator).tolist()
            # Slot p of the ring holds the newest example whose number is p modulo the memory size.
            chosen = [
                self.examples[max(i for i in range(self.seen) if i % MEMORY == p)] for p in places
            ]
            x, start, y, known = (torch.stack(part) for part in zip(*chosen, strict=True))
            out = self.net(x)
            if self.case.kind == "classification":
                loss = F.cross_entropy(start + out, y.argmax(1))
            else:
                loss = F.huber_loss(out[known], y[known])
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("hidden", [6, (5, 4)])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.kind)
def test_refitting_equals_manual_fits(case: Case, hidden: Any, direct: bool) -> None:
    make = {
        "memory": MEMORY,
        "hidden": hidden,
        "epochs": EPOCHS,
        "batch": BATCH,
        "lr": 1e-2,
        "direct": direct,
    }
    learner = built(Refit(EVERY, **make), case.spec(CPU, seed=3))
    hand = ByHand(case, learner, direct=direct)
    fitted = [p.clone() for p in hand.net.parameters()]
    for step in case.steps(60, "path", CPU):
        for e in step.learn:
            before = hand.seen
            learner.learn(e.inputs, e.base, e.target, e.mask)
            hand.learn(e.inputs, e.base.output, e.target, e.mask)
            if hand.seen % EVERY == 0 and hand.seen != before:
                fitted = [p.detach().clone() for p in hand.net.parameters()]
        mine = learner.predict(step.inputs, step.base)
        if hand.seen < EVERY:
            assert torch.equal(mine, step.base.output), (
                "the base's output, until the first fit is complete"
            )
            continue
        names = [name for name, _ in hand.net.named_parameters()]
        out = torch.func.functional_call(
            hand.net, dict(zip(names, fitted, strict=True)), (hand.x(step.inputs),)
        ).view_as(mine)
        start = hand.start(step.inputs, step.base.output)
        wanted = (
            torch.softmax(start + out, -1)
            if case.kind == "classification"
            else start + out * hand.spec.output_scale
        )
        torch.testing.assert_close(mine, wanted.detach(), rtol=1e-4, atol=1e-4)
    assert hand.seen > 3 * EVERY
    assert hand.seen > MEMORY, "old examples were overwritten"


def test_the_network_is_frozen_between_fits() -> None:
    case = CASES[1]
    learner = built(Refit(10, memory=30, hidden=4), case.spec(CPU))
    probe = case.steps(1, "path", CPU)[0]
    predicted = []
    for step in case.steps(60, "path", CPU):
        for e in step.learn:
            if e.mask.any():
                learner.learn(e.inputs, e.base, e.target, e.mask)
                predicted.append(learner.predict(probe.inputs, probe.base))
    changed = [
        i + 1 for i in range(1, len(predicted)) if not torch.equal(predicted[i], predicted[i - 1])
    ]
    assert changed == list(range(10, len(predicted) + 1, 10))


def test_no_entry_pays_for_a_whole_fit() -> None:
    case = CASES[1]
    # 40 steps, 2 an example
    learner = built(Refit(20, memory=100, hidden=4, batch=5, epochs=2), case.spec(CPU))
    work = [
        count_work(lambda e=e: learner.learn(e.inputs, e.base, e.target, e.mask))[
            "torch operations"
        ]  # type: ignore[misc]
        for step in case.steps(70, "path", CPU)
        for e in step.learn
        if e.mask.any()
    ]
    assert max(work) < 1.2 * np.median(work) + 10


def test_restored_learners_continue_identically() -> None:
    case = CASES[0]
    steps = case.steps(80, "path", CPU)
    one, two = (built(Refit(7, memory=20, hidden=4), case.spec(CPU, seed=1)) for _ in range(2))
    drive(one, steps[:40])
    two.load_state_dict(one.snapshot())
    assert all(map(torch.equal, drive(one, steps[40:]), drive(two, steps[40:])))


def test_names() -> None:
    assert Refit().names == ("refit-72",)
    assert Refit(30, direct=True).names == ("refit-direct-30",)


@pytest.mark.parametrize(
    "bad",
    [
        {"every": 0}, {"every": True}, {"every": 1.5}, {"memory": 0}, {"hidden": ()},
        {"hidden": (4, 4, 4)}, {"hidden": 0}, {"epochs": 0}, {"batch": -1}, {"lr": 0.0},
        {"lr": float("nan")},
    ],
)  # fmt: skip
def test_bad_settings(bad: Any) -> None:
    with pytest.raises(ConfigError):
        Refit(**bad)


def test_wrong_shapes_are_refused() -> None:
    learner = built(Refit(), spec_of("regression", 2, 2, 1, 2))
    with pytest.raises(ShapeError):
        learner.learn(
            torch.zeros(2, 2), base([[0.0, 0.0]]), torch.zeros(2, 2), torch.zeros(2, 2) == 0
        )
