"""ADCSD against a slow textbook module: the same weights, the same numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from core_helpers import CPU, base, built, spec_of
from torch import Tensor, nn

from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners import ADCSD
from streamadapt.learners.optimizer import OPTIMISERS
from streamadapt.testing.checks.cases import CASES, drive, state_bytes

HIDDEN = 128


class Branch(nn.Module):
    """Linear -> LayerNorm -> GELU -> Linear on every cell."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.before = nn.Linear(1, HIDDEN)
        self.norm = nn.LayerNorm(shape)
        self.act = nn.GELU()
        self.after = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.act(self.norm(self.before(x))))


class Textbook(nn.Module):
    """METHODS 1, as one writes it down: (1, T, N, 1) in, the correction in scaled units out."""

    def __init__(self, t: int, n: int, *, share_norm: bool) -> None:
        super().__init__()
        shape = (HIDDEN,) if share_norm else (t, n, HIDDEN)
        self.seasonal, self.trend = Branch(shape), Branch(shape)
        gate = (t, n, 1) if share_norm else (n, 1)
        self.gate_seasonal, self.gate_trend = (nn.Parameter(torch.zeros(gate)) for _ in range(2))
        self.shift = nn.Parameter(torch.zeros(t, n, 1)) if share_norm else None
        self.average = nn.AvgPool1d(kernel_size=5, stride=1)

    def forward(self, y0: Tensor) -> Tensor:
        front, end = y0[:, :1].repeat(1, 2, 1, 1), y0[:, -1:].repeat(1, 2, 1, 1)
        padded = torch.cat([front, y0, end], dim=1)[..., 0].permute(0, 2, 1)  # (1, N, T + 4)
        trend = self.average(padded).permute(0, 2, 1).unsqueeze(-1)  # (1, T, N, 1)
        out = self.gate_seasonal * self.seasonal(y0 - trend) + self.gate_trend * self.trend(trend)
        return out if self.shift is None else out + self.shift


class InTorch(ADCSD):
    """The form that a GPU runs."""

    in_torch = True  # type: ignore[assignment]


FORMS = pytest.mark.parametrize("form", [ADCSD, InTorch])


def copy_weights(learner: ADCSD, book: Textbook) -> None:
    state = learner.state_dict()
    with torch.no_grad():
        for i, branch in enumerate((book.seasonal, book.trend)):
            branch.before.weight.copy_(state["weight_in"][i].view(HIDDEN, 1))
            branch.before.bias.copy_(state["bias_in"][i].view(HIDDEN))
            branch.after.weight.copy_(state["weight_out"][i].view(1, HIDDEN))
            branch.after.bias.copy_(state["bias_out"][i].view(1))


def pairs(learner: ADCSD, book: Textbook) -> list[tuple[str, Tensor, Tensor]]:
    found, state = [], learner.state_dict()
    for i, branch in enumerate((book.seasonal, book.trend)):
        theirs = {
            "weight_in": branch.before.weight,
            "bias_in": branch.before.bias,
            "norm_weight": branch.norm.weight,
            "norm_bias": branch.norm.bias,
            "weight_out": branch.after.weight,
            "bias_out": branch.after.bias,
            "gate": (book.gate_seasonal, book.gate_trend)[i],
        }
        found += [(name, state[name][i], tensor) for name, tensor in theirs.items()]
    return found + ([("shift", state["shift"], book.shift)] if book.shift is not None else [])


@FORMS
@pytest.mark.parametrize("loss", ["mae", "huber"])
@pytest.mark.parametrize("share_norm", [False, True])
@pytest.mark.parametrize(("t", "n"), [(4, 3), (5, 5), (7, 1)])
def test_equals_the_textbook_after_fifty_steps(
    form: type[ADCSD], share_norm: bool, loss: Any, t: int, n: int
) -> None:
    scale = 1.0 + torch.arange(n, dtype=torch.float32)
    loc = 10.0 * scale
    spec = spec_of("forecast", 6, n, t, n, scale=scale)
    spec = type(spec)("forecast", 6, n, t, n, loc, scale, loc, scale, spec.device, 3)
    learner = built(form(1e-3, share_norm=share_norm, loss=loss), spec)
    book = Textbook(t, n, share_norm=share_norm)
    copy_weights(learner, book)
    adam = torch.optim.Adam(book.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    g = torch.Generator().manual_seed(1)
    inputs = torch.zeros(6, n)
    for step in range(50):
        y0 = torch.randn(t, n, generator=g)
        target = (y0 * 0.7 + 0.5 + 0.3 * torch.randn(t, n, generator=g)) * scale + loc
        mask = torch.rand(t, n, generator=g) > 0.2
        said = base(y0 * scale + loc)
        mine = learner.predict(inputs, said).view(t, n)
        correction = book(((said.output - loc) / scale)[None, ..., None])[0, ..., 0]
        theirs = said.output + correction * scale
        if step == 0:
            assert torch.equal(mine, said.output), "the first forecast is the base's to the bit"
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=0.0)
        error = (theirs - target)[mask] if loss == "mae" else ((theirs - target) / scale)[mask]
        if loss == "mae":
            value = error.abs().mean()
        else:
            cells = torch.where(error.abs() < 1.0, 0.5 * error**2, error.abs() - 0.5)
            value = (cells * scale.expand(t, n)[mask]).mean()
        if mask.any():
            adam.zero_grad()
            value.backward()
            adam.step()
        learner.learn(inputs, said, target, mask)
        if mask.any():
            norm = torch.linalg.vector_norm(torch.cat([p.grad.ravel() for p in book.parameters()]))
            assert learner.take_gradient_norm() == pytest.approx(float(norm), rel=1e-4)
        assert learner.take_gradient_norm() is None
    for name, a, b in pairs(learner, book):
        # Relative to the tensor; a lone bias near zero is held to what it started from.
        size = b.detach().abs().max().clamp_min(HIDDEN**-0.5)
        worst = (a.detach().flatten() - b.detach().flatten()).abs().max() / size
        assert worst < 1e-5, f"{name} differs by {worst:.1e}"
    assert learner.state_dict()["gate"].abs().max() > 1e-3, "it has learned something"


