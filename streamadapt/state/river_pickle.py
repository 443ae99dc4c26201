"""River objects to bytes and back, through an unpickler that cannot be talked into running
anything.

River's objects have no tensor form, so they are pickled; a pickle is a program, so reading one is
guarded four times:

1. *Names.* A pickle may name classes defined in river's estimator subpackages, a written list of
   river functions, and the plain classes of `streamadapt.state.river_allowed`. Names are resolved
   there, never through a module or a re-export.
2. *Calls.* It may call only what `check_call` admits, with arguments of the expected types.
   River's Python classes are allocated but never called: no ``__init__`` of theirs runs.
3. *Attributes.* ``getattr``, which bound methods need, is a stand-in that finds plain methods of
   river objects only.
4. *Operations.* State is set only on instances (never on classes or functions), and the opcodes
   that need a registry, a persistent id or text-mode names are refused.

The standard library's C unpickler can guard only the first, so this one extends its Python twin:
slower, but used only on start.
"""

from __future__ import annotations

import io
import pickle
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any, ClassVar

from streamadapt.errors import CheckpointError
from streamadapt.state.river_allowed import (
    Refused,
    check_call,
    check_hashed,
    check_name,
    check_new,
    resolve,
    set_state,
)

__all__ = ["dumps_river", "loads_river"]

# What protocol 4 and 5 write for plain objects; no text opcodes, no extension registry, no
# persistent ids, no buffers.
_OPCODES = (
    pickle.PROTO
    + pickle.FRAME
    + pickle.STOP
    + pickle.MARK
    + pickle.POP
    + pickle.POP_MARK
    + pickle.MEMOIZE
    + pickle.BINGET
    + pickle.LONG_BINGET
    + pickle.NONE
    + pickle.NEWTRUE
    + pickle.NEWFALSE
    + pickle.BININT
    + pickle.BININT1
    + pickle.BININT2
    + pickle.LONG1
    + pickle.LONG4
    + pickle.BINFLOAT
    + pickle.SHORT_BINUNICODE
    + pickle.BINUNICODE
    + pickle.BINUNICODE8
    + pickle.SHORT_BINBYTES
    + pickle.BINBYTES
    + pickle.BINBYTES8
    + pickle.BYTEARRAY8
    + pickle.EMPTY_TUPLE
    + pickle.TUPLE1
    + pickle.TUPLE2
    + pickle.TUPLE3
    + pickle.TUPLE
    + pickle.EMPTY_LIST
    + pickle.APPEND
    + pickle.APPENDS
    + pickle.EMPTY_DICT
    + pickle.SETITEM
    + pickle.SETITEMS
    + pickle.EMPTY_SET
    + pickle.ADDITEMS
    + pickle.FROZENSET
    + pickle.STACK_GLOBAL
    + pickle.NEWOBJ
    + pickle.REDUCE
    + pickle.BUILD
)

_HASHING = (set, frozenset, Counter, OrderedDict)


def dumps_river(obj: object) -> bytes:
    """Return `obj`, a river object, as bytes that `loads_river` reads.

    Raises
    ------
    CheckpointError
        If it holds something that `loads_river` would refuse (a class or function of yours, a
        lambda), naming it: at the first checkpoint rather than at the restart.
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
        If `data` is damaged or asks for anything outside the lists above; nothing of it has been
        run then.
    """
    try:
        loaded: object = _Unpickler(io.BytesIO(data)).load()
    except Refused as exc:
        raise CheckpointError(f"refused to load a river object: {exc}") from exc
    except Exception as exc:
        raise CheckpointError(f"cannot load a river object: {type(exc).__name__}: {exc}") from exc
    except BaseException as exc:
        # A panic inside river's Rust code (damaged state bytes) is no Exception; a Ctrl-C goes on
        # its way.
        if type(exc).__module__ != "pyo3_runtime":
            raise
        raise CheckpointError(f"cannot load a river object: {exc}") from exc
    return loaded


class _Pickler(pickle.Pickler):
    """Writes only what `_Unpickler` reads."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | types.FunctionType) and obj is not type(None):
            check_name(obj)
        return NotImplemented


class _Unpickler(pickle._Unpickler):
    """The guarded unpickler; see the module's text."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        op: pickle._Unpickler.dispatch[op] for op in _OPCODES
    }

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
        if any(func is other for other in _HASHING):
            check_hashed(args)
        self.stack[-1] = func(*args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        cls = self.stack[-1]
        check_new(cls, args)
        self.stack[-1] = cls.__new__(cls, *args)

    def load_build(self) -> None:
        state = self.stack.pop()
        obj = self.stack[-1]
        set_state(obj, state)

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
        check_hashed(items[::2])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise Refused(f"add to a {type(self.stack[-1]).__qualname__}")
        check_hashed(items)
        self.stack[-1].update(items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        check_hashed(items)
        self.stack.append(frozenset(items))

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
