"""The detectors of drift monitors: river's objects, or arrays for compiled functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from streamadapt.compiled import Kernel
from streamadapt.drift import adwin, page_hinkley
from streamadapt.drift.detectors import make_detector, update
from streamadapt.drift.watch_kernels import WatchSettings, WatchState, plain_step, watch_step
from streamadapt.errors import CheckpointError, ConfigError
from streamadapt.records import Array, Mask
from streamadapt.state.river_pickle import dumps_river, loads_river

__all__ = [
    "COMPILED",
    "CompiledDetectors",
    "Detectors",
    "Form",
    "RiverDetectors",
    "make_detectors",
]


class Form(NamedTuple):
    """A detector as functions on arrays by key.

    Attributes
    ----------
    settings : callable (**params) -> NamedTuple
        Raises `TypeError` if river's class does not take the parameters.
    empty : callable (keys, settings) -> NamedTuple
        The state; the first axis of each array is the key.
    update : callable (settings, state, key, value) -> bool
        Marked by `streamadapt.compiled.compiled`.
    save : callable (state, key) -> dict
    load : callable (state, key, saved) -> None
    of_river : callable (river's object) -> saved
    """

    settings: Callable[..., Any]
    empty: Callable[[int, Any], Any]
    update: Callable[[Any, Any, int, float], Any]
    save: Callable[[Any, int], dict[str, Any]]
    load: Callable[[Any, int, Mapping[str, Any]], None]
    of_river: Callable[[Any], dict[str, Any]]


COMPILED: Final = {
    "adwin": Form(
        adwin.adwin_settings,
        adwin.empty_adwin,
        adwin.update,
        adwin.save_adwin,
        adwin.load_adwin,
        adwin.of_river,
    ),
    "page-hinkley": Form(
        page_hinkley.page_hinkley_settings,
        page_hinkley.empty_page_hinkley,
        page_hinkley.update,
        page_hinkley.save_page_hinkley,
        page_hinkley.load_page_hinkley,
        page_hinkley.of_river,
    ),
}
"""The detectors that are compiled; the others are river's."""


class Detectors(ABC):
    """One detector for each channel of a signal."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of channels."""

    @abstractmethod
    def update(self, i: int, value: float) -> bool:
        """Update the detector of channel i; return whether it detects a drift."""

    @abstractmethod
    def watch(self, p: WatchSettings, s: WatchState, values: Array) -> Mask:
        """Take in values, (events, channels), as `streamadapt.drift.watch_kernels` describes;
        return which are alarms, (events,)."""

    @abstractmethod
    def state_dict(self) -> list[Any]:
        """Return the state of each detector."""

    @abstractmethod
    def load_state_dict(self, saved: Sequence[Any]) -> None:
        """Take over what `state_dict` returned."""


class RiverDetectors(Detectors):
    """Objects of river's, called one by one."""

    def __init__(self, name: str, params: Mapping[str, Any], channels: int) -> None:
        self.name = name
        self.objects = [make_detector(name, params) for _ in range(channels)]

    def __len__(self) -> int:
        return len(self.objects)

    def update(self, i: int, value: float) -> bool:
        """Update the detector of channel i; return whether it detects a drift."""
        return update(self.name, self.objects[i], value)

    def watch(self, p: WatchSettings, s: WatchState, values: Array) -> Mask:
        """Take in values, (events, channels)."""
        step = plain_step(lambda q, d, row, value: d.update(row, float(value)))
        return np.array([step(p, s, None, self, 0, row) for row in values], np.bool_)

    def state_dict(self) -> list[Any]:
        """Return river's objects as bytes."""
        return [dumps_river(one) for one in self.objects]

    def load_state_dict(self, saved: Sequence[Any]) -> None:
        """Take over what `state_dict` returned."""
        self.objects = [loads_river(one) for one in saved]


class CompiledDetectors(Detectors):
    """Detectors as rows of arrays.

    Attributes
    ----------
    form : Form
    settings, state : NamedTuple
        What the functions of the form take; the row is the channel.
    """

    def __init__(self, name: str, params: Mapping[str, Any], channels: int) -> None:
        self.form = COMPILED[name]
        try:
            self.settings = self.form.settings(**params)
        except TypeError as error:
            raise ConfigError(
                "drift.params", dict(params), f"arguments of river.drift's class ({error})"
            ) from error
        self._channels = channels
        self.state = self.form.empty(channels, self.settings)

    def __len__(self) -> int:
        return self._channels

    def update(self, i: int, value: float) -> bool:
        """Update the detector of channel i; return whether it detects a drift."""
        with np.errstate(all="ignore"):
            return bool(self.form.update(self.settings, self.state, i, value))

    def watch(self, p: WatchSettings, s: WatchState, values: Array) -> Mask:
        """Take in values, (events, channels)."""
        flags: Mask = np.zeros(len(values), np.bool_)
        _watch_kernel(self.form.update).call(p, s, self.settings, self.state, values, flags)
        return flags

    def state_dict(self) -> list[Any]:
        """Return copies."""
        return [self.form.save(self.state, i) for i in range(len(self))]

    def load_state_dict(self, saved: Sequence[Any]) -> None:
        """Take over what `state_dict` returned, now or when the detectors were river's."""
        if len(saved) != len(self):
            raise CheckpointError(f"{len(saved)} saved detectors, expected {len(self)}")
        for i, one in enumerate(saved):
            if isinstance(one, bytes):
                one = self.form.of_river(loads_river(one))
            self.form.load(self.state, i, one)


@cache
def _watch_kernel(detect: Callable[..., Any]) -> Kernel:
    step = watch_step(detect)

    def run(p: Any, s: Any, q: Any, d: Any, values: Any, flags: Any) -> None:
        for e in range(values.shape[0]):
            flags[e] = step(p, s, q, d, 0, values[e])

    return Kernel(run, "a drift detector")


def make_detectors(name: str, params: Mapping[str, Any], channels: int) -> Detectors:
    """Return new detectors.

    Raises
    ------
    ConfigError
        If river's class does not take the parameters.
    """
    made = CompiledDetectors if name in COMPILED else RiverDetectors
    return made(name, params, channels)
