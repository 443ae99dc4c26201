"""What a pickled river object may name, call and set: the lists behind
`streamadapt.state.river_pickle`.

Everything here refuses by default. The lists follow from pickling every estimator, detector and
statistic of river: adding an entry needs such an object and a look at what a hostile caller could
do with it.
"""

from __future__ import annotations

import collections
import datetime
import enum
import functools
import importlib
import inspect
import random
import re
import statistics
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.random.bit_generator as bit_generator

__all__ = [
    "Refused",
    "check_call",
    "check_hashed",
    "check_name",
    "check_new",
    "resolve",
    "set_state",
]


class Refused(Exception):  # noqa: N818 - internal: leaves this package as a CheckpointError
    """Something asked for what is not on the lists.

    Raised before it is imported, called or changed.
    """


_SUBPACKAGES = frozenset(
    {
        *(
            "_river_rust",
            "active",
            "anomaly",
            "bandit",
            "base",
            "cluster",
            "compose",
            "conf",
            "covariance",
            "drift",
        ),
        *(
            "dummy",
            "ensemble",
            "facto",
            "feature_extraction",
            "feature_selection",
            "forest",
            "imblearn",
        ),
        *(
            "linear_model",
            "metrics",
            "model_selection",
            "multiclass",
            "multioutput",
            "naive_bayes",
            "neighbors",
        ),
        *(
            "optim",
            "preprocessing",
            "proba",
            "reco",
            "rules",
            "sketch",
            "stats",
            "time_series",
            "tree",
            "utils",
        ),
    }
)
# Parts of those that open files, reach the network, import other libraries or only serve river's
# own tests.
_UNSAFE_MODULES = frozenset(
    {
        "checks",
        "context_managers",
        "dataframe",
        "datasets",
        "envs",
        "evaluate",
        "pandas",
        "pretty",
        "test",
    }
)
_MODULE = re.compile(r"river(\.[a-zA-Z_]\w*)+", re.ASCII)

# Functions that river's estimators hold as attributes; pure arithmetic or text.
_FUNCTIONS = frozenset(
    {
        ("river._river_rust.vectordict", "euclidean_distance_dict"),
        ("river._river_rust.vectordict", "euclidean_distance_tuple"),
        ("river.feature_extraction.vectorize", "find_all_ngrams"),
        ("river.feature_extraction.vectorize", "find_ngrams"),
        ("river.feature_extraction.vectorize", "remove_stop_words"),
        ("river.feature_extraction.vectorize", "strip_accents_unicode"),
        ("river.feature_extraction.vectorize", "tokenize_using_regex_pattern"),
        ("river.forest.online_extra_trees", "ExtraTrees._detection_mode_all"),
        ("river.forest.online_extra_trees", "ExtraTrees._detection_mode_drop"),
        ("river.forest.online_extra_trees", "ExtraTrees._detection_mode_off"),
        ("river.metrics.mutual_info", "_average_arithmetic"),
        ("river.metrics.mutual_info", "_average_geometric"),
        ("river.naive_bayes.gaussian", "GaussianNB._make_gaussian"),
        ("river.tree.splitter.ebst_splitter", "EBSTNode._update_estimator_multivariate"),
        ("river.tree.splitter.ebst_splitter", "EBSTNode._update_estimator_univariate"),
        ("river.utils.math", "minkowski_distance"),
    }
)

_NAMES = frozenset(
    (module, name)
    for module, names in {
        "builtins": (
            bool,
            int,
            float,
            complex,
            str,
            bytes,
            bytearray,
            list,
            tuple,
            dict,
            set,
            frozenset,
            range,
            slice,
        ),
        "collections": ("Counter", "OrderedDict", "defaultdict", "deque"),
        "copy": (
            "deepcopy",
        ),  # like numpy's four functions a default factory: named, never called from here
        "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
        "functools": ("partial",),
        "numpy": (
            "array",
            "dtype",
            "ndarray",
            "ones",
            "zeros",
            *map(np.sctypeDict.get, "?bhilqBHILQefdgFDG"),
        ),
        "numpy._core.multiarray": ("_reconstruct", "scalar"),
        "numpy._core.numeric": ("_frombuffer",),
        "numpy.random._mt19937": ("MT19937",),
        "numpy.random._pcg64": ("PCG64", "PCG64DXSM"),
        "numpy.random._philox": ("Philox",),
        "numpy.random._sfc64": ("SFC64",),
        "numpy.random.bit_generator": ("SeedSequence", "__pyx_unpickle_SeedSequence"),
        "random": ("Random",),
        "statistics": ("NormalDist",),
    }.items()
    for name in (entry.__name__ if isinstance(entry, type) else entry for entry in names)
)

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set,
    frozenset, datetime.date, datetime.datetime, datetime.time, datetime.timedelta,
    datetime.timezone,
)  # fmt: skip
_FACTORY = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
)
_MOST_HASHED = 1_000_000
_DTYPE = re.compile(r"[biufcmMSUO]\d*")


