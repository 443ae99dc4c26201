"""What a pickled river object may name, call and set: the rules of
`streamadapt.state.river_pickle`.

What no rule admits is refused. A rule decides by exact types and by identity: comparing, hashing
or printing an object of a pickle would run methods of that object.
"""

from __future__ import annotations

import collections
import datetime
import functools
import importlib
import inspect
import random
import re
import statistics
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.random.bit_generator as bit_generator

from streamadapt.state.river_names import RIVER_CLASSES, RIVER_FUNCTIONS

__all__ = [
    "Refused",
    "check_call",
    "check_method",
    "check_name",
    "check_new",
    "hashed_parts",
    "resolve",
    "set_state",
]


class Refused(Exception):  # noqa: N818 - internal: leaves this package as a CheckpointError
    """A pickle contains something that no rule admits; nothing was imported, called or changed."""


# Names outside of river. Functions here are default factories: a pickle may hold them, and the
# unpickler does not call them.
_OTHER_NAMES = {
    "builtins": (
        "bool int float complex str bytes bytearray list tuple dict set frozenset range slice"
    ),
    "collections": "Counter OrderedDict defaultdict deque",
    "copy": "deepcopy",
    "datetime": "date datetime time timedelta timezone",
    "functools": "partial",
    "numpy": "array dtype ndarray ones zeros "
    + " ".join(np.dtype(code).type.__name__ for code in "?bhilqBHILQefdgFDG"),
    "numpy.random._mt19937": "MT19937",
    "numpy.random.bit_generator": "SeedSequence",
    "random": "Random",
    "statistics": "NormalDist",
}


def _pairs(names: dict[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((module, name) for module in names for name in names[module].split())


_CLASSES = _pairs(RIVER_CLASSES)
_NAMES = _CLASSES | _pairs(RIVER_FUNCTIONS) | _pairs(_OTHER_NAMES)
# River's classes that are rebuilt by a call; the others are allocated, and not initialized.
_CALLED_CLASSES = _pairs(
    {
        "river._river_rust.vectordict": "VectorDict",
        "river.time_series.holt_winters": RIVER_CLASSES["river.time_series.holt_winters"],
    }
)
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set,
    frozenset, datetime.date, datetime.datetime, datetime.time, datetime.timedelta,
    datetime.timezone,
)  # fmt: skip
_FACTORIES = (type, types.FunctionType, types.MethodType, functools.partial)
_MOST_HASHED = 1_000_000
_DEEPEST_HASHED = 100
_DTYPE = re.compile(r"[biufcmMSUO]\d*")


# -- names


def resolve(module: object, name: object) -> Any:
    """Return what a pickle names, or raise `Refused` before anything is imported for it."""
    if type(module) is not str or type(name) is not str:
        raise Refused("a name that is not text")
    return _resolve(module, name)


@functools.cache
def _resolve(module: str, name: str) -> Any:
    if (module, name) in _GUARDED:
        return _GUARDED[module, name]
    if (module, name) not in _NAMES:
        raise Refused(f"{module}.{name} is not on the list of what may be loaded")
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as exc:
        raise Refused(
            f"{module}.{name} does not exist here ({exc}); was it written by another version of "
            f"river?"
        ) from exc


def check_name(obj: Any) -> None:
    """Refuse a class or function that `resolve` would not find by its name."""
    module, name = obj.__module__, obj.__qualname__
    if resolve(module, name) is not obj and (module, name) not in _GUARDED:
        raise Refused(f"{module}.{name} is not the object that has this name")


def check_method(obj: Any) -> None:
    """Refuse a bound method that the stand-in for ``getattr`` would not find."""
    _getattr(obj.__self__, obj.__name__)


def _is_river(cls: type) -> bool:
    return (cls.__module__, cls.__qualname__) in _CLASSES


def _label(obj: object) -> str:
    """Return the name of `obj` or of its type; repr would run a method of the object."""
    if isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType):
        return f"{obj.__module__}.{obj.__qualname__}"
    return f"a {type(obj).__module__}.{type(obj).__qualname__}"


# -- calls


def check_new(cls: object, args: object) -> None:
    """Admit ``cls.__new__(cls, *args)``: allocation, which runs no ``__init__``."""
    if isinstance(cls, type) and type(args) is tuple:
        # Only classes in Rust and named tuples have arguments.
        with_arguments = issubclass(cls, tuple) or (
            cls.__module__.startswith("river._river_rust.") and _all_plain(args)
        )
        if (_is_river(cls) or cls is statistics.NormalDist) and (not args or with_arguments):
            return
    raise Refused(f"allocation of {_label(cls)}")


