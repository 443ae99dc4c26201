"""The contract of a learner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from streamadapt.arguments import ShowsArguments
from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners.optimizer import Optimiser
from streamadapt.models.contract import BaseOutput, Spec, TaskKind

__all__ = [
    "INNOVATION_RATE",
    "Learner",
    "Maturity",
    "masked_mean",
    "one_or_more",
    "require_shape",
]

INNOVATION_RATE = 0.01
"""How fast the running mean size of a recursive learner's innovations follows them."""
MOST_BOOSTED = 0.5
"""The smallest forgetting factor under a boost."""

Maturity = Literal["rows", "path"]


class Learner(ShowsArguments, nn.Module, ABC):
    """An online learner: an expert next to the frozen base.

    Its parameters, buffers (optimiser moments included) and `get_extra_state` are its whole state.
    The constructor takes hyper-parameters only; the pipeline calls `build` once, when the shapes
    are known.

    Attributes
    ----------
    kind : str
        The name in the config.
    matures : {"path", "rows"}
        The form of a matured example. ``"path"``: one whole forecast, when its last target is
        known. ``"rows"``: all targets that became known at one arrival: row h belongs to the
        forecast issued h entries ago (h from 1), so every row is learned as early as possible;
        `inputs` is the window of the newest forecast. Both are the same for supervised tasks.
    kinds : frozenset of str
        The task kinds it can learn.
    needs_labels : bool
        False for learners that adapt without labels: `learn` is never called, `adapt` is.
    boost : float, >= 1
        The current factor of the learning speed; the pipeline sets it before each `learn`. Never
        part of the state.
    weight : float, >= 0
        The weight of the example; the pipeline sets it before each `learn`. It differs from 1 only
        for examples that are learned more than once (`streamadapt.tasks.delayed_positives`:
        classification only). A learner that minimises a loss minimises the weighted loss: least
        squares and memories count the example with this weight, gradient steps multiply their rate
        by it. With 0 nothing is learned. A learner may ignore the weight.
    """

    config_group: ClassVar[str] = "learners"
    """The group of entry points with the kinds of learners: in a config, a table with such a
    ``kind`` describes a learner."""
    kind: ClassVar[str]
    kinds: ClassVar[frozenset[TaskKind]] = frozenset(get_args(TaskKind))
    matures: ClassVar[Maturity] = "path"
    needs_labels: ClassVar[bool] = True
    boost: float
    weight: float
    spec: Spec
    _norm_reported: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self.boost = 1.0
        self.weight = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its experts; each is the kind and the settings that differ: ``("bias-0.02",)``.

        Most learners are one expert. A family that differs in one number only (the rates of a
        bias) is one learner with one expert per number, and computes all of them together.
        """
        return (self.kind,)

    @property
    def signal_names(self) -> tuple[str, ...]:
        """Names of the numbers that `signals` returns for the newest entry; they start with the
        kind of the learner."""
        return ()

    def build(self, spec: Spec) -> None:
        """Allocate all state for `spec`, on its device.

        Called once by the pipeline, and again by `reset`.

        Raises
        ------
        ConfigError
            If the learner is not made for such a task.
        """
        self.check_kind(spec.kind)
        self.spec = spec
        self.allocate(spec)

    def check_kind(self, kind: TaskKind) -> None:
        """Raise `ConfigError` unless `kind` is one of `kinds`."""
        if kind not in self.kinds:
            raise ConfigError(
                "learners.kind",
                self.kind,
                f"a learner for a {kind} task ({self.kind}: {sorted(self.kinds)})",
            )

    @abstractmethod
    def allocate(self, spec: Spec) -> None:
        """Register all parameters and buffers in their initial state, to which `reset` returns."""

    @abstractmethod
    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Predict one entry.

        Parameters
        ----------
        inputs : Tensor, (window, channels), float32, finite
            In original units less `Spec.input_origin`.
        base : BaseOutput
            ``base.output`` is (rows, columns).

        Returns
        -------
        Tensor, (rows, columns), float32, original units less `Spec.output_origin`; (experts, rows,
        columns) for a family
            Never a view of the state. Nothing changes: the same call returns the same numbers.
        """

    @abstractmethod
    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Make one update from one matured example.

        Parameters
        ----------
        inputs, base
            The arguments of `predict` when the example was issued (see `matures` for rows).
        target : Tensor, (rows, columns), float32, original units less `Spec.output_origin`
            Anything (NaN too) where `mask` is False.
        mask : Tensor, (rows, columns), bool
            True for known targets. If all are False, no prediction changes.
        """

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Adapt to one entry without its label, right after its prediction: a recurrent state,
        statistics, an entropy step.

        Called once for every observed entry, but not for calls of `Pipeline.predict` in between.
        Its arguments are those of `predict`; results of `predict` may be kept for it, outside the
        state.
        """

    @property
    def gradient_norm(self) -> float | None:
        """The norm of the gradient in the newest gradient step; None if there was no step yet, or
        the learner makes none."""
        optimiser = getattr(self, "optimiser", None)
        norm = getattr(optimiser, "norm", None)
        return None if norm is None else float(norm)

    def take_gradient_norm(self) -> float | None:
        """Return the norm of a gradient step made since the last call; None if there was no step.

        A learner with an `Optimiser` reports each step once; other learners report each new value
        of `gradient_norm`. So a learner is not suspended twice for the same norm.
        """
        optimiser = getattr(self, "optimiser", None)
        if isinstance(optimiser, Optimiser):
            return self.gradient_norm if optimiser.take_stepped() else None
        norm, previous = self.gradient_norm, self._norm_reported
        self._norm_reported = norm
        same = norm == previous or (norm != norm and previous != previous)
        return None if same else norm

    def forget(self, keep: float) -> None:
        """Reduce the weight of everything learned so far to `keep`, after a drift; by default
        nothing changes.

        The state moves back towards its initial state (corrections shrink, memories drop their
        oldest examples), or adapts faster from now on (the covariance of least squares is
        inflated).

        Parameters
        ----------
        keep : float, in [0, 1)
        """

    def signals(self) -> dict[str, float]:
        """Return a number for each of `signal_names`, for the newest entry passed to `adapt`.

        Drift monitors can watch them by name, and they are part of the prediction (as anomaly
        scores). NaN means that there is no value. Not part of the state.
        """
        return {}

    def snapshot(self) -> dict[str, Any]:
        """Return a detached copy of the whole state."""
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.state_dict().items()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go back to a `snapshot` taken some entries ago."""
        self.load_state_dict(snapshot)

    def reset(self) -> None:
        """Return to the state the learner was built with."""
        self.build(self.spec)


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `ShapeError` unless `tensor` has exactly this shape."""
    if tuple(tensor.shape) != shape:
        raise ShapeError(f"{name} must be {shape}, got {tuple(tensor.shape)}")


def one_or_more(
    path: str, value: float | Sequence[float], low: float, high: float
) -> tuple[float, ...]:
    """Return the settings of a family as a tuple; raise `ConfigError` unless each is in (low,
    high] and all differ."""
    values = tuple(float(v) for v in value) if isinstance(value, Sequence) else (float(value),)
    if not values or len(set(values)) < len(values) or not all(low < v <= high for v in values):
        raise ConfigError(
            path, value, f"a number in ({low:g}, {high:g}], or a list of different ones"
        )
    return values


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` over the cells where `mask` is True, shape (); other cells may
    be NaN, and have a zero gradient."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()
