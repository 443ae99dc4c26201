"""The link loads' recurrent networks: fitted on the training days, then frozen or trained further
at every entry."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from streamadapt.learners import BaseOutput, Learner, Spec
from streamadapt.learners.base import require_shape
from streamadapt.learners.liquid import CfC
from streamadapt.learners.optimizer import Optimiser
from streamadapt.models.contract import TaskKind

__all__ = ["Change", "Fitting", "OnlineNetwork", "cfc", "fit_change", "lstm"]


@dataclass(frozen=True, slots=True)
class Fitting:
    """The fit of a network on the training days: Adam on the squared error of windows in random
    order."""

    units: int = 32
    epochs: int = 10
    batch: int = 32
    lr: float = 3e-3


class Change(nn.Module):
    """The last value plus the change predicted by a recurrent network: (1, window, links) -> (1,
    1, links).

    Parameters
    ----------
    network : nn.Module
        (batch, window, links) -> (batch, links).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Forecast one entry ahead."""
        ahead: Tensor = (inputs[:, -1] + self.network(inputs)).unsqueeze(1)
        return ahead


class _Cfc(nn.Module):
    def __init__(self, links: int, units: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.cell = CfC(links, units, projection=links, backbone=(2 * units,), generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        output, _ = self.cell(inputs, sequences=False)
        return output


class _Lstm(nn.Module):
    def __init__(self, links: int, units: int) -> None:
        super().__init__()
        self.cell = nn.LSTM(links, units, batch_first=True)
        self.readout = nn.Linear(units, links)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.readout(self.cell(inputs)[0][:, -1])
        return output


def cfc(links: int, fitting: Fitting, seed: int) -> Change:
    """Make a CfC with a backbone of twice its units."""
    return Change(_Cfc(links, fitting.units, seed))


def lstm(links: int, fitting: Fitting, seed: int) -> Change:
    """Make an LSTM."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Change(_Lstm(links, fitting.units))


def fit_change(model: Change, values: Tensor, window: int, fitting: Fitting, seed: int) -> Change:
    """Fit a network on the next step of every window of `values` (entries, links); return it."""
    windows = values.unfold(0, window, 1).transpose(1, 2)[:-1]  # (windows, window, links)
    targets = values[window:]
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(model.parameters(), lr=fitting.lr)
    with torch.enable_grad():
        for _ in range(fitting.epochs):
            for rows in torch.randperm(len(windows), generator=generator).split(fitting.batch):
                adam.zero_grad()
                loss = (model(windows[rows])[:, 0] - targets[rows]).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
    return model


class OnlineNetwork(Learner):
    """A rival: a fitted network that continues to learn, with one Adam step (squared error) on
    each matured forecast.

    Parameters
    ----------
    name : str
        Name of the expert.
    network : Change
        The initial network; copied.
    lr : float, > 0
    clip : float, > 0
        Gradients are scaled down to this norm, as `Liquid` does.
    """

    kind: ClassVar[str] = "online-network"
    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"forecast"})

    def __init__(self, name: str, network: Change, lr: float = 1e-3, clip: float = 1.0) -> None:
        super().__init__()
        self.name = name
        self.lr = lr
        self.clip = clip
        self.start = [network]  # in a list: it is not part of the state

    @property
    def names(self) -> tuple[str, ...]:
        """The given name."""
        return (self.name,)

    def allocate(self, spec: Spec) -> None:
        """Copy the network."""
        self.network = copy.deepcopy(self.start[0]).requires_grad_(True)
        self.optimiser = Optimiser(list(self.network.parameters()), "adam", self.lr, {})

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the network's forecast."""
        output: Tensor = self.network(inputs.unsqueeze(0))[0].detach()
        return output

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Make one step, with backpropagation through the whole window."""
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        with torch.enable_grad():
            loss = (self.network(inputs.unsqueeze(0))[0] - target).square().mean()
            self.optimiser.step(loss, self.boost, clip=self.clip)
