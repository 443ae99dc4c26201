"""`predict` from other threads: each answer is that of a state between two items, and nothing else
changes."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import bits, entries, entry, state, walk
from torch import Tensor, nn

from streamadapt import (
    ADCSD,
    EATA,
    RLS,
    Bias,
    Calibration,
    Dictionary,
    Entry,
    ErrorMemory,
    Forecast,
    FrozenModel,
    Gain,
    Holt,
    KeyedPipeline,
    Liquid,
    PerEntry,
    Persistence,
    Pipeline,
    Refit,
    River,
    Seasonal,
    SlotBias,
    Supervised,
    Tent,
)
from streamadapt.errors import BusyError, ConfigError, EntryError
from streamadapt.learners import BaseOutput, Learner
from streamadapt.models.contract import as_base

N, WARM = 90, 20
THREADS = 8
LATE = 10**6  # the time of the predicted entries: after every observed entry


def make() -> Pipeline:
    return Pipeline(
        Forecast(4, 3),
        Persistence(3),
        [Bias((0.1, 0.02)), RLS(0.99), ErrorMemory(capacity=30, k=3)],
    )


def question(i: int) -> Entry:
    return entry([float(i), -float(i)], LATE, id=f"q{i}")


def answers_at_every_point(
    pipeline: Any, items: list[Entry], ask: Callable[[Any, int], Any]
) -> list[set[bytes]]:
    """Return, for each question, the answers of the states between the items."""
    found: list[set[bytes]] = [set() for _ in range(THREADS)]
    for item in [None, *items]:
        if item is not None:
            pipeline.observe([item])
        for i in range(THREADS):
            found[i].add(ask(pipeline, i).served.tobytes())
    return found


def asked_beside(
    pipeline: Any, items: list[Entry], ask: Callable[[Any, int], Any]
) -> tuple[list[Any], list[Any]]:
    """Observe item by item while threads predict; return the predictions, and each thread's
    answers or errors."""
    predictions: list[Any] = []
    answers: list[list[Any]] = [[] for _ in range(THREADS)]
    stop = threading.Event()
    begun = threading.Barrier(THREADS + 1)

    def go(i: int) -> None:
        begun.wait()
        while not stop.is_set() or not answers[i]:
            try:
                answers[i].append(ask(pipeline, i).served.tobytes())
            except Exception as error:  # for the test to check
                answers[i].append(error)

    threads = [threading.Thread(target=go, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    begun.wait()
    for item in items:
        predictions += pipeline.observe([item])
    stop.set()
    for thread in threads:
        thread.join()
    return predictions, answers


def test_eight_threads_predict_and_each_gets_its_own_answer() -> None:
    items = entries(walk(N, 2))

    def ask(pipeline: Any, i: int) -> Any:
        return pipeline.predict(question(i))

    alone, beside, table = make(), make(), make()
    for pipeline in (beside, table):
        pipeline.observe(items[:WARM])
    right = answers_at_every_point(table, items[WARM:], ask)
    undisturbed = alone.observe(items)[-(N - WARM) :]
    predictions, answers = asked_beside(beside, items[WARM:], ask)
    assert bits(predictions) == bits(undisturbed)
    assert state(beside) == state(alone)
    for i in range(THREADS):
        assert answers[i]
        assert set(answers[i]) <= right[i]


def test_keyed_predictions_while_keys_are_evicted() -> None:
    keys = "abc"
    base = as_base(Persistence(3))

    def made() -> KeyedPipeline:
        return KeyedPipeline(
            lambda: Pipeline(Forecast(4, 3), base, [Bias(0.1), RLS(0.99)]), max_keys=3
        )

    values = walk(N, 2)
    items = [entry(v, t, id=f"{t}{k}", key=k) for t, v in enumerate(values[:40], 1) for k in keys]

    def ask(keyed: Any, i: int) -> Any:
        return keyed.predict(Entry(question(i).values, LATE, key=keys[i % 3]))

    warm = 3 * 10
    alone, beside, table = made(), made(), made()
    for keyed in (beside, table):
        keyed.observe(items[:warm])
    right = answers_at_every_point(table, items[warm:], ask)
    undisturbed = alone.observe(items)[-(len(items) - warm) :]
    predictions, answers = asked_beside(beside, items[warm:], ask)
    assert bits(predictions) == bits(undisturbed)
    for i in range(THREADS):
        assert set(answers[i]) <= right[i]
    with pytest.raises(ConfigError, match="nothing has come"):
        beside.predict(Entry(values[0], LATE, key="never came"))


def test_two_threads_observe_whole_items() -> None:
    """For any interleaving the result is that of one order of the items."""
    pipeline, order, lock = make(), [], threading.Lock()
    plain = pipeline._step

    def noted(item: Any) -> Any:
        assert lock.acquire(blocking=False), "two items at once"
        try:
            order.append(item)
            return plain(item)
        finally:
            lock.release()

    pipeline._step = noted  # type: ignore[method-assign]
    values = walk(N, 2)

    def feed(part: int) -> None:
        for v in values[part::2]:
            pipeline.observe([entry(v, 1)])  # the same time: any order is valid

    threads = [threading.Thread(target=feed, args=(part,)) for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(order) == N
    again = make()
    again.observe(order)
    assert state(again) == state(pipeline)


# -- reentrant calls


def test_a_call_from_on_rejected_is_an_error_and_changes_nothing() -> None:
    pipeline = make()
    caught: list[BusyError] = []

    def again(item: Any, error: EntryError) -> None:
        for call in (
            lambda: pipeline.observe([item]),
            lambda: pipeline.predict(item),
            pipeline.state_dict,
        ):
            with pytest.raises(BusyError, match="from within itself") as found:
                call()
            caught.append(found.value)

    pipeline.on_rejected = again
    items = entries(walk(40, 2))
    bad = entry([1.0], 20)
    predictions = pipeline.observe([*items[:20], bad, *items[20:]])
    assert len(caught) == 3
    assert bits(predictions) == bits(make().observe(items))


def test_a_learner_that_calls_its_pipeline_is_suspended() -> None:
    class Calls(Bias):
        kind = "calls"

        def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
            pipeline.observe([])
            pipeline.observe([entry([0.0, 0.0], LATE)])

    pipeline = Pipeline(Forecast(4, 3), Persistence(3), [Calls(0.1)])
    items = entries(walk(40, 2))
    predictions = pipeline.observe(items)
    assert pipeline.stats.entries == 40
    assert pipeline.stats.faults["learner:calls-0.1"] > 0
    assert all(np.array_equal(p.served, p.base) for p in predictions)


def test_pipelines_are_copied_and_pickled_as_before() -> None:
    pipeline = make()
    items = entries(walk(60, 2))
    pipeline.observe(items[:40])
    rest = bits(copy.deepcopy(pipeline).observe(items[40:]))
    assert bits(pickle.loads(pickle.dumps(pipeline)).observe(items[40:])) == rest
    assert bits(pipeline.observe(items[40:])) == rest


# -- one base for many pipelines


def test_a_base_with_an_embedding_keeps_threads_apart() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            inner = self.inner(x)
            for _ in range(20):  # time for other threads to run in between
                inner = inner + torch.zeros(1)
            return inner[:, -1:].unsqueeze(-1)

    base = FrozenModel(Slow(), embedding="inner")
    wrong: list[Any] = []

    def go(i: int) -> None:
        for n in range(60):
            x = torch.full((3, 1), float(1000 * i + n))
            output = base(x)
            if output.embedding is None or not torch.equal(output.embedding, x.flatten()):
                wrong.append((i, n, output.embedding))

    threads = [threading.Thread(target=go, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- predict changes no learner

FORECASTERS: dict[str, Callable[[], Learner]] = {
    "adcsd": lambda: ADCSD(1e-3),
    "bias": lambda: Bias((0.1, 0.02)),
    "calibration": lambda: Calibration(0.9),
    "dictionary": Dictionary,
    "dictionary-rls": lambda: Dictionary(RLS(0.99)),
    "error-memory": lambda: ErrorMemory(capacity=60, k=5),
    "error-memory-sketch": lambda: ErrorMemory(store="sketch", tables=8, bits=4),
    "gain": lambda: Gain(0.05),
    "holt": Holt,
    "liquid": lambda: Liquid(unroll=2),
    "refit": lambda: Refit(30, memory=60, hidden=8),
    "river": lambda: River("linear_model.LinearRegression"),
    "rls": lambda: RLS(0.99, features=["season"], period="10s"),
    "rls-l1": lambda: RLS(0.99, loss="l1"),
    "seasonal": lambda: Seasonal(5),
    "slot_bias": lambda: SlotBias(0.1, period=2e-8, slots=4),
}
IMAGES = torch.randn(60, 1, 8, generator=torch.Generator().manual_seed(0))
CLASSIFIERS: dict[str, Callable[[], Learner]] = {
    "eata": lambda: EATA(8, 1e-2, fisher=IMAGES),
    "per_entry": lambda: PerEntry(IMAGES),
    "tent": lambda: Tent(8, 1e-2),
}


@pytest.mark.parametrize("name", [*FORECASTERS, *CLASSIFIERS])
def test_predict_after_every_entry_changes_no_bit(name: str) -> None:
    if name in FORECASTERS:

        def made() -> Pipeline:
            return Pipeline(Forecast(6, 3), Persistence(3), [FORECASTERS[name]()])

        items = entries(walk(80, 2))
    else:
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
        )

        def made() -> Pipeline:
            base = FrozenModel(module, softmax=True)
            return Pipeline(Supervised(1, classes=3), base, [CLASSIFIERS[name]()])

        rng = np.random.default_rng(0)
        x = rng.normal(size=(80, 8)).astype(np.float32) * 1.3
        items = [
            entry(v, t + 1, id=str(t), label=np.array([t % 3], np.float32))
            for t, v in enumerate(x)
        ]
    asked, alone = made(), made()
    predictions: list[Any] = []
    for item in items:
        predictions += asked.observe([item])
        if predictions:
            before = state(asked)
            first = asked.predict(entry(item.values * 1.5, LATE, id="q"))
            again = asked.predict(entry(item.values * 1.5, LATE, id="q"))
            assert first.served.tobytes() == again.served.tobytes()
            assert state(asked) == before
    assert bits(predictions) == bits(alone.observe(items))
    assert state(asked) == state(alone)
