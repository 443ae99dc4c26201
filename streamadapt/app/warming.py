"""``streamadapt warm``: compile all kernels, once for each installation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from streamadapt.config.registry import kinds
from streamadapt.guard.two_layer import TwoLayer
from streamadapt.learners.compiled import CompiledLearner
from streamadapt.pipeline.kernels import try_guard, try_learner
from streamadapt.tasks.losses import Absolute

__all__ = ["pieces", "warm"]


def warm(show: Callable[[str, int, int], None]) -> int:
    """Compile, or load, every kernel.

    Parameters
    ----------
    show : callable (name, done, total) -> None
        Called before each.

    Returns
    -------
    int
        How many there are.
    """
    found = [*pieces()]
    for i, (name, prepare) in enumerate(found):
        show(name, i, len(found))
        prepare()
    return len(found)


def pieces() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what uses kernels, by name, with a call that compiles or loads them."""
    yield "the guard", partial(try_guard, TwoLayer(), ["base", "expert"], 1, Absolute())
    for kind, point in sorted(kinds("learners").items()):
        made = point.load()
        if isinstance(made, type) and issubclass(made, CompiledLearner):
            yield kind, _building(made)


def _building(learner: type[CompiledLearner]) -> Callable[[], object]:
    def build() -> None:
        for made in learner.variants():
            for kind in sorted(made.kinds):
                try_learner(made, kind)

    return build
