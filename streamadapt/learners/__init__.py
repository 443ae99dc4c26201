"""The learners, one file each."""

from __future__ import annotations

from streamadapt.learners.adcsd import ADCSD
from streamadapt.learners.base import BaseOutput, Learner, Prior, Spec
from streamadapt.learners.bias import Bias
from streamadapt.learners.calibration import Calibration
from streamadapt.learners.gain import Gain
from streamadapt.learners.river import River
from streamadapt.learners.rls import RLS

__all__ = ["ADCSD", "RLS", "BaseOutput", "Bias", "Calibration", "Gain", "Learner", "Prior", "River", "Spec"]
