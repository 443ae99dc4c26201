"""A copy of the base's module whose normalisation layers can be adapted; the base itself is never
changed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners.tta.norms import Affine, Driven, DrivenBatchNorm, Given
from streamadapt.models.contract import Spec

if TYPE_CHECKING:
    from streamadapt.models.contract import FrozenModel

__all__ = ["ModelCopy", "Seen", "channels_first"]

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


class Seen(NamedTuple):
    """The result of a forward pass of `ModelCopy`.

    Attributes
    ----------
    logits : Tensor, (entries, classes)
        Log probabilities if the module returns probabilities.
    mean, var : Tensor, (entries, features)
        Each entry's own statistics in every driven batch normalisation, concatenated.
    used_mean, used_var : Tensor, (entries, features)
        The statistics with which the layers normalised.
    """

    logits: Tensor
    mean: Tensor
    var: Tensor
    used_mean: Tensor
    used_var: Tensor


class _ReachedError(Exception):
    """Raised at the first driven layer: the rest of the forward pass is not needed."""


class ModelCopy(nn.Module):
    """A frozen copy of a classifier; its state is the affine parameters of its driven
    normalisation layers.

    All other parameters of the copy equal the base's. They are not part of the module tree, and
    therefore not part of checkpoints.

    Parameters
    ----------
    spec : Spec
        ``spec.model`` is a `FrozenModel` of a torch module that takes (entries, window, channels).
    modules : sequence of str, optional
        Names of the layers to drive, from ``named_modules``. Default: every BatchNorm, LayerNorm
        and GroupNorm that the forward pass reaches.

    Attributes
    ----------
    layers : nn.ModuleList
        The driven layers, in the order in which the forward pass reaches them.
    names : tuple of str
    batch_norms : list of DrivenBatchNorm
        The layers that have running statistics.

    Raises
    ------
    ConfigError
        If the base is not such a module, has no such layers, or has a batch normalisation without
        running statistics.
    """

    def __init__(self, spec: Spec, modules: Sequence[str] | None = None) -> None:
        super().__init__()
        frozen = _module_of(spec)
        self.softmax = frozen.softmax
        assert isinstance(frozen.model, nn.Module)
        model = copy.deepcopy(frozen.model).to(spec.device).eval().requires_grad_(False)
        self._shape = (spec.window, spec.channels)
        self._classes = spec.columns
        self._hidden = (model,)  # a tuple keeps it out of the module tree
        driven = {name: _drive(model, name) for name in _wanted(model, modules)}
        reached = self._order(driven, spec.input_loc)
        if modules is not None and len(reached) < len(modules):
            missed = next(name for name in modules if name not in reached)
            raise ConfigError("modules", missed, "layers that the forward pass reaches")
        self.names = tuple(reached)
        self.layers = nn.ModuleList(reached.values())
        self.batch_norms = [
            layer for layer in reached.values() if isinstance(layer, DrivenBatchNorm)
        ]
        self.sizes = [len(layer.source_mean) for layer in self.batch_norms]
        self.source = tuple(
            torch.cat([getattr(layer, f"source_{what}") for layer in self.batch_norms])
            if self.batch_norms
            else torch.zeros(0, dtype=torch.float32, device=spec.device)
            for what in ("mean", "var")
        )

    def _order(self, driven: dict[str, Driven], loc: Tensor) -> dict[str, Driven]:
        """Run the module once to find the order of the layers, and check its output."""
        calls: list[str] = []
        handles = [
            layer.register_forward_pre_hook(lambda _, __, name=name: calls.append(name))
            for name, layer in driven.items()
        ]
        for layer in driven.values():
            if isinstance(layer, DrivenBatchNorm):
                layer.given = Given(
                    layer.source_mean,
                    layer.source_var,
                    torch.zeros((), dtype=torch.float32, device=loc.device),
                )
        with torch.no_grad():
            self.logits(loc.expand(2, *self._shape))
        for handle in handles:
            handle.remove()
        twice = [name for name in driven if calls.count(name) > 1]
        if twice:
            raise ConfigError(
                "modules", twice[0], "layers that one forward pass goes through once"
            )
        if not calls:
            raise ConfigError(
                "modules", None, "a model whose forward pass reaches a normalisation layer"
            )
        return {name: driven[name] for name in calls}

    @property
    def as_trained(self) -> tuple[Tensor, Tensor, Tensor]:
        """The statistics with which `run` gives the same result as the base."""
        mean, var = self.source
        return mean, var, torch.zeros((), dtype=torch.float32, device=mean.device)

    @property
    def parameters_driven(self) -> list[nn.Parameter]:
        """The affine parameters of the driven layers."""
        return list(self.layers.parameters())

    def logits(self, inputs: Tensor) -> Tensor:
        """Run the copy on (entries, window, channels); return (entries, classes) log scores.

        Raises
        ------
        ShapeError
            If inputs or outputs do not have that shape.
        """
        if inputs.ndim != 3 or tuple(inputs.shape[1:]) != self._shape:
            raise ShapeError(
                f"inputs must be (entries, {self._shape[0]}, {self._shape[1]}), got "
                f"{tuple(inputs.shape)}"
            )
        output = self._hidden[0](inputs)
        output = output[0] if isinstance(output, tuple) else output
        if output.numel() != len(inputs) * self._classes:
            raise ShapeError(
                f"the base's module must return ({len(inputs)}, {self._classes}) for "
                f"{len(inputs)} entries, got {tuple(output.shape)}"
            )
        scores: Tensor = output.reshape(len(inputs), self._classes)
        return scores if self.softmax else scores.clamp_min(1e-12).log()

    def run(
        self,
        inputs: Tensor,
        given: tuple[Tensor, Tensor, Tensor] | None = None,
        sign: Tensor | None = None,
    ) -> Seen:
        """Run the copy with the statistics of the batch, or with given statistics.

        Parameters
        ----------
        inputs : Tensor, (entries, window, channels)
        given : (mean, var, rate), optional
            Means and variances, (features,) or (entries, features), and the rate, () or
            (entries, 1), by which they move towards the entry's own before they are used.
        sign : Tensor, () or (entries, 1), optional
            A factor for the gain of the first batch normalisation.
        """
        if given is not None:
            mean, var, rate = given
            parts = zip(
                torch.split(mean, self.sizes, -1), torch.split(var, self.sizes, -1), strict=True
            )
            for i, (layer, (m, v)) in enumerate(zip(self.batch_norms, parts, strict=True)):
                layer.given = Given(m, v, rate, sign if i == 0 else None)
        else:
            for layer in self.batch_norms:
                layer.given = None
        logits = self.logits(inputs)
        if not self.batch_norms:
            none = logits.new_zeros(len(inputs), 0)
            return Seen(logits, none, none, none, none)
        own, used = zip(*((layer.own, layer.used) for layer in self.batch_norms), strict=True)
        statistics = (
            torch.cat(parts, 1) for pair in (own, used) for parts in zip(*pair, strict=True)
        )
        return Seen(logits, *statistics)

    def head(self, inputs: Tensor) -> Tensor:
        """Return the input of the first driven layer, (entries, channels, ...): the cheapest
        description of an entry."""
        reached: list[Tensor] = []

        def stop(module: nn.Module, given: tuple[Tensor, ...]) -> NoReturn:
            del module
            reached.append(given[0])
            raise _ReachedError

        handle = self.layers[0].register_forward_pre_hook(stop)
        try:
            self.logits(inputs)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        return channels_first(reached[0], self.layers[0])


def channels_first(x: Tensor, layer: nn.Module) -> Tensor:
    """Move the channels of a layer's input to the second axis: a LayerNorm over one axis has them
    on the last axis."""
    one_axis = isinstance(layer, Affine) and len(layer.shape) == 1
    return x.movedim(-1, 1) if one_axis and x.ndim > 2 else x


def _module_of(spec: Spec) -> FrozenModel:
    # Not at the top: that module imports the learners' package, which imports this module.
    from streamadapt.models.contract import FrozenModel

    model = spec.model
    if not isinstance(model, FrozenModel) or not isinstance(model.model, nn.Module):
        raise ConfigError(
            "base.kind",
            getattr(model, "kind", None),
            'a base that is a torch module, of which a copy is adapted: "module"',
        )
    if not model.batched:
        raise ConfigError("base.batched", False, "a module that takes (entries, window, channels)")
    return model


def _wanted(model: nn.Module, modules: Sequence[str] | None) -> list[str]:
    known = [name for name, layer in model.named_modules() if isinstance(layer, NORMS) and name]
    if not known:
        raise ConfigError(
            "base", type(model).__name__, "a model with BatchNorm, LayerNorm or GroupNorm layers"
        )
    if modules is None:
        return known
    if not modules:
        raise ConfigError("modules", [], "one or more of " + ", ".join(known))
    for name in modules:
        if name not in known:
            raise ConfigError(
                "modules", name, "normalisation layers of the model: " + ", ".join(known)
            )
    return list(dict.fromkeys(modules))


def _drive(model: nn.Module, name: str) -> Driven:
    """Replace the layer called `name` by a driven layer."""
    layer = model.get_submodule(name)
    driven: Driven
    if isinstance(layer, _BatchNorm):
        if layer.running_mean is None or layer.running_var is None:
            raise ConfigError(
                "modules",
                name,
                "batch normalisations with running statistics (track_running_stats)",
            )
        driven = DrivenBatchNorm(layer)
    else:
        assert isinstance(layer, nn.LayerNorm | nn.GroupNorm)
        driven = Affine(layer)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, driven)
    return driven
