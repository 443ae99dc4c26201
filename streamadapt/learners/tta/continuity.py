"""Label continuity: a filter over answers that uses that labels may come in runs, and finds out
whether they do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from streamadapt.learners.tta.parts import StatefulPart

__all__ = ["Continuity"]

STAY = (0.0, 0.5, 0.9, 0.97)
"""Probabilities of the same label again that are weighed against each other; 0: labels are
independent."""
FORGET = 0.98
DOUBT = 2.0
"""Log odds against any continuity, to begin with and again with time."""
FLOOR = 1e-4
MARGINAL_RATE = 0.01


class Continuity(StatefulPart):
    """Several hidden Markov chains over the label, mixed by how well each predicts the answers.

    For each probability rho of staying, with o the model's answer and pi the running mean of the
    answers::

        prior_rho = rho q_rho + (1 - rho) / C        q_rho <- prior_rho max(o, 1e-4), normalised
        L_rho <- h + .98 (L_rho - h) + ln sum_y prior_rho(y) o(y) / pi(y)  h = -2 if rho > 0 else 0
        answer = sum_rho softmax(L)_rho q_rho

    Division by pi keeps a model that always says the same from proving that the labels are
    constant.

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

    def evaluate(self, said: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Filter one answer (classes,); return the filtered one, and what to commit."""
        prior = self._stay * self.chains + (1.0 - self._stay) / len(said)
        support = prior @ (said / self.marginal.clamp_min(1e-6))
        evidence = (
            self._home
            + FORGET * (self.evidence - self._home)
            + support.clamp_min(math.exp(-20.0)).log()
        )
        chains = prior * said.clamp_min(FLOOR)
        chains = chains / chains.sum(1, keepdim=True)
        marginal = torch.lerp(self.marginal, said, MARGINAL_RATE)
        return evidence.softmax(0) @ chains, {
            "chains": chains,
            "evidence": evidence,
            "marginal": marginal,
        }
