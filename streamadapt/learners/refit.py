"""Incremental refitting: a small network that is regularly fitted again to the newest examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner, Maturity, masked_mean, require_shape
from streamadapt.learners.optimizer import Optimiser
from streamadapt.learners.simplex import log_odds
from streamadapt.models.contract import BaseOutput, Spec

__all__ = ["Refit"]


class Refit(Learner):
    """A multilayer perceptron that is refitted after every `every` examples, on the last `memory`
    examples; between two fits it does not change [1]_.

    The network gets the scaled window of all channels (for forecasts: the last values, and the
    differences of the other values from them) and predicts the base's residual, in scaled units:
    ``prediction = base + scale net(x)``; classification: ``softmax(ln base + net(x))``. With
    ``direct`` it predicts without the base: ``loc + scale net(x)``, where for forecasts `loc` is
    the last value; ``softmax(net(x))``. Before the first fit its prediction is the base's.

    A fit is `epochs` passes over the memory in random minibatches of `batch`, with Adam on Huber's
    loss (threshold one scale; log loss for classes), starting from the weights of the last fit. It
    trains a second set of weights, which replaces the serving weights at the end of the fit. The
    ``epochs memory / batch`` steps of a fit are spread evenly over the `every` examples before its
    end, so no single entry costs as much as a whole fit. A step uses only the examples that have
    arrived so far.

    Costs per example: about ``epochs memory / (batch every)`` steps of O(batch weights) time;
    memory x (features + 2 outputs) float32 numbers, and 4 copies of the weights.

    Parameters
    ----------
    every : int, >= 1
        Matured examples between two fits; for forecasts these are entries.
    memory : int, >= 1
        The number of examples that are kept.
    hidden : int or sequence of ints, >= 1
        Units of the one or two hidden layers (ReLU).
    epochs : int, >= 1
        Passes over the memory in each fit.
    batch : int, >= 1
        Examples of one gradient step.
    lr : float, > 0
        Learning rate of Adam.
    direct : bool
        Whether the network predicts by itself, instead of correcting the base.

    References
    ----------
    .. [1] "Liquid Neural Network-based Adaptive Learning vs. Incremental Learning for Link Load
       Prediction amid Concept Drift due to Network Failures" (2024), whose incremental learner
       this is.

    Examples
    --------
    >>> Refit(every=100, hidden=(64, 32)).names
    ('refit-100',)
    """

    kind: ClassVar[str] = "refit"
    matures: ClassVar[Maturity] = "path"
    seen_inputs: Tensor
    seen_targets: Tensor
    seen_masks: Tensor
    seen_starts: Tensor
    count: Tensor

    def __init__(
        self,
        every: int = 72,
        *,
        memory: int = 1000,
        hidden: int | Sequence[int] = 64,
        epochs: int = 5,
        batch: int = 64,
        lr: float = 1e-3,
        direct: bool = False,
    ) -> None:
        super().__init__()
        self.hidden = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
        if not 1 <= len(self.hidden) <= 2:
            raise ConfigError("hidden", hidden, "the units of one or two layers")
        counts = {"every": every, "memory": memory, "epochs": epochs, "batch": batch}
        for name, value in (*counts.items(), *(("hidden", units) for units in self.hidden)):
            if (
                isinstance(value, bool)
                or not isinstance(value, int)
                or not 1 <= value <= 10_000_000
            ):
                raise ConfigError(name, value, "a whole number >= 1")
        if not 0.0 < lr < math.inf:
            raise ConfigError("lr", lr, "a finite number > 0")
        self.every, self.memory, self.batch, self.lr, self.direct = (
            every,
            memory,
            batch,
            lr,
            direct,
        )
        self.steps = max(1, epochs * memory // batch)  # of one fit

    @property
    def names(self) -> tuple[str, ...]:
        """``refit-72`` or ``refit-direct-72``."""
        return (f"{self.kind}{'-direct' if self.direct else ''}-{self.every}",)

    def allocate(self, spec: Spec) -> None:
        """Draw the weights in the same way as torch.nn.Linear; the last layer starts at zero."""
        self._forecast, self._classify = spec.kind == "forecast", spec.kind == "classification"
        self._cells = spec.rows * spec.columns
        features = spec.window * spec.channels
        generator = spec.generator()
        sizes = [features, *self.hidden, self._cells]
        weights: list[Tensor] = []
        for i, (before, after) in enumerate(pairwise(sizes)):
            bound = 0.0 if i == len(self.hidden) else before**-0.5
            drawn = [
                torch.rand(shape, generator=generator, dtype=torch.float32) * 2.0 - 1.0
                for shape in ((after, before), (after,))
            ]
            weights += [w.mul_(bound).to(spec.device) for w in drawn]
        self.serving = nn.ParameterList(
            nn.Parameter(w.clone(), requires_grad=False) for w in weights
        )
        self.training_weights = nn.ParameterList(nn.Parameter(w) for w in weights)
        self.optimiser = Optimiser(list(self.training_weights), "adam", self.lr, {})
        self.register_buffer(
            "seen_inputs",
            torch.zeros(self.memory, features, dtype=torch.float32, device=spec.device),
        )
        self.register_buffer(
            "seen_targets",
            torch.zeros(self.memory, self._cells, dtype=torch.float32, device=spec.device),
        )
        if self._classify:
            self.register_buffer(
                "seen_starts",
                torch.zeros(self.memory, self._cells, dtype=torch.float32, device=spec.device),
            )
        else:
            unknown = torch.zeros(self.memory, self._cells, dtype=torch.bool, device=spec.device)
            self.register_buffer("seen_masks", unknown)
        # The number of examples so far.
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=spec.device))

    def _features(self, inputs: Tensor) -> Tensor:
        spec = self.spec
        require_shape("inputs", inputs, (spec.window, spec.channels))
        scaled = (inputs - spec.input_loc) / spec.input_scale
        if self._forecast:
            scaled = torch.cat([scaled[:-1] - scaled[-1], scaled[-1:]])
        return scaled.flatten()

    def _net(self, weights: nn.ParameterList, x: Tensor) -> Tensor:
        """Compute the output of the network: (..., features) -> (..., cells)."""
        for i in range(0, len(weights), 2):
            x = F.linear(F.relu(x) if i else x, weights[i], weights[i + 1])
        return x

    def _start(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the start to which the network's output is added, (rows, columns), in original
        units or log-odds."""
        if self._classify:
            return torch.zeros_like(base.output) if self.direct else log_odds(base.output)
        if not self.direct:
            return base.output
        return (inputs[-1:] if self._forecast else self.spec.output_loc).expand_as(base.output)

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the prediction with the weights of the last complete fit."""
        if int(self.count) < self.every:
            return base.output.clone()
        with torch.no_grad():
            correction = self._net(self.serving, self._features(inputs)).view_as(base.output)
            start = self._start(inputs, base)
            if self._classify:
                return torch.softmax(start + correction, dim=-1)
            return torch.addcmul(start, correction, self.spec.output_scale)

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Store the example, make the steps that are due, and at the end of a fit serve its
        weights."""
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        if not bool(mask.any()):
            return
        n = int(self.count)
        self._keep(n % self.memory, inputs, base, target, mask)
        self.count.fill_(n + 1)
        turn = n % self.every
        for step in range(turn * self.steps // self.every, (turn + 1) * self.steps // self.every):
            self._step(min(n + 1, self.memory), n // self.every * self.steps + step)
        if turn == self.every - 1:
            with torch.no_grad():
                for served, fitted in zip(self.serving, self.training_weights, strict=True):
                    served.copy_(fitted)

    def _keep(
        self, place: int, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor
    ) -> None:
        start = self._start(inputs, base)
        self.seen_inputs[place] = self._features(inputs)
        if self._classify:
            self.seen_starts[place] = start.flatten()
            # The weight can be stored in the target, since cross entropy is linear in it.
            self.seen_targets[place] = target.flatten() * self.weight
        else:
            residual = torch.where(mask, (target - start) / self.spec.output_scale, 0.0)
            self.seen_targets[place] = residual.flatten()
            self.seen_masks[place] = mask.flatten()

    def _step(self, known: int, number: int) -> None:
        """Make one step of a fit on a random minibatch of the `known` examples; its seed depends
        on the `number` of the step."""
        generator = torch.Generator().manual_seed((self.spec.seed << 40) + number)
        chosen = torch.randint(known, (self.batch,), generator=generator).to(
            self.seen_inputs.device
        )
        with torch.enable_grad():
            outputs = self._net(self.training_weights, self.seen_inputs[chosen])
            if self._classify:
                logits = self.seen_starts[chosen] + outputs
                loss = F.cross_entropy(logits, self.seen_targets[chosen])
            else:
                errors = F.huber_loss(outputs, self.seen_targets[chosen], reduction="none")
                loss = masked_mean(errors, self.seen_masks[chosen])
        self.optimiser.step(loss, self.boost)
