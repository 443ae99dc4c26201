"""Liquid networks: CfC and LTC cells, their wirings, and weights from ncps."""

from __future__ import annotations

from streamadapt.liquid.cfc import CfC
from streamadapt.liquid.convert import convert_ncps, from_ncps, load_weights, read_weights
from streamadapt.liquid.ltc import LTC
from streamadapt.liquid.recurrent import Recurrent
from streamadapt.liquid.train import fit
from streamadapt.liquid.wirings import Wiring, auto_ncp, fully_connected, ncp, random_wiring

__all__ = [
    "LTC",
    "CfC",
    "Recurrent",
    "Wiring",
    "auto_ncp",
    "convert_ncps",
    "fit",
    "from_ncps",
    "fully_connected",
    "load_weights",
    "ncp",
    "random_wiring",
    "read_weights",
]
