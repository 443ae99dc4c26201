"""Any river regressor or classifier as a learner."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner, Maturity, require_shape
from streamadapt.models.contract import BaseOutput, Spec, TaskKind
from streamadapt.state.river_pickle import dumps_river, loads_river

__all__ = ["River"]

MOST_MODELS = 64


class River(Learner):
    """A river estimator that corrects the base [1]_.

    Regression and forecasts: one clone of a regressor per output cell learns the base's residual,
    in scaled units; ``prediction = base + scale * model(x)``. Classification: one classifier;
    ``prediction`` is its class probabilities, and those of the base before the first label. x has
    the scaled window and the base's scaled output, as ``c0_0`` (channel 0, newest) to ``c0_5``
    (five entries ago) and ``base_0``.

    Costs: those of the river estimator, once per cell; at most `MOST_MODELS` cells.

    Parameters
    ----------
    model : str or river estimator
        A path below ``river``, e.g. ``"linear_model.LinearRegression"``, or an instance (which is
        cloned).
    params : mapping, optional
        Constructor arguments, where `model` is a path.
    scale : bool
        Put river's StandardScaler in front.

    References
    ----------
    .. [1] Montiel et al. (2021), River: machine learning for streaming data in Python, JMLR 22.

    Examples
    --------
    >>> River("linear_model.LinearRegression", {"l2": 0.01}).names
    ('river-LinearRegression',)
    """

    kind: ClassVar[str] = "river"
    matures: ClassVar[Maturity] = "path"

    def __init__(
        self, model: Any, params: Mapping[str, Any] | None = None, *, scale: bool = True
    ) -> None:
        super().__init__()
        self._prototype = (
            _construct(model, dict(params or {})) if isinstance(model, str) else model
        )
        if not hasattr(self._prototype, "learn_one") or not hasattr(
            self._prototype, "predict_one"
        ):
            raise ConfigError("model", model, "a river estimator with learn_one and predict_one")
        self.scale = scale

    @property
    def names(self) -> tuple[str, ...]:
        """``river-HoeffdingTreeRegressor``."""
        return (f"{self.kind}-{type(self._estimator()).__name__}",)

    def _estimator(self) -> Any:
        last = self._prototype
        while hasattr(last, "steps"):  # the last step decides the type of a river pipeline
            last = list(last.steps.values())[-1]
        return last

    def check_kind(self, kind: TaskKind) -> None:
        """Refuse a regressor for classes and a classifier for values."""
        super().check_kind(kind)
        classify = kind == "classification"
        if classify != hasattr(self._estimator(), "predict_proba_one"):
            wanted = "classifier (predict_proba_one)" if classify else "regressor"
            raise ConfigError("model", self.names[0], f"a river {wanted} for a {kind} task")

    def allocate(self, spec: Spec) -> None:
        """Clone one model per cell."""
        classify = spec.kind == "classification"
        cells = 1 if classify else spec.rows * spec.columns
        if cells > MOST_MODELS:
            raise ConfigError(
                "learners.kind",
                self.kind,
                f"at most {MOST_MODELS} output cells, this task has {cells}",
            )
        self.models = [self._clone(spec.seed + i) for i in range(cells)]
        self._weighs = "w" in inspect.signature(self._estimator().learn_one).parameters

    def _clone(self, seed: int) -> Any:
        model = self._prototype.clone(_seeds(self._prototype._get_params(), seed))
        if not self.scale:
            return model
        from river import preprocessing

        return preprocessing.StandardScaler() | model

    def get_extra_state(self) -> bytes:
        """Return the models as bytes that only `streamadapt.state.river_pickle` reads."""
        return dumps_river(self.models)

    def set_extra_state(self, state: bytes) -> None:
        """Take over what `get_extra_state` returned."""
        models = loads_river(state)
        if not isinstance(models, list) or len(models) != len(self.models):
            raise ConfigError(
                "checkpoint", type(models).__name__, f"a list of {len(self.models)} river models"
            )
        self.models = models

    def _features(self, inputs: Tensor, base: BaseOutput) -> dict[str, float]:
        spec = self.spec
        require_shape("inputs", inputs, (spec.window, spec.channels))
        scaled = ((inputs - spec.input_loc) / spec.input_scale).flip(0).tolist()
        x = {f"c{c}_{lag}": v for lag, row in enumerate(scaled) for c, v in enumerate(row)}
        outputs = ((base.output - spec.output_loc) / spec.output_scale).flatten().tolist()
        x.update({f"base_{i}": v for i, v in enumerate(outputs)})
        return x

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Predict with the models."""
        x = self._features(inputs, base)
        if self.spec.kind == "classification":
            return self._probabilities(x, base)
        left = torch.tensor(
            [float(m.predict_one(x)) for m in self.models],
            dtype=torch.float32,
            device=self.spec.device,
        )
        return base.output + left.view_as(base.output) * self.spec.output_scale

    def _probabilities(self, x: dict[str, float], base: BaseOutput) -> Tensor:
        probabilities = self.models[0].predict_proba_one(x)
        p = torch.tensor(
            [[float(probabilities.get(c, 0.0)) for c in range(self.spec.columns)]],
            dtype=torch.float32,
            device=self.spec.device,
        )
        total = p.sum()
        return p / total if bool(total > 0.0) else base.output.clone()

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Let each model with a known target learn it."""
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        if not bool(mask.any()):
            return
        x = self._features(inputs, base)
        if self.spec.kind == "classification":
            weight = {"w": self.weight} if self.weight != 1.0 and self._weighs else {}
            self.models[0].learn_one(x, int(target.argmax()), **weight)
            return
        left = ((target - base.output) / self.spec.output_scale).flatten().tolist()
        for model, y, known in zip(self.models, left, mask.flatten().tolist(), strict=True):
            if known:
                model.learn_one(x, y)


def _seeds(params: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return values for the seeds that are not set: river would draw them at random, and replays
    would differ."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        if name == "seed" and value is None:
            found[name] = seed
        # A step of a river pipeline.
        elif isinstance(value, dict) and (inner := _seeds(value, seed)):
            found[name] = inner
        elif (
            isinstance(value, tuple)
            and value
            and isinstance(value[-1], dict)
            and (inner := _seeds(value[-1], seed))
        ):
            found[name] = (value[0], inner)  # an estimator within another
    return found


def _construct(path: str, params: dict[str, Any]) -> Any:
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(f"river.{module}"), name)
    except (ImportError, AttributeError) as exc:
        raise ConfigError(
            "model", path, "a path below river, such as linear_model.LinearRegression"
        ) from exc
    try:
        return cls(**params)
    except TypeError as exc:
        raise ConfigError("params", params, f"arguments of river.{path} ({exc})") from exc
