"""What every `Learner` must do, as small functions: run them over your own, as the tests do over
the built-in ones.

A maker returns a new learner, not yet built, with the same settings each time. Each check builds
it for every kind of task it can learn (it refuses others with `ConfigError`), at sizes that all
differ and at sizes that are all equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners.base import Learner
from streamadapt.models.contract import BaseOutput, TaskKind
from streamadapt.testing.checks.cases import (
    CASES,
    Case,
    Step,
    drive,
    losses,
    require,
    state_bytes,
    through_a_checkpoint,
)
from streamadapt.testing.checks.costs import count_work, size_of

__all__ = [
    "LearnerCheck",
    "Make",
    "check_cpu_and_cuda_agree",
    "check_learner",
    "yield_learner_checks",
]

Make = Callable[[], Learner]
LearnerCheck = Callable[[Make, torch.device], None]

ONE_OF_EACH = CASES[:6:2]
"""A case of each kind of task, for the checks that take many steps."""
DRIVEN, FEW = 30, 40
"""Steps before, and steps of, a check that needs only some state."""
LEARNED = (150, 300, 450)
"""Something must be learned by one of these steps; the loss of the third before it counts."""
WARM_UP, MORE = 250, 200
"""State is measured after `WARM_UP` steps, and again `MORE` steps later."""
EARLY, LATE, COUNTED = 40, 200, 30
"""The cost of `COUNTED` steps is counted from each of these steps on."""

_Shared = dict[tuple[Case, str, int], Any]
_SHARED: ContextVar[_Shared | None] = ContextVar("_SHARED", default=None)
"""What the checks of one learner have driven already; None outside of `check_learner`."""


def check_learner(
    make: Make, *, device: str = "cpu", skip: Mapping[str, str] | None = None
) -> None:
    """Run every check.

    Parameters
    ----------
    make : callable
        Returns a new learner, not yet built.
    skip : mapping of str to str, optional
        Names of checks that cannot hold, each with the reason.

    Raises
    ------
    AssertionError
        Naming the check, the case and what the learner did.
    ConfigError
        If `skip` names no check, or gives no reason.
    """
    checks = {check.__name__: check for check in yield_learner_checks()}
    for name, reason in (skip or {}).items():
        if name not in checks or not reason:
            raise ConfigError("skip", {name: reason}, "names of checks, each with a reason")
    with _sharing():
        for name, check in checks.items():
            if name not in (skip or {}):
                try:
                    check(make, torch.device(device))
                except AssertionError as exc:
                    exc.add_note(f"by {name}")
                    raise


def yield_learner_checks() -> Iterator[LearnerCheck]:
    """Yield the checks, the most basic first."""
    yield check_refuses_a_task_with_config_error
    yield check_prediction_has_the_shape
    yield check_prediction_is_no_view
    yield check_predict_is_pure
    yield check_wrong_target_shape_is_refused
    yield check_unknown_target_changes_nothing
    yield check_masked_cells_contribute_nothing
    yield check_same_seed_same_bits
    yield check_reset_returns_to_the_start
    yield check_snapshot_is_detached
    yield check_state_round_trips
    yield check_parameters_are_read
    yield check_learns_a_constant_error
    yield check_learns_it_where_it_is
    yield check_base_stays_untouched
    yield check_state_is_bounded
    yield check_late_steps_cost_no_more


def check_refuses_a_task_with_config_error(make: Make, device: torch.device) -> None:
    """A kind of task that cannot be learned is refused by `ConfigError` when it is built; not
    every kind is."""
    kinds: set[TaskKind] = set()
    for case in CASES:
        try:
            make().build(case.spec(device))
        except ConfigError:
            continue
        except Exception as exc:
            raise AssertionError(
                f"{case}: build raised {exc!r}, wanted ConfigError or nothing"
            ) from exc
        kinds.add(case.kind)
    require(bool(kinds), "every kind of task was refused")
    wanted = {case.kind for case in CASES if case.kind in make().kinds}
    require(kinds <= wanted, f"`kinds` is {sorted(wanted)}, but build accepted {sorted(kinds)}")


def check_prediction_has_the_shape(make: Make, device: torch.device) -> None:
    """A prediction is finite float32 (rows, columns), a family's (experts, rows, columns), also
    before learning."""
    for learner, case, steps in _built(make, device, FEW):
        count = len(learner.names)
        require(
            len(set(learner.names)) == count > 0,
            f"{case}: names {learner.names} are not different ones",
        )
        shape = (case.rows, case.columns)
        for i, said in enumerate(drive(learner, steps)):
            fits = tuple(said.shape) in ((count, *shape), *((shape,) if count == 1 else ()))
            require(
                fits, f"{case}, step {i}: shape {tuple(said.shape)} for {count} experts of {shape}"
            )
            require(said.dtype == torch.float32, f"{case}, step {i}: {said.dtype}, wanted float32")
            require(
                said.device.type == device.type,
                f"{case}, step {i}: on {said.device}, wanted {device}",
            )
            require(bool(torch.isfinite(said).all()), f"{case}, step {i}: not finite: {said}")
            require(
                not said.requires_grad,
                f"{case}, step {i}: the prediction still requires gradients",
            )


def check_prediction_is_no_view(make: Make, device: torch.device) -> None:
    """A prediction shares no memory with the state or the inputs, and stays as it is while the
    learner goes on."""
    for learner, case, steps in _driven(make, device, DRIVEN):
        step = steps[DRIVEN]
        said = learner.predict(step.inputs, step.base)
        owned = [t for t in tree_leaves(learner.state_dict()) if isinstance(t, Tensor)] + [
            step.inputs,
            step.base.output,
        ]
        shared = [
            t for t in owned if t.untyped_storage().data_ptr() == said.untyped_storage().data_ptr()
        ]
        require(
            not shared,
            f"{case}: the prediction is a view of a tensor of shape "
            f"{[tuple(t.shape) for t in shared]}",
        )
        before = said.clone()
        drive(learner, steps[DRIVEN + 1 :])
        require(
            torch.equal(said, before), f"{case}: a prediction changed while the learner went on"
        )


def check_predict_is_pure(make: Make, device: torch.device) -> None:
    """Predicting changes neither state nor inputs, and says the same again."""
    for learner, case, steps in _driven(make, device, DRIVEN):
        for step in steps[DRIVEN:]:
            given = [t.clone() for t in (step.inputs, *step.base) if t is not None]
            state = state_bytes(learner.snapshot())
            said = learner.predict(step.inputs, step.base)
            now = [t for t in (step.inputs, *step.base) if t is not None]
            require(all(map(torch.equal, given, now)), f"{case}: predict wrote to its arguments")
            require(state_bytes(learner.snapshot()) == state, f"{case}: predict changed the state")
            again = learner.predict(step.inputs, step.base)
            require(
                torch.equal(said, again),
                f"{case}: predicted {said}, then {again} from the same inputs",
            )


def check_wrong_target_shape_is_refused(make: Make, device: torch.device) -> None:
    """A target that would only broadcast raises `ShapeError` and changes nothing."""
    for learner, case, steps in _driven(make, device, FEW):
        state = state_bytes(learner.snapshot())
        for shape in (
            (case.rows, case.columns + 1),
            (case.rows + 1, case.columns),
            (case.columns,),
            (),
        ):
            target, mask = (
                torch.zeros(shape, dtype=torch.float32, device=device),
                torch.ones(shape, dtype=torch.bool, device=device),
            )
            try:
                learner.learn(steps[-1].inputs, steps[-1].base, target, mask)
            except ShapeError:
                require(
                    state_bytes(learner.snapshot()) == state,
                    f"{case}: state changed before the ShapeError",
                )
            except Exception as exc:
                raise AssertionError(
                    f"{case}: a target of {shape} raised {exc!r}, wanted ShapeError"
                ) from exc
            else:
                require(
                    not learner.needs_labels,
                    f"{case}: learned from a target of {shape} without a word",
                )


def check_unknown_target_changes_nothing(make: Make, device: torch.device) -> None:
    """An example whose target is not known (masked, NaN) changes no prediction."""
    for learner, case, steps in _driven(make, device, FEW):
        step = steps[-1]
        before = learner.predict(step.inputs, step.base)
        for garbage in (torch.nan, 0.0):
            target = torch.full(
                (case.rows, case.columns), garbage, dtype=torch.float32, device=device
            )
            learner.learn(
                step.inputs, step.base, target, torch.zeros_like(target, dtype=torch.bool)
            )
            after = learner.predict(step.inputs, step.base)
            require(
                torch.equal(before, after),
                f"{case}: a masked target of {garbage} changed {before} to {after}",
            )


def check_masked_cells_contribute_nothing(make: Make, device: torch.device) -> None:
    """Of a target known in part, what stands in the unknown cells makes no difference, not in a
    bit."""
    found: dict[Case, list[bytes]] = {}
    for garbage in (torch.nan, 1e6, -3.0):
        for learner, case, steps in _built(make, device, FEW):
            said = []
            for step in steps:
                for inputs, base, target, mask in (
                    (e.inputs, e.base, e.target, e.mask) for e in step.learn
                ):
                    learner.learn(inputs, base, torch.where(mask, target, garbage), mask)
                said.append(learner.predict(step.inputs, step.base))
            found.setdefault(case, []).append(
                state_bytes({"said": said, "state": _tensors(learner.snapshot())})
            )
    for case, runs in found.items():
        require(
            len(set(runs)) == 1, f"{case}: values in masked cells changed predictions or state"
        )


def check_same_seed_same_bits(make: Make, device: torch.device) -> None:
    """The same seed and stream give the same bits, whatever else drew random numbers in
    between."""
    found: dict[Case, list[bytes]] = {}
    for _ in range(2):
        for learner, case, steps in _built(make, device, FEW):
            found.setdefault(case, []).append(_run(learner, steps))
            torch.rand(3, dtype=torch.float32)
    for case, (first, second) in found.items():
        require(first == second, f"{case}: two runs with one seed differ")


def check_reset_returns_to_the_start(make: Make, device: torch.device) -> None:
    """After `reset` the learner is, bit for bit, the one that was built, and learns as that one
    did."""
    for learner, case, steps in _built(make, device, FEW):
        start = state_bytes(_tensors(learner.snapshot()))
        first = _run(learner, steps)
        learner.reset()
        again = state_bytes(_tensors(learner.snapshot()))
        require(again == start, f"{case}: the state after reset is not the one it was built in")
        require(
            _run(learner, steps) == first,
            f"{case}: after reset it learned something else from the same stream",
        )


def check_snapshot_is_detached(make: Make, device: torch.device) -> None:
    """A snapshot needs no gradient, never changes, and `restore` brings back the predictions of
    its time."""
    for learner, case, steps in _built(make, device, FEW):
        drive(learner, steps[:DRIVEN])
        step = steps[DRIVEN]
        snapshot, before = learner.snapshot(), learner.predict(step.inputs, step.base)
        taken = state_bytes(snapshot)
        hanging = [k for k, v in snapshot.items() if isinstance(v, Tensor) and v.requires_grad]
        require(not hanging, f"{case}: {hanging} of the snapshot require gradients")
        drive(learner, steps[DRIVEN + 1 :])
        require(
            state_bytes(snapshot) == taken,
            f"{case}: the snapshot changed while the learner went on",
        )
        learner.restore(snapshot)
        after = learner.predict(step.inputs, step.base)
        require(
            torch.equal(before, after),
            f"{case}: predicted {before} at the snapshot, {after} when restored to it",
        )
        drive(learner, steps[DRIVEN + 1 :])
        require(
            state_bytes(snapshot) == taken,
            f"{case}: the restored learner goes on inside the snapshot",
        )


def check_state_round_trips(make: Make, device: torch.device) -> None:
    """A learner loaded from a checkpoint on disk predicts and goes on learning, bit for bit, as
    the saved one does."""
    for learner, case, steps in _built(make, device, FEW):
        drive(learner, steps[:DRIVEN])
        fresh = make()
        fresh.build(case.spec(device))
        fresh.load_state_dict(through_a_checkpoint(learner.snapshot()))
        mine, other = (state_bytes(_tensors(each.snapshot())) for each in (learner, fresh))
        require(mine == other, f"{case}: parameters or buffers differ after loading")
        for i, step in enumerate(steps[DRIVEN:], DRIVEN):
            said = [drive(each, [step])[0] for each in (learner, fresh)]
            once = f"{said[1]} once saved at step {DRIVEN} and loaded"
            require(torch.equal(*said), f"{case}, step {i}: {said[0]} goes on as {once}")


class _Predict(nn.Module):
    """`predict` as `forward`, which is what torch's functional interface calls."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        return self.learner.predict(inputs, base)


