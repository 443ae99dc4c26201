"""River objects to bytes and back, through an unpickler that runs nothing that the bytes choose.

River's objects have no tensor form, so they are pickled. A pickle is a program, and reading it is
guarded in five ways:

1. *Names.* A pickle may name the classes and functions of `streamadapt.state.river_names` and a
   few of Python and numpy. The list is exact: (module, name), without patterns.
2. *Calls.* Only what `check_call` admits, with arguments of the expected types. River's Python
   classes are allocated and not called: none of their ``__init__`` runs.
3. *Attributes.* ``getattr``, which bound methods need, is a stand-in that finds plain methods of
   river objects only.
4. *Operations.* State is set on instances only (never on classes or functions). The opcodes that
   need a registry, a persistent id or names in text mode are refused.
5. *Work.* What is hashed and copied has a bound that is proportional to the size of the pickle.

The C unpickler of the standard library can guard only the first: its ``find_class`` sees names,
but no arguments of calls, and BUILD may change a class. Even a ``find_class`` that returns inert
objects does not help: keys are hashed while it reads, and 250 bytes that make a tuple of 2**60
parts keep it busy for years. It would need a pass over the opcodes in Python before it and one
over the objects after it. So this module extends the Python twin. CPU time to read, of one core
(river 0.26, Python 3.11), here and with the unguarded C unpickler:

=============================================  =======  =========  ========
object                                         kB       here (ms)  C (ms)
=============================================  =======  =========  ========
ADWIN after 50,000 values                      2        0.06       0.01
StandardScaler and LogisticRegression          1        0.25       0.03
HoeffdingAdaptiveTreeClassifier, 50,000        627      72         8
HoeffdingAdaptiveTreeRegressor, 50,000         945      370        29
ARFClassifier of 10 trees, 3,000               2,700    350        41
ARFRegressor of 10 trees, 3,000                2,600    1,600      290
=============================================  =======  =========  ========

An object is read at the start, after a rollback, and when an evicted key returns. It is written
at each checkpoint, which the C pickler does.
"""

from __future__ import annotations

import io
import pickle
import types
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from streamadapt.errors import CheckpointError
from streamadapt.state.river_allowed import (
    Refused,
    check_call,
    check_method,
    check_name,
    check_new,
    hashed_parts,
    resolve,
    set_state,
)

__all__ = ["dumps_river", "loads_river"]

# What protocols 4 and 5 write for plain objects: no text opcodes, no extension registry, no
# persistent ids, no buffers.
_OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK MEMOIZE BINGET LONG_BINGET NONE NEWTRUE NEWFALSE "
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE "
    "EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET "
    "STACK_GLOBAL NEWOBJ REDUCE BUILD"
)

_SIZED = frozenset({str, bytes, bytearray, list, tuple, dict, set, frozenset})


def dumps_river(obj: object) -> bytes:
    """Return `obj`, a river object, as bytes that `loads_river` reads.

    Raises
    ------
    CheckpointError
        If it contains something that `loads_river` would refuse (a class or function of yours, a
        lambda), naming it: at the first checkpoint and not at the restart.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=5).dump(obj)
    except (pickle.PicklingError, TypeError, AttributeError, Refused, RecursionError) as exc:
        raise CheckpointError(f"{type(obj).__qualname__} cannot be checkpointed: {exc}") from exc
    return buffer.getvalue()


def loads_river(data: bytes) -> object:
    """Return the object that `dumps_river` wrote.

    Raises
    ------
    CheckpointError
        If `data` is damaged or asks for anything that is not allowed; nothing of it was run.
    """
    try:
        loaded: object = _Unpickler(data).load()
    except Refused as exc:
        raise CheckpointError(f"refused to load a river object: {exc}") from exc
    except Exception as exc:
        raise CheckpointError(f"cannot load a river object: {type(exc).__name__}: {exc}") from exc
    except BaseException as exc:
        # A panic in river's Rust code (damaged bytes of a state) is no Exception, and neither is
        # KeyboardInterrupt.
        if type(exc).__module__ != "pyo3_runtime":
            raise
        raise CheckpointError(f"cannot load a river object: {exc}") from exc
    return loaded


class _Pickler(pickle.Pickler):
    """Refuses names that `_Unpickler` does not read."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | types.FunctionType):
            if obj is not type(None):
                check_name(obj)
        elif isinstance(obj, types.MethodType | types.BuiltinFunctionType):
            if obj.__self__ is None or isinstance(obj.__self__, types.ModuleType):
                check_name(obj)
            else:
                check_method(obj)
        return NotImplemented


class _Unpickler(pickle._Unpickler):
    """The guarded unpickler; the docstring of the module explains it."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        op: pickle._Unpickler.dispatch[op]
        for op in (getattr(pickle, name)[0] for name in _OPCODES.split())
    }

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._work = 1_000_000 + 16 * len(data)

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as exc:  # an opcode outside `dispatch`
            raise Refused(f"opcode or memo {exc} is not allowed") from exc

    def find_class(self, module: str, name: str) -> Any:
        return resolve(module, name)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        func = self.stack[-1]
        check_call(func, args)
        self._copy(args)
        self.stack[-1] = func(*args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        cls = self.stack[-1]
        check_new(cls, args)
        self._copy(args)
        self.stack[-1] = cls.__new__(cls, *args)

    def load_build(self) -> None:
        state = self.stack.pop()
        self._copy(state if type(state) is tuple else (state,))
        set_state(self.stack[-1], state)

    def load_append(self) -> None:
        self._items([self.stack.pop()])

    def load_appends(self) -> None:
        self._items(self.pop_mark())

    def _items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | deque):
            raise Refused(f"append to a {type(target).__qualname__}")
        target.extend(items)

    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._pairs([key, value])

    def load_setitems(self) -> None:
        self._pairs(self.pop_mark())

    def _pairs(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise Refused(f"item assignment to a {type(target).__qualname__}")
        self._hash(items[::2])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise Refused(f"add to a {type(self.stack[-1]).__qualname__}")
        self._hash(items)
        self.stack[-1].update(items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self._hash(items)
        self.stack.append(frozenset(items))

    def _hash(self, keys: list[Any]) -> None:
        self._spend(hashed_parts(keys))

    def _copy(self, args: Iterable[Any]) -> None:
        # The memo gives a pickle the same large argument again for two bytes.
        self._spend(sum(len(arg) for arg in args if type(arg) in _SIZED))

    def _spend(self, work: int) -> None:
        self._work -= work
        if self._work < 0:
            raise Refused("more work than a pickle of this size needs")

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }
