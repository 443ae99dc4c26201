"""The built-in frozen models, and the loader for the user's own model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from streamadapt.errors import ConfigError
from streamadapt.models.contract import Base, BaseOutput, FrozenModel, Prior, TaskKind
from streamadapt.models.features import feature_count
from streamadapt.models.steps import (
    BaseSteps,
    LinearRoom,
    LinearSettings,
    NoSettings,
    forward_kernel,
    linear,
    persistence,
)
from streamadapt.models.weights import check_fitted, read_tensors

__all__ = ["Linear", "Persistence", "load_module"]

_SCALING = ("input_loc", "input_scale", "output_loc", "output_scale")


class Persistence(Base):
    """Forecasts the last value for every step of the horizon: the simplest forecaster.

    Parameters
    ----------
    horizon : int, >= 1, in entries
        The number of entries that the forecast covers; must equal the task's horizon.

    Examples
    --------
    >>> Persistence(2)(torch.tensor([[1.0], [4.0]])).output.tolist()
    [[4.0], [4.0]]
    """

    kind: ClassVar[str] = "persistence"

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon

    def check(self, kind: TaskKind, window: int, rows: int, columns: int | None) -> None:
        """Raise `ConfigError` unless the task is a forecast with the same horizon."""
        del window, columns
        if kind != "forecast":
            raise ConfigError(
                "base.kind", self.kind, f"a base for a {kind} task: persistence forecasts"
            )
        if rows != self.horizon:
            raise ConfigError("base.horizon", self.horizon, f"the task's horizon, {rows}")

    def input_dtype(self, *, far: bool) -> torch.dtype:
        """Return float64: the forecast repeats the input without rounding."""
        del far
        return torch.float64

    def steps(self) -> BaseSteps:
        """Return the compiled function, and what it works on."""
        nothing = NoSettings(0)
        return BaseSteps(persistence, nothing, nothing)

    def forward(self, inputs: Tensor) -> BaseOutput:
        """Repeat the last row."""
        return BaseOutput(inputs[-1:].expand(self.horizon, -1).clone())


class Linear(Base):
    """Ridge regression on the window; made by ``streamadapt fit`` or `streamadapt.models.fit`.

    Forecasts: one regression for all channels, from a channel's own scaled window to its next
    `rows` values. Regression: from the whole scaled window to the outputs. Classification: the
    softmax of such a regression.

    Parameters
    ----------
    kind_of_task : {"forecast", "regression", "classification"}
    weights : Tensor, (features, responses), float32
        The last feature is the constant.
    window : int
    subtract_last : bool
        Forecasts: the last value is subtracted from window and target ("strong" form).
    scaling : mapping of str to Tensor
        ``input_loc``, ``input_scale`` (channels,) and ``output_loc``, ``output_scale`` (columns,).
    statistics : Prior or None

    Examples
    --------
    >>> from streamadapt import Batch
    >>> from streamadapt.models.fit import fit_forecast
    >>> history = Batch([[t % 3] for t in range(100)], range(100))  # 0, 1, 2, 0, 1, 2, ...
    >>> base = fit_forecast(history, window=3, horizon=3, ridge=0.0)
    >>> forecast = base(torch.tensor([[0.0], [1.0], [2.0]]))
    >>> forecast.output.round().abs().flatten().tolist()
    [0.0, 1.0, 2.0]
    """

    kind: ClassVar[str] = "linear"
    weights: Tensor

    def __init__(
        self,
        kind_of_task: TaskKind,
        weights: Tensor,
        window: int,
        *,
        subtract_last: bool,
        scaling: dict[str, Tensor],
        statistics: Prior | None = None,
    ) -> None:
        super().__init__()
        self.kind_of_task = kind_of_task
        self.window = window
        self.subtract_last = subtract_last
        self.register_buffer("weights", weights.contiguous())
        for name, tensor in scaling.items():
            self.register_buffer(name, tensor)
        self._statistics = statistics

    @property
    def channels(self) -> int | None:
        """The number of channels that it was fitted on."""
        assert self.input_loc is not None
        return len(self.input_loc)

    def prior(self) -> Prior | None:
        """Return the sufficient statistics of the fit."""
        return self._statistics

    def check(self, kind: TaskKind, window: int, rows: int, columns: int | None) -> None:
        """Raise `ConfigError` if the task differs from the one that the weights were fitted
        for."""
        mine = self.weights.shape[1]
        wanted = rows if kind == "forecast" else columns
        if kind != self.kind_of_task:
            raise ConfigError(
                "base.weights", self.kind_of_task, f"weights fitted for a {kind} task"
            )
        if window != self.window:
            raise ConfigError(
                "task.window", window, f"{self.window}, which the base's weights were fitted for"
            )
        if wanted is not None and wanted != mine:
            raise ConfigError(
                "base.weights", mine, f"weights with {wanted} responses, as the task has"
            )

    def input_dtype(self, *, far: bool) -> torch.dtype:
        """Return float64 if float32 would lose changes of a channel, else float32."""
        return torch.float64 if far else torch.float32

    def steps(self) -> BaseSteps:
        """Return the compiled function, and what it works on."""
        tensors = (self.weights, *(getattr(self, name) for name in _SCALING))
        arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]
        kind = self.kind_of_task
        settings = LinearSettings(
            kind == "forecast", kind == "classification", self.subtract_last, *arrays
        )
        return BaseSteps(linear, settings, LinearRoom(np.zeros((self.window, len(arrays[1])))))

    def forward(self, inputs: Tensor) -> BaseOutput:
        """Predict; (window, channels) -> (rows, columns).

        With float64 inputs, everything is computed in float64.
        """
        steps = self.steps()
        settings = steps.settings
        responses, channels = settings.weights.shape[1], len(settings.input_loc)
        out = np.zeros((responses, channels) if settings.forecast else (1, responses))
        far = inputs.dtype == torch.float64
        window = np.array(inputs.detach().cpu().numpy(), np.float64)
        forward_kernel(steps.predict)(settings, steps.room, far, window, out)
        answer = torch.from_numpy(out if far else out.astype(np.float32))
        return BaseOutput(answer.to(inputs.device))

    def save(self, path: Path) -> None:
        """Write weights, scaling and statistics as safetensors."""
        tensors = {"weights": self.weights}
        for name in _SCALING:
            tensors[name] = getattr(self, name)
        if self._statistics is not None:
            tensors["gram"], tensors["moment"] = self._statistics.gram, self._statistics.moment
            if (robust := self._statistics.robust) is not None:
                tensors["robust_gram"], tensors["robust_moment"] = robust.gram, robust.moment
        metadata = {
            "format": "streamadapt-linear-1",
            "task": self.kind_of_task,
            "window": str(self.window),
            "subtract_last": str(int(self.subtract_last)),
        }
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)

    @classmethod
    def load(cls, weights: Path) -> Linear:
        """Read a ridge regression that ``streamadapt fit``, or `save`, wrote.

        Parameters
        ----------
        weights : Path
            The file that ``streamadapt fit`` wrote.

        Raises
        ------
        ConfigError
            If the file does not exist, was not written by ``streamadapt fit`` or `save`, or is
            incomplete.
        """
        check_fitted(weights, "base.weights")
        tensors, metadata = read_tensors(weights, "base.weights")
        if metadata.get("format") != "streamadapt-linear-1":
            raise ConfigError("base.weights", str(weights), "a file written by streamadapt fit")
        try:
            return cls._from_file(tensors, metadata)
        except (KeyError, ValueError) as exc:
            raise ConfigError(
                "base.weights", str(weights), f"a whole file as streamadapt fit writes it ({exc})"
            ) from exc

    @classmethod
    def _from_file(cls, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Linear:
        """Make a base from the content of a file; raise `KeyError` or `ValueError` if its parts do
        not fit together."""
        kind: Any = metadata["task"]
        window, subtract_last = int(metadata["window"]), metadata["subtract_last"] == "1"
        if kind not in get_args(TaskKind):
            raise ValueError(f"the task is {kind!r}")
        _check_tensors(tensors, kind, window, subtract_last=subtract_last)
        statistics = _statistics(tensors)
        scaling = {name: tensors[name] for name in _SCALING}
        return cls(
            kind,
            tensors["weights"],
            window,
            subtract_last=subtract_last,
            scaling=scaling,
            statistics=statistics,
        )


def _check_tensors(
    tensors: Mapping[str, Tensor], kind: TaskKind, window: int, *, subtract_last: bool
) -> None:
    """Raise `KeyError` or `ValueError` unless a file holds exactly the tensors of a `Linear`, with
    their shapes and dtypes."""
    forecast = kind == "forecast"
    channels, columns = len(tensors["input_loc"]), len(tensors["output_loc"])
    features = feature_count(window, channels, forecast=forecast)
    responses = tensors["weights"].shape[-1] if forecast else columns
    rows = features if subtract_last or not forecast else features + 1
    shapes: dict[str, tuple[int, ...]] = {"weights": (rows, responses)}
    shapes |= dict.fromkeys(("input_loc", "input_scale"), (channels,))
    shapes |= dict.fromkeys(("output_loc", "output_scale"), (channels if forecast else columns,))
    groups = channels if forecast else 1
    sums = {"gram": (groups, features, features), "moment": (groups, features, responses)}
    if "gram" in tensors:
        shapes |= sums
        if "robust_gram" in tensors:
            shapes |= {f"robust_{name}": shape for name, shape in sums.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        raise ValueError(f"expected tensors of the shapes {shapes}, found {found}")
    for name, tensor in tensors.items():
        wanted = torch.float64 if name.endswith(("gram", "moment")) else torch.float32
        if tensor.dtype != wanted:
            raise ValueError(f"{name} must be {wanted}, not {tensor.dtype}")


def _statistics(tensors: Mapping[str, Tensor]) -> Prior | None:
    """Return the statistics of the fit; None if a file has none."""
    if "gram" not in tensors:
        return None
    robust = None
    if "robust_gram" in tensors:
        robust = Prior(tensors["robust_gram"], tensors["robust_moment"])
    return Prior(tensors["gram"], tensors["moment"], robust)


def load_module(
    factory: str,
    weights: Path | None = None,
    params: dict[str, Any] | None = None,
    *,
    softmax: bool = False,
    embedding: str | None = None,
) -> FrozenModel:
    """Build your own model with a Python function, load its weights, and freeze it; see
    `FrozenModel`.

    Parameters
    ----------
    factory : str
        ``package.module:function``. The function returns a torch module, which takes (1, window,
        channels), or another callable, which takes (window, channels); both return the
        prediction.
    weights : Path, optional
        A safetensors file with the tensors of the module's state dict.
    params : dict, optional
        Arguments of the function.
    softmax : bool
        Whether the model returns logits; the base's output is then their softmax.
    embedding : str, optional
        The submodule whose output is the embedding, by its name in ``named_modules``:
        ``layers.2``.

    Raises
    ------
    ConfigError
        If the factory cannot be imported or called, or the weights do not fit; the error names
        the keys that differ.
    """
    import importlib

    module_name, _, name = factory.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ConfigError(
            "base.factory", factory, f"an importable module:factory ({exc})"
        ) from exc
    try:
        model = make(**(params or {}))
    except TypeError as exc:
        raise ConfigError(
            "base.params", params, f"arguments that {factory} takes ({exc})"
        ) from exc
    if weights is not None:
        _load_weights(model, weights)
    return FrozenModel(model, softmax=softmax, embedding=embedding)


def _load_weights(model: Any, path: Path) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "base.weights", str(path), "no weights: the factory returned no torch module"
        )
    tensors, _ = read_tensors(path, "base.weights")
    expected = model.state_dict()
    for name, tensor in tensors.items():
        if name in expected and tensor.is_floating_point() != expected[name].is_floating_point():
            raise ConfigError(
                "base.weights", str(path), f"{name} as {expected[name].dtype}, not {tensor.dtype}"
            )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as exc:
        raise ConfigError(
            "base.weights", str(path), f"weights that fit the model ({exc})"
        ) from exc
