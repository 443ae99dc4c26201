"""The tasks: what is the input, what is the target, and when is the target known."""

from __future__ import annotations

from streamadapt.tasks.base import Arrival, Example, Issued, Matured, Task
from streamadapt.tasks.forecast import Forecast
from streamadapt.tasks.supervised import Supervised

__all__ = ["Arrival", "Example", "Forecast", "Issued", "Matured", "Supervised", "Task"]
