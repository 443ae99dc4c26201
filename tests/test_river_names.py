"""The unpickler's list has every class of river that an object can hold, and nothing more."""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from river_names import NEVER_STORED, stored_classes

from streamadapt.state.river_allowed import resolve
from streamadapt.state.river_names import RIVER_CLASSES, RIVER_FUNCTIONS
from streamadapt.state.river_pickle import dumps_river, loads_river

LISTED = {module: set(names.split()) for module, names in RIVER_CLASSES.items()}


@pytest.mark.filterwarnings("ignore")  # modules of river that are imported only here
def test_every_class_of_the_installed_river_is_listed() -> None:
    missing = [
        f"{module}.{name}"
        for module, names in stored_classes().items()
        for name in sorted(names - LISTED.get(module, set()))
    ]
    assert not missing, (
        f"river has classes that a checkpoint cannot store: {missing}. `python "
        f"tests/river_names.py` adds them to streamadapt/state/river_names.py, after a look at "
        f"what a hostile pickle could do with each: its __new__, __setstate__, __setitem__, "
        f"extend, __hash__ and __eq__ run while it is read. If no object holds an instance of "
        f"it, it goes into NEVER_STORED of tests/river_names.py instead."
    )


def test_what_is_never_stored_is_not_listed() -> None:
    listed = {f"{m}.{name}" for m, names in LISTED.items() for name in names}
    never = {f"{m}.{name}" for m, names in NEVER_STORED.items() for name in names.split()}
    assert not listed & never


def test_listed_names_are_what_they_say() -> None:
    """And no name of the list is a module, an instance or a re-export."""
    found = 0
    for module, names in [*RIVER_CLASSES.items(), *RIVER_FUNCTIONS.items()]:
        for name in names.split():
            try:
                obj: Any = importlib.import_module(module)
                for part in name.split("."):
                    obj = getattr(obj, part)
            except (ImportError, AttributeError):  # a name of another version of river
                continue
            assert (obj.__module__, obj.__qualname__) == (module, name)
            assert isinstance(obj, type) == (name in LISTED.get(module, ()))
            assert resolve(module, name) is obj
            found += 1
    assert found > 400


def entries() -> Iterator[tuple[dict[str, float], float]]:
    rng = random.Random(1)
    for _ in range(40):
        x = {"a": rng.gauss(0, 1), "b": rng.gauss(0, 1), "c": rng.random()}
        yield x, x["a"] - 2 * x["b"]


LEARN: list[Callable[[Any, dict[str, float], float], Any]] = [
    lambda o, x, y: o.learn_one(x, y > 0),
    lambda o, x, y: o.learn_one(x, y),
    lambda o, x, y: o.learn_one(x),
    lambda o, x, y: o.learn_one(x, {"p": y > 0, "q": y < 1}),
    lambda o, x, y: o.learn_one(x, {"p": y, "q": 2 * y}),
    lambda o, x, y: o.learn_one({"k": f"v{x['c'] > 0.5}", "z": y}, y > 0),
    lambda o, x, y: o.learn_one({"k": f"v{x['c'] > 0.5}", "z": y}, y),
    lambda o, x, y: o.learn_one({"k": f"v{x['c'] > 0.5}"}),
    lambda o, x, y: o.learn_one(f"word{x['c']:.1f} text", y > 0),
    lambda o, x, y: o.learn_one(f"word{x['c']:.1f} text"),
    lambda o, x, y: o.learn_one({"user": f"{x['c']:.1f}", "item": str(y > 0)}, y),
    lambda o, x, y: o.learn_one(y, None),
    lambda o, x, y: o.update(y),
    lambda o, x, y: o.update(y > 0),
    lambda o, x, y: o.update(x),
    lambda o, x, y: o.update(y, x["a"]),
    lambda o, x, y: o.update(y > 0, x["a"] > 0),
    lambda o, x, y: o.update(y > 0, {True: x["c"], False: 1 - x["c"]}),
    lambda o, x, y: o.update({"p": y > 0}, {"p": x["a"] > 0}),
    lambda o, x, y: o.update({"p": y}, {"p": x["a"]}),
]


def made(cls: Any) -> Iterator[Any]:
    """Instances of `cls` with the parameters that river tests it with, or its default ones."""
    for build in (
        lambda: [cls(**params) for params in cls._unit_test_params()],
        lambda: [cls()],
    ):
        try:
            instances = build()
        except Exception:  # its parameters have no defaults
            continue
        yield from instances
        return


def trained(cls: Any) -> Iterator[Any]:
    """Instances of `cls`: new, and after each way of learning that they accept."""
    for instance in made(cls):
        yield instance
        for learn in LEARN:
            learner = copy.deepcopy(instance)
            try:
                for x, y in entries():
                    learn(learner, x, y)
            except Exception:
                continue
            yield learner


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", [m for m in sorted(LISTED) if not m.startswith("river._")])
def test_objects_of_every_class_return(module: str) -> None:
    for name in sorted(LISTED[module]):
        try:
            cls = resolve(module, name)
        except Exception:  # a name of another version of river
            continue
        for one in trained(cls):
            data = dumps_river(one)
            assert type(loads_river(data)) is type(one)
