"""The tasks: they define input and target, and when a target is known."""

from __future__ import annotations

from streamadapt.tasks.base import Arrival, Example, Matured, Task, Window
from streamadapt.tasks.forecast import Forecast
from streamadapt.tasks.issued import Issued
from streamadapt.tasks.supervised import Supervised
from streamadapt.tasks.unlabelled import Unlabelled

__all__ = [
    "Arrival",
    "Example",
    "Forecast",
    "Issued",
    "Matured",
    "Supervised",
    "Task",
    "Unlabelled",
    "Window",
]
