"""A prediction as it was issued, kept until its target is known, and its form in a saved state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamadapt.models.contract import BaseOutput
from streamadapt.records import Array, Entry

__all__ = ["Issued", "pack", "unpack"]


@dataclass(frozen=True, slots=True)
class Issued:
    """One prediction as it was issued, kept until its target is known.

    `note` is the record of `streamadapt.pipeline.label_requests.LabelRequests`, which reads it
    when the label comes. All notes of a pipeline have the same length.
    """

    entry: Entry
    inputs: Tensor
    base: BaseOutput
    experts: Array
    aggregator_outputs: Array
    note: tuple[float, ...] = ()

    @property
    def id(self) -> str:
        """The entry's id."""
        return self.entry.id

    @property
    def time(self) -> int:
        """The entry's event time, ns."""
        return self.entry.time


def pack(issued: Sequence[Any]) -> dict[str, Any] | None:
    """Return the saved form of waiting predictions: arrays with one row per prediction; None if
    there are none."""
    if not issued:
        return None
    return {
        "ids": [i.id for i in issued],
        "entry_times": [i.time for i in issued],
        "inputs": torch.stack([i.inputs for i in issued]),
        "output": torch.stack([i.base.output for i in issued]),
        "embedding": _stacked([i.base.embedding for i in issued]),
        "times": _stacked([i.base.times for i in issued]),
        "experts": np.stack([i.experts for i in issued]),
        "own": np.stack([i.aggregator_outputs for i in issued]),
        "notes": np.array([i.note for i in issued], np.float64),
    }


def unpack(state: dict[str, Any] | None, device: torch.device) -> list[Issued]:
    """Return the predictions that `pack` saved.

    Their entries have only an id and a time: nothing else of an entry is needed any more.
    """
    issued = []
    for i, id_ in enumerate(() if state is None else state["ids"]):
        assert state is not None
        entry = Entry(np.zeros(0), int(state["entry_times"][i]), id_)
        row = {
            name: None if state[name] is None else state[name][i].to(device)
            for name in ("embedding", "times")
        }
        base = BaseOutput(state["output"][i].to(device), row["embedding"], row["times"])
        arrays = np.array(state["experts"][i]), np.array(state["own"][i])
        note = tuple(float(number) for number in state["notes"][i])
        issued.append(Issued(entry, state["inputs"][i].to(device), base, *arrays, note))
    return issued


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    known = [t for t in tensors if t is not None]
    return torch.stack(known) if known else None
