"""Test-time adaptation: its learners and their parts."""

from __future__ import annotations

from streamadapt.learners.tta.copies import ModelCopy, Seen
from streamadapt.learners.tta.eata import EATA
from streamadapt.learners.tta.norms import Given, moments
from streamadapt.learners.tta.per_entry import PerEntry
from streamadapt.learners.tta.samples import source_samples
from streamadapt.learners.tta.tent import Tent

__all__ = ["EATA", "Given", "ModelCopy", "PerEntry", "Seen", "Tent", "moments", "source_samples"]
