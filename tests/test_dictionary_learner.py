"""The dictionary as a learner: which inputs it cleans, which signals it gives, and which state it
keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import base, built, spec_of, with_scaling
from torch import Tensor, nn

from streamadapt import (
    RLS,
    Bias,
    DriftMonitor,
    Entry,
    NoGuard,
    Pipeline,
    River,
    Supervised,
    TwoLayer,
    Unlabelled,
)
from streamadapt.config.registry import build
from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners import Dictionary
from streamadapt.learners.dictionary import OrthogonalDictionary

N = 16
MASK = torch.ones(1, 1, dtype=torch.bool)

Array = np.ndarray[Any, np.dtype[Any]]


def sparse_rows(count: int, seed: int, active: float = 0.1) -> tuple[Array, Array]:
    """Return rows, each a sum of few orthogonal atoms, and the atoms."""
    rng = np.random.default_rng(seed)
    atoms = np.linalg.qr(rng.normal(size=(N, N)))[0]
    return (rng.normal(size=(count, N)) * (rng.random((count, N)) < active)) @ atoms.T, atoms


def as_entries(values: Array, labels: Array | None = None, start: int = 0) -> list[Entry]:
    rows = values.astype(np.float32)
    if labels is None:
        return [Entry(row, start + t + 1, id=str(start + t)) for t, row in enumerate(rows)]
    marks = labels.astype(np.float32).reshape(-1, 1)
    return [
        Entry(row, t + 1, id=str(t), label=mark)
        for t, (row, mark) in enumerate(zip(rows, marks, strict=True))
    ]


def adapted(learner: Dictionary, rows: Array, window: int) -> Dictionary:
    """Adapt to every window of the rows."""
    nothing = base(torch.zeros(1, 1))
    for end in range(window, len(rows) + 1):
        learner.adapt(torch.from_numpy(rows[end - window : end].astype(np.float32)), nothing)
    return learner


def dictionary_of(learner: Dictionary) -> OrthogonalDictionary:
    """Return a copy of the learner's dictionary."""
    found = OrthogonalDictionary(N, floors=(learner.track, learner.track))
    state = learner.state_dict()
    found.load_state_dict(
        {k.removeprefix("dictionary."): v for k, v in state.items() if k.startswith("dictionary.")}
    )
    return found


def zero(inputs: Tensor) -> Tensor:
    del inputs
    return torch.zeros(1, 1)


# -- the other learner's inputs


@pytest.mark.parametrize("over", ["window", "row"])
def test_cleaning_follows_the_formula(over: Any) -> None:
    """One vector at a time: scale, rotate, drop small coefficients, rotate back, unscale."""
    window, channels, threshold = 3, 4, 0.7
    scale = torch.tensor([1.0, 2.0, 0.5, 4.0])
    spec = spec_of("regression", window, channels, 1, 1, scale=scale)
    spec = type(spec)(
        "regression",
        window,
        channels,
        1,
        1,
        10.0 * scale,
        scale,
        *(torch.zeros(1), torch.ones(1)),
        spec.device,
    )
    learner = built(Dictionary(over=over, threshold=threshold, batch=2), spec)
    rng = np.random.default_rng(0)
    rows = (rng.standard_t(3, size=(60, channels)) + 10.0) * scale.numpy()
    adapted(learner, rows, window)
    inputs = rows[-window:].astype(np.float32)
    scaled = (inputs.astype(np.float64) - 10.0 * scale.numpy()) / scale.numpy()
    found = learner.clean(torch.from_numpy(inputs))
    atoms = learner.state.dictionary.atoms[0]
    vectors = [scaled.ravel()] if over == "window" else list(scaled)
    cleaned = []
    for y in vectors:
        c = atoms.T @ y
        cleaned.append(atoms @ np.where(np.abs(c) < threshold, 0.0, c))
    wanted = np.array(cleaned).reshape(window, channels) * scale.numpy() + 10.0 * scale.numpy()
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(wanted - inputs).max() > 0.1, "some coefficients were dropped"
    whole = built(Dictionary(over=over, threshold=0.0, batch=2), spec)
    whole.load_state_dict(learner.state_dict())
    np.testing.assert_allclose(whole.clean(torch.from_numpy(inputs)).numpy(), inputs, rtol=1e-5)


