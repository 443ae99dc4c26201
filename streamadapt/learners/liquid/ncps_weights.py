"""Converts weights of ncps, and loads weights from files.

ncps has W1, W2, A and B of a CfC as four layers below ``rnn_cell``; here they are one layer. The
state dict of ncps contains the wirings as masks.
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
    """Convert the names and tensors of an ncps state dict to those of our modules.

    Parameters
    ----------
    state : mapping
        ``state_dict()`` of ``ncps.torch.CfC``, ``LTC`` or one of their cells. Tensors with the
        names of our own modules do not change, so a file may contain either.
    path : str
        The setting that an error names.

    Returns
    -------
    dict
        For ``load_state_dict`` of our `CfC` or `LTC`. Gradients can be converted in the same way.

    Raises
    ------
    ConfigError
        If a part is missing, or the network has a mixed memory (an LSTM), which is not supported.
    """
    plain = {
        re.sub(r"^rnn_cell\.", "", re.sub(r"^fc\.", "readout.", name)): t
        for name, t in state.items()
    }
    if any(name.startswith("lstm.") for name in plain):
        raise ConfigError(
            path,
            "lstm.*",
            "a network trained with mixed_memory=False: an LSTM is not supported",
        )
    layers: dict[int, dict[str, Tensor]] = {}
    converted = {}
    for name, tensor in plain.items():
        wired = CFC_LAYER.fullmatch(name)
        inner = wired[2] if wired else name
        if wired or inner in ("w_tau", "A") or inner.partition(".")[0] in (*CFC_PARTS, "backbone"):
            layers.setdefault(int(wired[1]) if wired else 0, {})[inner] = tensor
        else:
            converted[name] = tensor
    if layers and "sparsity_mask" in converted:  # the state dict of a single wired cell
        layers[0]["sparsity_mask"] = converted.pop("sparsity_mask")
    for i, layer in layers.items():
        tensors = _cfc_layer(layer, path).items()
        converted |= {f"layers.{i}.{name}": tensor for name, tensor in tensors}
    return converted


def _cfc_layer(layer: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    parts = ("ff1",) if "w_tau" in layer else CFC_PARTS
    converted = {}
    for what in ("weight", "bias"):
        missing = [f"{part}.{what}" for part in parts if f"{part}.{what}" not in layer]
        if missing:
            raise ConfigError(
                path,
                sorted(layer),
                f"the whole state dict of an ncps CfC, but {', '.join(missing)} is missing",
            )
        converted[f"head.{what}"] = torch.cat([layer.pop(f"{part}.{what}") for part in parts])
    # In ncps there are activations and dropout between the linear layers: so these have the
    # numbers 0, 2, 4 or 0, 2, 5.
    numbers = sorted({int(name.split(".")[1]) for name in layer if name.startswith("backbone.")})
    for j, number in enumerate(numbers):
        for what in ("weight", "bias"):
            if f"backbone.{number}.{what}" in layer:
                converted[f"backbone.{j}.{what}"] = layer.pop(f"backbone.{number}.{what}")
    if "sparsity_mask" in layer:
        mask = layer.pop("sparsity_mask")
        converted["mask"] = (
            mask if len(parts) == 1 else torch.cat([mask, mask, *[torch.ones_like(mask)] * 2])
        )
    if "A" in layer:
        converted["a"] = layer.pop("A")
    return converted | layer


def load_weights(
    network: Recurrent,
    state: Mapping[str, Tensor],
    path: str = "weights",
    file: Path | None = None,
) -> None:
    """Load the weights `state`, of ncps or our own, into a network of the same structure.

    Parameters
    ----------
    path : str
        The setting that an error names.
    file : Path, optional
        The file from which the weights were read, for error messages.

    Raises
    ------
    ConfigError
        If names, shapes or dtypes differ (the error lists each), or a number is not finite.
    """
    weights = convert_ncps(state, path)
    _check_finite(weights, path)
    mine = network.state_dict()
    own = {name: tuple(t.shape) for name, t in mine.items()}
    given = {name: tuple(t.shape) for name, t in weights.items()}
    problems = [f"{name} {own[name]} is missing" for name in own if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in own]
    problems += [
        f"{n} must be {own[n]}, not {given[n]}" for n in own if n in given and own[n] != given[n]
    ]
    # A mask contains zeros and ones, and may have any dtype.
    problems += [
        f"{n} must be {mine[n].dtype}, not {t.dtype}"
        for n, t in weights.items()
        if n in mine
        and mine[n].is_floating_point() > t.is_floating_point()
        and not n.endswith("mask")
    ]
    if problems:
        what = f"{len(given)} tensors" if file is None else f"{file}: {len(given)} tensors"
        raise ConfigError(path, what, "weights of such a network: " + "; ".join(problems))
    network.load_state_dict(weights)


def from_ncps(state: Mapping[str, Tensor], **options: Any) -> CfC | LTC:
    """Build a network from an ncps state dict; sizes, wiring and the mode `pure` follow from the
    tensors.

    Parameters
    ----------
    state : mapping
        ``state_dict()`` of ``ncps.torch.CfC`` or ``LTC``.
    options : dict
        Settings that do not follow from the tensors: `mode` and `activation` of a `CfC`;
        `unfolds`, `epsilon` and `constrained` (ncps: ``implicit_param_constraints``) of an `LTC`,
        and its `outputs` if it has no output mapping. The defaults are those of ncps.

    Raises
    ------
    ConfigError
        As for `load_weights`; or for an option that such a network does not have.
    """
    weights = convert_ncps(state)
    make, allowed = (_ltc_like, {"unfolds", "epsilon", "constrained", "outputs"})
    if "layers.0.head.weight" in weights:
        make, allowed = (_cfc_like, {"mode", "activation"})
    elif "gleak" not in weights:
        raise ConfigError("state", sorted(state)[:8], "the state dict of an ncps CfC or LTC")
    for name in options.keys() - allowed:
        raise ConfigError(
            name, options[name], "no such option here, only " + ", ".join(sorted(allowed))
        )
    try:
        network = make(weights, options).to(next(iter(weights.values())).dtype)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            "state", sorted(state), f"a whole state dict of ncps ({error})"
        ) from error
    load_weights(network, weights)
    return network


def _cfc_like(weights: dict[str, Tensor], options: dict[str, Any]) -> CfC | LTC:
    pure = "layers.0.w_tau" in weights
    options = {**options, **({"mode": "pure"} if pure else {})}
    heads = [
        weights[f"layers.{i}.head.weight"]
        for i in range(sum(n.endswith("head.weight") for n in weights))
    ]
    sizes = [len(head) // (1 if pure else 4) for head in heads]
    count = sum(n.startswith("layers.0.backbone.") and n.endswith("weight") for n in weights)
    first = [weights[f"layers.0.backbone.{j}.weight"] for j in range(count)] + heads[:1]
    inputs = first[0].shape[1] - sizes[0]
    if "readout.weight" in weights:
        options["projection"] = len(weights["readout.weight"])
    if "layers.0.mask" not in weights:
        return CfC(inputs, sizes[0], backbone=tuple(len(w) for w in first[:-1]), **options)
    masks = [weights[f"layers.{i}.mask"][:size].T for i, size in enumerate(sizes)]
    return CfC(inputs, _wiring(inputs, sizes, masks), **options)


def _wiring(inputs: int, sizes: list[int], masks: list[Tensor]) -> Wiring:
    """Build a wiring from the masks of its layers, each (sources, units); the neurons of the last
    layer come first."""
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


def _ltc_like(weights: dict[str, Tensor], options: dict[str, Any]) -> CfC | LTC:
    synapses = weights["sparsity_mask"].cpu().numpy().astype(np.int32)
    sensory = weights["sensory_sparsity_mask"].cpu().numpy().astype(np.int32)
    units = len(synapses)
    outputs = options.pop("outputs", len(weights["output_w"]) if "output_w" in weights else units)
    mappings = _mapping("input", weights), _mapping("output", weights)
    if "readout.weight" in weights:
        options["projection"] = len(weights["readout.weight"])
    wiring = Wiring(synapses, sensory, outputs, (tuple(range(units)),))
    return LTC(len(sensory), wiring, mappings=mappings, **options)


def _mapping(side: str, weights: Mapping[str, Tensor]) -> LayerMapping:
    """Return the form of the layer before ("input") or after ("output") the neurons."""
    if f"{side}_b" in weights:
        return "affine"
    return "linear" if f"{side}_w" in weights else "none"


def read_weights(file: Path, path: str = "weights") -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises
    ------
    ConfigError
        If it cannot be read, or contains a number that is not finite.
    """
    return read_tensors(file, path)[0]


def _check_finite(state: Mapping[str, Tensor], path: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                path, name, f"finite numbers, but {name} holds others: train it again"
            )
