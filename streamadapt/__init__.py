"""streamadapt: keep a deployed model right while the world under it moves."""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, whose import would take time before a signal is heard
if TYPE_CHECKING:
    from streamadapt.base import FrozenModel, Linear, Persistence
    from streamadapt.drift import DriftMonitor
    from streamadapt.entry import Batch, Entry, Label, Position, Prediction
    from streamadapt.guard import Hedge, NoGuard, TwoLayer
    from streamadapt.keyed import KeyedPipeline
    from streamadapt.learners import (
        ADCSD,
        EATA,
        RLS,
        Bias,
        Calibration,
        Dictionary,
        ErrorMemory,
        Gain,
        Holt,
        LastValue,
        Liquid,
        PerEntry,
        Refit,
        River,
        Seasonal,
        SlotBias,
        Tent,
    )
    from streamadapt.panel import Panel
    from streamadapt.pipeline import Pipeline
    from streamadapt.tasks import Forecast, Supervised, Unlabelled

__version__ = "0.1.0"

__all__ = [
    "ADCSD",
    "EATA",
    "RLS",
    "Batch",
    "Bias",
    "Calibration",
    "Dictionary",
    "DriftMonitor",
    "Entry",
    "ErrorMemory",
    "Forecast",
    "FrozenModel",
    "Gain",
    "Hedge",
    "Holt",
    "KeyedPipeline",
    "Label",
    "LastValue",
    "Linear",
    "Liquid",
    "NoGuard",
    "Panel",
    "PerEntry",
    "Persistence",
    "Pipeline",
    "Position",
    "Prediction",
    "Refit",
    "River",
    "Seasonal",
    "SlotBias",
    "Supervised",
    "Tent",
    "TwoLayer",
    "Unlabelled",
]

# The names above are looked up when they are first used: a command hears a signal before torch is loaded.
_HOMES = {
    "base": "FrozenModel Linear Persistence",
    "drift": "DriftMonitor",
    "entry": "Batch Entry Label Position Prediction",
    "guard": "Hedge NoGuard TwoLayer",
    "keyed": "KeyedPipeline",
    "learners": (
        "ADCSD EATA RLS Bias Calibration Dictionary ErrorMemory Gain Holt LastValue Liquid PerEntry Refit River "
        "Seasonal SlotBias Tent"
    ),
    "panel": "Panel",
    "pipeline": "Pipeline",
    "tasks": "Forecast Supervised Unlabelled",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

if not TYPE_CHECKING:

    def __getattr__(name):
        from importlib import import_module

        if name in _HOME_OF:
            found = getattr(import_module(f"streamadapt.{_HOME_OF[name]}"), name)
            globals()[name] = found
            return found
        if not name.startswith("_"):  # a module of the package, as in streamadapt.errors
            try:
                return import_module(f"streamadapt.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"streamadapt.{name}":
                    raise
        raise AttributeError(f"module 'streamadapt' has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
