"""torch.optim's optimisers with their moments kept as buffers of the learner.

A learner's parameters and buffers are its whole state; an optimiser that hides its moments elsewhere would lose them
at every checkpoint. `Optimiser` registers each moment as a buffer of its own, and shares the very tensors with
torch.optim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamadapt.errors import ConfigError

__all__ = ["Optimiser"]


class Optimiser(nn.Module):
    """One optimiser step at a time over a fixed list of parameters.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        Stepped together (fused) on their device.
    name : {"adam", "sgd"}
        ``torch.optim.Adam`` or ``torch.optim.SGD``, fused implementation.
    lr : float, > 0
    options : dict
        Further keyword arguments of the torch class (``betas``, ``eps``, ``momentum``, ``weight_decay``).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], name: str, lr: float, options: dict[str, Any]) -> None:
        super().__init__()
        self.lr = lr
        self._parameters_stepped = list(parameters)
        if name == "adam":
            self._torch: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=lr, fused=True, **options)
            slots: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
        elif name == "sgd":
            self._torch = torch.optim.SGD(parameters, lr=lr, fused=True, **options)
            slots = ("momentum_buffer",) if options.get("momentum", 0.0) else ()
        else:
            raise ConfigError("optimiser", name, "adam or sgd")
        for i, parameter in enumerate(parameters):
            for slot in slots:
                self._share(i, parameter, slot, torch.zeros_like(parameter))
            if name == "adam":
                self._share(i, parameter, "step", torch.zeros((), device=parameter.device))

    def _share(self, i: int, parameter: nn.Parameter, slot: str, tensor: Tensor) -> None:
        self.register_buffer(f"{slot}_{i}", tensor)
        self._torch.state[parameter][slot] = tensor

    def step(self, loss: Tensor, boost: float = 1.0) -> None:
        """Differentiate `loss` and make one step with ``lr * boost``; gradients are not kept."""
        gradients = torch.autograd.grad(loss, self._parameters_stepped)
        for parameter, gradient in zip(self._parameters_stepped, gradients, strict=True):
            parameter.grad = gradient
        for group in self._torch.param_groups:
            group["lr"] = self.lr * boost
        self._torch.step()
        for parameter in self._parameters_stepped:
            parameter.grad = None
