"""Per-entry adaptation of real networks on digits: what it withstands, what it leaves unchanged,
what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import built, entry, spec_of
from test_tent import CHANNELS, CLASSES, batches, model_of, run_stream, spec_with
from torch import Tensor, nn

from benchmarks.scenarios.digits_data import (
    Digits,
    as_tensor,
    corrupted,
    load_digits,
    make_net,
    train,
)
from streamadapt import FrozenModel, PerEntry, Pipeline, TwoLayer, Unlabelled
from streamadapt.errors import ConfigError
from streamadapt.learners import Spec

torch.set_num_threads(1)  # small steps: a second thread costs more than it saves


@cache
def digits() -> tuple[Digits, nn.Module, nn.Module]:
    """The data, and one net with batch and one with group normalisation."""
    data = load_digits(0)
    return data, train(data, 0, epochs=5), train(data, 0, epochs=5, make=make_grouped)


def make_grouped() -> nn.Sequential:
    net = make_net()
    for i in (3, 7, 10):
        net[i] = nn.GroupNorm(8, net[i].num_features)
    return net


def digits_spec(model: nn.Module) -> Spec:
    return spec_of("classification", 1, 64, 1, 10, model=FrozenModel(model, softmax=True))


def source() -> Tensor:
    return as_tensor(digits()[0].source[:300])


def stream(names: Sequence[str], each: int, *, in_order: bool = False) -> tuple[Tensor, Tensor]:
    """Return entries (n, 1, 64) and labels: n of each corruption, sorted by label within it if
    requested."""
    data, rng = digits()[0], np.random.default_rng(3)
    images, labels = [], []
    for name in names:
        chosen = rng.permutation(len(data.stream))[:each]
        if in_order:
            chosen = chosen[data.stream_labels[chosen].argsort(kind="stable")]
        images.append(corrupted(data.stream[chosen], name, rng))
        labels.append(data.stream_labels[chosen])
    return as_tensor(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))


def accuracies(
    output: Tensor, frozen: nn.Module, entries: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return which answers are right: the learner's and the frozen model's."""
    with torch.no_grad():
        return (output.argmax(1) == labels).float(), (frozen(entries).argmax(1) == labels).float()


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("name", ["contrast", "invert"])
def test_it_works_on_single_entries_in_any_order(name: str, in_order: bool) -> None:
    model = digits()[1]
    entries, labels = stream([name], 300, in_order=in_order)
    learner = built(PerEntry(source()), digits_spec(model))
    mine, frozen = accuracies(run_stream(learner, entries), model, entries, labels)
    assert mine.mean() > frozen.mean() + 0.25
    assert (learner.memory.labels >= 0).all(), "the memory is full"
    assert len(learner.memory.labels.unique()) > 7, "and holds most classes"


def test_it_follows_changes_and_returns_to_the_frozen_model() -> None:
    model = digits()[1]
    entries, labels = stream(["clean", "bright", "clean", "contrast", "clean"], 100)
    learner = built(PerEntry(source()), digits_spec(model))
    mine, frozen = (
        a.view(5, 100).mean(1)
        for a in accuracies(run_stream(learner, entries), model, entries, labels)
    )
    assert (mine[[1, 3]] > frozen[[1, 3]] + 0.1).all()
    assert (mine[[0, 2, 4]] >= frozen[[0, 2, 4]] - 0.02).all()


def test_adapted_statistics_are_dropped_when_the_stream_changes() -> None:
    learner = built(PerEntry(source()), digits_spec(digits()[1]))
    entries, _ = stream(["invert", "clean", "bright"], 60)
    run_stream(learner, entries[:60])
    assert learner.polarity.sign.item() == -1.0
    assert int((learner.memory.labels >= 0).sum()) > 40
    run_stream(learner, entries[60:120])
    assert int((learner.memory.labels >= 0).sum()) == int(learner.running.count) < 5
    assert learner.polarity.sign.item() == 1.0
    run_stream(learner, entries[120:])
    assert 40 < int((learner.memory.labels >= 0).sum()) == int(learner.running.count) <= 60


def test_familiar_entries_change_no_statistics() -> None:
    model = digits()[1]
    learner = built(PerEntry(source()), digits_spec(model))
    before = learner.snapshot()
    run_stream(learner, source()[:100])
    after = learner.snapshot()
    counted = int(after["running.count"])
    assert counted <= 3, "of 100 source entries"
    assert int((after["memory.labels"] >= 0).sum()) == counted
    assert not torch.equal(before["continuity.chains"], after["continuity.chains"])


def test_a_model_without_batch_norms_stays_near_the_frozen_model() -> None:
    model = digits()[2]
    learner = built(PerEntry(source()), digits_spec(model))
    entries, labels = stream(["contrast"], 100)
    outputs = run_stream(learner, entries)
    with torch.no_grad():
        frozen = model(entries).softmax(1)
    # All entries are unfamiliar: the frozen answers.
    torch.testing.assert_close(outputs, frozen, rtol=1e-4, atol=1e-6)
    learner.reset()
    entries, labels = stream(["clean"], 300, in_order=True)
    mine, frozen = accuracies(run_stream(learner, entries), model, entries, labels)
    assert mine.mean() > frozen.mean(), "label continuity"


