"""The contract between the pipeline and a frozen model: its inputs, its output, and the facts that
it declares about itself."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from streamadapt.arguments import ShowsArguments
from streamadapt.errors import ConfigError, ShapeError
from streamadapt.models.origin import FLOAT32_MAX
from streamadapt.models.own_settings import own_settings
from streamadapt.models.steps import BaseSteps
from streamadapt.models.turns import Turn
from streamadapt.records import Mask

__all__ = [
    "MOST_WEIGHT",
    "Base",
    "BaseOutput",
    "FrozenModel",
    "Prior",
    "Spec",
    "TaskKind",
    "as_base",
    "check_probabilities",
    "shaped_output",
    "without_nonfinite",
]


MOST_WEIGHT = 1.0 / 0.3
"""The largest weight of one example when least squares are reweighted towards absolute errors."""
TaskKind = Literal["forecast", "regression", "classification"]


class BaseOutput(NamedTuple):
    """The output of the frozen base for one entry, with the event times of its window.

    Attributes
    ----------
    output : Tensor, (rows, columns), float32, original units (probabilities for classification)
        A base may return float64. Learners get float32, less `Spec.output_origin`.
    embedding : Tensor, (features,), float32, or None
        The base's hidden layer, if it returns one.
    times : Tensor, (window,), int64, ns since the Unix epoch, or None
        Event times of the window's entries, the newest last. The pipeline sets them; a base does
        not know them.
    """

    output: Tensor
    embedding: Tensor | None = None
    times: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Prior:
    """Sufficient statistics of the data that a linear base was fitted on, in scaled units.

    Attributes
    ----------
    gram : Tensor, (groups, features, features), float64
        Sum of ``x x^T`` with x as `streamadapt.models.features.linear_features` makes it; a group
        is a channel of a forecast, or the one group of a supervised task.
    moment : Tensor, (groups, features, responses), float64
        Sum of ``x (y - base)^T``, the base's residuals.
    robust : Prior or None
        The same sums with the weights that a fit by least absolute deviations gives to each
        example: the start of a learner that is judged by absolute errors. None if they were not
        computed.
    """

    gram: Tensor
    moment: Tensor
    robust: Prior | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """All that a learner needs to allocate its state: shapes, units, device, seed.

    Attributes
    ----------
    window, channels : int
        Inputs are (window, channels), original units less `input_origin`.
    rows, columns : int
        Outputs are (rows, columns): (horizon, channels) for a forecast, (1, outputs) for a
        regression, (1, classes) for a classification.
    input_loc, input_scale : Tensor, (channels,), float32
        ``(inputs - input_loc) / input_scale`` is of order one.
    output_loc, output_scale : Tensor, (columns,), float32
        The same for outputs; 0 and 1 for classification.
    seed : int
        The seed of the learner's random numbers; the same seed gives the same bits.
    prior : Prior or None
        Statistics of the data that the base was fitted on; None if the base has none.
    embedding : int or None
        The number of features of ``BaseOutput.embedding``; None if the base returns no embedding.
    model : Base or None
        The frozen base itself, for learners that adapt a copy of it. Never write to it. It takes
        original units; `ask` calls it with inputs in the learners' units.
    input_origin : Tensor, (channels,), float64, or None
        The value that was subtracted from the inputs, and from `input_loc`, before they became
        float32; None: nothing was subtracted. It is not 0 for channels so far from zero that
        float32 would lose their changes (`streamadapt.models.origin`).
    output_origin : Tensor, (columns,), float64, or None
        The same for the base's output, targets, predictions and `output_loc`. None for
        classification.
    """

    kind: TaskKind
    window: int
    channels: int
    rows: int
    columns: int
    input_loc: Tensor
    input_scale: Tensor
    output_loc: Tensor
    output_scale: Tensor
    device: torch.device
    seed: int = 0
    prior: Prior | None = None
    embedding: int | None = None
    model: nn.Module | None = None
    input_origin: Tensor | None = None
    output_origin: Tensor | None = None

    def ask(self, inputs: Tensor) -> BaseOutput:
        """Return the output of `model` for inputs (window, channels); inputs and output are in the
        learners' units."""
        model: Any = self.model
        far = self.input_origin is not None or self.output_origin is not None
        original = inputs if self.input_origin is None else inputs.double() + self.input_origin
        answer: BaseOutput = model(original.to(model.input_dtype(far=far)))
        output = (
            answer.output
            if self.output_origin is None
            else answer.output.double() - self.output_origin
        )
        return answer._replace(output=output.float())

    def generator(self) -> torch.Generator:
        """Return a new CPU generator seeded with `seed`; on the CPU, so that every device starts
        with the same numbers."""
        return torch.Generator().manual_seed(self.seed)


