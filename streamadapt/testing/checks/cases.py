"""The streams that the learner checks drive a learner with: small, seeded, made by the real
tasks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from streamadapt.learners.base import Learner, Maturity
from streamadapt.models.contract import BaseOutput, FrozenModel, Spec, TaskKind
from streamadapt.records import Entry, FloatArray, StreamPartition
from streamadapt.state.store import CheckpointStore
from streamadapt.state.tree import encode
from streamadapt.tasks import Example, Forecast, Issued, Supervised, Task

__all__ = [
    "CASES",
    "Case",
    "Step",
    "drive",
    "losses",
    "require",
    "state_bytes",
    "through_a_checkpoint",
]

BASE_ERROR = 1.5
"""What the base of every stream is wrong by, always, in units of the output's scale."""
MISSING = 0.1
"""Share of targets that never become known."""


def require(holds: bool, said: str) -> None:
    """Raise `AssertionError` saying `said` unless it holds."""
    if not holds:
        raise AssertionError(said)


@dataclass(frozen=True, slots=True)
class Step:
    """One arrival: what to learn, then what to predict from.

    Attributes
    ----------
    learn : list of Example
        Of the maturity that was asked for.
    truth, known : Tensor, (rows, columns)
        What will turn out to be right, and where it ever will.
    """

    learn: list[Example]
    inputs: Tensor
    base: BaseOutput
    truth: Tensor
    known: Tensor

    def copy(self) -> Step:
        """Return a step that shares nothing with this one: what a learner writes to harms that
        learner only."""
        learn = [
            Example(e.inputs.clone(), _copy(e.base), e.target.clone(), e.mask.clone())
            for e in self.learn
        ]
        return Step(learn, self.inputs.clone(), _copy(self.base), self.truth, self.known)


def _copy(base: BaseOutput) -> BaseOutput:
    return BaseOutput(*(None if t is None else t.clone() for t in base))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Case:
    """One task at one size.

    Attributes
    ----------
    only_column : int or None
        The one column that the base is wrong in; None for all.
    """

    kind: TaskKind
    window: int
    channels: int
    rows: int
    columns: int
    only_column: int | None = None

    def spec(self, device: torch.device, seed: int = 0) -> Spec:
        """What a pipeline would build a learner with."""
        loc, scale = (torch.from_numpy(a) for a in _units(self.channels))
        out_loc, out_scale = (torch.from_numpy(a) for a in self.output_units())
        model = _classifier(self).to(device) if self.kind == "classification" else None
        return Spec(
            self.kind, self.window, self.channels, self.rows, self.columns, loc.to(device),
            scale.to(device), out_loc.to(device), out_scale.to(device), device, seed,
            embedding=self.window * self.channels, model=model,
        )  # fmt: skip

    def output_units(self) -> tuple[FloatArray, FloatArray]:
        """Location and scale of the outputs."""
        if self.kind == "classification":
            return np.zeros(self.columns, np.float32), np.ones(self.columns, np.float32)
        return _units(self.columns)

    def task(self) -> Task:
        """Make the task."""
        if self.kind == "forecast":
            return Forecast(self.window, self.rows)
        if self.kind == "regression":
            return Supervised(self.window, outputs=self.columns)
        return Supervised(self.window, classes=self.columns)

    def source_samples(self, n: int = 300, seed: int = 2) -> Tensor:
        """Return inputs (n, window, channels) of another stream alike, as what the base was
        trained on."""
        return torch.stack([s.inputs for s in _steps(self, n, "path", "cpu", seed)])

    def steps(
        self, n: int, matures: Maturity, device: torch.device, seed: int = 1
    ) -> Sequence[Step]:
        """Return `n` steps; copies of the same ones every time."""
        return [step.copy() for step in _steps(self, n, matures, str(device), seed)]


CASES: tuple[Case, ...] = (
    Case("forecast", 5, 3, 4, 3),
    Case("forecast", 3, 3, 3, 3),
    Case("regression", 2, 3, 1, 4),
    Case("regression", 1, 1, 1, 1),
    Case("classification", 2, 4, 1, 3),
    Case("classification", 2, 2, 1, 2),
    Case("forecast", 1, 1, 1, 1),
)
"""Every kind of task, once with all sizes different and once with all equal, where broadcasting
hides its bugs."""


