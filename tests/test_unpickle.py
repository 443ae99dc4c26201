"""River's objects return from bytes unchanged; hostile bytes are refused before any of them
runs."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import (
    anomaly,
    base,
    compose,
    drift,
    dummy,
    ensemble,
    facto,
    feature_extraction,
    forest,
    imblearn,
    linear_model,
    metrics,
    multiclass,
    naive_bayes,
    neighbors,
    optim,
    preprocessing,
    rules,
    stats,
    time_series,
    tree,
)

from streamadapt.errors import CheckpointError
from streamadapt.state.river_pickle import dumps_river, loads_river

N = 2000


def series(seed: int = 1) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(x) for x in rng.normal(size=2 * N) + 2.0 * (np.arange(2 * N) % 700 > 500)]


def run_detector(detector: Any, values: list[float]) -> list[Any]:
    trace = []
    for value in values:
        detector.update(value)
        trace.append(
            (
                detector.drift_detected,
                getattr(detector, "estimation", None),
                getattr(detector, "_p_value", None),
            )
        )
    return trace


DETECTORS: list[Callable[[], Any]] = [drift.ADWIN, drift.PageHinkley, lambda: drift.KSWIN(seed=1)]
BINARY: list[Callable[[], Any]] = [drift.binary.DDM, drift.binary.EDDM, drift.binary.FHDDM]


@pytest.mark.parametrize("build", [*DETECTORS, *BINARY], ids=lambda build: type(build()).__name__)
def test_a_restored_detector_continues_as_the_original(build: Callable[[], Any]) -> None:
    detector = build()
    values = series() if build in DETECTORS else [float(x > 1.5) for x in series()]
    before = run_detector(detector, values[:N])
    restored: Any = loads_river(dumps_river(detector))
    after = run_detector(detector, values[N:])
    assert run_detector(restored, values[N:]) == after
    assert any(fired for fired, *_ in before + after), (
        "no drift: the comparison would prove little"
    )


REGRESSORS: list[Any] = [
    preprocessing.StandardScaler() | linear_model.LinearRegression(),
    linear_model.LinearRegression(optim.Adam(), l2=0.1),
    linear_model.PARegressor(mode=2),
    linear_model.BayesianLinearRegression(),
    tree.HoeffdingTreeRegressor(grace_period=50),
    tree.HoeffdingAdaptiveTreeRegressor(grace_period=50, seed=1),
    forest.ARFRegressor(n_models=3, seed=1),
    neighbors.KNNRegressor(n_neighbors=3),
    rules.AMRules(n_min=50),
    facto.FMRegressor(seed=1),
    ensemble.BaggingRegressor(linear_model.LinearRegression(), n_models=2, seed=1),
    preprocessing.MinMaxScaler()
    | feature_extraction.RBFSampler(seed=1)
    | linear_model.LinearRegression(),
    compose.Select("a", "b") | linear_model.LinearRegression(),
    dummy.StatisticRegressor(stats.Quantile(0.5)),
    imblearn.HardSamplingRegressor(linear_model.LinearRegression(), p=0.5, size=10, seed=1),
]
CLASSIFIERS: list[Any] = [
    preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    tree.HoeffdingAdaptiveTreeClassifier(grace_period=50, seed=1),
    forest.ARFClassifier(n_models=3, seed=1),
    forest.AMFClassifier(n_estimators=3, seed=1),
    neighbors.KNNClassifier(n_neighbors=3),
    naive_bayes.GaussianNB(),
    ensemble.ADWINBaggingClassifier(linear_model.LogisticRegression(), n_models=2, seed=1),
    ensemble.SRPClassifier(n_models=3, seed=1),
    multiclass.OneVsRestClassifier(linear_model.LogisticRegression()),
    drift.DriftRetrainingClassifier(tree.HoeffdingTreeClassifier(), drift.binary.DDM()),
    naive_bayes.BernoulliNB(),
]


def examples(n: int) -> list[tuple[dict[str, float], float]]:
    rng = np.random.default_rng(3)
    found = []
    for i in range(n):
        x = {name: float(rng.normal()) for name in "abc"}
        found.append((x, x["a"] - (1 if i < n // 2 else -2) * x["b"] + 0.1 * float(rng.normal())))
    return found


def step(model: Any, x: dict[str, float], y: Any) -> Any:
    predicted = model.predict_proba_one(x) if isinstance(y, bool) else model.predict_one(x)
    model.learn_one(x, y)
    return predicted


@pytest.mark.parametrize(
    "model", [*REGRESSORS, *CLASSIFIERS], ids=lambda model: str(type(model).__name__)
)
def test_a_restored_estimator_predicts_and_learns_as_the_original(model: Any) -> None:
    # Forests are lists, and two empty lists are equal.
    classifies = any(model is other for other in CLASSIFIERS)
    data = [(x, y > 0) if classifies else (x, y) for x, y in examples(600)]
    model = copy.deepcopy(model)
    for x, y in data[:300]:
        step(model, x, y)
    restored = loads_river(dumps_river(model))
    twice = loads_river(dumps_river(restored))
    expected = [step(model, x, y) for x, y in data[300:]]
    assert [step(restored, x, y) for x, y in data[300:]] == expected
    assert [step(twice, x, y) for x, y in data[300:]] == expected


@pytest.mark.parametrize(
    "build",
    [
        anomaly.HalfSpaceTrees,
        metrics.MAE,
        metrics.ROCAUC,
        lambda: time_series.HoltWinters(0.3, 0.1),
        stats.Var,
    ],
)
def test_other_river_objects_return_unchanged(build: Callable[[], Any]) -> None:
    made = build()
    assert type(loads_river(dumps_river(made))) is type(made)


class Mine(drift.ADWIN):
    """A user's class: loading it would import the user's module."""


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Mine(), "Mine"),
        (compose.FuncTransformer(series), "series"),
        (compose.FuncTransformer(lambda x: x), "lambda"),
        (Path("x"), "Path"),
        (compose.FuncTransformer(math.sqrt), "sqrt"),
        (compose.FuncTransformer(np.random.RandomState(1).normal), "normal"),
        (compose.FuncTransformer(Path("x").exists), "exists"),
        (compose.FuncTransformer(pickle.loads), "loads"),
        (base.Base(), "Base"),
    ],
)
def test_an_object_that_could_not_be_loaded_is_refused_when_saved(
    thing: object, named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        dumps_river(thing)


# --- hostile bytes, written opcode by opcode -----------------------------------------------------


def text(value: str) -> bytes:
    raw = value.encode()
    return pickle.BINUNICODE + len(raw).to_bytes(4, "little") + raw


def name(module: str, qualname: str) -> bytes:
    return text(module) + text(qualname) + pickle.STACK_GLOBAL


def call(func: bytes, *args: bytes) -> bytes:
    return func + pickle.MARK + b"".join(args) + pickle.TUPLE + pickle.REDUCE


def program(body: bytes) -> bytes:
    return pickle.PROTO + b"\x05" + body + pickle.STOP


def new(module: str, qualname: str) -> bytes:
    return name(module, qualname) + pickle.EMPTY_TUPLE + pickle.NEWOBJ


def attributes(obj: bytes, **values: bytes) -> bytes:
    items = b"".join(text(key) + value for key, value in values.items())
    return obj + pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.BUILD


GETATTR = name("builtins", "getattr")
DEEPCOPY = name("copy", "deepcopy")
TRIPLET = ("river.imblearn.hard_sampling", "Triplet")  # the only named tuple
ADWIN = ("river.drift.adwin", "ADWIN")
MEAN = ("river.stats.mean", "Mean")


def partial(state: bytes) -> bytes:
    """A partial whose function is that of `state`, (function, args, keywords, attributes)."""
    return call(name("functools", "partial"), DEEPCOPY) + state + pickle.BUILD


def as_key(key: bytes) -> bytes:
    return pickle.EMPTY_DICT + key + pickle.NONE + pickle.SETITEM


def bomb() -> bytes:
    """A tuple of tuples of 2**60 parts: hashing it takes years."""
    levels = (pickle.MEMOIZE + pickle.BINGET + bytes([i]) + pickle.TUPLE2 for i in range(60))
    return pickle.EMPTY_TUPLE + b"".join(levels)


def twister(position: int) -> bytes:
    """A state of numpy's MT19937 that reads its next number at `position` of an array of 624."""
    number = pickle.BININT + position.to_bytes(4, "little", signed=True)
    key = pickle.MARK + (pickle.BININT1 + b"\1") * 624 + pickle.TUPLE
    items = text("key") + key + text("pos") + number
    inner = pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    items = text("bit_generator") + text("MT19937") + text("state") + inner
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def generator() -> bytes:
    return call(
        name("numpy.random._pickle", "__bit_generator_ctor"),
        name("numpy.random._mt19937", "MT19937"),
    )