def test_the_other_learner_predicts_learns_and_adapts_from_cleaned_inputs() -> None:
    seen: dict[str, list[Tensor]] = {"predict": [], "learn": [], "adapt": []}

    class Recorder(Bias):
        def predict(self, inputs: Tensor, base: Any) -> Tensor:
            seen["predict"].append(inputs.clone())
            return super().predict(inputs, base)

        def learn(self, inputs: Tensor, base: Any, target: Tensor, mask: Tensor) -> None:
            seen["learn"].append(inputs.clone())
            assert self.boost == 3.0
            super().learn(inputs, base, target, mask)

        def adapt(self, inputs: Tensor, base: Any) -> None:
            seen["adapt"].append(inputs.clone())

    learner = built(
        Dictionary(Recorder((0.1, 0.2)), threshold=0.5, batch=1), spec_of("regression", 1, N, 1, 1)
    )
    learner.boost = 3.0
    rows, _ = sparse_rows(20, 0)
    for row in rows:
        inputs, base_output = (
            torch.from_numpy(row[None].astype(np.float32)),
            base(torch.zeros(1, 1)),
        )
        cleaned = learner.clean(inputs)
        assert learner.predict(inputs, base_output).shape == (2, 1, 1)
        learner.learn(inputs, base_output, torch.ones(1, 1), MASK)
        learner.adapt(inputs, base_output)
        for where in seen.values():
            assert torch.equal(where[-1], cleaned), (
                "with the dictionary from before it learned the entry"
            )
    assert learner.names == ("dictionary-bias-0.1", "dictionary-bias-0.2")
    assert (learner.kinds, learner.matures, learner.needs_labels) == (
        Bias.kinds,
        Bias.matures,
        True,
    )


