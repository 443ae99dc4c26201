"""Reprs of public objects show their settings, and the examples in docstrings are right."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import pickle
import pkgutil
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import streamadapt_connectors
import torch
from torch import nn

import streamadapt
from streamadapt import (
    RLS,
    Bias,
    Dictionary,
    DriftMonitor,
    Forecast,
    FrozenModel,
    Hedge,
    KeyedPipeline,
    Panel,
    PerEntry,
    Persistence,
    Pipeline,
    Supervised,
)
from streamadapt.app.config_examples import EXAMPLES
from streamadapt.arguments import ShowsArguments
from streamadapt.build import kinds_of_table
from streamadapt.pipeline.intervals import Intervals
from streamadapt.tasks.label_budget import LabelBudget

PUBLIC = [getattr(streamadapt, name) for name in streamadapt.__all__]
KINDS = {
    f"{table}.{kind}": cls
    for table in ("learners", "guard", "task")
    for kind, cls in kinds_of_table(table).items()
}
COMPARED = {f"guard.{kind}" for kind in ("mean",)}


def modules() -> list[types.ModuleType]:
    """Return every module with an example."""
    found = []
    for package in (streamadapt, streamadapt_connectors):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            origin = info.module_finder.find_spec(info.name, None).origin  # type: ignore[union-attr,call-arg]
            if ">>> " in Path(origin).read_text(encoding="utf-8"):
                found.append(importlib.import_module(info.name))
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_examples_in_docstrings_run(module) -> None:
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)


def test_every_public_class_has_an_example() -> None:
    classes = {*PUBLIC, *(cls for path, cls in KINDS.items() if path not in COMPARED)}
    assert (
        sorted(cls.__name__ for cls in classes if ">>> " not in (inspect.getdoc(cls) or "")) == []
    )


@pytest.mark.parametrize("path", sorted(KINDS.keys() & EXAMPLES.keys()))
def test_every_kind_shows_the_settings_that_differ_from_its_defaults(path) -> None:
    """In the order of the signature, by name, as in the example of the configuration page."""
    (table,) = tomllib.loads(EXAMPLES[path]).values()
    settings = {
        name: value
        for name, value in (table[0] if isinstance(table, list) else table).items()
        if name != "kind"
    }
    if "ttl" in settings:
        settings["ttl"] = 2 * 86_400 * 10**9
    if "learner" in settings:
        settings["learner"] = Bias()
    cls = KINDS[path]
    shown = [
        f"{name}={settings[name]!r}"
        for name, parameter in inspect.signature(cls).parameters.items()
        if name in settings and settings[name] != parameter.default
    ]
    assert repr(cls(**settings)) == f"{cls.__name__}({', '.join(shown)})"


def test_the_repr_of_a_pipeline_shows_its_parts() -> None:
    pipeline = Pipeline(
        Forecast(3, horizon=2),
        Persistence(2),
        [Bias((0.1,)), RLS(0.998, features=("cross",))],
        Hedge(share=0.1),
        [DriftMonitor("kswin", reaction="reset")],
        intervals=Intervals(0.8),
        seed=3,
    )
    text = (
        "Pipeline(task=Forecast(window=3, horizon=2), base=Persistence(horizon=2), "
        "learners=[Bias(rate=(0.1,)), RLS(forgetting=0.998, features=('cross',))], "
        "guard=Hedge(share=0.1), "
        "drift=[DriftMonitor(detector='kswin', reaction='reset')], seed=3, "
        "intervals=Intervals(coverage=0.8))"
    )
    assert repr(pipeline) == text
    assert repr(eval(text)) == text
    assert repr(copy.deepcopy(pipeline)) == repr(pickle.loads(pickle.dumps(pipeline))) == text


def test_large_arguments_are_abbreviated() -> None:
    assert repr(PerEntry(torch.zeros(60, 1, 8))) == "PerEntry(source=Tensor(60, 1, 8))"
    assert (
        repr(FrozenModel(nn.Linear(2, 1), softmax=True))
        == "FrozenModel(model=Linear(...), softmax=True)"
    )
    assert repr(Panel(sensors=[f"s{i}" for i in range(1000)])).endswith("'s19', ...])")
    assert len(repr(Panel(sensors=["s" * 1000]))) < 100
    assert repr(Supervised(classes=["no", "yes"])) == "Supervised(classes=['no', 'yes'])"
    assert repr(Dictionary(Bias(0.5))) == "Dictionary(learner=Bias(rate=0.5))"
    assert repr(LabelBudget()) == "LabelBudget()"


def make_one() -> Pipeline:
    return Pipeline(Forecast(1, 1), Persistence(1))


def test_a_function_is_shown_by_its_name() -> None:
    assert repr(KeyedPipeline(make_one, 5)) == "KeyedPipeline(make_pipeline=make_one, max_keys=5)"


def test_the_repr_holds_no_reference_to_arguments() -> None:
    """A base made from a model must not keep the original, nor copy it with itself."""
    model = nn.Linear(2, 1)
    held = FrozenModel(model).__dict__.values()
    assert not any(value is model for value in held)


class Awkward:
    def __repr__(self) -> str:
        raise ValueError("no text")

    def __eq__(self, other: object) -> bool:
        raise ValueError("no comparison")

    __hash__ = None  # type: ignore[assignment]


class Own(ShowsArguments):
    def __init__(self, value: object = None, *more: object, **named: object) -> None:
        """Accept any argument."""


def test_an_argument_without_a_repr_does_not_prevent_construction() -> None:
    assert repr(Own(Awkward())) == "Own(value=Awkward(...))"
    assert repr(Own(np.zeros((2, 3)))) == "Own(value=ndarray(2, 3))"
    assert repr(Own(1, 2, x=3)) == "Own(value=1, more=(2,), named={'x': 3})"
    with pytest.raises(TypeError, match="unexpected keyword argument 'rat'"):
        Bias(rat=0.1)  # type: ignore[call-arg]
