"""streamadapt: keep a deployed model right while the world under it moves."""

from __future__ import annotations

from streamadapt.version import __version__ as __version__

# ruff: noqa: F405
TYPE_CHECKING = False  # as in typing, whose import would take time before a signal is heard
if TYPE_CHECKING:
    from streamadapt.public import *  # noqa: F403


__all__ = [
    "ADCSD",
    "EATA",
    "RLS",
    "Batch",
    "Bias",
    "Calibration",
    "Columns",
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
    "Logistic",
    "NoGuard",
    "Panel",
    "PerEntry",
    "Persistence",
    "Pipeline",
    "Position",
    "Prediction",
    "PredictionColumns",
    "Refit",
    "River",
    "Seasonal",
    "SlotBias",
    "Supervised",
    "Tent",
    "TwoLayer",
    "Unlabelled",
]

_loading: set[int] = set()
"""Threads that are loading the names above just now."""

if not TYPE_CHECKING:  # there, a name that is not above is an error

    def __getattr__(name):
        """Load the names above when the first is used: a command hears a signal before torch is
        loaded."""
        from _thread import get_ident

        this = get_ident()
        # What is loaded may itself ask for parts of the package.
        if not name.startswith("_") and this not in _loading:
            _loading.add(this)
            try:
                from streamadapt import public
            finally:
                _loading.discard(this)
            globals().update({known: getattr(public, known) for known in __all__})
            if name in globals():  # one of them, or a module that came with them
                return globals()[name]
        raise AttributeError(f"module 'streamadapt' has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
