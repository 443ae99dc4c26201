"""What lots use of a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from streamadapt.guard.base import Guard
from streamadapt.learners.base import Learner
from streamadapt.models.contract import Base, BaseOutput, Spec
from streamadapt.pipeline.guard_keeper import GuardKeeper
from streamadapt.pipeline.intervals import NoIntervals
from streamadapt.pipeline.label_requests import LabelRequests
from streamadapt.pipeline.monitors import Monitors
from streamadapt.pipeline.panel import Panel
from streamadapt.pipeline.rollback import Health
from streamadapt.pipeline.scaling import Scales
from streamadapt.pipeline.scores import Scores
from streamadapt.pipeline.screen import Screen
from streamadapt.pipeline.stats import Stats
from streamadapt.pipeline.timing import Timing
from streamadapt.tasks import Task

__all__ = ["Host"]

T = TypeVar("T")


class Host(Protocol):
    """The parts of a `Pipeline`; it is no import of it, which would be circular."""

    task: Task
    base: Base
    learners: list[Learner]
    guard: Guard
    names: list[str]
    spec: Spec | None
    health: Health | None
    scores: Scores
    keeper: GuardKeeper
    stats: Stats
    monitors: Monitors
    label_requests: LabelRequests
    intervals: NoIntervals
    panel: Panel | None
    screen: Screen
    scales: Scales
    timing: Timing
    lots: Any

    @property
    def settled(self) -> bool:
        """Whether units and levels are known."""

    def checked_output(self, returned: Any, spec: Spec) -> BaseOutput:
        """Return a copy of the base's output, checked."""

    def contain(
        self, part: str, call: Callable[..., T], *given: Any, count: bool = True
    ) -> T | None:
        """Return the result of `call`; None if it raises."""

    def count_restored(self, experts: list[int]) -> None:
        """Count experts whose learner was restored."""
