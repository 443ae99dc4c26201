"""Online aggregation of experts: the rules of the guard's two layers."""

from __future__ import annotations

from streamadapt.guard.boa import BOA
from streamadapt.guard.fixed_share import FixedShare
from streamadapt.guard.mixer import Aggregator, CompiledAggregator, Mixer
from streamadapt.guard.ml_poly import MLPoly

__all__ = ["BOA", "Aggregator", "CompiledAggregator", "FixedShare", "MLPoly", "Mixer"]