def test_shared_norms_have_hundreds_of_times_fewer_parameters() -> None:
    spec = spec_of("forecast", 12, 207, 12, 207)
    full, shared = (
        sum(array.size for array in built(ADCSD(share_norm=share), spec).start(spec).weights) // 3
        for share in (False, True)
    )
    assert full > 2 * 2 * 12 * 207 * HIDDEN
    assert full / shared > 100


@FORMS
def test_boost_and_weight_make_larger_and_smaller_steps(form: type[ADCSD]) -> None:
    spec = spec_of("forecast", 3, 2, 3, 2)
    plain, boosted, half, none = (built(form(), spec) for _ in range(4))
    boosted.boost, half.weight, none.weight = 5.0, 0.5, 0.0
    said, target = base([[1.0, 2.0]] * 3), torch.ones(3, 2)
    before = none.snapshot()
    for learner in (plain, boosted, half, none):
        learner.learn(torch.zeros(3, 2), said, target, target > 0)
    gates = [learner.state_dict()["gate"] for learner in (plain, boosted, half)]
    assert gates[0].abs().max() > 0.0
    torch.testing.assert_close(gates[1], 5.0 * gates[0])
    torch.testing.assert_close(gates[2], 0.5 * gates[0])
    assert state_bytes(none.snapshot()) == state_bytes(before), "a weight of 0 teaches nothing"
    assert boosted.state_dict().keys() == plain.state_dict().keys()


@FORMS
def test_nothing_known_is_no_step(form: type[ADCSD]) -> None:
    spec = spec_of("forecast", 3, 2, 3, 2)
    learner = built(form(), spec)
    before = learner.snapshot()
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    learner.learn(
        torch.zeros(3, 2), base(torch.ones(3, 2)), torch.full((3, 2), torch.nan), nothing
    )
    after = learner.snapshot()
    assert all(torch.equal(before[k], after[k]) for k in before), "not even Adam's moments decay"
    assert learner.take_gradient_norm() is None


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("share_norm", [False, True])
@pytest.mark.parametrize("loss", ["mae", "huber"])
def test_both_forms_are_one_learner(share_norm: bool, optimiser: Any, loss: Any) -> None:
    """They predict the same over a stream, and each goes on from the other's checkpoint."""
    spec = CASES[0].spec(CPU)
    forms = [
        built(form(1e-3, share_norm=share_norm, optimiser=optimiser, loss=loss), spec)
        for form in (ADCSD, InTorch)
    ]
    for steps in (CASES[0].steps(100, "path", CPU), CASES[0].steps(100, "path", CPU, seed=5)):
        states = [learner.state_dict() for learner in forms]
        assert states[0].keys() == states[1].keys()
        assert all(states[0][k].shape == states[1][k].shape for k in states[0])
        said = [torch.stack(drive(learner, steps)).squeeze(1) for learner in forms]
        torch.testing.assert_close(said[0], said[1], rtol=1e-5, atol=1e-5)
        states = [learner.snapshot() for learner in forms]
        for learner, state in zip(forms, reversed(states), strict=True):
            learner.restore(state)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_gradient_that_is_no_number_is_reported_and_undone(optimiser: Any) -> None:
    spec = spec_of("forecast", 3, 2, 3, 2)
    learner = built(ADCSD(optimiser=optimiser), spec)
    said, target = base([[1.0, 2.0]] * 3), torch.ones(3, 2)
    learner.learn(torch.zeros(3, 2), said, target, target > 0)
    good, broken = learner.snapshot(), learner.snapshot()
    assert learner.take_gradient_norm() > 0.0
    broken["weight_out"][0, 0, 0] = torch.nan
    for _ in range(2):  # the second time too
        learner.restore(broken)
        learner.learn(torch.zeros(3, 2), said, target, target > 0)
        norm = learner.take_gradient_norm()
        assert norm is not None
        assert math.isnan(norm)
    learner.restore(good)
    assert state_bytes(learner.snapshot()) == state_bytes(good)
    assert torch.isfinite(learner.predict(torch.zeros(3, 2), said)).all()


def test_names_tell_siblings_apart() -> None:
    siblings = [
        ADCSD(),
        ADCSD(1e-3),
        ADCSD(share_norm=True),
        ADCSD(3e-4, share_norm=True, optimiser="lion"),
    ]
    names = [n for learner in siblings for n in learner.names]
    assert names == ["adcsd", "adcsd-1e-3", "adcsd-share-norm", "adcsd-share-norm-lion-3e-4"]


@pytest.mark.parametrize(
    "bad", [{"lr": 0.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"lr": -1.0}, {"loss": "l3"}]
)
def test_bad_settings(bad: Any) -> None:
    with pytest.raises(ConfigError):
        ADCSD(**bad)


def test_wrong_shapes_and_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="adcsd"):
        built(ADCSD(), spec_of("regression", 3, 2, 1, 2))
    learner = built(ADCSD(), spec_of("forecast", 3, 2, 4, 2))
    with pytest.raises(ShapeError, match=r"base.output must be \(4, 2\), got \(2, 4\)"):
        learner.predict(torch.zeros(3, 2), base(torch.zeros(2, 4)))
