"""Each check of a learner rejects an object that breaks only the checked property."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamadapt.learners.base import Learner, require_shape
from streamadapt.learners.simplex import log_odds
from streamadapt.models.contract import BaseOutput, Spec
from streamadapt.testing.checks import learners
from streamadapt.testing.checks.cases import CASES

torch.set_num_threads(1)  # small steps: a second thread costs more than it saves


class Good(Learner):
    """A bias in torch: the base class of the broken learners below."""

    kind = "bias"
    matures = "rows"
    bias: Tensor

    def allocate(self, spec: Spec) -> None:
        self._classify = spec.kind == "classification"
        self.register_buffer("bias", torch.zeros(1, spec.rows, spec.columns))
        self._rate = torch.full((1, 1, 1), 0.5)

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        if self._classify:
            return torch.softmax(log_odds(base.output) + self.bias, dim=-1)
        return base.output + self.bias

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        moved = self.bias + self._rate * (target - Good.predict(self, inputs, base))
        self.bias.copy_(torch.where(mask, moved, self.bias))


class RaisesSomethingElse(Good):
    """Refuses a kind of task with an unexpected error type."""

    def allocate(self, spec: Spec) -> None:
        if spec.kind == "regression":
            raise ValueError("no regression")
        super().allocate(spec)


class RefusesAll(Good):
    """Learns nothing at all."""

    kinds = frozenset()


class AcceptsMore(Good):
    """Can be built for tasks that it does not list."""

    kinds = frozenset({"forecast"})

    def check_kind(self, kind: Any) -> None:
        pass


class Double(Good):
    """Returns float64."""

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        return super().predict(inputs, base).double()


class Flat(Good):
    """Returns all cells in one row."""

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        return super().predict(inputs, base).flatten()


class NanUntilItLearns(Good):
    """Divides by the number of examples learned."""

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        return super().predict(inputs, base) + 0.0 / self.bias.abs().sum()


class KeepsGradients(Good):
    """Its predictions keep the autograd graph."""

    def allocate(self, spec: Spec) -> None:
        super().allocate(spec)
        self.weight = nn.Parameter(torch.ones(()))

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        return super().predict(inputs, base) * self.weight


class ReturnsItsBuffer(Good):
    """Predicts into a buffer of its own."""

    def allocate(self, spec: Spec) -> None:
        super().allocate(spec)
        self.register_buffer("output_buffer", torch.zeros_like(self.bias), persistent=False)

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        return self.output_buffer.copy_(super().predict(inputs, base))  # type: ignore[operator, no-any-return]


class CountsPredictions(Good):
    """Changes while it predicts."""

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        self.bias += 1e-6
        return super().predict(inputs, base)


class WritesToTheBase(Good):
    """Adds to the base's output in place."""

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        return base.output.add_(self.bias[0]).clone()


class Broadcasts(Good):
    """Accepts a target of any shape that broadcasts."""

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        if target.ndim == 2 and target.shape == base.output.shape:
            super().learn(inputs, base, target, mask)
        elif target.ndim == 0:
            self.bias.copy_(torch.lerp(self.bias, target - base.output, self._rate))


class ForgetsWithoutNews(Good):
    """Lets its bias decay when no cell is known."""

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        super().learn(inputs, base, target, mask)
        if not mask.any():
            self.bias *= 0.9


class AveragesMaskedCells(Good):
    """Reads NaN as zero and counts it."""

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        error = (target - base.output).nan_to_num().mean()
        super().learn(inputs, base, base.output + error, mask.any().expand_as(mask))


class DrawsAtRandom(Good):
    """Draws from the global generator."""

    def allocate(self, spec: Spec) -> None:
        super().allocate(spec)
        self.bias += 1e-3 * torch.randn_like(self.bias)


class KeepsSome(Good):
    """Does not reset everything."""

    def reset(self) -> None:
        self.bias *= 0.5


class LiveSnapshot(Good):
    """Returns its own tensors."""

    def snapshot(self) -> dict[str, Any]:
        return dict(self.state_dict())


class AdoptsTheSnapshot(Good):
    """Continues to use the snapshot that it was restored from."""

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        self.bias = snapshot["bias"]


class RestoresNothing(Good):
    """Ignores the snapshot."""

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        pass


class KeepsStateElsewhere(Good):
    """Keeps state that is neither buffer nor parameter."""

    def allocate(self, spec: Spec) -> None:
        super().allocate(spec)
        self.count = 0

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        self.count += 1
        self._rate = torch.full_like(self._rate, max(1.0 / self.count, 0.01))
        super().learn(inputs, base, target, mask)


