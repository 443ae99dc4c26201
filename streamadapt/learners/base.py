"""The contract of a learner, and what it is told when it is built."""

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
    "boosted_forgetting",
    "masked_mean",
    "one_or_more",
    "require_shape",
]

INNOVATION_RATE = 0.01
"""How fast the running mean size of a recursive learner's innovations follows them."""
MOST_BOOSTED = 0.5
"""A boost never makes the forgetting faster than this."""

Maturity = Literal["rows", "path"]


class Learner(ShowsArguments, nn.Module, ABC):
    """An online learner: one expert beside the frozen base.

    Its parameters, buffers (optimiser moments included) and `get_extra_state` are its whole state.
    It is constructed with hyper-parameters only; the pipeline calls `build` once, when the shapes
    are known.

    Attributes
    ----------
    kind : str
        The name in the config.
    matures : {"path", "rows"}
        What one matured example is. ``"path"``: one whole forecast, when its last target is known.
        ``"rows"``: what became known at one arrival: row h belongs to the forecast issued h
        entries ago (h from 1), so every row is learned as early as it can be; `inputs` is the
        window of the newest of them. The same for supervised tasks.
    kinds : frozenset of str
        The task kinds it can learn.
    needs_labels : bool
        False for learners that adapt without labels: `learn` is never called, `adapt` is.
    boost : float, >= 1
        How much faster to learn just now; set by the pipeline's reactions before each `learn`,
        never part of the state.
    weight : float, >= 0
        What the example counts; set by the pipeline before each `learn`, like `boost`, and 1 but
        for examples that are learned more than once (`streamadapt.tasks.delayed_positives`:
        classification only). A learner that minimises a loss minimises the weighted one: least
        squares and memories count an example so many times, a step's rate is so many times as
        large. 0 teaches nothing. What does not look at it learns without the weights.
    """

    config_group: ClassVar[str] = "learners"
    """In a config, a table with a ``kind`` of this group stands for a learner."""
    kind: ClassVar[str]
    kinds: ClassVar[frozenset[TaskKind]] = frozenset(get_args(TaskKind))
    matures: ClassVar[Maturity] = "path"
    needs_labels: ClassVar[bool] = True
    boost: float
    weight: float
    spec: Spec
    _norm_told: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self.boost = 1.0
        self.weight = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts it offers, each the kind and what tells it from its siblings:
        ``("bias-0.02",)``.

        Most learners are one expert. A family that differs in one number only (the rates of a
        bias) is one learner with an expert each: its arithmetic is done for all of them at once.
        """
        return (self.kind,)

    @property
    def signal_names(self) -> tuple[str, ...]:
        """Names of the scalars that `signals` tells about the newest entry; they start with its
        kind."""
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
        """Register parameters and buffers afresh, in the state that `reset` returns to."""

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
        columns) of a family
            Never a view of the state. Nothing changes: the same again says the same again.
        """

    @abstractmethod
    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Make one update from one matured example.

        Parameters
        ----------
        inputs, base
            As `predict` saw them when the example was issued (see `matures` for rows).
        target : Tensor, (rows, columns), float32, original units less `Spec.output_origin`
            Anything (NaN too) where `mask` is False.
        mask : Tensor, (rows, columns), bool
            Where the target is known. All False: no prediction changes.
        """

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Take in one entry without its label, right after it was predicted: a live state,
        statistics, an entropy step.

        Called once for every entry that is observed, and not for questions asked in between
        (`Pipeline.predict`). It sees what `predict` saw; what `predict` has worked out already may
        be kept for it, outside the state.
        """

    @property
    def gradient_norm(self) -> float | None:
        """Norm of the newest gradient step's gradient; None for a learner that makes none, or has
        made none yet."""
        optimiser = getattr(self, "optimiser", None)
        norm = getattr(optimiser, "norm", None)
        return None if norm is None else float(norm)

    def take_gradient_norm(self) -> float | None:
        """Return the norm of a gradient step made since the last call; None where there was none.

        One that makes its steps with `streamadapt.learners.optimizer.Optimiser` tells of each step
        once; others of each new value of `gradient_norm`. So the norm for which a learner was
        taken out is not held against it again.
        """
        optimiser = getattr(self, "optimiser", None)
        if isinstance(optimiser, Optimiser):
            return self.gradient_norm if optimiser.take_news() else None
        norm, told = self.gradient_norm, self._norm_told
        self._norm_told = norm
        same = norm == told or (norm != norm and told != told)
        return None if same else norm

    def forget(self, keep: float) -> None:
        """Give what was learned so far only `keep` of its weight, after a drift; by default
        nothing changes.

        What is forgotten goes back towards what the learner was built with (corrections shrink,
        memories lose their oldest), or moves more easily from now on (the covariance of least
        squares is inflated).

        Parameters
        ----------
        keep : float, in [0, 1)
        """

    def signals(self) -> dict[str, float]:
        """Return a scalar for each of `signal_names` about the newest entry taken in by `adapt`.

        They are offered to drift monitors by name, and given out with the prediction (as anomaly
        scores); NaN says nothing. Part of no state.
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
    """Raise `ShapeError` unless `tensor` is exactly of `shape`."""
    if tuple(tensor.shape) != shape:
        raise ShapeError(f"{name} must be {shape}, got {tuple(tensor.shape)}")


def one_or_more(
    path: str, value: float | Sequence[float], low: float, high: float
) -> tuple[float, ...]:
    """Return the settings of a family as a tuple; `ConfigError` unless each lies in (low, high]
    and all differ."""
    values = tuple(float(v) for v in value) if isinstance(value, Sequence) else (float(value),)
    if not values or len(set(values)) < len(values) or not all(low < v <= high for v in values):
        raise ConfigError(
            path, value, f"a number in ({low:g}, {high:g}], or a list of different ones"
        )
    return values


def boosted_forgetting(forgetting: Tensor, boost: float) -> Tensor:
    """Return how fast to forget while a boost lasts: its memory is as many times shorter, within
    `MOST_BOOSTED`."""
    return (
        forgetting if boost == 1.0 else (1.0 - (1.0 - forgetting) * boost).clamp_min(MOST_BOOSTED)
    )


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` over the cells where `mask` holds, NaN (and zero gradient) cells outside
    it; () shaped."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()