def touch(path: Path) -> bytes:
    return text(f"touch {path}")


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda p: call(name("os", "system"), touch(p)),
    "posix.system": lambda p: call(name("posix", "system"), touch(p)),
    "subprocess": lambda p: call(name("subprocess", "getoutput"), touch(p)),
    "eval": lambda p: call(name("builtins", "eval"), text(f"open({str(p)!r}, 'w')")),
    "exec": lambda p: call(name("builtins", "exec"), text(f"open({str(p)!r}, 'w')")),
    "open": lambda p: call(name("builtins", "open"), text(str(p)), text("w")),
    "import": lambda p: call(name("builtins", "__import__"), text("antigravity")),
    "import by name": lambda p: name("antigravity", "fly"),
    "nested pickle": lambda p: call(name("pickle", "loads"), pickle.BINBYTES + b"\0\0\0\0"),
    "numpy.load": lambda p: call(name("numpy", "load"), text(str(p))),
    "numpy.save": lambda p: call(name("numpy", "save"), text(str(p)), pickle.EMPTY_LIST),
    "numpy.fromfile": lambda p: call(name("numpy", "fromfile"), text(str(p))),
    "numpy.ones called": lambda p: call(name("numpy", "ones"), pickle.BININT1 + b"\x01"),
    "deepcopy called": lambda p: call(name("copy", "deepcopy"), pickle.EMPTY_LIST),
    "torch.load": lambda p: name("torch", "load"),
    "dotted into a module": lambda p: call(name("river.base.base", "inspect.os.system"), touch(p)),
    "dotted through a class": lambda p: name(ADWIN[0], "ADWIN.update.__globals__"),
    "dotted through a method": lambda p: name(ADWIN[0], "ADWIN.__init__.__globals__"),
    "dunder of a module": lambda p: name("river.drift.adwin", "__builtins__"),
    "re-exported module": lambda p: name("river.base.base", "inspect"),
    "re-exported function": lambda p: name("river.anomaly.base", "base.base.copy.deepcopy"),
    "re-exported class": lambda p: name("river.drift", "ADWIN"),
    "river function off the list": lambda p: name("river.utils.math", "prod"),
    "river.datasets": lambda p: name("river.datasets.phishing", "Phishing"),
    "river.datasets called": lambda p: call(name("river.datasets.base", "RemoteDataset")),
    "river.bandit.datasets": lambda p: name("river.bandit.datasets.news", "NewsArticles"),
    "river.stream": lambda p: name("river.stream.iter_csv", "DictReader"),
    "river.checks": lambda p: name("river.checks.common", "check_repr"),
    "river.evaluate": lambda p: name("river.evaluate.tracks", "Track"),
    "river.compat": lambda p: name("river.compat.river_to_sklearn", "River2SKLBase"),
    "river lookalike": lambda p: name("riverx.drift", "ADWIN"),
    "relative module": lambda p: name("river..os", "system"),
    "a river constructor": lambda p: call(name(*ADWIN)),
    "a river method called": lambda p: call(
        call(GETATTR, new(*MEAN), text("update")), pickle.BININT1 + b"\x01"
    ),
    "getattr of a dunder": lambda p: call(GETATTR, new(*ADWIN), text("__class__")),
    "getattr of globals": lambda p: call(
        GETATTR, call(GETATTR, name(*ADWIN), text("update")), text("__globals__")
    ),
    "getattr of a function's attribute": lambda p: call(
        GETATTR, name("copy", "deepcopy"), text("func_globals")
    ),
    "getattr of a property": lambda p: call(GETATTR, new(*ADWIN), text("drift_detected")),
    "getattr of an instance attribute": lambda p: call(
        GETATTR, attributes(new(*ADWIN), x=name("copy", "deepcopy")), text("x")
    ),
    "getattr of str.format": lambda p: call(GETATTR, name("builtins", "str"), text("format")),
    "getattr of a container": lambda p: call(GETATTR, pickle.EMPTY_LIST, text("append")),
    "partial called": lambda p: call(
        call(name("functools", "partial"), name("copy", "deepcopy")), pickle.EMPTY_LIST
    ),
    "a class is changed": lambda p: attributes(name(*ADWIN), update=name("copy", "deepcopy")),
    "a class is changed by slots": lambda p: (
        name(*MEAN)
        + pickle.NONE
        + pickle.EMPTY_DICT
        + text("get")
        + name("copy", "deepcopy")
        + pickle.SETITEM
        + pickle.TUPLE2
        + pickle.BUILD
    ),
    "a function is changed": lambda p: attributes(
        name("copy", "deepcopy"), __defaults__=pickle.EMPTY_TUPLE
    ),
    "the class of an instance": lambda p: attributes(new(*ADWIN), __class__=name(*MEAN)),
    "append to an object": lambda p: new(*ADWIN) + pickle.NONE + pickle.APPEND,
    "items of an object": lambda p: new(*ADWIN) + pickle.NONE + pickle.NONE + pickle.SETITEM,
    "add to an object": lambda p: new(*ADWIN) + pickle.MARK + pickle.NONE + pickle.ADDITEMS,
    "allocation of a foreign class": lambda p: (
        name("pathlib", "Path") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    ),
    "a bit generator of any class": lambda p: call(
        name("numpy.random._pickle", "__bit_generator_ctor"), name(*ADWIN)
    ),
    "a random state by any constructor": lambda p: call(
        name("numpy.random._pickle", "__randomstate_ctor"), text(str(p)), name("copy", "deepcopy")
    ),
    "text opcode GLOBAL": lambda p: b"cos\nsystem\n" + touch(p) + pickle.TUPLE1 + pickle.REDUCE,
    "opcode INST": lambda p: pickle.MARK + touch(p) + b"ios\nsystem\n",
    "opcode OBJ": lambda p: pickle.MARK + name("builtins", "set") + pickle.OBJ,
    "opcode EXT1": lambda p: pickle.EXT1 + b"\x01",
    "persistent id": lambda p: text("x") + pickle.BINPERSID,
    "buffer": lambda p: pickle.NEXT_BUFFER,
    "the wrong type of name": lambda p: pickle.NONE + pickle.NONE + pickle.STACK_GLOBAL,
    "an error text that would show an object": lambda p: call(new(*MEAN)),
    "a name that would be shown": lambda p: call(GETATTR, new(*ADWIN), new(*MEAN)),
    "unhashable call": lambda p: call(pickle.EMPTY_LIST),
    "a base class of river": lambda p: name("river.base.base", "Base"),
    "a class that an object never holds": lambda p: name("river.base.estimator", "EstimatorMeta"),
    "a nested name through a class": lambda p: name(
        "river.metrics.confusion", "ConfusionMatrix.__init__"
    ),
    "a generator that river does not use": lambda p: name("numpy.random._philox", "Philox"),
    "arguments of an allocation": lambda p: (
        name(*ADWIN) + pickle.NONE + pickle.TUPLE1 + pickle.NEWOBJ
    ),
    "allocation of a container": lambda p: (
        name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    ),
    "memory by a call": lambda p: call(
        name("builtins", "bytearray"), pickle.LONG1 + b"\x06" + (10**12).to_bytes(6, "little")
    ),
    "memory by an array": lambda p: call(
        name("numpy._core.multiarray", "_reconstruct"),
        name("numpy", "ndarray"),
        pickle.LONG1 + b"\x06" + (10**12).to_bytes(6, "little") + pickle.TUPLE1,
        pickle.SHORT_BINBYTES + b"\x01b",
    ),
    "memory by copies": lambda p: (
        pickle.EMPTY_DICT
        + pickle.MARK
        + b"".join(pickle.BININT + i.to_bytes(4, "little") + pickle.NONE for i in range(1000))
        + pickle.SETITEMS
        + pickle.MEMOIZE
        + call(name("collections", "Counter"), pickle.BINGET + b"\0") * 5000
    ),
    "a key of many levels": lambda p: as_key(pickle.EMPTY_TUPLE + pickle.TUPLE1 * 200_000),
    "an element of many levels": lambda p: (
        pickle.EMPTY_SET
        + pickle.MARK
        + pickle.EMPTY_TUPLE
        + pickle.TUPLE1 * 200_000
        + pickle.ADDITEMS
    ),
    "a key that takes years": lambda p: as_key(bomb()),
    "a named tuple that takes years": lambda p: as_key(
        name(*TRIPLET) + bomb() + pickle.NONE + pickle.NONE + pickle.TUPLE3 + pickle.NEWOBJ
    ),
    "a distribution that takes years": lambda p: as_key(
        new("statistics", "NormalDist") + bomb() + pickle.NONE + pickle.TUPLE2 + pickle.BUILD
    ),
    "one long key many times": lambda p: (
        pickle.MARK
        + pickle.NONE * 10_000
        + pickle.TUPLE
        + pickle.MEMOIZE
        + pickle.POP
        + pickle.EMPTY_DICT
        + (pickle.BINGET + b"\0" + pickle.NONE + pickle.SETITEM) * 1000
    ),
    "a chain of partials": lambda p: partial(
        pickle.MARK
        + partial(pickle.MARK + DEEPCOPY + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT + b"Nt")
        + pickle.EMPTY_TUPLE
        + pickle.EMPTY_DICT
        + pickle.NONE
        + pickle.TUPLE
    ),
    "a random state outside of its array": lambda p: (
        generator() + twister(10**6) + pickle.NONE + pickle.TUPLE2 + pickle.BUILD
    ),
    "a random state before its array": lambda p: (
        generator() + twister(-1) + pickle.NONE + pickle.TUPLE2 + pickle.BUILD
    ),
    "another random state outside of its array": lambda p: (
        call(name("numpy.random._pickle", "__randomstate_ctor"), generator())
        + twister(625)
        + pickle.BUILD
    ),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_bytes_are_refused_before_anything_runs(attack: str, tmp_path: Path) -> None:
    loads_river(dumps_river(drift.ADWIN()))  # river itself may import its dependencies
    modules = {module for module in sys.modules if not module.startswith("river.")}
    classes = {cls: dict(vars(cls)) for cls in (drift.ADWIN, stats.Mean)}
    defaults = copy.deepcopy.__defaults__
    with pytest.raises(CheckpointError, match=r"refused|requires str"):
        loads_river(program(HOSTILE[attack](tmp_path / "pwned")))
    assert not list(tmp_path.iterdir())
    assert {module for module in sys.modules if not module.startswith("river.")} == modules
    assert {cls: dict(vars(cls)) for cls in classes} == classes
    assert copy.deepcopy.__defaults__ is defaults