def check_parameters_are_read(make: Make, device: torch.device) -> None:
    """`torch.func.functional_call` with zeros for parameters changes the prediction: torch sees
    all that is read."""
    for learner, case, steps in _driven(make, device, FEW):
        zeros = {f"learner.{name}": torch.zeros_like(p) for name, p in learner.named_parameters()}
        if not zeros:
            continue
        step = steps[-1]
        said = learner.predict(step.inputs, step.base)
        swapped = torch.func.functional_call(_Predict(learner), zeros, (step.inputs, step.base))
        require(
            not torch.equal(said, swapped),
            f"{case}: with all parameters zero it predicts the same",
        )
        require(
            torch.equal(said, learner.predict(step.inputs, step.base)),
            f"{case}: the parameters did not come back",
        )


def check_learns_a_constant_error(make: Make, device: torch.device) -> None:
    """Where the base is wrong by a constant, every expert's loss is below the base's once it has
    learned."""
    for learner, case, steps in _built(make, device, LEARNED[-1]):
        if not learner.needs_labels:
            continue
        gained: list[float] = []
        for gain in _gains(learner, case, steps):
            gained = gain.mean(1).tolist()
            if min(gained) > 1e-3:
                break
        else:
            require(False, f"{case}: loss below the base's by {gained} only")


