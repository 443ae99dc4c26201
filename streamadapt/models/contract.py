"""What a frozen model is to the pipeline: what it is given, what it returns, what it tells about
itself."""

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
"""Where least squares are reweighted towards absolute errors, an example counts at most so many
times."""
TaskKind = Literal["forecast", "regression", "classification"]


class BaseOutput(NamedTuple):
    """What the frozen base said about one entry, and when.

    Attributes
    ----------
    output : Tensor, (rows, columns), float32, original units (probabilities for classification)
        A base may say it in float64. Learners are given float32, less `Spec.output_origin`.
    embedding : Tensor, (features,), float32, or None
        The base's hidden layer, where it has one to show.
    times : Tensor, (window,), int64, ns since the Unix epoch, or None
        Event times of the window's entries, the newest last. The pipeline puts them here; a base
        does not know them.
    """

    output: Tensor
    embedding: Tensor | None = None
    times: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Prior:
    """Sufficient statistics of the part a linear base was fitted on, in scaled units.

    Attributes
    ----------
    gram : Tensor, (groups, features, features), float64
        Sum of ``x x^T`` with x as `streamadapt.models.features.linear_features` makes it; a group
        is a channel of a forecast, or the one group of a supervised task.
    moment : Tensor, (groups, features, responses), float64
        Sum of ``x (y - base)^T``: what the base left over.
    robust : Prior or None
        The same sums with every example weighted by its errors, as least absolute deviations weigh
        them in the end: what a learner that is judged by absolute errors starts from. None where
        nobody worked them out.
    """

    gram: Tensor
    moment: Tensor
    robust: Prior | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """What a learner must know to allocate itself: shapes, units, device, seed.

    Attributes
    ----------
    window, channels : int
        Inputs are (window, channels), original units less `input_origin`.
    rows, columns : int
        Outputs are (rows, columns): (horizon, channels) of a forecast, (1, outputs) or (1,
        classes) otherwise.
    input_loc, input_scale : Tensor, (channels,), float32
        ``(inputs - input_loc) / input_scale`` is of order one.
    output_loc, output_scale : Tensor, (columns,), float32
        The same for outputs; 0 and 1 for classification.
    seed : int
        Of the learner's own random numbers; the same seed gives the same bits.
    prior : Prior or None
        Where the base can tell what it was fitted on.
    embedding : int or None
        Features of ``BaseOutput.embedding``; None where the base shows none.
    model : Base or None
        The frozen base itself, for learners that adapt a copy of it. Never write to it. It takes
        original units: `ask` puts a question to it in the learners' own.
    input_origin : Tensor, (channels,), float64, or None
        What was subtracted from the inputs, and from `input_loc`, before they became float32;
        None: nothing. It is not 0 for channels that are so far from zero that float32 would lose
        their changes (`streamadapt.models.origin`).
    output_origin : Tensor, (columns,), float64, or None
        The same of the base's output, targets, predictions and `output_loc`. None for
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
        """Return what `model` says of inputs (window, channels) in the learners' units, in these
        units."""
        model: Any = self.model
        far = self.input_origin is not None or self.output_origin is not None
        original = inputs if self.input_origin is None else inputs.double() + self.input_origin
        said: BaseOutput = model(original.to(model.input_dtype(far=far)))
        output = (
            said.output
            if self.output_origin is None
            else said.output.double() - self.output_origin
        )
        return said._replace(output=output.float())

    def generator(self) -> torch.Generator:
        """Return a fresh CPU generator seeded with `seed` (CPU, so that every device starts from
        the same numbers)."""
        return torch.Generator().manual_seed(self.seed)


class Base(ShowsArguments, nn.Module, ABC):
    """A frozen model: ``inputs -> BaseOutput``.

    Attributes
    ----------
    input_loc, input_scale, output_loc, output_scale : Tensor or None
        The scaling of the part it was fitted on, where it knows; learners then work in those
        units.
    """

    kind: ClassVar[str]
    input_loc: Tensor | None
    input_scale: Tensor | None
    output_loc: Tensor | None
    output_scale: Tensor | None
    warned_of_rounding = False
    """Whether `streamadapt.pipeline.origin.warn_of_rounding` has said its word."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("input_loc", "input_scale", "output_loc", "output_scale"):
            self.register_buffer(name, None)

    @property
    def channels(self) -> int | None:
        """How many channels it was made for; None where it does not care."""
        return None

    def prior(self) -> Prior | None:
        """Sufficient statistics of its fit, where it has them."""
        return None

    def input_dtype(self, *, far: bool) -> torch.dtype:
        """Return the type of the numbers that `forward` takes.

        Parameters
        ----------
        far : bool
            Whether there is a channel so far from zero that float32 rounds its changes; see
            `streamadapt.models.origin`.
        """
        del far
        return torch.float32

    def check(self, kind: TaskKind, window: int, rows: int, columns: int | None) -> None:
        """Raise `ConfigError` if it was not made for such a task (`columns` is None where not
        known yet)."""

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
    """Any module or callable ``inputs -> output | (output, embedding)``, as a copy that is never
    written to.

    Parameters
    ----------
    model : nn.Module or callable
        A module is deep-copied, put in eval mode and stripped of gradients.
    batched : bool, optional
        Whether the model wants (1, window, channels) and returns a leading 1; default: yes for
        modules, no otherwise.
    softmax : bool
        Whether the model returns logits, of which the output is the softmax.
    embedding : str, optional
        The submodule whose output is the embedding, as ``named_modules`` calls it: ``"layers.2"``.

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

    def _show(self, module: nn.Module, given: Any, said: Any) -> None:
        del module, given
        if not isinstance(said, Tensor):
            raise ConfigError(
                "base.embedding", type(said).__name__, "a submodule that returns one tensor"
            )
        self._shown = said.detach().flatten().clone()

    def train(self, mode: bool = True) -> FrozenModel:
        """Stay frozen: a training mode would let batch norms write to themselves."""
        del mode
        return super().train(False)

    def input_dtype(self, *, far: bool) -> torch.dtype:
        """Take what the model's parameters are made of: float64 where all of them are, else
        float32."""
        del far
        return self._takes

    def forward(self, inputs: Tensor) -> BaseOutput:
        """Call the model; callers from other threads wait, since pipelines may share a base."""
        with self._turn, torch.no_grad():
            self._shown = None
            said, shown = self.model(inputs.unsqueeze(0) if self.batched else inputs), self._shown
        output, embedding = said if isinstance(said, tuple) else (said, shown)
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
    """Return what a model said about one entry as (rows, columns): without leading ones, a vector
    as one row.

    Raises
    ------
    ShapeError
        If it has more dimensions.
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
    """Check that a classification's base returns distributions; whether there was anything to be
    seen.

    Rounding is allowed for: 1 in 1,000 for each probability, 1 in 100 for their sum. Probabilities
    that were put through a softmax once more are still distributions, and cannot be told from
    others.

    Parameters
    ----------
    output : Tensor, (1, classes)

    Raises
    ------
    ConfigError
        If the probabilities are none.
    """
    if not bool(torch.isfinite(output).all()):
        return False
    low, high, total = output.min().item(), output.max().item(), output.sum(dim=-1)[0].item()
    if low < -1e-3 or high > 1.0 + 1e-3 or abs(total - 1.0) > 1e-2:
        expected = (
            "true: the model returns no probabilities (from 0 to 1, with the sum 1) but, "
            "it seems, logits"
        )
        said = ", ".join(f"{p:.4g}" for p in output[0, :6].tolist()) + (
            ", ..." if output.shape[1] > 6 else ""
        )
        raise ConfigError("base.softmax", False, f"{expected}, such as {said}")
    return True


def without_nonfinite(
    said: BaseOutput, kind: TaskKind, instead: Tensor
) -> tuple[BaseOutput, Mask | None]:
    """Replace what is not a number in a base's output, so that it reaches neither learners nor
    guard.

    Parameters
    ----------
    instead : Tensor, (columns,)
        What to put in such cells. A distribution with one is replaced by the uniform one as a
        whole.

    Returns
    -------
    BaseOutput
        All finite.
    ndarray, (rows, columns), bool, or None
        The cells that the base said nothing about; None if it said something about all.
    """
    fine = said.output.abs() <= FLOAT32_MAX  # false for NaN; beyond it no learner could take it
    embedding = None if said.embedding is None else said.embedding.nan_to_num()
    if bool(fine.all()):
        return said._replace(embedding=embedding), None
    if kind == "classification":
        fine, instead = torch.zeros_like(fine), torch.full_like(instead, 1.0 / len(instead))
    return said._replace(
        output=torch.where(fine, said.output, instead), embedding=embedding
    ), ~fine.cpu().numpy()


def as_base(model: Base | Callable[..., Any]) -> Base:
    """Return `model` itself if it is a `Base`, else a frozen copy of it."""
    return model if isinstance(model, Base) else FrozenModel(model)
