"""Holders that hand many arrays to a kernel as one pointer: numba's form of a named tuple."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba.experimental import structref

from streamadapt.compiled import Kernel

__all__ = ["holder_of"]


def holder_of(fields: tuple[str, ...], kind: type, proxy: type) -> Callable[..., Any]:
    """Return the function that makes a holder of a named tuple.

    A kernel makes it, since numba would compile the holder's constructor in each process.

    Parameters
    ----------
    fields : tuple of str
        Of the named tuple, and of the holder.
    kind : type
        The holder's type in numba, registered with `structref.register`.
    proxy : type
        The holder's class in Python. Both belong to a module: kept code names them.

    Returns
    -------
    callable (values, what="")
        `what` tells kernels apart whose fields have other types, such as those of each learner.
    """
    structref.define_proxy(proxy, kind, list(fields))

    @cache
    def maker(what: str) -> Kernel:
        def make(*values: Any) -> Any:
            return proxy(*values)

        return Kernel(make, f"a holder of {fields}" + (f" for {what}" if what else ""))

    return lambda values, what="": maker(what).call(*values)
