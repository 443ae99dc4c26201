"""streamadapt: keep a deployed model right while the world under it moves."""

from __future__ import annotations

from streamadapt.base import FrozenModel, Linear, Persistence
from streamadapt.drift import DriftMonitor
from streamadapt.entry import Batch, Entry, Label, Position, Prediction
from streamadapt.guard import Hedge, NoGuard, TwoLayer
from streamadapt.learners import ADCSD, RLS, Bias, Calibration, Gain, River
from streamadapt.pipeline import Pipeline
from streamadapt.tasks import Forecast, Supervised, Unlabelled

__version__ = "0.1.0"

__all__ = [
    "ADCSD",
    "RLS",
    "Batch",
    "Bias",
    "Calibration",
    "DriftMonitor",
    "Entry",
    "Forecast",
    "FrozenModel",
    "Gain",
    "Hedge",
    "Label",
    "Linear",
    "NoGuard",
    "Persistence",
    "Pipeline",
    "Position",
    "Prediction",
    "River",
    "Supervised",
    "TwoLayer",
    "Unlabelled",
]
