"""Compiled or not, a learner gives the same bits; and the same bits however a lot is cut."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import CPU

from streamadapt.compiled import ENABLED
from streamadapt.errors import ConfigError
from streamadapt.learners import (
    ADCSD,
    RLS,
    Bias,
    Calibration,
    Dictionary,
    ErrorMemory,
    Gain,
    Holt,
    LastValue,
    Logistic,
    Seasonal,
    SlotBias,
)
from streamadapt.learners.boxes import lot_box, parts_box
from streamadapt.learners.compiled import CompiledLearner, kernel_of, shared_of
from streamadapt.learners.lots import (
    ADAPT,
    ENTRY,
    FORGET,
    LEARN,
    NOTHING,
    PREDICT,
    Lot,
    Parts,
    empty_lot,
)
from streamadapt.models.contract import Spec
from streamadapt.testing.checks.cases import CASES, Case, drive, state_bytes

pytestmark = pytest.mark.skipif(not ENABLED, reason="nothing is compiled")

KEYS, EVENTS = 3, 400
FEW = 40
"""Events of learners whose uncompiled form is slow."""
SECOND = 10**9
MAKERS: dict[str, Callable[[], CompiledLearner]] = {
    "adcsd": lambda: ADCSD(1e-3),
    "adcsd-huber": lambda: ADCSD(1e-3, loss="huber", optimiser="adabelief"),
    "adcsd-share-norm": lambda: ADCSD(share_norm=True),
    "adcsd-share-norm-huber": lambda: ADCSD(share_norm=True, loss="huber", optimiser="lion"),
    "adcsd-share-norm-sgd": lambda: ADCSD(share_norm=True, optimiser="sgd"),
    "bias": lambda: Bias((0.5, 0.02)),
    "calibration": lambda: Calibration((1.0, 0.9, 0.3)),
    "calibration-unclipped": lambda: Calibration(0.98, clip=float("inf"), ridge=2.0),
    "dictionary": lambda: Dictionary(batch=3),
    "dictionary-row": lambda: Dictionary(over="row", batch=1, track=0.0, threshold=1.0),
    "error_memory": lambda: ErrorMemory(capacity=60, k=5),
    "error_memory-inputs": lambda: ErrorMemory(capacity=60, k=60, embedding="inputs"),
    "error_memory-labels": lambda: ErrorMemory(capacity=60, value="label", gamma=0.3),
    "error_memory-panel": lambda: ErrorMemory(scope="panel", capacity=60, k=5),
    "sketch": lambda: ErrorMemory(store="sketch", tables=6, bits=4),
    "sketch-panel": lambda: ErrorMemory(store="sketch", scope="panel", tables=6, bits=4),
    "gain": lambda: Gain((0.3, 0.02)),
    "holt": Holt,
    "holt-no-jumps": lambda: Holt(0.2, 0.0, jump=float("inf")),
    "logistic": lambda: Logistic((5.0, 0.3), forgetting=0.9),
    "logistic-no-memory": lambda: Logistic(1.0, decay=0.0, forgetting=1.0),
    "persistence": LastValue,
    "rls": lambda: RLS((0.9995, 0.9, 1.0)),
    "rls-l1": lambda: RLS((0.98, 0.9), loss="l1"),
    "rls-calendar": lambda: RLS(0.98, clip=float("inf"), features=["calendar"]),
    "rls-shared": lambda: RLS((0.98, 0.9), shared=True),
    "rls-shared-l1": lambda: RLS(0.98, shared=True, loss="l1", features=["cross"]),
    "rls-all": lambda: RLS(0.98, features=["level", "calendar", "season"], period="20s"),
    "rls-l1-all": lambda: RLS(
        0.98, loss="l1", features=["calendar", "cross", "season"], period="20s"
    ),
    "seasonal": lambda: Seasonal(5),
    "seasonal-1": lambda: Seasonal(1),
    "seasonal-clock": lambda: Seasonal("20s", slots=7),
    "slot_bias": lambda: SlotBias((0.5, 0.1), period=60.0, slots=5),
}


def learns(learner: CompiledLearner, case: Case) -> bool:
    """Return whether it is made for such a task."""
    try:
        learner.check_kind(case.kind)
    except ConfigError:
        return False
    return True


PAIRS = [
    pytest.param(make, case, id=f"{name}-{case.kind}-{case.rows}x{case.columns}")
    for name, make in MAKERS.items()
    for case in CASES
    if learns(make(), case)
]


def a_lot(spec: Spec, writes: tuple[int, int, int], events: int, *, times: bool) -> Lot:
    """Events of all kinds for several keys, with values up to 1e30; `writes` is the shape of an
    output."""
    rng = np.random.default_rng(4)
    shape, seen = (1, spec.rows, spec.columns), spec.window if times else 0
    lot = empty_lot(events, spec.window, spec.channels, shape, spec.embedding or 0, seen)
    lot = lot._replace(outputs=np.zeros((events, *writes)))
    lot.embeddings[:] = np.random.default_rng(5).normal(size=lot.embeddings.shape)
    kinds = [PREDICT, LEARN, ADAPT, FORGET, ENTRY, NOTHING]
    lot.kinds[:] = rng.choice(kinds, events, p=[0.2, 0.38, 0.1, 0.01, 0.3, 0.01])
    lot.at[:] = rng.permutation(events)
    lot.keys[:] = rng.integers(0, KEYS, events)
    size = 10.0 ** rng.choice([0.0, 1.0, 1.0, 1.0, 30.0], events)[:, None, None]
    lot.windows[:] = rng.normal(10.0, 2.0, lot.windows.shape) * np.minimum(size, 1e6)
    lot.times[:] = np.cumsum(rng.integers(0, 3 * SECOND, events))[:, None] + 1_700_000_000 * SECOND
    lot.times[:] += np.arange(lot.times.shape[1]) * SECOND
    lot.bases[:] = rng.normal(10.0, 3.0, lot.bases.shape) * size
    lot.targets[:] = 1.3 * lot.bases + rng.normal(size=lot.targets.shape)
    lot.known[:] = rng.random(lot.known.shape) < 0.8
    if spec.kind == "classification":
        lot.bases[:] = rng.dirichlet(np.full(spec.columns, 0.3), lot.bases.shape[:2])
        lot.targets[:] = np.eye(spec.columns)[rng.integers(0, spec.columns, lot.bases.shape[:2])]
        lot.known[:] = lot.known[:, :, :1]
    lot.targets[~lot.known] = np.nan
    lot.weights[:] = rng.choice([1.0, 1.0, 0.0, 0.3], events)
    lot.boosts[:] = rng.choice([1.0, 1.0, 1.0, 30.0], events)
    return lot


def parts_of(learner: CompiledLearner, spec: Spec) -> Parts:
    """Return the learner's parts, with room for several keys."""

    def keyed(state: Any) -> Any:
        if isinstance(state, tuple):
            return type(state)(*map(keyed, state))
        return np.stack([state] * KEYS)

    state, room = keyed(learner.start(spec)), learner.room(spec)
    return Parts(shared_of(spec), learner.settings(spec), state, room, 0, learner.writes(spec)[0])


