"""Isolate the computations of a pipeline from the process's settings for torch and numpy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

__all__ = ["own_settings"]

P = ParamSpec("P")
R = TypeVar("R")

NUMPY_DEFAULTS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


def own_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` with the default settings of a thread, so that the same entries give the same
    bits.

    These settings are replaced during the call and restored after it: ``inference_mode`` (tensors
    made in it cannot be trained), ``autocast``, the default device, and numpy's error handling.
    The default dtype belongs to the whole process, and other threads would see a change; the code
    inside names its dtypes instead. Grad mode is set where it matters.
    """

    @wraps(function)
    def within(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _foreign():
            return function(*args, **kwargs)
        with ExitStack() as stack:
            _set_aside(stack)
            return function(*args, **kwargs)

    return within


def _foreign() -> bool:
    return (
        torch.is_inference_mode_enabled()
        or _autocast("cpu")
        or _autocast("cuda")
        or torch.get_default_device().type != "cpu"
        or np.geterr() != NUMPY_DEFAULTS
    )


def _autocast(device: str) -> bool:
    return torch.is_autocast_enabled(device)


def _set_aside(stack: ExitStack) -> None:
    errors: Any = NUMPY_DEFAULTS
    stack.enter_context(np.errstate(**errors))
    if torch.is_inference_mode_enabled():
        grad = torch.is_grad_enabled()
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
    for device in ("cpu", "cuda"):
        if _autocast(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    if torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))
