"""EATA: efficient test-time adaptation without forgetting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.optimizer import OptimiserName
from streamadapt.learners.tta.batches import BatchAdapter, entropy
from streamadapt.learners.tta.samples import source_samples
from streamadapt.models.contract import Spec

__all__ = ["EATA"]

MARGIN = 0.4
"""Entries are reliable below this share of the largest entropy, ln C."""
KEPT_RATE = 0.1
"""The rate per batch of the running mean of the kept probabilities."""


class EATA(BatchAdapter):
    """Efficient test-time adaptation without forgetting [1]_: Tent on reliable and non-redundant
    entries only.

    An entry is kept if ``H(p) < E0 = .4 ln C`` and ``|cos(m, p)| < d``, where m is the running
    mean (.9/.1) of the kept probabilities. A step is made only if an entry was kept::

        loss = mean over the kept of exp(E0 - H(p)) H(p)
               + fisher_weight * sum F (theta - theta_0)^2

    The factor exp(E0 - H(p)) has no gradient. F is the diagonal of the Fisher information,
    estimated when the learner is built: the mean over batches of the squared gradient of the cross
    entropy, with the source model's own predictions as labels. Without `fisher` the second term is
    left out (ETA in the paper).

    Costs as `Tent`; a batch without a kept entry costs no backward pass.

    Parameters
    ----------
    batch : int, default 64
        The number of entries per step in a stream, and of source samples per gradient of the
        Fisher information.
    lr : float, > 0, default 2.5e-4
        Learning rate.
    fisher : Path or Tensor, optional
        Source samples without labels (2000 in the paper), (samples, window, channels): a file
        ``.npy``, ``.npz`` or ``.safetensors``, in the latter two under the name ``inputs``.
    fisher_weight : float, >= 0
        The weight of the term that keeps important parameters near their start: in the paper 1 for
        inputs of CIFAR's size, 2000 for ImageNet.
    d : float, > 0
        Entries whose cosine with the running mean is above this are redundant: .4 for ten classes,
        .05 for a thousand in the paper.
    momentum : float, in [0, 1)
        Momentum of ``sgd``.
    optimiser : {"sgd", "adam", "lion", "adabelief"}
        The optimiser.
    modules : sequence of str, optional
        Names of the normalisation layers to adapt. Default: all.

    References
    ----------
    .. [1] Niu et al. (2022), Efficient test-time model adaptation without forgetting, ICML,
       equations 2 to 8.

    Examples
    --------
    >>> EATA(batch=32, d=0.05).names
    ('eata-b32',)
    """

    kind: ClassVar[str] = "eata"
    default_lr: ClassVar[float] = 2.5e-4
    kept: Tensor

    def __init__(
        self,
        batch: int | None = None,
        lr: float | None = None,
        *,
        fisher: Path | Tensor | None = None,
        fisher_weight: float = 1.0,
        d: float = 0.4,
        momentum: float = 0.9,
        optimiser: OptimiserName = "sgd",
        modules: Sequence[str] | None = None,
    ) -> None:
        super().__init__(batch, lr, momentum=momentum, optimiser=optimiser, modules=modules)
        if not 0.0 <= fisher_weight < math.inf:
            raise ConfigError("fisher_weight", fisher_weight, "a finite number >= 0")
        if not d > 0.0:
            raise ConfigError("d", d, "a number > 0")
        self.fisher = fisher
        self.fisher_weight = fisher_weight
        self.d = d

    def allocate(self, spec: Spec) -> None:
        """Copy the base's module and estimate the Fisher information."""
        super().allocate(spec)
        self.register_buffer(
            "kept", torch.zeros(spec.columns, dtype=torch.float32, device=spec.device)
        )  # zero: no entry was kept yet
        self._margin = MARGIN * math.log(spec.columns)
        self._anchors: list[tuple[Tensor, Tensor]] = []
        if self.fisher is not None:
            samples = source_samples("fisher", self.fisher, spec, max(2, self.batch))
            self._anchors = self._fisher(samples)

    def _fisher(self, samples: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (F, theta_0) for each parameter, from whole batches of source samples."""
        driven = self.copy.parameters_driven
        total = [torch.zeros_like(p) for p in driven]
        size = max(2, self.batch)
        batches = torch.split(samples[: len(samples) // size * size], size)
        for batch in batches:
            with torch.enable_grad():
                logits = self.copy.run(batch).logits
                gradients = torch.autograd.grad(
                    F.cross_entropy(logits, logits.detach().argmax(1)), driven
                )
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_.addcmul_(gradient, gradient, value=1.0 / len(batches))
        return [(f, p.detach().clone()) for f, p in zip(total, driven, strict=True)]

    def _loss(self, logits: Tensor) -> Tensor | None:
        h, p = entropy(logits), logits.detach().softmax(1)
        redundant = F.cosine_similarity(self.kept.unsqueeze(0), p, dim=1).abs() >= self.d
        keep = (h.detach() < self._margin) & ~redundant
        if not bool(keep.any()):
            return None
        mean = p[keep].mean(0)
        self.kept.copy_(torch.where(self.kept.any(), torch.lerp(self.kept, mean, KEPT_RATE), mean))
        h = h[keep]
        loss: Tensor = (h * torch.exp(self._margin - h.detach())).mean()
        for parameter, (fisher, start) in zip(
            self.copy.parameters_driven, self._anchors, strict=False
        ):
            loss = loss + self.fisher_weight * (fisher * (parameter - start).square()).sum()
        return loss
