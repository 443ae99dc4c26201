"""Reactions to a drift: learn faster for a while, forget, reset, or train a replacement in the
background."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner
from streamadapt.models.contract import BaseOutput
from streamadapt.models.device import is_fatal
from streamadapt.records import Array, Mask
from streamadapt.tasks.losses import Loss

__all__ = ["REACTIONS", "Boost", "Reaction", "Reactor", "Trial"]

Reaction = Literal["alert", "boost", "forget", "reset", "refit"]
REACTIONS: tuple[str, ...] = get_args(Reaction)


@dataclass(slots=True)
class Boost:
    """A learning-rate factor that jumps at a drift and decays back to one.

    Attributes
    ----------
    factor : float, >= 1
        The factor right after a drift.
    half_life : float, > 0, in entries
        The half-life of the factor's part above one.
    level : float, >= 1
        The current factor.
    """

    factor: float = 5.0
    half_life: float = 100.0
    level: float = 1.0

    def __post_init__(self) -> None:
        if not 1.0 <= self.factor < math.inf:
            raise ConfigError("drift.factor", self.factor, "a finite number >= 1")
        if not 0.0 < self.half_life < math.inf:
            raise ConfigError("drift.half_life", self.half_life, "a finite number of entries > 0")

    def fire(self) -> None:
        """Raise the factor at a drift."""
        self.level = self.factor

    def decay(self) -> None:
        """Reduce the factor by the decay of one entry."""
        self.level = 1.0 + (self.level - 1.0) * 0.5 ** (1.0 / self.half_life)


class Trial:
    """A possible replacement of a learner: it starts from nothing, learns next to the learner, and
    replaces it if it has the smaller loss.

    As in adaptive random forests, where a background tree grows after an alarm and replaces the
    old tree (Gomes et al. 2017, Machine Learning 106). Both predict every matured example before
    either learns it; the mean losses over the second half of the trial decide.

    Parameters
    ----------
    learner : Learner
        It must be built. It does not change before the end of the trial.
    length : int, matured examples
    """

    def __init__(self, learner: Learner, length: int) -> None:
        # The copy shares the spec and the frozen base in it: the base must not be copied.
        shared = {id(learner.spec): learner.spec, id(learner.spec.model): learner.spec.model}
        self.learner = learner
        self.fresh = copy.deepcopy(learner, shared)
        self.fresh.reset()
        self.length = length
        self.count = 0
        self.losses = np.zeros(2)  # of the learner, of its replacement

    def compare(
        self, inputs: Tensor, base: BaseOutput, target: Array, known: Mask, loss: Loss
    ) -> None:
        """Add both losses on one matured example; `target` is (rows, columns), `known` is
        `Loss.known` of its mask."""
        self.count += 1
        if 2 * self.count <= self.length:
            return
        shape = (-1, *target.shape)
        for i, learner in enumerate((self.learner, self.fresh)):
            try:
                output = learner.predict(inputs, base).reshape(shape).cpu().double().numpy()
                losses = np.where(known, loss.loss(output, target), 0.0).sum() / len(output)
            except Exception as error:  # a learner that raises has an infinite loss
                if is_fatal(error):
                    raise
                losses = math.inf
            self.losses[i] += losses if np.isfinite(losses) else math.inf

    @property
    def over(self) -> bool:
        """Whether the trial has seen all its examples."""
        return self.count >= self.length

    def finish(self) -> bool:
        """Replace the learner's state by the replacement's if that was better; return whether it
        was."""
        better = bool(self.losses[1] < self.losses[0])
        if better:
            self.learner.load_state_dict(self.fresh.snapshot())
        return better

    def state_dict(self) -> dict[str, Any]:
        """Return the replacement's state and the losses so far."""
        return {"fresh": self.fresh.snapshot(), "count": self.count, "losses": self.losses.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.fresh.load_state_dict(state["fresh"])
        self.count = int(state["count"])
        self.losses[...] = state["losses"]


class Reactor:
    """Carries out the monitors' reactions on the learners.

    Parameters
    ----------
    learners : sequence of Learner
    on_reaction : callable (str, Learner) -> None
        Called with the reaction and the learner after each reaction: ``forget``, ``reset``,
        ``refit``, ``refit-kept``, ``refit-dropped``.

    Attributes
    ----------
    failed : callable (str, int, Exception) -> None
        Called with a reaction that raised, the index of its learner, and the exception. Default:
        the exception is raised.
    """

    def __init__(
        self, learners: Sequence[Learner], on_reaction: Callable[[str, Learner], None]
    ) -> None:
        self.learners = learners
        self.on_reaction = on_reaction
        self.failed: Callable[[str, int, Exception], None] = _raise
        self.trials: dict[int, Trial] = {}

    def chosen(self, kinds: Sequence[str] | None) -> list[int]:
        """Return the indices of the learners of these kinds; None: of all learners."""
        return [
            i for i, learner in enumerate(self.learners) if kinds is None or learner.kind in kinds
        ]

    def react(
        self, reaction: Reaction, kinds: Sequence[str] | None, *, keep: float, trial: int
    ) -> None:
        """Carry out the reaction to one alarm; the learners must be built."""
        if reaction in ("alert", "boost"):
            return  # a boost acts through the learning rates
        for i in self.chosen(kinds):
            try:
                done = self._react(i, reaction, keep, trial)
            except Exception as error:
                self.failed(reaction, i, error)
                continue
            if done:
                self.on_reaction(reaction, self.learners[i])

    def _react(self, i: int, reaction: Reaction, keep: float, trial: int) -> bool:
        """Carry out the reaction on one learner; return whether it changed anything."""
        learner = self.learners[i]
        if reaction == "forget":
            learner.forget(keep)
        elif reaction == "reset":
            learner.reset()
            self.trials.pop(i, None)
        elif not learner.needs_labels:
            return False  # without labels, no loss could compare it with a replacement
        else:
            self.trials[i] = Trial(learner, trial)
        return True

    def compare(
        self, inputs: Tensor, base: BaseOutput, target: Array, known: Mask, loss: Loss
    ) -> None:
        """Update all trials with one matured example, before it is learned."""
        for trial in self.trials.values():
            trial.compare(inputs, base, target, known, loss)

    def learned(
        self, i: int, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor
    ) -> None:
        """Let the trial of learner `i`, if any, learn the example that the learner has just
        learned; finish a trial that has seen all its examples."""
        trial = self.trials.get(i)
        if trial is None:
            return
        try:
            trial.fresh.boost, trial.fresh.weight = self.learners[i].boost, self.learners[i].weight
            trial.fresh.learn(inputs, base, target, mask)
        except Exception as error:
            self._drop(i, error)
            return
        if trial.over:
            del self.trials[i]
            try:
                kept = trial.finish()
            except Exception as error:  # the old state may be half overwritten
                self.failed("refit-kept", i, error)
                return
            self.on_reaction("refit-kept" if kept else "refit-dropped", self.learners[i])

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Let the replacements on trial adapt to one entry."""
        for i, trial in list(self.trials.items()):
            try:
                trial.fresh.adapt(inputs, base)
            except Exception as error:
                self._drop(i, error)

    def _drop(self, i: int, error: Exception) -> None:
        """End a trial whose replacement raised an exception."""
        self.trials.pop(i, None)
        self.failed("refit", i, error)

    def state_dict(self) -> dict[str, Any]:
        """Return the trials in progress."""
        return {
            "trials": [[i, trial.length, trial.state_dict()] for i, trial in self.trials.items()]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the learners must be built."""
        self.trials = {}
        for i, length, saved in state["trials"]:
            self.trials[int(i)] = trial = Trial(self.learners[int(i)], int(length))
            trial.load_state_dict(saved)


def _raise(reaction: str, i: int, error: Exception) -> None:
    del reaction, i
    raise error
