"""The base class of Tent and EATA: it collects batches from a stream in a ring buffer, and makes
entropy steps on them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners.base import Learner, require_shape
from streamadapt.learners.optimizer import OPTIMISERS, Optimiser, OptimiserName
from streamadapt.learners.tta.copies import ModelCopy, Seen
from streamadapt.models.contract import BaseOutput, Spec, TaskKind

__all__ = ["BatchAdapter", "entropy"]

MIN_ENTRIES = 16
"""From this number of entries in the ring on, their statistics replace those of the source."""
NO_BATCH = (
    "a batch normalisation cannot compute statistics from one entry: give 2 or more, use "
    "per_entry for single entries, or use a model with LayerNorm or GroupNorm"
)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the softmax of each row, in nats: (rows, classes) -> (rows,)."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


class BatchAdapter(Learner):
    """One label-free gradient step per batch on the affine parameters of the normalisation layers.

    There are two uses with one state. `adapt_batch` is the published form. In a stream, the last
    `batch` entries are kept in a ring. At every `batch`-th entry one step is made, on the same
    batch as with `adapt_batch`. An entry is predicted with the statistics of the ring, its own
    included; the statistics of each entry are those measured at its arrival or at the last step
    (O(1) forward passes per entry instead of `batch`). Before the ring has 16 entries, the
    prediction is the base's output. Without batch normalisations there are no statistics, and
    `batch` = 1 makes one step per entry.
    """

    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    needs_labels: ClassVar[bool] = False
    default_lr: ClassVar[float] = 1e-3
    default_batch: ClassVar[int] = 64
    ring: Tensor
    ring_mean: Tensor
    ring_var: Tensor
    count: Tensor

    def __init__(
        self,
        batch: int | None = None,
        lr: float | None = None,
        *,
        momentum: float = 0.9,
        optimiser: OptimiserName = "sgd",
        modules: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.batch = self.default_batch if batch is None else batch
        self.lr = self.default_lr if lr is None else lr
        if self.batch < 1:
            raise ConfigError("batch", batch, "entries per step, 1 or more")
        if not 0.0 < self.lr < math.inf:
            raise ConfigError("lr", lr, "a finite number > 0")
        if not 0.0 <= momentum < 1.0:
            raise ConfigError("momentum", momentum, "a number in [0, 1)")
        if optimiser not in OPTIMISERS:
            raise ConfigError("optimiser", optimiser, "one of " + ", ".join(OPTIMISERS))
        self.momentum = momentum
        self.optimiser_name = optimiser
        self.modules_named = None if modules is None else tuple(modules)

    @property
    def names(self) -> tuple[str, ...]:
        """The kind, with batch and learning rate if they differ from the default:
        ``tent-b8-0.01``."""
        batch = "" if self.batch == self.default_batch else f"-b{self.batch}"
        return (f"{self.kind}{batch}{'' if self.lr == self.default_lr else f'-{self.lr:g}'}",)

    def allocate(self, spec: Spec) -> None:
        """Copy the base's module; the ring is empty."""
        self.copy = ModelCopy(spec, self.modules_named)
        if self.copy.batch_norms and self.batch == 1:
            raise ConfigError("batch", 1, NO_BATCH)
        options: dict[str, Any] = (
            {"momentum": self.momentum} if self.optimiser_name == "sgd" else {}
        )
        self.optimiser = Optimiser(
            self.copy.parameters_driven, self.optimiser_name, self.lr, options
        )
        features = sum(self.copy.sizes)
        device = spec.device
        self.register_buffer(
            "ring",
            torch.zeros(
                self.batch, spec.window, spec.channels, dtype=torch.float32, device=device
            ),
        )
        self.register_buffer(
            "ring_mean", torch.zeros(self.batch, features, dtype=torch.float32, device=device)
        )
        self.register_buffer(
            "ring_var", torch.zeros(self.batch, features, dtype=torch.float32, device=device)
        )
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))
        self._slots = torch.arange(self.batch, dtype=torch.int64, device=device)
        self._seen: tuple[Any, Seen] | None = None

    @abstractmethod
    def _loss(self, logits: Tensor) -> Tensor | None:
        """Return the loss of a batch, () with gradient, or None if the batch must not change the
        parameters."""

    def _step(self, inputs: Tensor) -> Seen:
        """Run a batch with its own statistics and make one step; return the result from before the
        step."""
        with torch.enable_grad():
            seen = self.copy.run(inputs)
            loss = self._loss(seen.logits)
        # A step that is not finite would make the parameters NaN forever.
        if loss is not None and bool(torch.isfinite(loss)):
            self.optimiser.step(loss)
        return Seen(*(t.detach() for t in seen))

    def adapt_batch(self, inputs: Tensor) -> Tensor:
        """Predict a batch and make one step on it: the published method.

        Parameters
        ----------
        inputs : Tensor, (entries, window, channels), float32, original units

        Returns
        -------
        Tensor, (entries, classes), float32
            Probabilities from before the step.

        Raises
        ------
        ShapeError
            If the inputs have another shape, or are one entry and the model has batch
            normalisations.
        """
        if self.copy.batch_norms and len(inputs) < 2:
            raise ShapeError(NO_BATCH)
        return self._step(inputs).logits.softmax(1)

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Predict with the statistics of the ring; return the base's output while the ring has too
        few entries."""
        require_shape("base.output", base.output, (self.spec.rows, self.spec.columns))
        seen = self._run_one(inputs)
        if self.copy.batch_norms and int(self.count) + 1 < min(MIN_ENTRIES, self.batch):
            return base.output.clone()
        return seen.logits.softmax(1)

    def _run_one(self, inputs: Tensor) -> Seen:
        """Run one entry with the statistics of the ring; `adapt` reuses the result of
        `predict`."""
        first = self.copy.layers[0].weight
        key = (
            inputs,
            first,
            inputs._version,
            self.count._version,
            first._version if first is not None else 0,
        )
        if self._seen is not None and all(
            a is b if isinstance(a, Tensor) else a == b
            for a, b in zip(key, self._seen[0], strict=True)
        ):
            return self._seen[1]
        with torch.no_grad():
            if self.copy.batch_norms:
                seen = self.copy.run(inputs.unsqueeze(0), self._statistics())
            else:
                seen = self.copy.run(inputs.unsqueeze(0))
        self._seen = (key, seen)
        return seen

    def _statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean and variance over the ring without its oldest entry, and the weight that
        the next entry has compared with them."""
        count = int(self.count)
        if count + 1 < min(MIN_ENTRIES, self.batch):
            return self.copy.as_trained
        others = min(count, self.batch - 1)
        # The slot count % batch is written next: it has the oldest entry, or is empty.
        valid = ((self._slots < count) & (self._slots != count % self.batch)).float() / others
        mean = valid @ self.ring_mean
        var = valid @ (self.ring_var + (self.ring_mean - mean).square_())
        return (
            mean,
            var,
            torch.full((), 1.0 / (others + 1), dtype=torch.float32, device=mean.device),
        )

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Learn nothing: labels are not used."""

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Put the entry into the ring; make a step each time the ring is full again."""
        del base
        require_shape("inputs", inputs, (self.spec.window, self.spec.channels))
        seen = self._run_one(inputs)
        slot = int(self.count) % self.batch
        self.ring[slot] = inputs
        self.ring_mean[slot] = seen.mean[0]
        self.ring_var[slot] = seen.var[0]
        self.count += 1
        self._seen = None
        if slot == self.batch - 1:
            batch = self._step(self.ring)
            self.ring_mean.copy_(batch.mean)
            self.ring_var.copy_(batch.var)
