"""Recursive least squares."""

from __future__ import annotations

from streamadapt.learners.rls.learner import RLS

__all__ = ["RLS"]
