"""A filter for streams in which equal labels come in runs; it detects whether they do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from streamadapt.learners.tta.parts import StatefulPart

__all__ = ["Continuity"]

STAY = (0.0, 0.5, 0.9, 0.97)
"""The compared probabilities that the next label is the same; 0: labels are independent."""
FORGET = 0.98
DOUBT = 2.0
"""Log odds against any continuity, at the start and in the long run without evidence."""
FLOOR = 1e-4
MARGINAL_RATE = 0.01


class Continuity(StatefulPart):
    """Combines several hidden Markov chains over the label; each has a weight that depends on how
    well it predicts the outputs.

    For each probability rho that the next label is the same, with the model's output o and the
    running mean pi of the outputs::

        prior_rho = rho q_rho + (1 - rho) / C        q_rho <- prior_rho max(o, 1e-4), normalised
        L_rho <- h + .98 (L_rho - h) + ln sum_y prior_rho(y) o(y) / pi(y)  h = -2 if rho > 0 else 0
        answer = sum_rho softmax(L)_rho q_rho

    Because of the division by pi, a constant output of a model is not evidence for constant
    labels.

    Costs O(4 C) per entry.
    """

    chains: Tensor
    evidence: Tensor
    marginal: Tensor

    def __init__(self, classes: int, device: torch.device) -> None:
        super().__init__()
        self._stay = torch.tensor(STAY, dtype=torch.float32, device=device).unsqueeze(1)
        self._home = torch.where(self._stay[:, 0] > 0.0, -DOUBT, 0.0)
        self.register(
            chains=torch.full(
                (len(STAY), classes), 1.0 / classes, dtype=torch.float32, device=device
            ),
            evidence=self._home,
            marginal=torch.full((classes,), 1.0 / classes, dtype=torch.float32, device=device),
        )

    def evaluate(self, output: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Filter one output (classes,); return the filtered output and the values to commit."""
        prior = self._stay * self.chains + (1.0 - self._stay) / len(output)
        support = prior @ (output / self.marginal.clamp_min(1e-6))
        evidence = (
            self._home
            + FORGET * (self.evidence - self._home)
            + support.clamp_min(math.exp(-20.0)).log()
        )
        chains = prior * output.clamp_min(FLOOR)
        chains = chains / chains.sum(1, keepdim=True)
        marginal = torch.lerp(self.marginal, output, MARGINAL_RATE)
        return evidence.softmax(0) @ chains, {
            "chains": chains,
            "evidence": evidence,
            "marginal": marginal,
        }
