"""The names that ``import streamadapt`` offers. Importing this module takes the time that torch takes."""

from __future__ import annotations

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
