"""Tent against a slow textbook loop: plain autograd and torch.optim on torch's own layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_helpers import built, entry, spec_of
from torch import Tensor, nn

from streamadapt import FrozenModel, Pipeline, Tent, TwoLayer, Unlabelled
from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners import BaseOutput, Spec

CLASSES, CHANNELS = 4, 6
NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm1d(8),
    "layer": lambda: nn.LayerNorm(8),
    "group": lambda: nn.GroupNorm(2, 8),
}


def model_of(norm: str, seed: int = 0) -> nn.Sequential:
    """Return a model with two normalised layers; running statistics are not zeros and ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(CHANNELS, 8), NORMS[norm](), nn.ReLU(),
            nn.Linear(8, 8), NORMS[norm](), nn.ReLU(), nn.Linear(8, CLASSES),
        )  # fmt: skip
        for layer in (net[2], net[5]):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            if norm == "batch":
                nn.init.normal_(layer.running_mean, std=0.3)
                nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return net.eval()


def image_model(seed: int = 0) -> nn.Sequential:
    """A convolution with BatchNorm2d and one with GroupNorm."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 8, 2, padding=1),
            nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 2), nn.GroupNorm(2, 8), nn.ReLU(),
            nn.Flatten(), nn.Linear(48, CLASSES),
        ).eval()  # fmt: skip


def spec_with(model: nn.Module, *, softmax: bool = True, **more: Any) -> Spec:
    frozen = FrozenModel(model, softmax=softmax)
    return spec_of("classification", 1, CHANNELS, 1, CLASSES, model=frozen, **more)


def batches(n: int, size: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2.0 * torch.randn(size, 1, CHANNELS, generator=generator) + 0.5 for _ in range(n)]


def tent_as_published(net: nn.Module) -> list[nn.Parameter]:
    """Set permanent batch statistics, and gradients for affine parameters only; return these."""
    net.requires_grad_(False)
    found = []
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.train()
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            found += [layer.weight.requires_grad_(), layer.bias.requires_grad_()]
    return found


def base_of(learner: Any, inputs: Tensor) -> BaseOutput:
    output = learner.spec.model(inputs)
    assert isinstance(output, BaseOutput)
    return output


def run_stream(learner: Any, entries: Tensor) -> Tensor:
    """Predict and adapt, one entry (1, channels) at a time."""
    outputs = []
    for inputs in entries:
        base = base_of(learner, inputs)
        outputs.append(learner.predict(inputs, base)[0])
        learner.adapt(inputs, base)
    return torch.stack(outputs)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("norm", [*NORMS, "image"])
def test_equals_the_textbook_over_batches(norm: str, optimiser: Any) -> None:
    model = image_model() if norm == "image" else model_of(norm)
    learner = built(Tent(8, 0.02, optimiser=optimiser), spec_with(model))
    book = copy.deepcopy(model)
    parameters = tent_as_published(book)
    steps = (
        torch.optim.SGD(parameters, 0.02, momentum=0.9)
        if optimiser == "sgd"
        else torch.optim.Adam(parameters, 0.02)
    )
    for inputs in batches(12, 8):
        logits = book(inputs)
        p = torch.softmax(logits, 1)
        entropies = [-sum(p[i, c] * torch.log(p[i, c]) for c in range(CLASSES)) for i in range(8)]
        steps.zero_grad()
        (sum(entropies) / 8).backward()
        steps.step()
        torch.testing.assert_close(learner.adapt_batch(inputs), p.detach(), rtol=1e-5, atol=1e-6)
    start = [
        p
        for m in model.modules()
        if not isinstance(m, nn.Linear | nn.Conv2d)
        for p in m.parameters(recurse=False)
    ]
    moved = max(
        float((a - b).detach().abs().max())
        for a, b in zip(learner.copy.parameters_driven, start, strict=True)
    )
    assert moved > 0.01, "the model has adapted"
    for mine, theirs in zip(learner.copy.parameters_driven, parameters, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_in_a_stream_the_steps_are_the_same(norm: str) -> None:
    stream, batch = (built(Tent(8, 0.02), spec_with(model_of(norm))) for _ in range(2))
    for inputs in batches(5, 8):
        run_stream(stream, inputs)
        batch.adapt_batch(inputs)
    assert all(map(torch.equal, stream.copy.parameters_driven, batch.copy.parameters_driven)), (
        "bit for bit"
    )


def test_in_a_stream_the_ring_is_the_batch() -> None:
    model = model_of("batch")
    model[5] = nn.Identity()
    learner = built(Tent(8, 1e-12), spec_with(model))  # parameters are practically fixed
    net = copy.deepcopy(model)
    tent_as_published(net)
    entries = torch.cat(batches(5, 8, seed=2))
    outputs = run_stream(learner, entries)
    for t in range(40):
        if t < 7:
            assert torch.equal(outputs[t : t + 1], learner.spec.model(entries[t]).output), (
                "too few entries: the base's output"
            )
        else:
            true = torch.softmax(net(entries[t - 7 : t + 1]).detach()[-1], 0)
            torch.testing.assert_close(outputs[t], true, rtol=1e-4, atol=1e-6)


def test_behind_the_first_layer_the_ring_is_nearly_the_batch() -> None:
    # There, each entry's statistics date from its arrival or from the last step: earlier layers
    # were normalised with the ring of that time.
    model = model_of("batch")
    learner = built(Tent(8, 1e-12), spec_with(model))
    net = copy.deepcopy(model)
    tent_as_published(net)
    entries = torch.cat(batches(20, 8, seed=2))
    outputs = run_stream(learner, entries)[8:]
    with torch.no_grad():
        source = torch.softmax(model(entries), 1)[8:]
        true = torch.stack(
            [torch.softmax(net(entries[t - 7 : t + 1])[-1], 0) for t in range(8, 160)]
        )
    assert (outputs - true).abs().mean() < 0.4 * (source - true).abs().mean()
    with torch.no_grad():  # a step was just made: the ring's statistics are practically new
        seen = learner.copy.run(learner.ring)
    torch.testing.assert_close(learner.ring_mean, seen.mean)
    torch.testing.assert_close(learner.ring_var, seen.var)


def test_layer_norms_may_step_on_single_entries() -> None:
    model = model_of("layer")
    learner = built(Tent(1, 0.02), spec_with(model))
    book = copy.deepcopy(model)
    parameters = tent_as_published(book)
    steps = torch.optim.SGD(parameters, 0.02, momentum=0.9)
    entries = torch.cat(batches(3, 8))
    expected = []
    for inputs in entries:
        p = torch.softmax(book(inputs.unsqueeze(0)), 1)
        steps.zero_grad()
        (-(p * p.log()).sum()).backward()
        steps.step()
        expected.append(p.detach()[0])
    torch.testing.assert_close(
        run_stream(learner, entries), torch.stack(expected), rtol=1e-4, atol=1e-6
    )


def test_a_module_of_probabilities_gives_the_results_of_one_of_logits() -> None:
    model = model_of("batch")
    logits = built(Tent(8, 0.02), spec_with(model))
    probabilities = built(
        Tent(8, 0.02), spec_with(nn.Sequential(model, nn.Softmax(1)), softmax=False)
    )
    for inputs in batches(4, 8):
        torch.testing.assert_close(logits.adapt_batch(inputs), probabilities.adapt_batch(inputs))


def test_only_the_named_modules_adapt() -> None:
    learner = built(Tent(8, 0.02, modules=["5"]), spec_with(model_of("batch")))
    assert learner.copy.names == ("5",)
    assert len(learner.copy.parameters_driven) == 2
    before = [p.detach().clone() for p in learner.copy.parameters_driven]
    learner.adapt_batch(batches(1, 8)[0])
    assert not any(map(torch.equal, before, learner.copy.parameters_driven))


@pytest.mark.parametrize("norm", NORMS)
def test_the_base_is_unchanged_and_reset_returns_to_it_bit_for_bit(norm: str) -> None:
    spec = spec_with(model_of(norm))
    assert isinstance(spec.model, FrozenModel)
    frozen = {k: v.clone() for k, v in spec.model.state_dict().items()}
    learner = built(Tent(4, 0.05), spec)
    start = learner.snapshot()
    entries = torch.cat(batches(3, 8))
    first = run_stream(learner, entries)
    after = spec.model.state_dict()
    assert all(torch.equal(frozen[k], after[k]) for k in frozen)
    assert not all(torch.equal(start[k], v) for k, v in learner.snapshot().items())
    learner.reset()
    again = learner.snapshot()
    assert start.keys() == again.keys()
    assert all(torch.equal(start[k], again[k]) for k in start)
    assert torch.equal(run_stream(learner, entries), first)


def test_only_the_adapted_weights_are_state() -> None:
    learner = built(Tent(4), spec_with(model_of("batch")))
    assert {n.split(".")[0] for n, _ in learner.named_parameters()} == {"copy"}
    assert [tuple(p.shape) for p in learner.parameters()] == [(8,)] * 4


def pipeline_with(model: nn.Module) -> Pipeline:
    guard = TwoLayer(prior={"tent-b4": 0.9})
    return Pipeline(
        Unlabelled(1, classes=CLASSES),
        FrozenModel(model, softmax=True),
        [Tent(4)],
        guard,
        device="cpu",
    )


def test_a_pipeline_without_labels_resumes_from_a_checkpoint_bit_for_bit() -> None:
    rows = torch.cat(batches(6, 8)).squeeze(1).numpy()
    items = [entry(row, t + 1, id=str(t)) for t, row in enumerate(rows)]
    straight = pipeline_with(model_of("batch"))
    expected = [p.served.tobytes() for p in straight.observe(items)]
    first = pipeline_with(model_of("batch"))
    served = [p.served.tobytes() for p in first.observe(items[:21])]
    second = pipeline_with(model_of("batch"))
    second.load_state_dict(first.state_dict())
    served += [p.served.tobytes() for p in second.observe(items[21:])]
    assert served == expected
    assert straight.observe([entry(rows[0], 100, id="x")])[0].weights["tent-b4"] == pytest.approx(
        0.9
    )


def test_names_distinguish_learners_with_different_settings() -> None:
    assert [Tent().names, Tent(8).names, Tent(lr=0.01).names] == [
        ("tent",),
        ("tent-b8",),
        ("tent-0.01",),
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tent(0),
        lambda: Tent(lr=0.0),
        lambda: Tent(lr=float("inf")),
        lambda: Tent(momentum=1.0),
        lambda: Tent(optimiser="rmsprop"),
    ],  # type: ignore[arg-type]
)
def test_impossible_settings_are_refused(make: Callable[[], Tent]) -> None:
    with pytest.raises(ConfigError):
        make()


class Twice(nn.Module):
    """Uses one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Linear(CHANNELS, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, CLASSES),
        )
        self.unused = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x.flatten(1)))
        return self.last(self.norm(x))