def drive(learner: Learner, steps: Sequence[Step]) -> list[Tensor]:
    """Do what a pipeline does: learn what has matured, then predict, then adapt; return the
    predictions."""
    said = []
    for step in steps:
        if learner.needs_labels:
            for example in step.learn:
                learner.learn(example.inputs, example.base, example.target, example.mask)
        said.append(learner.predict(step.inputs, step.base))
        learner.adapt(step.inputs, step.base)
    return said


def losses(case: Case, said: Sequence[Tensor], steps: Sequence[Step]) -> Tensor:
    """Mean loss of predictions, by expert and column, (experts, columns); in scales of the output,
    or nats."""
    scale = torch.from_numpy(case.output_units()[1])
    shape = (-1, case.rows, case.columns)
    total, count = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float32)
    for prediction, step in zip(said, steps, strict=True):
        p, known = prediction.detach().cpu().double().view(shape), step.known.cpu()
        if case.kind == "classification":
            cells = -torch.log(
                (p * step.truth.cpu()).sum(-1, keepdim=True).clamp_min(1e-6)
            ).expand_as(p)
        else:
            cells = (p - step.truth.cpu()).abs() / scale
        total = total + torch.where(known, cells, 0.0).sum(1)
        count = count + known.sum(0)
    return total / count


def state_bytes(state: Mapping[str, Any]) -> bytes:
    """Return a form in which equality means the same bits."""
    tree, table = encode(state)
    parts = [json.dumps(tree, sort_keys=True).encode()]
    for name, tensor in sorted(table.items()):
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        parts += [
            name.encode(),
            str(tensor.dtype).encode(),
            str(tuple(tensor.shape)).encode(),
            content,
        ]
    return b"\0".join(parts)