def test_the_base_is_unchanged_and_reset_returns_to_it_bit_for_bit() -> None:
    model = digits()[1]
    spec = digits_spec(model)
    assert isinstance(spec.model, FrozenModel)
    frozen = {k: v.clone() for k, v in spec.model.state_dict().items()}
    learner = built(PerEntry(source()), spec)
    start = learner.snapshot()
    entries, _ = stream(["invert", "clean", "fog"], 40)
    first = run_stream(learner, entries)
    after = spec.model.state_dict()
    assert all(torch.equal(frozen[k], after[k]) for k in frozen)
    learner.reset()
    again = learner.snapshot()
    assert all(torch.equal(start[k], again[k]) for k in start)
    assert torch.equal(run_stream(learner, entries), first)


def test_no_weight_of_the_model_is_state() -> None:
    learner = built(PerEntry(source()), digits_spec(digits()[1]))
    assert list(learner.parameters()) == []
    assert {k.split(".")[0] for k in learner.state_dict()} == {
        "signature", "polarity", "running", "memory", "selection", "continuity",
    }  # fmt: skip


def test_a_pipeline_without_labels_resumes_from_a_checkpoint_bit_for_bit() -> None:
    entries, _ = stream(["clean", "contrast", "invert"], 50)
    items = [entry(row, t + 1, id=str(t)) for t, row in enumerate(entries.squeeze(1).numpy())]

    def make() -> Pipeline:
        base, guard = FrozenModel(digits()[1], softmax=True), TwoLayer(prior={"per_entry": 0.9})
        return Pipeline(Unlabelled(1, classes=10), base, [PerEntry(source())], guard, device="cpu")

    straight = make()
    expected = [(p.served.tobytes(), p.scores) for p in straight.observe(items)]
    first = make()
    results = [(p.served.tobytes(), p.scores) for p in first.observe(items[:83])]
    second = make()
    second.load_state_dict(first.state_dict())
    results += [(p.served.tobytes(), p.scores) for p in second.observe(items[83:])]
    assert results == expected
    scores = [scores["per_entry-unfamiliarity"] for _, scores in results]
    assert max(scores[:50]) < min(scores[50:100]), "a changed contrast is unfamiliar"


def test_an_outlier_entry_is_predicted_and_forgotten() -> None:
    model = digits()[1]
    spec = digits_spec(model)
    learner = built(PerEntry(source()), spec)
    entries, _ = stream(["contrast"], 60)
    run_stream(learner, entries[:40])
    for size in (3e18, 1e30, 3e38):
        before = learner.snapshot()
        wild = torch.full((1, 64), size)
        assert spec.model is not None
        base_output = spec.model(wild)
        base_output = base_output._replace(output=base_output.output.nan_to_num(0.1))
        assert torch.isfinite(learner.predict(wild, base_output)).all()
        learner.adapt(wild, base_output)
        assert not math.isfinite(learner.signals()["per_entry-unfamiliarity"])
        assert all(torch.equal(v, learner.snapshot()[k]) for k, v in before.items())
    assert all(torch.isfinite(t).all() for t in learner.state_dict().values())
    assert torch.isfinite(run_stream(learner, entries[40:])).all()


def test_a_single_outlier_changes_no_later_prediction() -> None:
    spec = digits_spec(digits()[1])
    entries, _ = stream(["contrast"], 80)
    expected = run_stream(built(PerEntry(source()), spec), entries)
    with_glitch = torch.cat([entries[:40], 1e5 * entries[:1], entries[40:]])
    outputs = run_stream(built(PerEntry(source()), spec), with_glitch)
    assert torch.equal(torch.cat([outputs[:40], outputs[41:]]), expected)


def test_results_of_predict_are_not_reused_for_another_entry() -> None:
    spec = digits_spec(digits()[1])
    entries, _ = stream(["contrast"], 30)
    plain, asked = (built(PerEntry(source()), spec) for _ in range(2))
    expected = run_stream(plain, entries)
    other = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    outputs = []
    for inputs in entries:
        base = spec.model(inputs)  # type: ignore[misc]
        asked.predict(other, base)  # a prediction without observing
        outputs.append(asked.predict(inputs, base)[0])
        asked.predict(other, base)
        asked.adapt(inputs.clone(), base)
    assert torch.equal(torch.stack(outputs), expected)


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_flat_models_work_too(norm: str) -> None:
    learner = built(PerEntry(torch.cat(batches(20, 8))), spec_with(model_of(norm)))
    entries = torch.cat(
        [torch.cat(batches(5, 8, seed=3)), torch.cat(batches(5, 8, seed=4)) * 3.0 + 4.0]
    )
    outputs = run_stream(learner, entries)
    assert outputs.shape == (80, CLASSES)
    torch.testing.assert_close(outputs.sum(1), torch.ones(80))
    assert learner.signals()["per_entry-unfamiliarity"] > 1.0


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: PerEntry(torch.zeros(60, 1, CHANNELS), memory=4), "memory"),
        (lambda: PerEntry(torch.zeros(10, 1, CHANNELS)), "source"),
        (lambda: PerEntry(torch.zeros(60, 2, CHANNELS)), "source"),
        (lambda: PerEntry(torch.full((60, CHANNELS), torch.nan)), "source"),
        (lambda: PerEntry(Path("nowhere.npz")), "source"),
        (lambda: PerEntry(torch.zeros(60, CHANNELS), modules=["norm"]), "modules"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], PerEntry], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make().build(spec_with(model_of("batch")))
    assert caught.value.path == path


def test_a_constant_source_works() -> None:
    learner: Any = built(PerEntry(torch.zeros(60, CHANNELS)), spec_with(model_of("batch")))
    assert torch.isfinite(run_stream(learner, torch.cat(batches(3, 8)))).all()
