"""Test-time adaptation one entry at a time, without gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner, require_shape
from streamadapt.learners.tta.continuity import Continuity
from streamadapt.learners.tta.copies import ModelCopy
from streamadapt.learners.tta.memory import BalancedMemory
from streamadapt.learners.tta.polarity import Polarity
from streamadapt.learners.tta.running import Running
from streamadapt.learners.tta.samples import source_samples
from streamadapt.learners.tta.selection import Selection
from streamadapt.learners.tta.signature import Signature, SignatureResult
from streamadapt.models.contract import BaseOutput, Spec, TaskKind

__all__ = ["PerEntry"]

MIN_SAMPLES = 50
MIN_MEMORY = 8
AT_ONCE = 256
"""The number of source samples that are run through the model together."""


class _Branches(NamedTuple):
    """The effect of an unfamiliar entry on the branches: the values to commit, by part, and the
    statistics for the memory."""

    fresh: bool
    polarity: dict[str, Tensor]
    running: dict[str, Tensor]
    selection: dict[str, Tensor]
    mean: Tensor
    var: Tensor


class _Evaluation(NamedTuple):
    """The evaluation of one entry: `predict` returns its output, `adapt` commits the rest."""

    signature: SignatureResult
    answer: Tensor
    continuity: dict[str, Tensor]
    branches: _Branches | None


class PerEntry(Learner):
    """Adapts a classifier to a stream of single entries, without labels and without gradients.

    Published test-time adaptation takes statistics and gradients from batches; with one entry at a
    time, in an order sorted by label, its accuracy falls to chance. This learner uses statistics
    of many earlier entries instead:

    1. `Signature`: an entry whose first layer is similar to the source is predicted by the frozen
       model, and changes no statistics. The same numbers show a change of the stream; all adapted
       state is then dropped.
    2. For other entries there are three branches: the frozen model, a branch with running
       statistics (`Running`), and a branch with the statistics of a class-balanced memory
       (`BalancedMemory`). The last two invert the first gain if the contrast of the stream is
       inverted (`Polarity`). One forward pass computes both.
    3. `Selection` mixes the branches by the mutual information between entries and outputs.
    4. `Continuity` detects whether labels come in runs, and uses it.

    Every threshold is measured on the source samples when the learner is built. Only batch
    normalisations have statistics that can adapt. A model that has only LayerNorm or GroupNorm
    keeps its frozen outputs, filtered by `Continuity` if an entry is familiar: in measurements,
    entropy steps on single entries made such models worse. There is no guarantee without labels; a
    guard with a few labels gives one.

    Costs of a familiar entry: the model up to its first normalisation, and about 40 small
    operations. An unfamiliar entry also costs a forward pass of two entries, and O(memory x
    features) time. Memory: memory x features x 2 floats, where features are the channels of all
    batch normalisations.

    Parameters
    ----------
    source : Path or Tensor
        Source samples without labels, 50 or more, (samples, window, channels): a file ``.npy``,
        ``.npz`` or ``.safetensors``, in the latter two under the name ``inputs``. A few hundred
        samples that were not used to fit the base are best; its training samples work too.
    memory : int, >= 8, in entries
        The number of entries that the class-balanced memory keeps.
    modules : sequence of str, optional
        Names of the normalisation layers to adapt. Default: all. The signature is computed at the
        first layer that the forward pass reaches.
    signed : bool
        Whether the sign of the first layer's gain may change, for streams whose images may be
        inverted (negatives).

    Attributes
    ----------
    signal_names
        ``per_entry-unfamiliarity``: the log mean squared z-score of the newest entry's signature;
        near 0 for an entry of the source.

    References
    ----------
    The parts follow RoTTA (Yuan et al. 2023), NOTE (Gong et al. 2022) and SAR (Niu et al. 2023).

    Examples
    --------
    >>> PerEntry(torch.randn(60, 1, 8), memory=32)
    PerEntry(source=Tensor(60, 1, 8), memory=32)
    """

    kind: ClassVar[str] = "per_entry"
    kinds: ClassVar[frozenset[TaskKind]] = frozenset({"classification"})
    needs_labels: ClassVar[bool] = False

    def __init__(
        self,
        source: Path | Tensor,
        *,
        memory: int = 64,
        modules: Sequence[str] | None = None,
        signed: bool = True,
    ) -> None:
        super().__init__()
        if memory < MIN_MEMORY:
            raise ConfigError("memory", memory, f"entries to remember, {MIN_MEMORY} or more")
        self.source = source
        self.memory_size = memory
        self.modules_named = None if modules is None else tuple(modules)
        self.signed = signed

    @property
    def signal_names(self) -> tuple[str, ...]:
        """``per_entry-unfamiliarity``."""
        return (f"{self.kind}-unfamiliarity",)

    def signals(self) -> dict[str, float]:
        """Return the distance of the newest entry from the source."""
        return {self.signal_names[0]: self._score}

    def allocate(self, spec: Spec) -> None:
        """Copy the base's module, and measure the thresholds on the source samples."""
        copy = ModelCopy(spec, self.modules_named)
        # A tuple keeps the copy out of the module tree: its parameters do not change.
        self._copy = (copy,)
        samples = torch.split(source_samples("source", self.source, spec, MIN_SAMPLES), AT_ONCE)
        mean, var = copy.source
        with torch.no_grad():
            labels = torch.cat(
                [copy.run(part, copy.as_trained).logits.argmax(1) for part in samples]
            )
            x = torch.cat([copy.head(part) for part in samples])
        self.signature = Signature(x, labels, spec.generator())
        self.polarity = Polarity(x)
        self.running = Running(mean, var)
        self.memory = BalancedMemory(self.memory_size, spec.columns, mean, var)
        self.selection = Selection((False, True, False), spec.columns, spec.device)
        self.continuity = Continuity(spec.columns, spec.device)
        self._kept: tuple[Tensor, int, int, _Evaluation] | None = None
        self._score = torch.nan

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Predict one entry."""
        require_shape("base.output", base.output, (self.spec.rows, self.spec.columns))
        return self._evaluated(inputs, base).answer.unsqueeze(0).clone()

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Learn nothing: labels are not used."""

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Adapt to one entry."""
        evaluation = self._evaluated(inputs, base)
        self._kept = None
        self._score = evaluation.signature.score
        self.signature.commit(evaluation.signature.new)
        self.continuity.commit(evaluation.continuity)
        branches = evaluation.branches
        if evaluation.signature.drift or (branches is not None and branches.fresh):
            for part in (self.polarity, self.running, self.memory, self.selection):
                part.reset()
        if branches is not None:
            self.polarity.commit(branches.polarity)
            self.running.commit(branches.running)
            self.selection.commit(branches.selection)
            self.memory.add(evaluation.answer.argmax(), branches.mean, branches.var)

    def _evaluated(self, inputs: Tensor, base: BaseOutput) -> _Evaluation:
        """Evaluate one entry without writing to the state; `adapt` reuses the result of
        `predict`."""
        versions = inputs._version, self.signature.counts._version
        if self._kept is not None and self._kept[0] is inputs and self._kept[1:3] == versions:
            return self._kept[3]
        with torch.no_grad():
            evaluation = self._evaluate(inputs, base.output[0])
        self._kept = (inputs, *versions, evaluation)
        return evaluation

    def _evaluate(self, inputs: Tensor, frozen: Tensor) -> _Evaluation:
        x = self._copy[0].head(inputs.unsqueeze(0))
        signature = self.signature.evaluate(x)
        answer, branches = frozen, None
        if not signature.familiar:
            if signature.usable and self._copy[0].batch_norms:
                answer, branches = self._branches(inputs, x, signature.drift, frozen)
            if branches is None:  # no layer to adapt, or a glitch: nothing is learned from it
                answer = frozen if self._sound() else torch.full_like(frozen, torch.nan)
                return _Evaluation(signature, answer, {}, None)
        filtered, new = self.continuity.evaluate(answer)
        return _Evaluation(signature, filtered, new, branches)

    def _sound(self) -> bool:
        """Return whether the state is finite; a broken state must be visible in the output."""
        return all(
            bool(torch.isfinite(buffer).all())
            for buffer in self.buffers()
            if buffer.is_floating_point()
        )

    def _branches(
        self, inputs: Tensor, x: Tensor, drift: bool, frozen: Tensor
    ) -> tuple[Tensor, _Branches | None]:
        """Return the mixed output (classes,) for an unfamiliar entry and the values to commit, or
        None for these if the output is not finite."""
        polarity = self.polarity.evaluate(x, drift)
        fresh = drift or polarity.flipped
        source = self._copy[0].source
        mean, var, rate, count = self.running.evaluate(fresh)
        memory = source if fresh else self.memory.statistics()
        given = (
            torch.stack([mean, memory[0]]),
            torch.stack([var, memory[1]]),
            # The running statistics include the entry itself.
            torch.tensor([[rate], [0.0]], dtype=torch.float32, device=x.device),
        )
        seen = self._copy[0].run(
            inputs.expand(2, *inputs.shape), given, polarity.sign if self.signed else None
        )
        answers = torch.cat([frozen.unsqueeze(0), seen.logits.softmax(1)])
        if not bool(torch.isfinite(answers.sum() + sum(t.sum() for t in seen[1:]))):
            return frozen, None
        choice = self.selection.evaluate(answers, fresh)
        running = {"mean": seen.used_mean[0], "var": seen.used_var[0], "count": count}
        return choice.answer, _Branches(
            fresh, polarity.new, running, choice.new, seen.mean[1], seen.var[1]
        )
