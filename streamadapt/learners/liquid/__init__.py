"""Liquid networks: CfC and LTC cells, their wirings, and weights from ncps."""

from __future__ import annotations

from streamadapt.learners.liquid.cfc import CfC
from streamadapt.learners.liquid.learner import Liquid
from streamadapt.learners.liquid.ltc import LTC
from streamadapt.learners.liquid.ncps_weights import (
    convert_ncps,
    from_ncps,
    load_weights,
    read_weights,
)
from streamadapt.learners.liquid.recurrent import Recurrent
from streamadapt.learners.liquid.train import fit
from streamadapt.learners.liquid.wirings import (
    Wiring,
    auto_ncp,
    fully_connected,
    ncp,
    random_wiring,
)

__all__ = [
    "LTC",
    "CfC",
    "Liquid",
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