def check_call(func: object, args: object) -> None:
    """Admit ``func(*args)``."""
    # Hashing these two types runs nothing of the pickle.
    if isinstance(func, type | types.FunctionType) and type(args) is tuple:
        check = _CALLS.get(func)
        if check is not None and check(args):
            return
        river = isinstance(func, type) and (func.__module__, func.__qualname__) in _CALLED_CLASSES
        if river and all(type(arg) in _PLAIN or isinstance(arg, _FACTORIES) for arg in args):
            return
    shown = [type(arg).__qualname__ for arg in args] if isinstance(args, tuple) else "?"
    raise Refused(f"call of {_label(func)} with {shown}")


def hashed_parts(keys: Iterable[object]) -> int:
    """Return how many parts of `keys` Python looks at to hash them.

    Refuse keys whose hash would take years or overflow the stack: a few bytes of a pickle make a
    tuple of tuples with 2**60 parts, or with 100,000 levels.
    """
    parts, depth = 0, 0
    while level := [key for key in keys if isinstance(key, tuple)]:
        depth += 1
        parts += sum(map(len, level))
        if parts > _MOST_HASHED or depth > _DEEPEST_HASHED:
            raise Refused(f"keys of more than {_MOST_HASHED} parts or {_DEEPEST_HASHED} levels")
        keys = [part for key in level for part in key]
    return parts


def _all_plain(args: tuple[Any, ...]) -> bool:
    return all(type(arg) in _PLAIN for arg in args)


def _all_numbers(args: tuple[Any, ...]) -> bool:
    return all(type(arg) in (type(None), int, float) for arg in args)


def _no_arguments(args: tuple[Any, ...]) -> bool:
    return not args


def _one_dict(args: tuple[Any, ...]) -> bool:
    return not args or (len(args) == 1 and type(args[0]) is dict)


def _factory(args: tuple[Any, ...]) -> bool:
    # Stored and not called here. River's Zeros and Normal are instances that serve as factories.
    return not args or (
        (args[0] is None or callable(args[0])) and all(type(arg) in _PLAIN for arg in args[1:])
    )


def _dtype(args: tuple[Any, ...]) -> bool:
    return (
        len(args) == 3
        and type(args[0]) is str
        and _DTYPE.fullmatch(args[0]) is not None
        and all(type(arg) is bool for arg in args[1:])
    )


# -- stand-ins: what a pickle gets instead of a function that would do more than river needs


def _getattr(owner: object, name: object) -> Any:
    """Return a plain method of a river object or class, of `random.Random`, or `str.lower`.

    Found on the class, statically: no property, no ``__getattr__`` and no instance attribute can
    answer.
    """
    if type(name) is not str or not name.isidentifier() or name.startswith("__"):
        raise Refused(f"getattr of {name if type(name) is str else _label(name)}")
    cls: type = owner if isinstance(owner, type) else type(owner)
    found = inspect.getattr_static(cls, name, None)
    if (
        (type(owner) is random.Random and not name.startswith("_") and callable(found))
        or (owner is str and name == "lower")
    ):  # fmt: skip
        return getattr(owner, name)
    if _is_river(cls):
        if isinstance(found, staticmethod):
            return found.__func__
        if isinstance(found, classmethod):
            return found.__get__(None, cls)
        if isinstance(found, types.FunctionType | types.MethodDescriptorType):
            return found if owner is cls else found.__get__(owner, cls)
    raise Refused(f"getattr of {name!r} on {cls.__module__}.{cls.__qualname__}")


def _iter(items: object) -> Any:
    if type(items) not in (list, tuple, str, bytes, dict, set, frozenset):
        raise Refused(f"iter of {_label(items)}")
    return iter(items)  # type: ignore[call-overload]


def _bit_generator(kind: object) -> Any:
    if kind is not np.random.MT19937:
        raise Refused(f"bit generator {_label(kind)}")
    return np.random.MT19937()


def _random_state(bits: object, *constructor: object) -> Any:
    if constructor or type(bits) is not np.random.MT19937:
        raise Refused("a random state of anything but a bit generator")
    return np.random.RandomState(bits)


def _seed_sequence(cls: object, checksum: object, state: object) -> Any:
    if cls is not bit_generator.SeedSequence or type(checksum) is not int or state is not None:
        raise Refused("a seed sequence of unknown form")
    rebuild: Any = bit_generator.__pyx_unpickle_SeedSequence  # type: ignore[attr-defined]
    return rebuild(cls, checksum, state)


def _array(cls: object, shape: object, kind: object) -> Any:
    """Return the array without elements that every pickled array starts from."""
    if (
        cls is not np.ndarray
        or type(shape) is not tuple
        or shape != (0,)
        or type(kind) is not bytes
    ):
        raise Refused("an array of unknown form")
    return np.ndarray((0,), "b")


