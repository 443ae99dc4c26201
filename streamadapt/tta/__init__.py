"""Test-time adaptation: the parts that its learners are built of."""

from __future__ import annotations

from streamadapt.tta.copies import ModelCopy, Seen
from streamadapt.tta.norms import Given, moments
from streamadapt.tta.samples import source_samples

__all__ = ["Given", "ModelCopy", "Seen", "moments", "source_samples"]
