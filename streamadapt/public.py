"""The names that ``import streamadapt`` offers.

Importing this module takes the time that torch takes.
"""

from __future__ import annotations

from streamadapt.columns import Columns, PredictionColumns
from streamadapt.drift.monitor import DriftMonitor
from streamadapt.guard.two_layer import Hedge, NoGuard, TwoLayer
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
    Logistic,
    PerEntry,
    Refit,
    River,
    Seasonal,
    SlotBias,
    Tent,
)
from streamadapt.models.builtin import Linear, Persistence
from streamadapt.models.contract import FrozenModel
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.pipeline.panel import Panel
from streamadapt.pipeline.pipeline import Pipeline
from streamadapt.records import Batch, Entry, Label, Position, Prediction
from streamadapt.tasks import Forecast, Supervised, Unlabelled

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