def arrays(state: Any) -> list[bytes]:
    if isinstance(state, tuple):
        return [found for each in state for found in arrays(each)]
    return [state.tobytes()]


@pytest.mark.parametrize("times", [True, False], ids=["timed", "untimed"])
@pytest.mark.parametrize(("make", "case"), PAIRS)
def test_compiled_and_plain_give_the_same_bits(
    make: Callable[[], CompiledLearner], case: Case, times: bool
) -> None:
    spec, learner = case.spec(CPU), make()
    kernel = kernel_of(learner.steps_for(spec))
    events = FEW if isinstance(learner, ADCSD) else EVENTS
    lots = [a_lot(spec, learner.writes(spec), events, times=times) for _ in range(3)]
    parts = [parts_of(learner, spec) for _ in range(3)]
    kernel(lot_box(lots[0]), 0, events, parts_box(parts[0]))
    kernel.function(lots[1], 0, events, parts[1])
    for first, last in ((0, 1), (1, events // 2), (events // 2, events)):
        kernel(lot_box(lots[2]), first, last, parts_box(parts[2]))
    assert np.isfinite(lots[0].outputs).all()
    assert lots[0].outputs.any()
    for lot, other in zip(lots[1:], parts[1:], strict=True):
        assert lot.outputs.tobytes() == lots[0].outputs.tobytes()
        assert arrays(other.state) == arrays(parts[0].state)


@pytest.mark.parametrize("name", ["adcsd", "bias", "seasonal-clock", "holt"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_a_state_of_its_own(name: str, copied: Callable[[Any], Any]) -> None:
    case = CASES[0]
    steps, learner = case.steps(60, "rows", CPU), MAKERS[name]()
    copied(learner).build(case.spec(CPU))
    learner.build(case.spec(CPU))
    drive(learner, steps[:30])
    other = copied(learner)
    assert state_bytes(other.snapshot()) == state_bytes(learner.snapshot())
    before = state_bytes(learner.snapshot())
    ahead = drive(other, steps[30:])
    assert state_bytes(learner.snapshot()) == before
    assert all(map(torch.equal, drive(learner, steps[30:]), ahead))
