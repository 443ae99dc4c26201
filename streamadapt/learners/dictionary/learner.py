"""A learner with a dictionary: it denoises another learner's inputs, and measures how well each
entry fits the earlier ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner, require_shape
from streamadapt.learners.compiled import CompiledLearner, Steps
from streamadapt.learners.dictionary.atoms import (
    OrthogonalRoom,
    OrthogonalState,
    orthogonal_room,
)
from streamadapt.learners.dictionary.orthogonal import random_orthogonal
from streamadapt.learners.dictionary.steps import (
    DictionarySettings,
    DictionaryState,
    learn,
    predict,
)
from streamadapt.learners.lots import LEARN, PREDICT
from streamadapt.models.contract import BaseOutput, Spec, TaskKind, without_nonfinite
from streamadapt.records import Array

__all__ = ["Dictionary"]

Over = Literal["window", "row"]
MAX_VALUES = 256
"""The largest number of values in y: the cost of an update grows with its cube."""


class Dictionary(CompiledLearner):
    """Denoises another learner's inputs by an orthogonal dictionary learned online, without labels
    [1]_.

    y is the scaled window as one vector, or a scaled row. The other learner (or the base) gets the
    inputs with every y replaced by ``D h(D^T y)``, in original units; h sets coefficients smaller
    than `threshold` to zero. `OrthogonalDictionary` describes how D is learned. This helps if
    inputs are noisy, and sparse in some basis (a few causes behind many channels). Otherwise it
    removes information in small coefficients, and the guard gives this expert little weight.

    The signal ``dictionary-error`` is the relative error of the sparse code of the newest y,
    before y is learned (`OrthogonalDictionary.error`): an anomaly score in every prediction, and a
    signal for drift monitors. It measures the pattern of an entry, not its size. A y that is
    shorter than usual is compared with the usual length (a running mean), so that an entry of
    almost zero is not judged by its noise.

    Costs per entry, where y has n values: O(n^2), and O(n^3 / `batch`) for the update; for
    ``over="row"`` O(n^2) for each row of the window; and the cost of the other learner. State:
    (4 + `batch` / n) n^2 float64 numbers, and 3 n^2 to work in.

    Parameters
    ----------
    learner : Learner, optional
        The learner that predicts from the denoised inputs; its experts are named
        ``dictionary-<name>``. Default: none; the base predicts from the denoised inputs, which
        needs no labels.
    over : {"window", "row"}
        The vectors y: the window of (window, channels) as one vector, or each of its rows, of
        which only the newest is learned. y has at most 256 values.
    threshold : float, >= 0, in scaled units
        The best value is two to three times the standard deviation of the noise, in units of the
        inputs' scale. 0 does not change the inputs.
    batch : int, >= 1
        Entries per update of the dictionary: larger batches cost less and average the noise;
        smaller ones adapt faster.
    track : float, in [0, 1]
        The smallest rate of the updates: .05 remembers about 20 updates and so follows a drift; 0
        averages over all entries.

    References
    ----------
    .. [1] Xue & Lau (2021), Online orthogonal dictionary learning based on Frank-Wolfe method,
       arXiv:2103.01484.

    Examples
    --------
    >>> from streamadapt import Bias
    >>> Dictionary(Bias(0.1), threshold=0.3).names
    ('dictionary-bias-0.1',)
    """

    kind: ClassVar[str] = "dictionary"
    # They denoise; what predicts from denoised inputs runs after them.
    steps = Steps(predict, learn)
    state: DictionaryState

    def __init__(
        self,
        learner: Learner | None = None,
        *,
        over: Over = "window",
        threshold: float = 0.3,
        batch: int = 8,
        track: float = 0.05,
    ) -> None:
        super().__init__()
        if isinstance(learner, Dictionary):
            raise ConfigError("learner", learner.kind, "a learner that is not itself a dictionary")
        if over not in get_args(Over):
            raise ConfigError("over", over, "window or row")
        if not 0.0 <= threshold < math.inf:
            raise ConfigError("threshold", threshold, "a finite number >= 0")
        if batch < 1:
            raise ConfigError("batch", batch, "a whole number >= 1")
        if not 0.0 <= track <= 1.0:
            raise ConfigError("track", track, "a number from 0 to 1")
        self.learner = learner
        self.over = over
        self.threshold = threshold
        self.batch = batch
        self.track = track
        # The other learner decides these; for every other kind they are class variables.
        self.needs_labels = learner is not None and learner.needs_labels  # type: ignore[misc]
        if learner is not None:
            self.kinds = learner.kinds  # type: ignore[misc]
            self.matures = learner.matures  # type: ignore[misc]

    @property
    def names(self) -> tuple[str, ...]:
        """``dictionary``, or ``dictionary-rls-0.9995`` for each expert of the other learner."""
        return (
            (self.kind,)
            if self.learner is None
            else tuple(f"{self.kind}-{name}" for name in self.learner.names)
        )

    @property
    def signal_names(self) -> tuple[str, ...]:
        """``dictionary-error``, and the names of the other learner's signals."""
        return (f"{self.kind}-error", *(() if self.learner is None else self.learner.signal_names))

    def check_kind(self, kind: TaskKind) -> None:
        """Raise `ConfigError` for a task that the other learner refuses."""
        super().check_kind(kind)
        if self.learner is not None:
            self.learner.check_kind(kind)

    def allocate(self, spec: Spec) -> None:
        """Start from a random orthogonal dictionary."""
        n = self._values(spec)
        if n > MAX_VALUES:
            hint = " (with over = 'row' only the channels count)" if self.over == "window" else ""
            raise ConfigError(
                "over", self.over, f"at most {MAX_VALUES} values, but there are {n}{hint}"
            )
        if self.learner is not None:
            self.learner.build(spec)
        super().allocate(spec)

    def writes(self, spec: Spec) -> tuple[int, int, int]:
        """Return the shape of what the kernel writes: the denoised window."""
        return 1, spec.window, spec.channels

    def settings(self, spec: Spec) -> DictionarySettings:
        """Return the hyper-parameters."""
        return DictionarySettings(float(self.threshold), float(self.track))

    def _values(self, spec: Spec) -> int:
        """Return the number of values of y."""
        return spec.channels * (spec.window if self.over == "window" else 1)

    def start(self, spec: Spec) -> DictionaryState:
        """Start from a random orthogonal dictionary."""
        n = self._values(spec)
        first = random_orthogonal(n, spec.generator())
        dictionary = OrthogonalState(
            first,
            np.zeros((n, n)),
            first.copy(),
            np.array(0, np.int64),
            first.copy(),
        )
        return DictionaryState(
            dictionary,
            np.zeros((self.batch, n)),
            np.array(0, np.int64),
            np.array(0.0),
            np.array(math.nan),
        )

    def room(self, spec: Spec) -> OrthogonalRoom:
        """Return room for a vector and an update."""
        return orthogonal_room(self._values(spec))

    def named_arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield the state that checkpoints have; the atoms follow from it."""
        for name, array in super().named_arrays():
            if name not in ("dictionary.atoms", "error"):
                yield name, array

    def _load_from_state_dict(self, *given: Any) -> None:
        """Take over tensors by name, and compute the atoms: torch's hook of `load_state_dict`."""
        super()._load_from_state_dict(*given)
        loaded = self.state.dictionary
        loaded.atoms[:] = loaded.dictionary  # orthogonal before the first update
        if loaded.step[0] > 0:
            self._event(None).lot.weights[0] = 0.0
            self._run(LEARN, None, None)

    def clean(self, inputs: Tensor) -> Tensor:
        """Return the denoised inputs.

        Parameters
        ----------
        inputs : Tensor, (window, channels), float32, original units

        Returns
        -------
        Tensor, (window, channels), float32, original units
        """
        cleaned = self._run_on(PREDICT, inputs)
        return cleaned.to(self.spec.device, torch.float32)

    def _run_on(self, kind: int, inputs: Tensor) -> Tensor:
        """Take the kernel through one event, and return what it writes, (window, channels)."""
        require_shape("inputs", inputs, (self.spec.window, self.spec.channels))
        self._event(None).window.copy_(inputs.detach())
        return self._run(kind, None, None).outputs[0]

    @torch.no_grad()
    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the prediction of the other learner, or of the base, from the denoised inputs."""
        if self.learner is not None:
            return self.learner.predict(self.clean(inputs), base)
        if self.spec.model is None:  # the base cannot predict again
            return base.output.clone()
        cleaned = self.clean(inputs)
        if not bool(torch.isfinite(cleaned).all()):
            # NaN shows the broken dictionary, so that it is restored.
            return torch.full_like(base.output, torch.nan)
        answer = self.spec.ask(cleaned)
        return without_nonfinite(answer, self.spec.kind, self.spec.output_loc)[0].output.clone()

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Let the other learner learn from the denoised inputs."""
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        if self.learner is not None:
            self.learner.boost, self.learner.weight = self.boost, self.weight
            self.learner.learn(self.clean(inputs), base, target, mask)

    def forget(self, keep: float) -> None:
        """Let the other learner forget; the dictionary follows the stream by its own rates."""
        if self.learner is not None:
            self.learner.forget(keep)

    @torch.no_grad()
    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Score the newest entry, then learn it; let the other learner adapt to the denoised
        inputs."""
        if self.learner is not None:
            self.learner.boost = self.boost
            self.learner.adapt(self.clean(inputs), base)
        lot = self._event(None).lot
        lot.weights[0], lot.boosts[0] = 1.0, self.boost
        self._run_on(LEARN, inputs)

    @property
    def gradient_norm(self) -> float | None:
        """The gradient norm of the other learner."""
        return None if self.learner is None else self.learner.gradient_norm

    def take_gradient_norm(self) -> float | None:
        """Return the gradient norm of the other learner, and reset it."""
        return None if self.learner is None else self.learner.take_gradient_norm()

    def signals(self) -> dict[str, float]:
        """Return the relative error of the newest entry's sparse code, from 0 to 1, and the other
        learner's signals."""
        error = {f"{self.kind}-error": float(self.state.error[0])}
        return error if self.learner is None else error | self.learner.signals()

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Restore a snapshot; the other learner uses its own `restore`."""
        super().restore(snapshot)
        if self.learner is not None:
            prefix = "learner."
            self.learner.restore(
                {k.removeprefix(prefix): v for k, v in snapshot.items() if k.startswith(prefix)}
            )
