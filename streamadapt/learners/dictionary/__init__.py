"""An orthogonal dictionary, and a learner that denoises inputs with it."""

from __future__ import annotations

from streamadapt.learners.dictionary.learner import Dictionary
from streamadapt.learners.dictionary.orthogonal import OrthogonalDictionary

__all__ = ["Dictionary", "OrthogonalDictionary"]