def resolve(module: object, name: object) -> Any:
    """Return what a pickle names, or raise `Refused` before anything is imported for it.

    Names are walked here, so that neither a dotted name nor a re-export (``river.base`` +
    ``os.system``) leads outside.
    """
    if (module, name) in _STAND_INS:
        return _STAND_INS[module, name]
    if not isinstance(module, str) or not isinstance(name, str):
        raise Refused("a name that is no text")
    if (module, name) in _NAMES:
        return getattr(importlib.import_module(module), name)
    if not _is_river_module(module):
        raise Refused(f"{module}.{name} is not on the list of what may be loaded")
    found = _walk(module, name)
    if (module, name) in _FUNCTIONS or (_is_river_class(found) and found.__module__ == module):
        return found
    raise Refused(f"{module}.{name} is neither a class defined there nor a listed function")


def check_name(obj: Any) -> None:
    """Refuse a class or function that `resolve` would not find again by its name."""
    module, name = obj.__module__, obj.__qualname__
    if resolve(module, name) is not obj and (module, name) not in _STAND_INS:
        raise Refused(f"{module}.{name} is not what that name stands for")


def _walk(module: str, name: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
    except ImportError as exc:
        raise Refused(
            f"{module} cannot be imported here ({exc}); was it written by another version of "
            f"river?"
        ) from exc
    for step, part in enumerate(name.split(".")):
        # After the first step only classes of that very module are entered: never a module, an
        # instance, a re-export.
        entered = step == 0 or (_is_river_class(found) and found.__module__ == module)
        found = (
            inspect.getattr_static(found, part, None)
            if entered and not part.startswith("__")
            else None
        )
        found = found.__func__ if isinstance(found, staticmethod) else found
        if not callable(found):
            raise Refused(
                f"{module}.{name} is no class or function here; was it written by another "
                f"version of river?"
            )
    return found


def _is_river_module(module: object) -> bool:
    if not isinstance(module, str) or not _MODULE.fullmatch(module):
        return False
    parts = module.split(".")[1:]
    return parts[0] in _SUBPACKAGES and not any(
        p in _UNSAFE_MODULES or p.startswith("test_") for p in parts
    )


def _is_river_class(obj: object) -> bool:
    return isinstance(obj, type) and _is_river_module(obj.__module__)


def check_new(cls: object, args: object) -> None:
    """Admit ``cls.__new__(cls, *args)``: allocation, which runs no ``__init__``."""
    # Identity, here and below: comparing or hashing would run an object's own methods.
    allowed = _is_river_class(cls) or any(
        cls is other for other in (statistics.NormalDist, collections.OrderedDict)
    )
    if (
        not allowed
        or type(args) is not tuple
        or not all(_is_plain(arg) or isinstance(arg, _FACTORY) for arg in args)
    ):
        raise Refused(f"allocation of {_label(cls)}")


def check_call(func: object, args: object) -> None:
    """Admit ``func(*args)``; whatever is not listed below is refused."""
    if type(args) is not tuple:
        raise Refused(f"call of {_label(func)} without arguments")
    check = _CALLS.get(id(func)) or (_plain_args if _is_callable_river_class(func) else None)
    if check is None or not check(args):
        raise Refused(f"call of {_label(func)} with {[type(arg).__qualname__ for arg in args]}")


def check_hashed(items: Sequence[object]) -> None:
    """Refuse what takes for ever to hash: a few bytes of a pickle make a tuple of tuples of 2**60
    parts."""
    left, todo = _MOST_HASHED + len(items), [items]
    while todo:
        part = todo.pop()
        left -= len(part)
        if left < 0:
            raise Refused(f"keys of more than {_MOST_HASHED} parts")
        todo += [item for item in part if type(item) in (tuple, list)]  # type: ignore[misc]


def _label(obj: object) -> str:
    # Never repr: an object's own would run, and a bound method's shows its object.
    named = (
        obj
        if isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType)
        else type(obj)
    )
    return f"{'' if named is obj else 'a '}{named.__module__}.{named.__qualname__}"


