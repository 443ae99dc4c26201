"""ADCSD as published: modules of torch, autograd, Adam."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["EagerADCSD"]

HIDDEN, KERNEL = 128, 5


class EagerADCSD(nn.Module):
    """The correction of forecasts of one channel, (1, steps, nodes, 1), and its training step.

    Parameters
    ----------
    steps, nodes : int
    loc, scale : Tensor, (nodes,)
        Of the outputs: everything but the loss is in scaled units.
    lr : float
    """

    def __init__(self, steps: int, nodes: int, loc: Tensor, scale: Tensor, lr: float) -> None:
        super().__init__()
        self.loc, self.scale = loc.view(1, 1, nodes, 1), scale.view(1, 1, nodes, 1)

        def branch() -> nn.Sequential:
            norm = nn.LayerNorm([steps, nodes, HIDDEN])
            return nn.Sequential(nn.Linear(1, HIDDEN), norm, nn.GELU(), nn.Linear(HIDDEN, 1))

        self.branches = nn.ModuleList([branch(), branch()])
        self.gates = nn.ParameterList([torch.zeros(nodes, 1), torch.zeros(nodes, 1)])
        self.average = nn.AvgPool1d(KERNEL, stride=1)
        self.adam = torch.optim.Adam(self.parameters(), lr=lr)

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Start from the weights of an `ADCSD` of ours, as its `state_dict` names them."""
        with torch.no_grad():
            for i, branch in enumerate(self.branches):
                first, norm, _, last = branch.children()
                first.weight.copy_(weights["weight_in"][i].view(HIDDEN, 1))
                first.bias.copy_(weights["bias_in"][i].view(HIDDEN))
                norm.weight.copy_(weights["norm_weight"][i])
                norm.bias.copy_(weights["norm_bias"][i])
                last.weight.copy_(weights["weight_out"][i].view(1, HIDDEN))
                last.bias.copy_(weights["bias_out"][i].view(1))
                self.gates[i].copy_(weights["gate"][i].view(-1, 1))

    def forward(self, forecast: Tensor) -> Tensor:
        """Return the corrected forecast, original units."""
        scaled = (forecast - self.loc) / self.scale
        ends = KERNEL // 2
        padded = torch.cat(
            [scaled[:, :1].repeat(1, ends, 1, 1), scaled, scaled[:, -1:].repeat(1, ends, 1, 1)], 1
        )
        trend = self.average(padded[0, :, :, 0].T).T[None, :, :, None]
        corrected = scaled
        for branch, gate, part in zip(
            self.branches, self.gates, (scaled - trend, trend), strict=True
        ):
            corrected = corrected + gate * branch(part)
        return corrected * self.scale + self.loc

    def predict(self, forecast: Tensor) -> Tensor:
        """Correct a forecast."""
        with torch.no_grad():
            corrected: Tensor = self(forecast)
        return corrected

    def learn(self, forecast: Tensor, target: Tensor, mask: Tensor) -> None:
        """Make one step on a matured forecast: its masked mean absolute error."""
        self.adam.zero_grad()
        error = (self(forecast) - target).abs()
        loss = (error * mask).sum() / mask.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
