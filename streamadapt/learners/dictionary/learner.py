"""A dictionary beside a learner: cleans what the learner sees, and tells how well each entry fits
what came before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner, require_shape
from streamadapt.learners.dictionary.orthogonal import OrthogonalDictionary
from streamadapt.models.contract import BaseOutput, Spec, TaskKind

__all__ = ["Dictionary"]

Over = Literal["window", "row"]
LENGTHS_RATE, LENGTHS_CLIP = 0.01, 4.0
"""How fast the usual length follows the entries', each counted as no more than so many usual
ones."""
MOST_NUMBERS = 256
"""The longest entry a dictionary is kept of: an update costs the cube of it."""


class Dictionary(Learner):
    """Denoises another learner's inputs by an orthogonal dictionary learned online, without labels
    [1]_.

    y is the scaled window as one vector, or a scaled row. What the other learner (or the base)
    sees is the inputs with every y replaced by ``D h(D^T y)``, h setting coefficients smaller than
    `threshold` to zero, in original units; see `OrthogonalDictionary` for how D is learned. That
    helps where inputs are sparse in some basis (a few causes behind many channels) and noisy;
    where they are not, it takes away what small coefficients carried, and the guard will leave
    this expert alone.

    The signal ``dictionary-error`` is the relative error of the newest y's sparse code, before it
    is learned from (`OrthogonalDictionary.error`): an anomaly score in every prediction, and
    something for a drift monitor to watch. It is about the pattern of an entry and not about its
    size; one that is shorter than usual is compared with the usual length (a running mean), so
    that a silent entry is not judged by its noise.

    Costs per entry, n the numbers of y: O(n^2), and O(n^3 / `batch`) for the update; n^2 times the
    window's length more for ``over="row"``; and the other learner's own. (3 + `batch` / n) n^2
    float64 numbers.

    Parameters
    ----------
    learner : Learner, optional
        Predicts from the cleaned inputs; its experts are offered as ``dictionary-<name>``. It
        learns what that learner learns. Default: none; the base predicts from the cleaned inputs,
        which needs no labels.
    over : {"window", "row"}
        What is cleaned at once: the window of (window, channels) as one vector, or each of its
        rows, of which the newest is learned. At most `MOST_NUMBERS` numbers.
    threshold : float, >= 0, in scaled units
        Two to three times the noise, in units of the inputs' scale. 0 leaves the inputs as they
        are.
    batch : int, >= 1
        Entries per update of the dictionary: more cost less, and average the noise; fewer follow
        faster.
    track : float, in [0, 1]
        What the rates of the updates never fall below: .05 remembers some 20 updates and so
        follows a dictionary that drifts; 0 averages for ever.

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
    pending: Tensor
    count: Tensor
    usual: Tensor

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
        self._error = math.nan
        # What it can learn, and how, is the other learner's: class variables of every other kind.
        self.needs_labels = learner is not None and learner.needs_labels  # type: ignore[misc]
        if learner is not None:
            self.kinds = learner.kinds  # type: ignore[misc]
            self.matures = learner.matures  # type: ignore[misc]

    @property
    def names(self) -> tuple[str, ...]:
        """``dictionary``, or ``dictionary-rls-0.9995`` and its siblings."""
        return (
            (self.kind,)
            if self.learner is None
            else tuple(f"{self.kind}-{name}" for name in self.learner.names)
        )

    @property
    def signal_names(self) -> tuple[str, ...]:
        """``dictionary-error``, and the other learner's."""
        return (f"{self.kind}-error", *(() if self.learner is None else self.learner.signal_names))

    def check_kind(self, kind: TaskKind) -> None:
        """Refuse what the other learner refuses."""
        super().check_kind(kind)
        if self.learner is not None:
            self.learner.check_kind(kind)

    def allocate(self, spec: Spec) -> None:
        """Start from a random orthogonal dictionary."""
        n = spec.channels * (spec.window if self.over == "window" else 1)
        if n > MOST_NUMBERS:
            hint = " (over = 'row' takes the channels only)" if self.over == "window" else ""
            raise ConfigError(
                "over", self.over, f"at most {MOST_NUMBERS} numbers, here they are {n}{hint}"
            )
        if self.learner is not None:
            self.learner.build(spec)
        # Float64 throughout: the same bits from the same entries, whatever the device.
        self._loc, self._scale = spec.input_loc.double(), spec.input_scale.double()
        self.dictionary = OrthogonalDictionary(
            n, generator=spec.generator(), floors=(self.track, self.track), device=spec.device
        )
        self.register_buffer(
            "pending", torch.zeros(self.batch, n, dtype=torch.float64, device=spec.device)
        )
        self.register_buffer(
            "count", torch.zeros((), dtype=torch.int64, device=spec.device)
        )  # of pending entries
        self.register_buffer(
            "usual", torch.zeros((), dtype=torch.float64, device=spec.device)
        )  # length
        self._error = math.nan

    def _scaled(self, inputs: Tensor) -> Tensor:
        """(window, channels) -> (B, n), float64: one vector, or one per row."""
        require_shape("inputs", inputs, (self.spec.window, self.spec.channels))
        return ((inputs - self._loc) / self._scale).view(-1, self.dictionary.size)

    def clean(self, inputs: Tensor) -> Tensor:
        """Return the inputs as the dictionary would write them.

        Parameters
        ----------
        inputs : Tensor, (window, channels), float32, original units

        Returns
        -------
        Tensor, (window, channels), float32, original units
        """
        code = self.dictionary.encode(self._scaled(inputs), self.threshold)
        return torch.addcmul(
            self._loc, self.dictionary.decode(code).view(inputs.shape), self._scale
        ).float()

    @torch.no_grad()
    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return what the other learner, or the base, makes of the cleaned inputs."""
        if self.learner is not None:
            return self.learner.predict(self.clean(inputs), base)
        if self.spec.model is None:  # nothing to ask
            return base.output.clone()
        from streamadapt.models.contract import without_nonfinite  # here: it imports this package

        cleaned = self.clean(inputs)
        if not bool(torch.isfinite(cleaned).all()):
            return torch.full_like(
                base.output, torch.nan
            )  # a broken dictionary is to be seen and restored
        said = self.spec.ask(cleaned)
        return without_nonfinite(said, self.spec.kind, self.spec.output_loc)[0].output.clone()

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Let the other learner learn from the cleaned inputs."""
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
        """Judge the newest entry, then learn from it; let the other learner adapt to what it
        predicted from."""
        if self.learner is not None:
            self.learner.boost = self.boost
            self.learner.adapt(self.clean(inputs), base)
        y = self._scaled(inputs)[-1]
        self._judge(y)
        count = int(self.count)
        self.pending[count] = y
        if count + 1 == self.batch:
            self.dictionary.update(self.pending, self.boost)
        self.count.fill_((count + 1) % self.batch)

    def _judge(self, y: Tensor) -> None:
        usual, length = float(self.usual), float(torch.linalg.vector_norm(y))
        self._error = float(self.dictionary.error(y, usual))
        moved = (
            usual + LENGTHS_RATE * (min(length, LENGTHS_CLIP * usual) - usual)
            if usual > 0.0
            else length
        )
        self.usual.fill_(moved)

    @property
    def gradient_norm(self) -> float | None:
        """The other learner's."""
        return None if self.learner is None else self.learner.gradient_norm

    def take_gradient_norm(self) -> float | None:
        """The other learner's."""
        return None if self.learner is None else self.learner.take_gradient_norm()

    def signals(self) -> dict[str, float]:
        """Return the relative error of the newest entry's sparse code, from 0 to 1, and the other
        learner's signals."""
        own = {f"{self.kind}-error": self._error}
        return own if self.learner is None else own | self.learner.signals()

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go back, the other learner in its own way."""
        super().restore(snapshot)
        if self.learner is not None:
            prefix = "learner."
            self.learner.restore(
                {k.removeprefix(prefix): v for k, v in snapshot.items() if k.startswith(prefix)}
            )
