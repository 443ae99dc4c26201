"""ADCSD: online correction of a frozen forecaster, separately for trend and seasonal part."""

from __future__ import annotations

from streamadapt.learners.adcsd.learner import ADCSD

__all__ = ["ADCSD"]