@pytest.mark.parametrize(
    ("learner", "spec", "message"),
    [
        (Tent(1), spec_with(model_of("batch")), "per_entry"),
        (Tent(modules=["3"]), spec_with(model_of("batch")), "2, 5"),
        (Tent(modules=[]), spec_with(model_of("batch")), "one or more of 2, 5"),
        (
            Tent(),
            spec_with(nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS, CLASSES))),
            "BatchNorm, LayerNorm or Group",
        ),
        (
            Tent(),
            spec_with(
                nn.Sequential(
                    nn.Flatten(),
                    nn.BatchNorm1d(CHANNELS, track_running_stats=False),
                    nn.Linear(CHANNELS, CLASSES),
                )
            ),
            "running statistics",
        ),
        (Tent(), spec_with(Twice()), "goes through once"),
        (Tent(modules=["unused"]), spec_with(nn.Sequential(Twice())), "0.norm, 0.unused"),
        (Tent(), spec_of("classification", 1, CHANNELS, 1, CLASSES), "module"),
        (
            Tent(),
            spec_of("classification", 1, CHANNELS, 1, CLASSES, model=FrozenModel(lambda x: x)),
            "module",
        ),
        (
            Tent(),
            spec_of(
                "classification",
                1,
                CHANNELS,
                1,
                CLASSES,
                model=FrozenModel(model_of("layer"), batched=False),
            ),
            "entries, window, channels",
        ),
        (Tent(), spec_of("regression", 1, CHANNELS, 1, CLASSES), "classification"),
    ],
)
def test_models_that_cannot_be_adapted_are_refused(
    learner: Tent, spec: Spec, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        learner.build(spec)


def test_shapes_are_checked() -> None:
    learner = built(Tent(4), spec_with(model_of("batch")))
    with pytest.raises(ShapeError, match="per_entry"):
        learner.adapt_batch(torch.zeros(1, 1, CHANNELS))
    with pytest.raises(ShapeError, match="inputs must be"):
        learner.adapt_batch(torch.zeros(8, CHANNELS))
    with pytest.raises(ShapeError, match=r"must return \(\d+, \d+\) for \d+ entries"):
        Tent(4).build(
            spec_of(
                "classification",
                1,
                CHANNELS,
                1,
                7,
                model=FrozenModel(model_of("layer"), softmax=True),
            )
        )


@pytest.mark.parametrize("norm", NORMS)
def test_an_overflowing_batch_leaves_the_parameters_finite(norm: str) -> None:
    learner = built(Tent(4, 0.02), spec_with(model_of(norm)))
    learner.adapt_batch(batches(1, 8)[0])
    before = learner.snapshot()
    wild = batches(1, 8)[0]
    wild[0] = 3e38
    output = learner.adapt_batch(wild)
    after = learner.snapshot()
    assert all(torch.isfinite(v).all() for v in after.values())
    if not torch.isfinite(output).all():
        assert all(torch.equal(v, after[k]) for k, v in before.items()), "no step"