class Base(ShowsArguments, nn.Module, ABC):
    """A frozen model: ``inputs -> BaseOutput``.

    Attributes
    ----------
    input_loc, input_scale, output_loc, output_scale : Tensor or None
        The scaling of the data that it was fitted on; learners then work in these units. None if
        the base does not know it.
    """

    kind: ClassVar[str]
    input_loc: Tensor | None
    input_scale: Tensor | None
    output_loc: Tensor | None
    output_scale: Tensor | None
    warned_of_rounding = False
    """Whether `streamadapt.pipeline.origin.warn_of_rounding` has logged its warning."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("input_loc", "input_scale", "output_loc", "output_scale"):
            self.register_buffer(name, None)

    @property
    def channels(self) -> int | None:
        """The number of channels that the base was made for; None if it takes any number."""
        return None

    def prior(self) -> Prior | None:
        """Return the sufficient statistics of its fit; None if it has none."""
        return None

    def input_dtype(self, *, far: bool) -> torch.dtype:
        """Return the type of the numbers that `forward` takes.

        Parameters
        ----------
        far : bool
            Whether a channel is so far from zero that float32 rounds its changes; see
            `streamadapt.models.origin`.
        """
        del far
        return torch.float32

    def steps(self) -> BaseSteps | None:
        """Return the base as a compiled function, for lots; None: it is called for each window."""
        return None

    def check(self, kind: TaskKind, window: int, rows: int, columns: int | None) -> None:
        """Raise `ConfigError` if the base was not made for such a task; `columns` is None if it is
        not known yet."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> BaseOutput:
        """Predict from one window.

        Parameters
        ----------
        inputs : Tensor, (window, channels), original units, of `input_dtype`

        Returns
        -------
        BaseOutput
            ``output`` is (rows, columns), original units, float32 or float64.
        """


