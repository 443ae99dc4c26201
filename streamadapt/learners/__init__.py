"""The learners, one file each."""

from __future__ import annotations

from streamadapt.learners.adcsd import ADCSD
from streamadapt.learners.base import Learner
from streamadapt.learners.bias import Bias
from streamadapt.learners.calibration import Calibration
from streamadapt.learners.dictionary.learner import Dictionary
from streamadapt.learners.error_memory.learner import ErrorMemory
from streamadapt.learners.gain import Gain
from streamadapt.learners.holt import Holt
from streamadapt.learners.last_value import LastValue
from streamadapt.learners.liquid.learner import Liquid
from streamadapt.learners.logistic import Logistic
from streamadapt.learners.refit import Refit
from streamadapt.learners.river import River
from streamadapt.learners.rls.learner import RLS
from streamadapt.learners.seasonal import Seasonal
from streamadapt.learners.slot_bias import SlotBias
from streamadapt.learners.tta.eata import EATA
from streamadapt.learners.tta.per_entry import PerEntry
from streamadapt.learners.tta.tent import Tent
from streamadapt.models.contract import BaseOutput, Prior, Spec

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
    "Logistic",
    "PerEntry",
    "Prior",
    "Refit",
    "River",
    "Seasonal",
    "SlotBias",
    "Spec",
    "Tent",
]