class ReadsItsOwnDict(Good):
    """Reads its parameter in a place that torch cannot swap."""

    def allocate(self, spec: Spec) -> None:
        super().allocate(spec)
        self.weight = nn.Parameter(torch.ones(()))
        self.by_name = {"weight": self.weight}

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        return super().predict(inputs, base) * self.by_name["weight"].detach()


class Numb(Good):
    """Never learns."""

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        super().learn(inputs, base, target, torch.zeros_like(mask))


class LearnsTheWrongWay(Good):
    """Corrects with the wrong sign."""

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        return base.output - self.bias


class MixesRowsAndColumns(Good):
    """Transposes, which works if there are as many rows as columns."""

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        square = base.output.shape[0] == base.output.shape[1]
        return base.output + (self.bias.transpose(1, 2) if square else self.bias)


class MixesColumns(Good):
    """Learns each column's error in the neighbouring column."""

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        return base.output + self.bias.roll(1, -1)


class AdaptsTheBase(Good):
    """Uses the base's module as its own copy."""

    kinds = frozenset({"classification"})

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        assert self.spec.model is not None
        for parameter in self.spec.model.parameters():
            parameter.mul_(1.0 + 1e-6)


class Hoards(Good):
    """Keeps every target."""

    def allocate(self, spec: Spec) -> None:
        super().allocate(spec)
        self.kept: list[Tensor] = []

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        super().learn(inputs, base, target, mask)
        self.kept.append(target)


class HoardsAndLoops(Hoards):
    """Visits every target each time, in Python."""

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        largest = 0
        for kept in self.kept:
            largest = max(largest, len(kept))
        return super().predict(inputs, base)


class HoardsAndStacks(Hoards):
    """Visits every target each time, in one torch operation."""

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        if self.kept:
            torch.stack(self.kept).mean()
        return super().predict(inputs, base)


class OtherEachTime(Good):
    """Depends on the instance, like a learner that depends on its device."""

    instances = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.nth = next(self.instances)

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        return super().predict(inputs, base) + 0.01 * self.nth


LEARNERS: dict[str, list[type[Good]]] = {
    "check_refuses_a_task_with_config_error": [RaisesSomethingElse, RefusesAll, AcceptsMore],
    "check_prediction_has_the_shape": [Double, Flat, NanUntilItLearns, KeepsGradients],
    "check_prediction_is_no_view": [ReturnsItsBuffer],
    "check_predict_is_pure": [CountsPredictions, WritesToTheBase],
    "check_wrong_target_shape_is_refused": [Broadcasts],
    "check_unknown_target_changes_nothing": [ForgetsWithoutNews],
    "check_masked_cells_contribute_nothing": [AveragesMaskedCells],
    "check_same_seed_same_bits": [DrawsAtRandom],
    "check_reset_returns_to_the_start": [KeepsSome],
    "check_snapshot_is_detached": [LiveSnapshot, AdoptsTheSnapshot, RestoresNothing],
    "check_state_round_trips": [KeepsStateElsewhere],
    "check_parameters_are_read": [ReadsItsOwnDict],
    "check_learns_a_constant_error": [Numb, LearnsTheWrongWay],
    "check_learns_it_where_it_is": [MixesRowsAndColumns, MixesColumns],
    "check_base_stays_untouched": [AdaptsTheBase],
    "check_state_is_bounded": [Hoards],
    "check_late_steps_cost_no_more": [HoardsAndLoops, HoardsAndStacks],
}
CPU = torch.device("cpu")


def test_every_check_has_its_broken_object() -> None:
    assert [c.__name__ for c in learners.yield_learner_checks()] == list(LEARNERS)
    defined = {name for name in vars(learners) if name.startswith("check_")}
    assert defined - {"check_learner", "check_cpu_and_cuda_agree"} == set(LEARNERS)


@pytest.mark.parametrize("check", [*learners.yield_learner_checks()], ids=lambda c: c.__name__)
def test_the_base_class_passes(check: Any) -> None:
    check(Good, CPU)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in LEARNERS.items() for kind in kinds]
)
def test_broken_learners_are_caught(name: str, kind: type[Good]) -> None:
    with pytest.raises(AssertionError) as caught:
        getattr(learners, name)(kind, CPU)
    assert len(str(caught.value)) > 20, "the message explains"


def test_a_learner_that_depends_on_its_device_is_caught() -> None:
    learners.check_cpu_and_cuda_agree(Good, CPU)
    with pytest.raises(AssertionError, match="differ by"):
        learners.check_cpu_and_cuda_agree(OtherEachTime, CPU)


def test_sizes_are_all_different_once_and_all_equal_once() -> None:
    different, equal = CASES[0], CASES[1]
    assert len({different.window, different.channels, different.rows}) == 3
    assert {equal.window, equal.channels, equal.rows, equal.columns} == {3}