def check_learns_it_where_it_is(make: Make, device: torch.device) -> None:
    """Where the base is wrong in one column only, that column gains more than any other loses, at
    equal sizes too."""
    for size in CASES:
        if size.kind == "classification" or size.columns == 1:
            continue  # the columns of a distribution stand together
        case = Case(size.kind, size.window, size.channels, size.rows, size.columns, only_column=1)
        for learner, _, steps in _built(make, device, LEARNED[-1], (case,)):
            if not learner.needs_labels:
                continue
            gained = torch.zeros(0, dtype=torch.float32)
            for gained in _gains(learner, case, steps):
                others = gained[:, [c for c in range(case.columns) if c != 1]]
                if bool((gained[:, 1] > 2.0 * (-others).clamp_min(0.0).amax(1)).all()):
                    break
            else:
                require(
                    False, f"{case}: only column 1 is wrong, the columns gain {gained.tolist()}"
                )


def check_base_stays_untouched(make: Make, device: torch.device) -> None:
    """A learner that is given the base's module works on a copy: not a bit of the module
    changes."""
    for learner, case, steps in _built(make, device, FEW):
        model = learner.spec.model
        if model is None:
            continue
        before = state_bytes({k: v.clone() for k, v in model.state_dict().items()})
        _run(learner, steps)
        require(
            state_bytes(model.state_dict()) == before,
            f"{case}: the base's own module was written to",
        )