def _is_callable_river_class(obj: object) -> bool:
    # Rust classes, enumerations and containers (Holt-Winters' deques) rebuild themselves by a
    # call; nothing else may.
    containers = (enum.Enum, collections.deque, dict, list, set)
    return _is_river_class(obj) and (
        obj.__module__.startswith("river._river_rust.") or issubclass(obj, containers)  # type: ignore[arg-type]
    )


def _is_plain(arg: object) -> bool:
    return type(arg) in _PLAIN


def _plain_args(args: tuple[Any, ...]) -> bool:
    return all(_is_plain(arg) or isinstance(arg, _FACTORY) for arg in args)


def _factory_args(args: tuple[Any, ...]) -> bool:
    # A default factory is kept, not called; river's Zeros and Normal are instances that serve as
    # factories.
    return not args or (
        (args[0] is None or callable(args[0])) and all(_is_plain(arg) for arg in args[1:])
    )


def _dtype_args(args: tuple[Any, ...]) -> bool:
    return (
        isinstance(args[0], str)
        and _DTYPE.fullmatch(args[0]) is not None
        and all(type(a) is bool for a in args[1:])
    )


def _array_args(args: tuple[Any, ...]) -> bool:
    return args[0] is np.ndarray and all(_is_plain(arg) for arg in args[1:])


def _scalar_args(args: tuple[Any, ...]) -> bool:
    return (
        len(args) == 2
        and isinstance(args[0], np.dtype)
        and args[0].kind not in "OV"
        and type(args[1]) is bytes
    )


def _buffer_args(args: tuple[Any, ...]) -> bool:
    return (
        type(args[0]) in (bytes, bytearray)
        and isinstance(args[1], np.dtype)
        and all(map(_is_plain, args[2:]))
    )


def _seed_args(args: tuple[Any, ...]) -> bool:
    return args[0] is bit_generator.SeedSequence and all(_is_plain(arg) for arg in args[1:])


def _guarded_getattr(owner: object, name: object) -> Any:
    """Stand in for ``getattr``, which bound methods are pickled as: plain methods of river and
    `random.Random`."""
    if type(name) is not str or not name.isidentifier() or name.startswith("__"):
        raise Refused(f"getattr of {name if type(name) is str else _label(name)}")
    if (type(owner) is random.Random and not name.startswith("_")) or (
        owner is str and name == "lower"
    ):
        owner_class: type = random.Random if owner is not str else str
        if callable(inspect.getattr_static(owner_class, name, None)):
            return getattr(owner, name)
    cls = owner if isinstance(owner, type) else type(owner)
    # Looked up on the class, statically: no property, no __getattr__ and no instance attribute can
    # answer.
    found = inspect.getattr_static(cls, name, None) if _is_river_class(cls) else None
    if isinstance(found, staticmethod):
        return found.__func__
    if isinstance(found, classmethod):
        return found.__get__(None, cls)
    if isinstance(found, types.FunctionType | types.MethodDescriptorType):
        return found if owner is cls else found.__get__(owner, cls)
    raise Refused(f"getattr of {name!r} on {cls.__module__}.{cls.__qualname__}")


def _guarded_iter(items: object) -> Any:
    if type(items) not in (list, tuple, str, bytes, dict, set, frozenset):
        raise Refused(f"iter of a {type(items).__qualname__}")
    return iter(items)  # type: ignore[call-overload]


def _bits(kind: object) -> Any:
    """Stand in for numpy's constructor of bit generators, which would call any class it is
    given."""
    if isinstance(kind, type) and issubclass(kind, np.random.BitGenerator):
        return kind()
    raise Refused(f"bit generator {_label(kind)}")


def _random_state(bits: object, *constructor: object) -> Any:
    """Stand in for numpy's constructor, which would call a constructor named by the pickle."""
    if constructor or not isinstance(bits, np.random.BitGenerator):
        raise Refused("a random state of anything but a bit generator")
    return np.random.RandomState(bits)


def _generator(bits: object, *constructor: object) -> Any:
    if constructor or not isinstance(bits, np.random.BitGenerator):
        raise Refused("a random generator of anything but a bit generator")
    return np.random.Generator(bits)


