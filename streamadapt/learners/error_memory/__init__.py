"""Error memory."""

from __future__ import annotations

from streamadapt.learners.error_memory.learner import ErrorMemory

__all__ = ["ErrorMemory"]
