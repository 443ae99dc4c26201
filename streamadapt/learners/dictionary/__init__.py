"""An orthogonal dictionary, and the learner that cleans its inputs with one."""

from __future__ import annotations

from streamadapt.learners.dictionary.learner import Dictionary
from streamadapt.learners.dictionary.orthogonal import OrthogonalDictionary

__all__ = ["Dictionary", "OrthogonalDictionary"]
