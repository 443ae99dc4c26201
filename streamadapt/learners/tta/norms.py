"""Normalisation layers whose statistics and affine parameters are set from outside."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

__all__ = ["Affine", "Driven", "DrivenBatchNorm", "Given", "moments"]


class Given(NamedTuple):
    """Statistics for a batch normalisation.

    Attributes
    ----------
    mean, var : Tensor, (channels,) or (entries, channels)
        One pair for all entries of a batch, or one pair for each entry.
    rate : Tensor, () or (entries, 1)
        The rate by which the statistics move towards the entry's own before they are used; 0
        leaves them unchanged.
    sign : Tensor, () or (entries, 1), optional
        -1 inverts the gain.
    """

    mean: Tensor
    var: Tensor
    rate: Tensor
    sign: Tensor | None = None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the (biased) variance over the positions, (entries, channels) each, of x
    (entries, channels, ...).

    Without positions, x (entries, channels), the mean is x and the variance 0.
    """
    if x.ndim == 2:
        return x, torch.zeros_like(x)
    var, mean = torch.var_mean(x.flatten(2), dim=2, correction=0)
    return mean, var


class Driven(nn.Module):
    """Replaces one normalisation layer: it has the same weights as new parameters."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            values = getattr(layer, name, None)
            self.register_parameter(
                name, None if values is None else nn.Parameter(values.detach().clone())
            )


class Affine(Driven):
    """A LayerNorm or GroupNorm: it normalises each entry by the entry's own statistics, so only
    its affine parameters can be adapted."""

    def __init__(self, layer: nn.LayerNorm | nn.GroupNorm) -> None:
        super().__init__(layer)
        self.eps = layer.eps
        self.groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else None
        self.shape = [] if isinstance(layer, nn.GroupNorm) else list(layer.normalized_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x in the same way as the replaced layer."""
        if self.groups is not None:
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class DrivenBatchNorm(Driven):
    """A BatchNorm (1d, 2d, 3d) that normalises with given statistics, or with those of the batch.

    With rate r, the entry's own mean m and variance v, and the given (mu, s2)::

        mu' = mu + r (m - mu)
        s2' = (1 - r) s2 + r v + r (1 - r) (m - mu)^2        the variance of the mixture
        y   = sign * weight * (x - mu') / sqrt(s2' + eps) + bias

    Attributes
    ----------
    given : Given or None
        The statistics to use; None for the statistics of the batch.
    source_mean, source_var : Tensor, (channels,)
        The layer's running statistics from training; not part of the state, since the base has
        them.
    used : tuple of Tensor
        (mu', s2') of the last call, (entries, channels) each; each entry's own statistics if
        `given` is None.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        assert isinstance(layer.running_mean, Tensor)
        assert isinstance(layer.running_var, Tensor)
        assert isinstance(layer.eps, float)
        self.eps = layer.eps
        self.source_mean = layer.running_mean.detach().clone()
        self.source_var = layer.running_var.detach().clone()
        self.given: Given | None = None
        self.own = self.used = (self.source_mean, self.source_var)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (entries, channels, ...)."""
        with torch.no_grad():
            mean, var = moments(x)
        self.own = self.used = (mean, var)
        if self.given is None:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        given = self.given
        with torch.no_grad():
            shift = mean - given.mean
            mean = torch.addcmul(given.mean, given.rate, shift)
            var = torch.lerp(given.var.expand_as(var), var, given.rate)
            var = torch.addcmul(var, given.rate * (1.0 - given.rate), shift.square_())
            self.used = (mean, var)
            scale = (var + self.eps).rsqrt_()
            if given.sign is not None:
                scale = scale * given.sign
        if self.weight is not None:
            scale = scale * self.weight
        offset = (
            -mean * scale
            if self.bias is None
            else torch.addcmul(self.bias, mean, scale, value=-1.0)
        )
        positions = (*scale.shape, *(1 for _ in x.shape[2:]))
        return torch.addcmul(offset.view(positions), x, scale.view(positions))