def _scalar(dtype: object, data: object) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.kind in "OV" or type(data) is not bytes:
        raise Refused("a number of numpy of unknown form")
    rebuild: Any = np._core.multiarray.scalar  # type: ignore[attr-defined]
    return rebuild(dtype, data)


def _from_buffer(data: object, dtype: object, *form: object) -> Any:
    if (
        type(data) not in (bytes, bytearray)
        or not isinstance(dtype, np.dtype)
        or not _all_plain(form)
    ):
        raise Refused("an array of unknown form")
    rebuild: Any = np._core.numeric._frombuffer  # type: ignore[attr-defined]
    return rebuild(data, dtype, *form)


_GUARDED: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "getattr"): _getattr,
    ("builtins", "iter"): _iter,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy.random._pickle", "__bit_generator_ctor"): _bit_generator,
    ("numpy.random._pickle", "__randomstate_ctor"): _random_state,
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"): _seed_sequence,
}
_CALLS: dict[Any, Callable[[tuple[Any, ...]], bool]] = {
    **dict.fromkeys(_GUARDED.values(), lambda args: True),
    **dict.fromkeys((complex, range, slice), _all_numbers),
    **dict.fromkeys(
        (datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
        _all_plain,
    ),
    collections.Counter: _one_dict,
    collections.OrderedDict: _no_arguments,
    collections.defaultdict: _factory,
    collections.deque: _all_plain,
    functools.partial: _factory,
    np.dtype: _dtype,
    random.Random: _no_arguments,
}


# -- states


def set_state(obj: object, state: object) -> None:
    """Give an instance its state, as the BUILD opcode does; classes, functions and modules are
    never changed."""
    if isinstance(obj, np.dtype):
        _set_dtype(obj, state)
        return
    check = _STATES.get(type(obj))
    if check is None and not _is_river(type(obj)):
        raise Refused(f"state of {_label(obj)}")
    if not (check(state) if check is not None else type(state) in _PLAIN):
        raise Refused(f"state of type {type(state).__qualname__} for a {type(obj).__qualname__}")
    # On the class: an instance's own attributes (BaseRolling.__getattr__) must not answer.
    setter = getattr(type(obj), "__setstate__", None)
    if setter is None:
        _set_attributes(obj, state)
        return
    setter(obj, state)
    if isinstance(obj, np.random.MT19937 | np.random.RandomState):
        _check_position(obj)


def _set_attributes(obj: object, state: object) -> None:
    pair: Any = state if type(state) is tuple and len(state) == 2 else (state, None)
    if not all(part is None or type(part) is dict for part in pair):
        raise Refused(f"state of unknown form for a {type(obj).__qualname__}")
    fields, slots = pair[0] or {}, pair[1] or {}
    for name in (*fields, *slots):
        if type(name) is not str or name.startswith("__"):
            shown = name if type(name) is str else _label(name)
            raise Refused(f"attribute {shown} of a {type(obj).__qualname__}")
    if fields:
        # Interned, as pickle itself does: a saved state then has the same bytes however often it
        # was loaded before.
        obj.__dict__.update({sys.intern(name): value for name, value in fields.items()})
    for name, value in slots.items():
        object.__setattr__(obj, name, value)


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


def _check_position(bits: Any) -> None:
    # numpy does not check it, and reads the next number at this place of an array of 624.
    state = bits.state if isinstance(bits, np.random.MT19937) else bits.get_state(legacy=False)
    if not 0 <= state["state"]["pos"] <= 624:
        raise Refused(f"position {state['state']['pos']} of a random state, of at most 624")


def _is_tuple(state: object) -> bool:
    return type(state) is tuple


def _is_index(state: object) -> bool:
    return type(state) is int


def _array_state(state: Any) -> bool:
    return type(state) is tuple and len(state) == 5 and isinstance(state[2], np.dtype)


def _partial_state(state: Any) -> bool:
    # A chain of these, each the function of the next, overflows the stack when it is freed.
    return type(state) is tuple and len(state) == 4 and type(state[0]) is not functools.partial


def _normal_state(state: Any) -> bool:
    # The hash of a distribution is that of its two numbers.
    return type(state) is tuple and len(state) == 2 and all(type(x) is float for x in state)


_STATES: dict[type, Callable[[Any], bool]] = {
    random.Random: _is_tuple,
    functools.partial: _partial_state,
    statistics.NormalDist: _normal_state,
    np.ndarray: _array_state,
    np.random.MT19937: _is_tuple,
    np.random.RandomState: lambda state: type(state) is dict,
    bit_generator.SeedSequence: _is_tuple,
    **dict.fromkeys(map(type, (iter([]), iter(()), iter(""))), _is_index),
}
