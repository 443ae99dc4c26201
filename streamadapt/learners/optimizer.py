"""Optimisers for one step per entry, with their moments as buffers of the learner.

A learner's parameters and buffers are its whole state; an optimiser that keeps its moments
elsewhere would lose them at every checkpoint. `Optimiser` registers each moment as a buffer, and
shares the same tensors with torch.optim if torch makes the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from streamadapt.errors import ConfigError

__all__ = ["OPTIMISERS", "Optimiser", "OptimiserName"]

OptimiserName = Literal["adam", "sgd", "lion", "adabelief"]
OPTIMISERS: tuple[str, ...] = get_args(OptimiserName)

DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "sgd": {"momentum": 0.0, "weight_decay": 0.0, "nesterov": False},
    "lion": {"betas": (0.9, 0.99), "weight_decay": 0.0},
    "adabelief": {"betas": (0.9, 0.999), "eps": 1e-16, "weight_decay": 0.0},
}
"""The options of each optimiser, with their defaults."""


class Optimiser(nn.Module):
    """One optimiser step at a time over a fixed list of parameters, all of them in a few fused
    operations.

    With g the gradient, t = 1, 2, ... the step, b1 and b2 the `betas`, w the `weight_decay`, all
    of it elementwise:

    * ``adam``, ``sgd``: ``torch.optim.Adam`` and ``torch.optim.SGD``, fused implementation.
    * ``lion`` [1]_ (algorithm 2): ``c = b1 m + (1 - b1) g``;
      ``theta <- theta - lr (sign(c) + w theta)``; ``m <- b2 m + (1 - b2) g``. Every step has the
      size lr: use a third to a tenth of Adam's rate. It keeps one moment.
    * ``adabelief`` [2]_ (algorithm 2): ``m <- b1 m + (1 - b1) g``;
      ``s <- b2 s + (1 - b2) (g - m)^2 + eps``;
      ``theta <- theta - lr m' / (sqrt(s') + eps) - lr w theta``, m' and s' being
      ``m / (1 - b1^t)`` and ``s / (1 - b2^t)``; the default eps is that of its authors' program.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        On one device.
    name : {"adam", "sgd", "lion", "adabelief"}
    lr : float, > 0
    options : mapping
        ``betas``, ``eps``, ``weight_decay`` (added to the gradient by adam and sgd, separate from
        it in the others), and ``momentum``, ``nesterov`` for sgd.

    Raises
    ------
    ConfigError
        For an unknown name, an option that the optimiser does not have, or a value out of range.

    References
    ----------
    .. [1] Chen et al. (2023), Symbolic discovery of optimization algorithms, arXiv:2302.06675.
    .. [2] Zhuang et al. (2020), AdaBelief optimizer: adapting stepsizes by the belief in observed
       gradients, arXiv:2010.07468.
    """

    steps: Tensor

    def __init__(
        self, parameters: Sequence[nn.Parameter], name: str, lr: float, options: Mapping[str, Any]
    ) -> None:
        super().__init__()
        if not 0.0 < lr < math.inf:
            raise ConfigError("lr", lr, "a finite number > 0")
        self.lr = lr
        self.name = name
        self.options = _checked(name, options)
        # The norm of the newest gradient before clipping; not part of the state.
        self.norm: Tensor | None = None
        self._stepped = False  # whether a step was made since `take_stepped`
        self._parameters_stepped: list[Tensor] = list(parameters)
        self._torch = self._of_torch()
        if self._torch is None:
            self._m = [self._moment(f"exp_avg_{i}", p) for i, p in enumerate(parameters)]
        if name == "adabelief":
            self._s = [self._moment(f"exp_avg_var_{i}", p) for i, p in enumerate(parameters)]
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _of_torch(self) -> torch.optim.Optimizer | None:
        """Return torch's optimiser with its state in our buffers; None if torch has none."""
        slots: tuple[str, ...] = ()
        if self.name == "adam":
            made: torch.optim.Optimizer = torch.optim.Adam(
                self._parameters_stepped, lr=self.lr, fused=True, **self.options
            )
            slots = ("exp_avg", "exp_avg_sq")
        elif self.name == "sgd":
            made = torch.optim.SGD(
                self._parameters_stepped, lr=self.lr, fused=True, **self.options
            )
            slots = ("momentum_buffer",) if self.options["momentum"] else ()
        else:
            return None
        for i, parameter in enumerate(self._parameters_stepped):
            for slot in slots:
                made.state[parameter][slot] = self._moment(f"{slot}_{i}", parameter)
            if self.name == "adam":
                self.register_buffer(
                    f"step_{i}", torch.zeros((), dtype=torch.float32, device=parameter.device)
                )
                made.state[parameter]["step"] = getattr(self, f"step_{i}")
        return made

    def _moment(self, name: str, parameter: Tensor) -> Tensor:
        moment = torch.zeros_like(parameter, requires_grad=False)
        self.register_buffer(name, moment)
        return moment

    def step(self, loss: Tensor, boost: float = 1.0, *, clip: float | None = None) -> None:
        """Differentiate `loss` and make one step with ``lr * boost``; gradients are not kept.

        Parameters
        ----------
        clip : float, > 0, optional
            The largest norm of all gradients together; larger gradients are scaled down to it.
        """
        gradients = list(torch.autograd.grad(loss, self._parameters_stepped))
        self._stepped = True
        with torch.no_grad():
            self.norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            if clip is not None:
                torch._foreach_mul_(gradients, (clip / (self.norm + 1e-6)).clamp_max(1.0))
            if self._torch is not None:
                self._step_of_torch(self._torch, gradients, boost)
            elif self.name == "lion":
                self._step_of_lion(gradients, self.lr * boost)
            else:
                self._step_of_adabelief(gradients, self.lr * boost)

    def take_stepped(self) -> bool:
        """Return whether a step was made since the last call."""
        stepped, self._stepped = self._stepped, False
        return stepped

    def _step_of_torch(
        self, optimiser: torch.optim.Optimizer, gradients: Sequence[Tensor], boost: float
    ) -> None:
        for parameter, gradient in zip(self._parameters_stepped, gradients, strict=True):
            parameter.grad = gradient
        for group in optimiser.param_groups:
            group["lr"] = self.lr * boost
        optimiser.step()
        for parameter in self._parameters_stepped:
            parameter.grad = None

    def _step_of_lion(self, gradients: list[Tensor], lr: float) -> None:
        b1, b2 = self.options["betas"]
        direction = torch._foreach_lerp(self._m, gradients, 1.0 - b1)
        torch._foreach_sign_(direction)
        self._decay(lr)
        torch._foreach_add_(self._parameters_stepped, direction, alpha=-lr)
        torch._foreach_lerp_(self._m, gradients, 1.0 - b2)

    def _step_of_adabelief(self, gradients: list[Tensor], lr: float) -> None:
        (b1, b2), eps = self.options["betas"], self.options["eps"]
        t = int(self.steps.add_(1))
        torch._foreach_lerp_(self._m, gradients, 1.0 - b1)
        surprise = torch._foreach_sub(gradients, self._m)
        torch._foreach_mul_(self._s, b2)
        torch._foreach_addcmul_(self._s, surprise, surprise, 1.0 - b2)
        torch._foreach_add_(self._s, eps)
        size = torch._foreach_div(self._s, 1.0 - b2**t)
        torch._foreach_sqrt_(size)
        torch._foreach_add_(size, eps)
        self._decay(lr)
        torch._foreach_addcdiv_(self._parameters_stepped, self._m, size, -lr / (1.0 - b1**t))

    def _decay(self, lr: float) -> None:
        if self.options["weight_decay"]:
            torch._foreach_mul_(self._parameters_stepped, 1.0 - lr * self.options["weight_decay"])


def _checked(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with the defaults filled in."""
    if name not in DEFAULTS:
        raise ConfigError("optimiser", name, "one of " + ", ".join(OPTIMISERS))
    known = DEFAULTS[name]
    for option, value in options.items():
        if option not in known:
            raise ConfigError(
                f"optimiser.{option}", value, f"one of {name}'s options: " + ", ".join(known)
            )
    filled = {**known, **options}
    betas = filled.get("betas", (0.0, 0.0))
    if not (
        isinstance(betas, Sequence) and len(betas) == 2 and all(0.0 <= b < 1.0 for b in betas)
    ):
        raise ConfigError("optimiser.betas", betas, "two numbers in [0, 1)")
    for option in ("eps", "weight_decay", "momentum"):
        if not 0.0 <= filled.get(option, 0.0) < math.inf:
            raise ConfigError(f"optimiser.{option}", filled[option], "a finite number >= 0")
    if filled.get("nesterov") and not filled["momentum"]:
        raise ConfigError("optimiser.nesterov", True, "a momentum > 0 beside it")
    return filled
