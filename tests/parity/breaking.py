"""A learner that breaks, so that health suspends and restores it."""

from __future__ import annotations

import torch
from torch import Tensor

from streamadapt.learners import BaseOutput, Bias, Spec


class Breaking(Bias):
    """A bias that becomes NaN, becomes huge, raises in `learn`, and raises in `predict`, in turn,
    every 150 updates."""

    kind = "breaking"
    learned: Tensor

    def allocate(self, spec: Spec) -> None:
        super().allocate(spec)
        self.register_buffer("learned", torch.zeros((), dtype=torch.int64))

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        super().learn(inputs, base, target, mask)
        self.learned += 1
        turn = int(self.learned)
        if turn % 150 == 0:
            way = (turn // 150) % 3
            if way == 0:
                raise ArithmeticError("this learner breaks")
            self.state.bias[...] += float("nan") if way == 1 else 1e6

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        if int(self.learned) % 150 == 75:
            raise ArithmeticError("this learner breaks")
        return super().predict(inputs, base)
