"""The river adapter gives the predictions of the river model that is called directly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_helpers import CPU, base, built, spec_of
from river import compose, ensemble, forest, linear_model, naive_bayes, preprocessing, tree

from streamadapt.errors import CheckpointError, ConfigError
from streamadapt.learners import River
from streamadapt.state.river_pickle import dumps_river
from streamadapt.testing.checks.cases import Case, drive

REGRESSION, CLASSES, FORECAST = (
    Case("regression", 2, 3, 1, 4),
    Case("classification", 2, 4, 1, 3),
    Case("forecast", 3, 2, 2, 2),
)


def features(case: Case, inputs: Any, output: Any) -> dict[str, float]:
    """Return the features under the documented names."""
    spec = case.spec(CPU)
    z = ((inputs - spec.input_loc) / spec.input_scale).tolist()
    x = {
        f"c{c}_{lag}": z[len(z) - 1 - lag][c]
        for lag in range(case.window)
        for c in range(case.channels)
    }
    y = ((output - spec.output_loc) / spec.output_scale).flatten().tolist()
    return x | {f"base_{i}": v for i, v in enumerate(y)}


@pytest.mark.parametrize("case", [REGRESSION, FORECAST], ids=lambda c: c.kind)
@pytest.mark.parametrize("scaled", [True, False])
def test_a_regressor_per_cell_learns_the_residual_of_the_base(case: Case, scaled: bool) -> None:
    learner = built(
        River("linear_model.LinearRegression", {"l2": 0.01}, scale=scaled), case.spec(CPU)
    )
    bare = [linear_model.LinearRegression(l2=0.01) for _ in range(case.rows * case.columns)]
    models = [preprocessing.StandardScaler() | m for m in bare] if scaled else bare
    scale = case.spec(CPU).output_scale
    learned = 0
    for step in case.steps(120, "path", CPU):
        for e in step.learn:
            learner.learn(e.inputs, e.base, e.target, e.mask)
            x = features(case, e.inputs, e.base.output)
            left = ((e.target - e.base.output) / scale).flatten().tolist()
            for model, y, known in zip(models, left, e.mask.flatten().tolist(), strict=True):
                if known:
                    model.learn_one(x, y)
                    learned += 1
        x = features(case, step.inputs, step.base.output)
        output = torch.tensor([m.predict_one(x) for m in models]).view(case.rows, case.columns)
        assert torch.equal(
            learner.predict(step.inputs, step.base), step.base.output + output * scale
        )
    assert learned > 300


def test_a_classifier_gives_its_probabilities() -> None:
    learner = built(River(naive_bayes.GaussianNB(), scale=False), CLASSES.spec(CPU))
    model = naive_bayes.GaussianNB()
    for i, step in enumerate(CLASSES.steps(150, "path", CPU)):
        for e in step.learn:
            learner.learn(e.inputs, e.base, e.target, e.mask)
            if e.mask.all():
                model.learn_one(features(CLASSES, e.inputs, e.base.output), int(e.target.argmax()))
        mine = learner.predict(step.inputs, step.base)
        output = model.predict_proba_one(features(CLASSES, step.inputs, step.base.output))
        if not output:
            assert torch.equal(mine, step.base.output), (
                "the base's output before the first example"
            )
        else:
            p = torch.tensor([[output.get(c, 0.0) for c in range(3)]])
            torch.testing.assert_close(mine, p / p.sum())
        assert mine.sum().item() == pytest.approx(1.0), i


def test_an_instance_is_cloned_and_never_changed() -> None:
    mine = linear_model.LinearRegression()
    before = dumps_river(mine)
    drive(built(River(mine), REGRESSION.spec(CPU)), REGRESSION.steps(60, "path", CPU))
    assert dumps_river(mine) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: "forest.ARFRegressor",
        lambda: forest.ARFRegressor(n_models=3),
        lambda: (
            preprocessing.StandardScaler()
            | ensemble.BaggingRegressor(tree.HoeffdingTreeRegressor(), n_models=3)
        ),
    ],
    ids=["path", "instance", "pipeline"],
)
def test_models_without_a_seed_get_the_seed_of_the_pipeline(make: Any) -> None:
    """The same stream and seed give the same predictions, also from models that draw random
    numbers."""
    case = Case("regression", 1, 1, 1, 1)
    steps = case.steps(300, "path", CPU)
    first, second = (drive(built(River(make()), case.spec(CPU, seed=5)), steps) for _ in range(2))
    assert all(map(torch.equal, first, second))
    other = drive(built(River(make()), case.spec(CPU, seed=6)), steps)
    assert not all(map(torch.equal, first, other)), "another seed draws other numbers"


def test_a_given_seed_is_kept() -> None:
    learner = built(River(forest.ARFRegressor(seed=42), scale=False), REGRESSION.spec(CPU, seed=1))
    assert {m.seed for m in learner.models} == {42}
    learner = built(River(forest.ARFRegressor(), scale=False), REGRESSION.spec(CPU, seed=10))
    assert [m.seed for m in learner.models] == [10, 11, 12, 13]


def test_names_contain_the_last_step() -> None:
    model = compose.Select("c0_0") | preprocessing.StandardScaler() | tree.HoeffdingTreeRegressor()
    assert River(model).names == ("river-HoeffdingTreeRegressor",)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("linear_model.LogisticRegression", "regression"),
        ("linear_model.LogisticRegression", "forecast"),
        ("linear_model.LinearRegression", "classification"),
        (preprocessing.StandardScaler() | linear_model.LinearRegression(), "classification"),
        (preprocessing.StandardScaler() | tree.HoeffdingTreeClassifier(), "regression"),
    ],
)
def test_the_wrong_type_of_model_is_refused_before_anything_runs(model: Any, kind: Any) -> None:
    with pytest.raises(ConfigError, match=kind):
        built(River(model), spec_of(kind, 2, 2, 1, 2))


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        ("linear_model.Nothing", {}, "linear_model.LinearRegression"),
        ("nowhere.Nothing", {}, "path below river"),
        ("linear_model.LinearRegression", {"colour": 1}, "colour"),
        ("preprocessing.StandardScaler", {}, "predict_one"),
        (object(), {}, "learn_one"),
    ],
)
def test_bad_models(model: Any, params: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        River(model, params)


def test_too_many_cells_are_refused() -> None:
    with pytest.raises(ConfigError, match="64 output cells"):
        built(River("linear_model.LinearRegression"), spec_of("forecast", 2, 13, 5, 13))


def test_another_models_state_is_refused() -> None:
    one = built(River("linear_model.LinearRegression"), REGRESSION.spec(CPU))
    few = built(River("linear_model.LinearRegression"), Case("regression", 1, 1, 1, 1).spec(CPU))
    with pytest.raises(ConfigError, match="list of 4 river models"):
        one.load_state_dict(few.snapshot())
    with pytest.raises((CheckpointError, ConfigError)):
        one.load_state_dict({"_extra_state": dumps_river([1, 2])})


def test_an_untrained_classifier_gives_the_output_of_the_base() -> None:
    learner = built(River("linear_model.SoftmaxRegression"), spec_of("classification", 1, 2, 1, 3))
    output = base([[0.2, 0.3, 0.5]])
    mine = learner.predict(torch.zeros(1, 2), output)
    assert torch.equal(mine, output.output)
    assert mine is not output.output
