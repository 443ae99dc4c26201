"""Weights from ncps, and weights in files.

ncps keeps W1, W2, A and B of a CfC as four layers, below ``rnn_cell``; here they are one. Its
wirings travel with the weights, as masks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.liquid.cfc import CfC
from streamadapt.learners.liquid.ltc import LTC
from streamadapt.learners.liquid.ltc import Mapping as LayerMapping
from streamadapt.learners.liquid.recurrent import Recurrent
from streamadapt.learners.liquid.wirings import Wiring
from streamadapt.models.weights import read_tensors

__all__ = ["convert_ncps", "from_ncps", "load_weights", "read_weights"]

CFC_PARTS = ("ff1", "ff2", "time_a", "time_b")
CFC_LAYER = re.compile(r"layer_(\d+)\.(.*)")


def convert_ncps(state: Mapping[str, Tensor], path: str = "weights") -> dict[str, Tensor]:
    """Rename and join what ncps' modules call their weights.

    Parameters
    ----------
    state : mapping
        ``state_dict()`` of ``ncps.torch.CfC``, ``LTC`` or one of their cells. Tensors with names
        of our own modules pass through, so that a file may hold either.
    path : str
        The setting that an error names.

    Returns
    -------
    dict
        For ``load_state_dict`` of our `CfC` or `LTC`; gradients may be converted in the same way.

    Raises
    ------
    ConfigError
        If a part is missing, or the network has the mixed memory, which does not exist here.
    """
    plain = {
        re.sub(r"^rnn_cell\.", "", re.sub(r"^fc\.", "readout.", name)): t
        for name, t in state.items()
    }
    if any(name.startswith("lstm.") for name in plain):
        raise ConfigError(
            path,
            "lstm.*",
            "a network trained with mixed_memory=False: there is no LSTM beside it here",
        )
    layers: dict[int, dict[str, Tensor]] = {}
    found = {}
    for name, tensor in plain.items():
        wired = CFC_LAYER.fullmatch(name)
        inner = wired[2] if wired else name
        if wired or inner in ("w_tau", "A") or inner.partition(".")[0] in (*CFC_PARTS, "backbone"):
            layers.setdefault(int(wired[1]) if wired else 0, {})[inner] = tensor
        else:
            found[name] = tensor
    if layers and "sparsity_mask" in found:  # of a lone wired cell
        layers[0]["sparsity_mask"] = found.pop("sparsity_mask")
    for i, layer in layers.items():
        found |= {f"layers.{i}.{name}": tensor for name, tensor in _cfc_layer(layer, path).items()}
    return found


def _cfc_layer(layer: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    parts = ("ff1",) if "w_tau" in layer else CFC_PARTS
    found = {}
    for what in ("weight", "bias"):
        missing = [f"{part}.{what}" for part in parts if f"{part}.{what}" not in layer]
        if missing:
            raise ConfigError(
                path,
                sorted(layer),
                f"the whole state of an ncps CfC, but {', '.join(missing)} is missing",
            )
        found[f"head.{what}"] = torch.cat([layer.pop(f"{part}.{what}") for part in parts])
    # Activations and dropout stand between the linear layers there: number 0, 2, 4 or 0, 2, 5.
    numbers = sorted({int(name.split(".")[1]) for name in layer if name.startswith("backbone.")})
    for j, number in enumerate(numbers):
        for what in ("weight", "bias"):
            if f"backbone.{number}.{what}" in layer:
                found[f"backbone.{j}.{what}"] = layer.pop(f"backbone.{number}.{what}")
    if "sparsity_mask" in layer:
        mask = layer.pop("sparsity_mask")
        found["mask"] = (
            mask if len(parts) == 1 else torch.cat([mask, mask, *[torch.ones_like(mask)] * 2])
        )
    if "A" in layer:
        found["a"] = layer.pop("A")
    return found | layer


def load_weights(
    network: Recurrent,
    state: Mapping[str, Tensor],
    path: str = "weights",
    file: Path | None = None,
) -> None:
    """Load weights, ncps' or our own, from `file` if there is one, into a network made alike.

    Raises
    ------
    ConfigError
        If names or shapes differ, naming each, or a number is not finite.
    """
    found = convert_ncps(state, path)
    _check_finite(found, path)
    mine = network.state_dict()
    own = {name: tuple(t.shape) for name, t in mine.items()}
    given = {name: tuple(t.shape) for name, t in found.items()}
    wrong = [f"{name} {own[name]} is missing" for name in own if name not in given]
    wrong += [f"{name} is unknown" for name in given if name not in own]
    wrong += [
        f"{n} must be {own[n]}, not {given[n]}" for n in own if n in given and own[n] != given[n]
    ]
    # A mask is zeros and ones, in whatever type.
    wrong += [
        f"{n} must be {mine[n].dtype}, not {t.dtype}"
        for n, t in found.items()
        if n in mine
        and mine[n].is_floating_point() > t.is_floating_point()
        and not n.endswith("mask")
    ]
    if wrong:
        what = f"{len(given)} tensors" if file is None else f"{file}: {len(given)} tensors"
        raise ConfigError(path, what, "weights of such a network: " + "; ".join(wrong))
    network.load_state_dict(found)


def from_ncps(state: Mapping[str, Tensor], **options: Any) -> CfC | LTC:
    """Build the network that an ncps state dict is of; sizes, wiring and whether it is `pure` are
    read off it.

    Parameters
    ----------
    state : mapping
        ``state_dict()`` of ``ncps.torch.CfC`` or ``LTC``.
    options : dict
        What cannot be read off it, as `CfC` (`mode`, `activation`) or `LTC` (`unfolds`, `epsilon`,
        `constrained`: ncps' ``implicit_param_constraints``; `outputs`, where there is no output
        mapping) call it. The defaults are those of ncps.

    Raises
    ------
    ConfigError
        As `load_weights`; or for an option that such a network does not have.
    """
    found = convert_ncps(state)
    make, allowed = (_ltc_like, {"unfolds", "epsilon", "constrained", "outputs"})
    if "layers.0.head.weight" in found:
        make, allowed = (_cfc_like, {"mode", "activation"})
    elif "gleak" not in found:
        raise ConfigError("state", sorted(state)[:8], "the state dict of an ncps CfC or LTC")
    for name in options.keys() - allowed:
        raise ConfigError(
            name, options[name], "no such option here, only " + ", ".join(sorted(allowed))
        )
    try:
        network = make(found, options).to(next(iter(found.values())).dtype)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            "state", sorted(state), f"a whole state dict of ncps ({error})"
        ) from error
    load_weights(network, found)
    return network


def _cfc_like(found: dict[str, Tensor], options: dict[str, Any]) -> CfC | LTC:
    pure = "layers.0.w_tau" in found
    options = {**options, **({"mode": "pure"} if pure else {})}
    heads = [
        found[f"layers.{i}.head.weight"]
        for i in range(sum(n.endswith("head.weight") for n in found))
    ]
    sizes = [len(head) // (1 if pure else 4) for head in heads]
    count = sum(n.startswith("layers.0.backbone.") and n.endswith("weight") for n in found)
    first = [found[f"layers.0.backbone.{j}.weight"] for j in range(count)] + heads[:1]
    inputs = first[0].shape[1] - sizes[0]
    if "readout.weight" in found:
        options["projection"] = len(found["readout.weight"])
    if "layers.0.mask" not in found:
        return CfC(inputs, sizes[0], backbone=tuple(len(w) for w in first[:-1]), **options)
    masks = [found[f"layers.{i}.mask"][:size].T for i, size in enumerate(sizes)]
    return CfC(inputs, _wiring(inputs, sizes, masks), **options)


def _wiring(inputs: int, sizes: list[int], masks: list[Tensor]) -> Wiring:
    """Rebuild a wiring from the masks of its layers (sources, units); the last layer's neurons
    come first."""
    units = sum(sizes)
    synapses, sensory = np.zeros((units, units), np.int32), np.zeros((inputs, units), np.int32)
    layers: list[tuple[int, ...]] = []
    for i, (size, mask) in enumerate(zip(sizes, masks, strict=True)):
        start = sum(sizes[i + 1 :])
        layer = tuple(range(start, start + size))
        seen = mask[: len(mask) - size].cpu().numpy().astype(np.int32)
        if i == 0:
            sensory[:, layer] = seen
        else:
            synapses[np.ix_(layers[-1], layer)] = seen
        layers.append(layer)
    return Wiring(synapses, sensory, sizes[-1], tuple(layers))


def _ltc_like(found: dict[str, Tensor], options: dict[str, Any]) -> CfC | LTC:
    synapses = found["sparsity_mask"].cpu().numpy().astype(np.int32)
    sensory = found["sensory_sparsity_mask"].cpu().numpy().astype(np.int32)
    units = len(synapses)
    outputs = options.pop("outputs", len(found["output_w"]) if "output_w" in found else units)
    mappings = _mapping("input", found), _mapping("output", found)
    if "readout.weight" in found:
        options["projection"] = len(found["readout.weight"])
    wiring = Wiring(synapses, sensory, outputs, (tuple(range(units)),))
    return LTC(len(sensory), wiring, mappings=mappings, **options)


def _mapping(side: str, found: Mapping[str, Tensor]) -> LayerMapping:
    """Return the form of the layer before ("input") or after ("output") the neurons."""
    if f"{side}_b" in found:
        return "affine"
    return "linear" if f"{side}_w" in found else "none"


def read_weights(file: Path, path: str = "weights") -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises
    ------
    ConfigError
        If it cannot be read, or holds a number that is not finite.
    """
    return read_tensors(file, path)[0]


def _check_finite(state: Mapping[str, Tensor], path: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                path, name, f"finite numbers, but {name} holds others: train it again"
            )