class FrozenModel(Base):
    """A frozen copy of any module or callable ``inputs -> output | (output, embedding)``; it is
    never written to.

    Parameters
    ----------
    model : nn.Module or callable
        A module is deep-copied, put in eval mode and stripped of gradients.
    batched : bool, optional
        Whether the model takes (1, window, channels) and returns a leading 1. Default: yes for
        modules, no for other callables.
    softmax : bool
        Whether the model returns logits; the base's output is then their softmax.
    embedding : str, optional
        The submodule whose output is the embedding, by its name in ``named_modules``:
        ``"layers.2"``.

    Examples
    --------
    >>> model = FrozenModel(nn.Linear(2, 1))
    >>> model(torch.zeros(6, 2)).output.shape
    torch.Size([6, 1])
    """

    kind: ClassVar[str] = "module"

    @own_settings
    def __init__(
        self,
        model: Callable[..., Any],
        *,
        batched: bool | None = None,
        softmax: bool = False,
        embedding: str | None = None,
    ) -> None:
        super().__init__()
        self.batched = isinstance(model, nn.Module) if batched is None else batched
        self.softmax = softmax
        if isinstance(model, nn.Module):
            self.model: Callable[..., Any] = copy.deepcopy(model).eval().requires_grad_(False)
        else:
            self.model = model
        self._turn = Turn("the base")
        kinds = {p.dtype for p in self.parameters() if p.is_floating_point()}
        self._takes = torch.float64 if kinds == {torch.float64} else torch.float32
        self._shown: Tensor | None = None
        if embedding is not None:
            self._submodule(embedding).register_forward_hook(self._show)

    def _submodule(self, name: str) -> nn.Module:
        known: dict[str, nn.Module] = (
            dict(self.model.named_modules()) if isinstance(self.model, nn.Module) else {}
        )
        if not name or name not in known:
            names = ", ".join(n for n in known if n) or "none: the model is no torch module"
            raise ConfigError(
                "base.embedding", name, f"the name of a submodule of the model ({names})"
            )
        return known[name]

    def _show(self, module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        if not isinstance(output, Tensor):
            raise ConfigError(
                "base.embedding", type(output).__name__, "a submodule that returns one tensor"
            )
        self._shown = output.detach().flatten().clone()

    def train(self, mode: bool = True) -> FrozenModel:
        """Stay in eval mode: in training mode, batch norms would change their statistics."""
        del mode
        return super().train(False)

    def input_dtype(self, *, far: bool) -> torch.dtype:
        """Return float64 if all parameters of the model are float64, else float32."""
        del far
        return self._takes

    def forward(self, inputs: Tensor) -> BaseOutput:
        """Call the model; callers from other threads wait, because pipelines may share a base."""
        with self._turn, torch.no_grad():
            self._shown = None
            result = self.model(inputs.unsqueeze(0) if self.batched else inputs)
            shown = self._shown
        output, embedding = result if isinstance(result, tuple) else (result, shown)
        output = torch.as_tensor(output, device=inputs.device)
        if output.is_complex():
            raise ShapeError(f"the base must return real numbers, got {output.dtype}")
        output = shaped_output(output.to(inputs.dtype))
        if self.softmax:
            output = torch.softmax(output, dim=-1)
        return BaseOutput(
            output, None if embedding is None else torch.as_tensor(embedding).float().flatten()
        )


def shaped_output(output: Tensor) -> Tensor:
    """Return a model's output for one entry as (rows, columns): leading dimensions of size 1 are
    removed, and a vector becomes one row.

    Raises
    ------
    ShapeError
        If the output has more dimensions.
    """
    while output.ndim > 2 and output.shape[0] == 1:
        output = output.squeeze(0)
    if output.ndim < 2:
        output = output.reshape(1, -1)
    if output.ndim != 2:
        raise ShapeError(
            f"the base must return (rows, columns) for one entry, got {tuple(output.shape)}"
        )
    return output


def check_probabilities(output: Tensor) -> bool:
    """Check that the base of a classification returns distributions.

    Rounding errors are tolerated: 1 in 1,000 for each probability, 1 in 100 for their sum. The
    softmax of probabilities is a distribution too, so that mistake cannot be detected.

    Parameters
    ----------
    output : Tensor, (1, classes)

    Returns
    -------
    bool
        Whether the output could be checked: False if it is not finite.

    Raises
    ------
    ConfigError
        If the output is no distribution.
    """
    if not bool(torch.isfinite(output).all()):
        return False
    low, high, total = output.min().item(), output.max().item(), output.sum(dim=-1)[0].item()
    if low < -1e-3 or high > 1.0 + 1e-3 or abs(total - 1.0) > 1e-2:
        expected = (
            "true: the model returns no probabilities (from 0 to 1, with the sum 1), but "
            "probably logits"
        )
        shown = ", ".join(f"{p:.4g}" for p in output[0, :6].tolist()) + (
            ", ..." if output.shape[1] > 6 else ""
        )
        raise ConfigError("base.softmax", False, f"{expected}, such as {shown}")
    return True


def without_nonfinite(
    answer: BaseOutput, kind: TaskKind, instead: Tensor
) -> tuple[BaseOutput, Mask | None]:
    """Replace the non-finite numbers in a base's output, so that they reach neither learners nor
    guard.

    Parameters
    ----------
    instead : Tensor, (columns,)
        The values for such cells. A distribution with such a cell is replaced by the uniform
        distribution as a whole.

    Returns
    -------
    BaseOutput
        All finite.
    ndarray, (rows, columns), bool, or None
        The cells without a usable number; None if every cell has one.
    """
    fine = answer.output.abs() <= FLOAT32_MAX  # False for NaN; learners take float32 only
    embedding = None if answer.embedding is None else answer.embedding.nan_to_num()
    if bool(fine.all()):
        return answer._replace(embedding=embedding), None
    if kind == "classification":
        fine, instead = torch.zeros_like(fine), torch.full_like(instead, 1.0 / len(instead))
    return answer._replace(
        output=torch.where(fine, answer.output, instead), embedding=embedding
    ), ~fine.cpu().numpy()


def as_base(model: Base | Callable[..., Any]) -> Base:
    """Return `model` itself if it is a `Base`, else a frozen copy of it."""
    return model if isinstance(model, Base) else FrozenModel(model)
