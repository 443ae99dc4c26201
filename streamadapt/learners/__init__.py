"""The learners, one file each."""

from __future__ import annotations

from streamadapt.learners.adcsd import ADCSD
from streamadapt.learners.base import BaseOutput, Learner, Prior, Spec
from streamadapt.learners.bias import Bias
from streamadapt.learners.calibration import Calibration
from streamadapt.learners.dictionary import Dictionary
from streamadapt.learners.eata import EATA
from streamadapt.learners.error_memory import ErrorMemory
from streamadapt.learners.gain import Gain
from streamadapt.learners.holt import Holt
from streamadapt.learners.liquid import Liquid
from streamadapt.learners.per_entry import PerEntry
from streamadapt.learners.persistence import LastValue
from streamadapt.learners.refit import Refit
from streamadapt.learners.river import River
from streamadapt.learners.rls import RLS
from streamadapt.learners.seasonal import Seasonal
from streamadapt.learners.slot_bias import SlotBias
from streamadapt.learners.tent import Tent

__all__ = [
    "ADCSD",
    "EATA",
    "RLS",
    "BaseOutput",
    "Bias",
    "Calibration",
    "Dictionary",
    "ErrorMemory",
    "Gain",
    "Holt",
    "LastValue",
    "Learner",
    "Liquid",
    "PerEntry",
    "Prior",
    "Refit",
    "River",
    "Seasonal",
    "SlotBias",
    "Spec",
    "Tent",
]
