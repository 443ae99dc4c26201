"""Tent: test-time adaptation by entropy minimisation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from streamadapt.learners.tta.batches import BatchAdapter, entropy

__all__ = ["Tent"]


class Tent(BatchAdapter):
    """Fully test-time adaptation by entropy minimisation [1]_.

    A batch is normalised by its own statistics; one step on the affine parameters of the
    normalisation layers lowers the mean entropy of its softmax::

        loss = (1/B) sum_i H(p_i)        H(p) = -sum_c p_c ln p_c

    The method is made for batches with many classes. If the entries come sorted by class, the
    statistics of 64 entries are those of one class, and the predictions collapse. Use `PerEntry`
    for such streams.

    Costs per entry in a stream: one forward pass, and a forward and backward pass of `batch`
    entries every `batch`.

    Parameters
    ----------
    batch : int, default 64
        The number of entries per step in a stream; 2 or more for a model with batch
        normalisations.
    lr : float, > 0, default 1e-3
        Learning rate.
    momentum : float, in [0, 1)
        Momentum of ``sgd``.
    optimiser : {"sgd", "adam", "lion", "adabelief"}
        The optimiser.
    modules : sequence of str, optional
        Names of the normalisation layers to adapt. Default: all.

    References
    ----------
    .. [1] Wang et al. (2021), Tent: fully test-time adaptation by entropy minimization, ICLR,
       equation 1.

    Examples
    --------
    >>> Tent(batch=32, lr=0.01).names
    ('tent-b32-0.01',)
    """

    kind: ClassVar[str] = "tent"

    def _loss(self, logits: Tensor) -> Tensor:
        return entropy(logits).mean()