def through_a_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Write a state to disk as the engine does, and read it back."""
    with tempfile.TemporaryDirectory() as folder, CheckpointStore(Path(folder)) as store:
        store.save(
            {"state": state}, {StreamPartition("checks", 0): 1}, config_digest="checks", summary={}
        )
        loaded = store.load_latest("checks")
    assert loaded is not None, "a checkpoint that was just written is there"
    found: dict[str, Any] = loaded.state["state"]
    return found


def _units(columns: int) -> tuple[FloatArray, FloatArray]:
    # Far from zero, so that a gain means something, and different in every column.
    number = np.arange(columns, dtype=np.float32)
    return 10.0 + 5.0 * number, 1.0 + 0.5 * number


@lru_cache(maxsize=64)  # all that one run of the checks asks for, in both maturities
def _steps(case: Case, n: int, matures: Maturity, device: str, seed: int) -> Sequence[Step]:
    rng = np.random.default_rng(seed)
    length = n + case.window - 1
    z = np.zeros((length + case.rows, case.channels))
    for t in range(1, len(z)):
        z[t] = 0.8 * z[t - 1] + 0.6 * rng.normal(size=case.channels)
    loc, scale = _units(case.channels)
    values = (z * scale + loc).astype(np.float32)
    outputs, missing = _outputs(case, z, values, rng), rng.random((len(z), case.columns)) < MISSING
    if case.kind == "classification":
        missing[:] = missing[:, :1]
    task, where = case.task(), torch.device(device)
    task.device = where
    steps = []
    for t in range(length):
        arrival = task.observe(_entry(case, t, values, outputs, missing))
        if arrival.inputs is None:
            continue
        assert task.window is not None
        window = task.window.fill_unseen(loc).astype(np.float32)
        times = torch.from_numpy(task.window.times.copy()).to(where)
        base = _base(case, window, (window - loc) / scale, where)._replace(times=times)
        inputs = torch.from_numpy(window).to(where)
        said = base.output.cpu().double().numpy()[None]
        task.remember(
            Issued(_entry(case, t, values, outputs, missing), inputs, base, said, said[:0])
        )
        learn = [
            e
            for m in arrival.matured
            if (e := m.rows if matures == "rows" else m.path) is not None
        ]
        steps.append(Step(learn, inputs, base, *_truth(case, t, values, outputs, missing, where)))
    return steps


def _rule(case: Case) -> FloatArray:
    """Which inputs a label depends on."""
    weights = np.random.default_rng(7).normal(size=(case.channels, case.columns))
    return weights.astype(np.float32)


def _outputs(
    case: Case, z: np.ndarray[Any, Any], values: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """What is to be predicted: the values themselves, a linear rule, or the class it puts
    first."""
    if case.kind == "forecast":
        return values
    scores: np.ndarray[Any, np.dtype[np.float64]] = z @ _rule(case)
    if case.kind == "classification":
        one_hot: FloatArray = np.eye(case.columns, dtype=np.float32)[scores.argmax(1)]
        return one_hot
    loc, scale = case.output_units()
    noisy: FloatArray = ((scores + 0.1 * rng.normal(size=scores.shape)) * scale + loc).astype(
        np.float32
    )
    return noisy


def _base(case: Case, window: FloatArray, scaled: FloatArray, device: torch.device) -> BaseOutput:
    """Say what would be right on average, and something else."""
    loc, scale = case.output_units()
    wrong = np.full(case.columns, BASE_ERROR, np.float32)
    if case.only_column is not None:
        wrong[np.arange(case.columns) != case.only_column] = 0.0
    if case.kind == "forecast":
        output = np.repeat(window[-1:], case.rows, axis=0) + wrong * scale
    elif case.kind == "regression":
        output = scaled[-1:] @ _rule(case) * scale + loc + wrong * scale
    else:
        powers = np.exp(3.0 * np.roll(scaled[-1:] @ _rule(case), 1, axis=1))
        output = powers / powers.sum()
    return BaseOutput(
        torch.from_numpy(output.astype(np.float32)).to(device),
        torch.from_numpy(np.tanh(scaled).astype(np.float32).ravel()).to(device),
    )


def _entry(
    case: Case,
    t: int,
    values: FloatArray,
    outputs: FloatArray,
    missing: np.ndarray[Any, np.dtype[np.bool_]],
) -> Entry:
    if case.kind == "forecast":
        return Entry(np.where(missing[t], np.nan, values[t]).astype(np.float32), t + 1, str(t))
    target = outputs[t] if case.kind == "regression" else outputs[t].argmax(keepdims=True)
    label = np.where(missing[t][: len(target)], np.nan, target).astype(np.float32)
    return Entry(values[t], t + 1, str(t), label=label)


def _classifier(case: Case, hidden: int = 8) -> FrozenModel:
    """A small frozen net with a batch normalisation, for learners that adapt a copy; it knows
    nothing of the rule."""
    rng = np.random.default_rng(11)
    inputs = case.window * case.channels
    loc, scale = (np.tile(a, case.window) for a in _units(case.channels))
    # The initial numbers would be drawn from the global generator.
    linear = partial(skip_init, nn.Linear)
    first, norm, last = (
        linear(inputs, hidden),
        nn.BatchNorm1d(hidden),
        linear(hidden, case.columns),
    )
    weights = (rng.normal(size=(hidden, inputs)) / np.sqrt(inputs) / scale).astype(np.float32)
    values = {
        first.weight: weights, first.bias: -weights @ loc,
        last.bias: rng.normal(size=case.columns),
        last.weight: rng.normal(size=(case.columns, hidden)),
    }  # fmt: skip
    with torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(torch.from_numpy(value))
    return FrozenModel(nn.Sequential(nn.Flatten(), first, norm, nn.ReLU(), last), softmax=True)


def _truth(
    case: Case, t: int, values: FloatArray, outputs: FloatArray,
    missing: np.ndarray[Any, np.dtype[np.bool_]], device: torch.device,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    at = slice(t + 1, t + 1 + case.rows) if case.kind == "forecast" else slice(t, t + 1)
    return torch.from_numpy(outputs[at]).to(device), torch.from_numpy(~missing[at]).to(device)