class Exploit:
    """An object as a plain ``pickle.dumps`` of an attacker makes it."""

    def __init__(self, func: Any, *args: Any) -> None:
        self.reduced = (func, args)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_an_exploit_of_any_protocol_is_refused(protocol: int, tmp_path: Path) -> None:
    import os

    data = pickle.dumps(Exploit(os.system, f"touch {tmp_path / 'pwned'}"), protocol)
    with pytest.raises(CheckpointError, match="refused"):
        loads_river(data)
    assert not list(tmp_path.iterdir())
    pickle.loads(data)
    assert list(tmp_path.iterdir()), "the exploit itself must work, or the test shows nothing"


def test_a_forged_array_type_is_refused() -> None:
    """numpy trusts the sizes and flags of a pickled dtype; forged ones would let it read outside
    the array."""
    dtype = call(name("numpy", "dtype"), text("f8"), pickle.NEWFALSE, pickle.NEWTRUE)
    number = [
        pickle.BININT + value.to_bytes(4, "little", signed=True) for value in (3, 4096, 1, 63)
    ]
    state = number[0] + text("<") + pickle.NONE * 3 + b"".join(number[1:])
    with pytest.raises(CheckpointError, match=r"refused.*dtype"):
        loads_river(program(dtype + pickle.MARK + state + pickle.TUPLE + pickle.BUILD))
    for text_type in ("V8", "f8,O", "O8, f4", "river.drift"):
        with pytest.raises(CheckpointError, match="refused"):
            loads_river(
                program(
                    call(name("numpy", "dtype"), text(text_type), pickle.NEWFALSE, pickle.NEWTRUE)
                )
            )


def test_damaged_bytes_are_an_error_of_ours_and_never_a_crash() -> None:
    detector = drift.ADWIN()
    for value in series()[:500]:
        detector.update(value)
    data = dumps_river(detector)
    rng = random.Random(1)
    refused = 0
    for _ in range(500):
        broken = bytearray(data)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        try:
            loads_river(bytes(broken[: rng.randrange(1, len(broken) + 1)]))
        except CheckpointError:
            refused += 1
    assert refused > 300


def test_a_harmless_program_of_the_same_form_is_accepted() -> None:
    """The lists cause the refusals above, not the way in which these tests write bytes."""
    body = attributes(new(*ADWIN), factory=call(name("functools", "partial"), name(*MEAN)))
    loaded: Any = loads_river(program(body))
    assert isinstance(loaded, drift.ADWIN)
    assert isinstance(loaded.factory, functools.partial)
    method = loads_river(program(call(GETATTR, new(*MEAN), text("update"))))
    assert callable(method)