def check_state_is_bounded(make: Make, device: torch.device) -> None:
    """`MORE` steps after a warm-up grow the learner by a tenth, or 2 KiB, at most."""
    for learner, case, steps in _built(make, device, LEARNED[-1], ONE_OF_EACH):
        _advance(learner, steps[:WARM_UP])
        before = size_of(learner)
        _advance(learner, steps[WARM_UP : WARM_UP + MORE])
        after = size_of(learner)
        allowed = before + max(2048, before // 10)
        require(
            after <= allowed,
            f"{case}: {before} bytes after {WARM_UP} steps, {after} after {MORE} more",
        )


def check_late_steps_cost_no_more(make: Make, device: torch.device) -> None:
    """A late step runs no more Python lines and torch operations, over no more numbers, than an
    early one."""
    for learner, case, steps in _built(make, device, LEARNED[-1], ONE_OF_EACH):
        _advance(learner, steps[:EARLY])
        early = count_work(partial(drive, learner, steps[EARLY : EARLY + COUNTED]))
        _advance(learner, steps[EARLY + COUNTED : LATE])
        late = count_work(partial(drive, learner, steps[LATE : LATE + COUNTED]))
        for name, before in early.items():
            allowed = 1.2 * before + 10 * COUNTED
            said = (
                f"{case}: {name} in {COUNTED} steps: {before} from step {EARLY} on, "
                f"{late[name]} from step {LATE} on"
            )
            require(late[name] <= allowed, said)


def check_cpu_and_cuda_agree(make: Make, device: torch.device) -> None:
    """The predictions on `device` (a GPU) are those of the CPU, to a thousandth of the output's
    scale."""
    cpu = torch.device("cpu")
    for (learner, case, steps), (other, _, there) in zip(
        _built(make, cpu, FEW), _built(make, device, FEW), strict=True
    ):
        scale = torch.from_numpy(case.output_units()[1])
        for i, (a, b) in enumerate(zip(drive(learner, steps), drive(other, there), strict=True)):
            worst = ((a - b.cpu()).abs() / scale).max().item()
            require(
                worst < 1e-3, f"{case}, step {i}: cpu and {device} differ by {worst:.2g} scales"
            )


def _built(
    make: Make, device: torch.device, n: int, cases: Sequence[Case] = CASES
) -> Iterator[tuple[Learner, Case, Sequence[Step]]]:
    """Yield a built learner for every case it can learn, with `n` steps of its stream."""
    for case in cases:
        learner = make()
        try:
            learner.build(case.spec(device))
        except ConfigError:
            continue
        yield learner, case, case.steps(n, learner.matures, device)


@contextmanager
def _sharing() -> Iterator[None]:
    """Within, each case is driven once to the states that several checks begin at."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def _driven(
    make: Make, device: torch.device, n: int
) -> Iterator[tuple[Learner, Case, Sequence[Step]]]:
    """Yield learners as `_built` does, driven over the first `n` of `FEW` steps, or restored to
    what that led to."""
    shared = _SHARED.get()
    for learner, case, steps in _built(make, device, FEW):
        key = (case, str(device), n)
        if shared is not None and key in shared:
            learner.load_state_dict(shared[key])
        else:
            drive(learner, steps[:n])
            if shared is not None:
                shared[key] = learner.snapshot()
        yield learner, case, steps


def _run(learner: Learner, steps: Sequence[Step]) -> bytes:
    return state_bytes({"said": drive(learner, steps), "state": _tensors(learner.snapshot())})


def _advance(learner: Learner, steps: Sequence[Step]) -> None:
    """Get on as fast as can be: without predicting."""
    for step in steps:
        learner.adapt(step.inputs, step.base)
        for example in step.learn if learner.needs_labels else ():
            learner.learn(example.inputs, example.base, example.target, example.mask)


def _tensors(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    # Blobs are judged by the predictions alone: two pickles of like objects need not be the same
    # bytes.
    return {name: value for name, value in snapshot.items() if isinstance(value, Tensor)}


def _gains(learner: Learner, case: Case, steps: Sequence[Step]) -> Iterator[Tensor]:
    """Yield how far the loss is below the base's by each of `LEARNED`, (experts, columns)."""
    said: list[Tensor] = []
    for reached in LEARNED:
        said += drive(learner, steps[len(said) : reached])
        last = slice(reached - reached // 3, reached)
        base = losses(case, [s.base.output for s in steps[last]], steps[last])
        yield base - losses(case, said[last], steps[last])
