"""Optimisers against torch.optim and against slow scalar implementations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import base, built, spec_of
from torch import Tensor, nn

from streamadapt.errors import ConfigError
from streamadapt.learners import ADCSD
from streamadapt.learners.optimizer import OPTIMISERS, Optimiser

LR = 0.05
STEPS = 12
BOOSTS = (1.0, 1.0, 4.0, 1.0, 2.5)


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=g, dtype=dtype)) for shape in ((3, 2), (4,), ())
    ]


def loss_of(theta: list[nn.Parameter], step: int) -> Tensor:
    """Return a loss without symmetry that is never flat; a different one at every step, as on a
    stream."""
    sums = [
        ((p - 0.3 * i + 0.1 * step) ** 4 / 4 + torch.sin((i + 1) * p)).sum()
        for i, p in enumerate(theta)
    ]
    return torch.stack(sums).sum()


def run(optimiser: Optimiser, theta: list[nn.Parameter], start: int = 0, **more: Any) -> None:
    for t in range(start, start + STEPS):
        optimiser.step(loss_of(theta, t), BOOSTS[t % len(BOOSTS)], **more)


def values(theta: list[nn.Parameter]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in theta])


class Lion:
    """Chen et al. 2023, algorithm 2, one number at a time."""

    def __init__(
        self, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        (self.b1, self.b2), self.decay, self.m = betas, weight_decay, 0.0

    def __call__(self, theta: float, g: float, lr: float) -> float:
        c = self.b1 * self.m + (1.0 - self.b1) * g
        self.m = self.b2 * self.m + (1.0 - self.b2) * g
        return theta - lr * (float(np.sign(c)) + self.decay * theta)


class AdaBelief:
    """Zhuang et al. 2020, algorithm 2, one number at a time, with decoupled weight decay."""

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
    ) -> None:
        (self.b1, self.b2), self.eps, self.decay = betas, eps, weight_decay
        self.m = self.s = 0.0
        self.t = 0

    def __call__(self, theta: float, g: float, lr: float) -> float:
        self.t += 1
        self.m = self.b1 * self.m + (1.0 - self.b1) * g
        self.s = self.b2 * self.s + (1.0 - self.b2) * (g - self.m) ** 2 + self.eps
        m, s = self.m / (1.0 - self.b1**self.t), self.s / (1.0 - self.b2**self.t)
        return theta - lr * self.decay * theta - lr * m / (math.sqrt(s) + self.eps)


@pytest.mark.parametrize(
    ("name", "slow", "options"),
    [
        ("lion", Lion, {}),
        ("lion", Lion, {"betas": (0.8, 0.95), "weight_decay": 0.1}),
        ("adabelief", AdaBelief, {}),
        ("adabelief", AdaBelief, {"betas": (0.7, 0.9), "eps": 1e-2, "weight_decay": 0.1}),
    ],
)
def test_equals_the_slow_form(
    name: str, slow: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    theta = parameters(torch.float64)
    optimiser = Optimiser(theta, name, LR, options)
    numbers = values(theta).tolist()
    cells = [slow(**options) for _ in numbers]
    for t in range(STEPS):
        boost = BOOSTS[t % len(BOOSTS)]
        gradients = torch.autograd.grad(loss_of(theta, t), theta)
        flat = torch.cat([g.flatten() for g in gradients]).tolist()
        numbers = [cell(x, g, LR * boost) for cell, x, g in zip(cells, numbers, flat, strict=True)]
        optimiser.step(loss_of(theta, t), boost)
        np.testing.assert_allclose(values(theta).numpy(), numbers, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", {}),
        ("adam", {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
        ("sgd", {}),
        ("sgd", {"momentum": 0.9, "weight_decay": 0.01}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_equals_torch(name: str, options: Mapping[str, Any]) -> None:
    theta, theirs = parameters(), parameters()
    cls: Any = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]
    reference = cls(theirs, lr=LR / 10, **options)
    optimiser = Optimiser(theta, name, LR / 10, options)
    for t in range(STEPS):
        boost = BOOSTS[t % len(BOOSTS)]
        optimiser.step(loss_of(theta, t), boost)
        reference.zero_grad()
        loss_of(theirs, t).backward()
        reference.param_groups[0]["lr"] = LR / 10 * boost
        reference.step()
        torch.testing.assert_close(values(theta), values(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_loaded_state_continues_bit_for_bit(name: str) -> None:
    options = {"momentum": 0.9} if name == "sgd" else {}
    theta = parameters()
    optimiser = Optimiser(theta, name, LR, options)
    run(optimiser, theta)
    saved, at = (
        {k: v.clone() for k, v in optimiser.state_dict().items()},
        [p.detach().clone() for p in theta],
    )
    assert saved, "the moments are state"
    other = [nn.Parameter(p.clone()) for p in at]
    resumed = Optimiser(other, name, LR, options)
    resumed.load_state_dict(saved)
    run(optimiser, theta, STEPS)
    run(resumed, other, STEPS)
    assert torch.equal(values(theta), values(other))
    fresh = [nn.Parameter(p.clone()) for p in at]
    run(Optimiser(fresh, name, LR, options), fresh, STEPS)
    assert not torch.equal(values(theta), values(fresh)), (
        "without its moments the result would differ"
    )


@pytest.mark.parametrize("name", OPTIMISERS)
def test_no_gradient_remains_and_none_is_required(name: str) -> None:
    theta = parameters()
    optimiser = Optimiser(theta, name, LR, {})
    run(optimiser, theta)
    assert all(p.grad is None for p in theta)
    assert not any(b.requires_grad for b in optimiser.buffers())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_clipped_step_equals_that_of_the_scaled_loss(name: str) -> None:
    clipped, scaled, free = (
        parameters(torch.float64),
        parameters(torch.float64),
        parameters(torch.float64),
    )
    ours, reference, unbound = (
        Optimiser(theta, name, LR, {}) for theta in (clipped, scaled, free)
    )
    for t in range(3):
        gradients = torch.autograd.grad(loss_of(scaled, t), scaled)
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))
        assert norm > 0.5
        ours.step(loss_of(clipped, t), clip=0.5)
        reference.step(loss_of(scaled, t) * (0.5 / norm.detach()))
        unbound.step(loss_of(free, t), clip=1e6)
        torch.testing.assert_close(values(clipped), values(scaled), rtol=1e-4, atol=1e-6)
    plain = parameters(torch.float64)
    optimiser = Optimiser(plain, name, LR, {})
    for t in range(3):
        optimiser.step(loss_of(plain, t))
    torch.testing.assert_close(values(free), values(plain), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "lr", "options", "path"),
    [
        ("rmsprop", 0.1, {}, "optimiser"), ("adam", 0.0, {}, "lr"), ("lion", math.nan, {}, "lr"),
        ("adam", 0.1, {"momentum": 0.9}, "optimiser.momentum"),
        ("sgd", 0.1, {"betas": (0.9, 0.9)}, "optimiser.betas"),
        ("lion", 0.1, {"eps": 1e-8}, "optimiser.eps"),
        ("adabelief", 0.1, {"amsgrad": True}, "optimiser.amsgrad"),
        ("lion", 0.1, {"betas": (0.9, 1.0)}, "optimiser.betas"),
        ("adabelief", 0.1, {"betas": 0.9}, "optimiser.betas"),
        ("adabelief", 0.1, {"eps": -1.0}, "optimiser.eps"),
        ("sgd", 0.1, {"momentum": math.nan}, "optimiser.momentum"),
        ("sgd", 0.1, {"nesterov": True}, "optimiser.nesterov"),
        ("lion", 0.1, {"weight_decay": math.inf}, "optimiser.weight_decay"),
    ],
)  # fmt: skip
def test_bad_settings(name: str, lr: float, options: Mapping[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Optimiser(parameters(), name, lr, options)
    assert caught.value.path == path


@pytest.mark.parametrize("name", OPTIMISERS)
def test_adcsd_learns_with_each(name: Any) -> None:
    learner = built(
        ADCSD(0.05 if name == "sgd" else 3e-3, optimiser=name), spec_of("forecast", 6, 2, 4, 2)
    )
    base_output, target, inputs = base(torch.zeros(4, 2)), torch.ones(4, 2), torch.zeros(6, 2)
    for _ in range(60):
        learner.learn(inputs, base_output, target, target > 0)
    left = (learner.predict(inputs, base_output) - target).abs().mean()
    assert left < 0.7
    assert learner.names[0].startswith("adcsd" if name == "adam" else f"adcsd-{name}")
    with pytest.raises(ConfigError):
        ADCSD(optimiser="rprop")  # type: ignore[arg-type]