def test_without_another_learner_the_base_predicts_from_cleaned_inputs() -> None:
    class Norm(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.norm().view(1, 1)

    rows, _ = sparse_rows(60, 0)
    pipeline = Pipeline(
        Unlabelled(), Norm(), [Dictionary(threshold=0.5)], TwoLayer(prior={"dictionary": 0.5})
    )
    for entry in as_entries(rows + 0.1):
        (prediction,) = pipeline.observe([entry])
    learner: Any = pipeline.learners[0]
    assert not learner.needs_labels
    before = pipeline.predict(entry).experts["dictionary"].item()
    inputs = torch.from_numpy(rows[-1:].astype(np.float32) + np.float32(0.1))
    assert before == pytest.approx(learner.clean(inputs).norm().item(), rel=1e-6)
    assert before < prediction.base.item()


def test_cleaning_helps_with_sparse_noisy_inputs() -> None:
    """Squared error of least squares on cleaned inputs against the same on the raw inputs."""
    clean, _ = sparse_rows(1300, 0)
    rng = np.random.default_rng(1)
    noisy, targets = clean + 0.2 * rng.normal(size=clean.shape), clean @ rng.normal(size=N)
    pipeline = Pipeline(
        Supervised(),
        with_scaling(zero, N, 1),
        [RLS(0.999), Dictionary(RLS(0.999), threshold=0.5)],
        NoGuard(),
    )
    predictions = pipeline.observe(as_entries(noisy, targets))[-600:]
    errors = {
        name: np.mean([(p.experts[name].item() - targets[int(p.id)]) ** 2 for p in predictions])
        for name in ("rls-0.999", "dictionary-rls-0.999")
    }
    assert errors["dictionary-rls-0.999"] < 0.75 * errors["rls-0.999"]


# -- signals and scores


def test_anomalies_have_the_largest_scores() -> None:
    """Rows of the usual length but made of all atoms, one in a hundred, after the atoms are
    known."""
    rows, _ = sparse_rows(2000, 0)
    rng = np.random.default_rng(2)
    odd = rng.choice(np.arange(1200, 2000), 10, replace=False)
    rows += 0.01 * rng.normal(size=rows.shape)
    strange = rng.normal(size=(10, N))
    rows[odd] = (
        strange
        / np.linalg.norm(strange, axis=1, keepdims=True)
        * np.linalg.norm(rows, axis=1).mean()
    )
    pipeline = Pipeline(Supervised(), with_scaling(zero, N, 1), [Dictionary()], NoGuard())
    predictions = pipeline.observe(as_entries(rows, np.zeros(len(rows))))
    scores = np.array([p.scores["dictionary-error"] for p in predictions])
    normal = np.setdiff1d(np.arange(1200, 2000), odd)
    above = (scores[odd][:, None] > scores[normal][None]).mean()  # the area under the ROC curve
    assert above > 0.98


def test_a_monitor_fires_when_the_atoms_change() -> None:
    first, _ = sparse_rows(900, 0)
    second, _ = sparse_rows(200, 5)
    monitor = DriftMonitor("adwin", "dictionary-error")
    pipeline = Pipeline(
        Supervised(), with_scaling(zero, N, 1), [Dictionary()], NoGuard(), [monitor]
    )
    quiet = pipeline.observe(as_entries(first))
    fired = pipeline.observe(as_entries(second, start=900))
    assert not any(p.drifts for p in quiet[400:])
    assert any(p.drifts == ("adwin:dictionary-error",) for p in fired)


def test_the_score_is_computed_before_the_entry_is_learned() -> None:
    """It is relative to the usual length of earlier entries, of which an outlier counts as
    four."""
    learner = built(Dictionary(batch=1), spec_of("regression", 1, N, 1, 1))
    rows, _ = sparse_rows(50, 0)
    rows[30] *= 1e6
    usual = 0.0
    assert np.isnan(learner.signals()["dictionary-error"])
    for row in rows:
        y = torch.from_numpy(row.astype(np.float32)).double()
        wanted = dictionary_of(learner).error(y, usual).item()
        adapted(learner, row[None], 1)
        assert learner.signals() == {"dictionary-error": pytest.approx(wanted, abs=1e-7)}
        length = float(y.norm())
        usual = 0.99 * usual + 0.01 * min(length, 4.0 * usual) if usual > 0.0 else length
        assert learner.state.usual[0] == pytest.approx(usual)


def test_learns_once_per_batch_from_the_newest_vectors() -> None:
    rows, _ = sparse_rows(24, 0)
    single = torch.from_numpy(rows.astype(np.float32)).double()
    learner = built(Dictionary(batch=8, track=0.0), spec_of("regression", 1, N, 1, 1))
    reference = dictionary_of(learner)
    for i in range(0, 24, 8):
        adapted(learner, rows[i : i + 7], 1)
        assert torch.equal(dictionary_of(learner).dictionary, reference.dictionary), (
            "not before the batch is full"
        )
        adapted(learner, rows[i + 7 : i + 8], 1)
        reference.update(single[i : i + 8])
        assert torch.equal(dictionary_of(learner).dictionary, reference.dictionary)


# -- state and settings


def test_the_other_learner_is_restored_with_its_own_method() -> None:
    """RLS drops the gains of entries that a restored learner never saw; a wrapped RLS does so
    too."""
    learner = built(Dictionary(RLS(0.99), batch=1), spec_of("forecast", 4, 1, 3, 1))
    g = torch.Generator().manual_seed(0)
    ones = torch.ones(3, 1)
    for _ in range(20):
        inputs = torch.randn(4, 1, generator=g)
        learner.learn(inputs, base(torch.zeros(3, 1)), ones, ones > 0)
        learner.adapt(inputs, base(torch.zeros(3, 1)))
    snapshot = learner.snapshot()
    assert {name.partition(".")[0] for name in snapshot} == {
        "learner",
        "dictionary",
        "pending",
        "count",
        "usual",
    }
    alone = built(RLS(0.99), spec_of("forecast", 4, 1, 3, 1))
    alone.restore(
        {k.removeprefix("learner."): v for k, v in snapshot.items() if k.startswith("learner.")}
    )
    learner.restore(snapshot)
    after = learner.learner.state_dict()
    assert all(torch.equal(after[k], v) for k, v in alone.state_dict().items())
    assert any(not torch.equal(after[k], snapshot[f"learner.{k}"]) for k in after), (
        "there were gains to drop"
    )


def test_a_config_nests_the_other_learner() -> None:
    table = {
        "kind": "dictionary",
        "over": "row",
        "learner": {"kind": "rls", "forgetting": [0.99, 0.9]},
    }
    learner = build("learners", "learners[0]", table)
    assert learner.names == ("dictionary-rls-0.99", "dictionary-rls-0.9")
    with pytest.raises(ConfigError) as caught:
        build("learners", "learners[0]", table | {"learner": {"kind": "rls", "forgeting": 0.9}})
    assert caught.value.path == "learners[0].learner.forgeting"
    with pytest.raises(ConfigError) as caught:
        build("learners", "learners[0]", table | {"track": 2.0})
    assert caught.value.path == "learners[0].track"


def test_a_restored_learner_has_the_atoms_of_its_dictionary() -> None:
    """They are not in a checkpoint, which holds whole batches and parts of them."""
    rows, _ = sparse_rows(60, 0)
    inputs = torch.from_numpy(rows[-1:].astype(np.float32))
    spec = spec_of("regression", 1, N, 1, 1)
    for learned in (0, 3, 4, 26):
        learner = adapted(built(Dictionary(batch=4), spec), rows[:learned], 1)
        other = adapted(built(Dictionary(batch=4), spec), rows[40:], 1)
        other.restore(learner.snapshot())
        atoms = learner.state.dictionary.atoms
        assert other.state.dictionary.atoms.tobytes() == atoms.tobytes()
        assert torch.equal(other.clean(inputs), learner.clean(inputs))
        for each in (learner, other):
            adapted(each, rows[30:40], 1)
        assert other.signals() == learner.signals()


@pytest.mark.parametrize(
    "bad",
    [
        {"over": "rows"}, {"threshold": -0.1}, {"threshold": float("nan")}, {"batch": 0},
        {"track": 1.1}, {"learner": Dictionary()},
    ],
)  # fmt: skip
def test_bad_settings(bad: Any) -> None:
    with pytest.raises(ConfigError):
        Dictionary(**bad)


def test_mismatched_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="row' only the channels count"):
        built(Dictionary(), spec_of("regression", 30, 9, 1, 1))
    built(Dictionary(over="row"), spec_of("regression", 30, 9, 1, 1))
    with pytest.raises(ConfigError, match="257"):
        built(Dictionary(over="row"), spec_of("regression", 1, 257, 1, 1))
    with pytest.raises(ConfigError, match="river"):
        Dictionary(River("linear_model.LinearRegression")).check_kind("classification")
    learner = built(Dictionary(Bias()), spec_of("regression", 2, 3, 1, 1))
    with pytest.raises(ShapeError, match="inputs"):
        learner.predict(torch.zeros(2, 4), base(torch.zeros(1, 1)))