_STAND_INS: dict[tuple[object, object], Callable[..., Any]] = {
    ("builtins", "getattr"): _guarded_getattr,
    ("builtins", "iter"): _guarded_iter,
    ("numpy.random._pickle", "__bit_generator_ctor"): _bits,
    ("numpy.random._pickle", "__randomstate_ctor"): _random_state,
    ("numpy.random._pickle", "__generator_ctor"): _generator,
}


def _calls() -> dict[int, Callable[[tuple[Any, ...]], bool]]:
    calls: dict[Any, Callable[[tuple[Any, ...]], bool]] = dict.fromkeys(
        _STAND_INS.values(), lambda args: True
    )
    calls |= dict.fromkeys(
        (complex, bytearray, set, frozenset, range, slice, random.Random), _plain_args
    )
    calls |= dict.fromkeys(
        (collections.Counter, collections.OrderedDict, collections.deque), _plain_args
    )
    calls |= dict.fromkeys((collections.defaultdict, functools.partial), _factory_args)
    calls |= dict.fromkeys(
        (datetime.date, datetime.datetime, datetime.time, datetime.timedelta), _plain_args
    )
    calls |= {datetime.timezone: _plain_args, np.dtype: _dtype_args}
    calls[resolve("numpy._core.multiarray", "_reconstruct")] = _array_args
    calls[resolve("numpy._core.multiarray", "scalar")] = _scalar_args
    calls[resolve("numpy._core.numeric", "_frombuffer")] = _buffer_args
    calls[resolve("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence")] = _seed_args
    return {id(func): check for func, check in calls.items()}


_CALLS = _calls()


def set_state(obj: object, state: object) -> None:
    """Give an instance its state, as the BUILD opcode does; classes, functions and modules are
    never changed."""
    if isinstance(obj, np.dtype):
        return _set_dtype(obj, state)
    if isinstance(obj, np.ndarray) and (
        type(state) is not tuple or not isinstance(state[2], np.dtype)
    ):
        raise Refused("the state of an array")
    known = _is_river_class(type(obj)) or isinstance(obj, _BUILDABLE)
    if not known or not (_is_plain(state) or isinstance(state, np.random.BitGenerator)):
        raise Refused(f"state of type {type(state).__qualname__} for a {type(obj).__qualname__}")
    # On the class: an instance's own attributes (BaseRolling.__getattr__) must not answer.
    setter = getattr(type(obj), "__setstate__", None)
    if setter is not None:
        setter(obj, state)
        return None
    pair: Any = state if type(state) is tuple and len(state) == 2 else (state, None)
    if not all(part is None or type(part) is dict for part in pair):
        raise Refused(f"state of unknown form for a {type(obj).__qualname__}")
    fields, slots = pair[0] or {}, pair[1] or {}
    for name in (*fields, *slots):
        if type(name) is not str or name.startswith("__"):
            raise Refused(
                f"attribute {name if type(name) is str else _label(name)} of a "
                f"{type(obj).__qualname__}"
            )
    if fields:
        # Interned, as pickle itself does: a saved state then has the same bytes however often it
        # was loaded before.
        obj.__dict__.update({sys.intern(name): value for name, value in fields.items()})
    for name, value in slots.items():
        object.__setattr__(obj, name, value)
    return None


_BUILDABLE: tuple[type, ...] = (
    random.Random, functools.partial, statistics.NormalDist, np.ndarray, np.random.BitGenerator,
    np.random.RandomState, np.random.Generator, bit_generator.SeedSequence, type(iter([])),
    type(iter(())), type(iter("")),
)  # fmt: skip


def _set_dtype(obj: np.dtype[Any], state: object) -> None:
    # numpy believes the sizes, flags and fields given here and would read outside an array: take
    # the byte order only.
    rebuilt: Any = obj.__reduce__()
    expected = rebuilt[2]
    # Exact types first: comparing must not run an object's own __eq__.
    known = type(state) is tuple and [type(item) for item in state] == [
        type(item) for item in expected
    ]
    if (
        not known
        or state[1] not in ("<", ">", "=", "|")  # type: ignore[index]
        or (state[0], *state[2:]) != (expected[0], *expected[2:])  # type: ignore[index]
    ):
        raise Refused("the state of a dtype that differs from its name")
    obj.__setstate__(state)  # type: ignore[attr-defined]
