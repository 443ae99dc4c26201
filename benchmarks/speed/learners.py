"""Single learners against the usual way to compute the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import memory_cost
from benchmarks.scenarios.dictionary import Setting, entries_and_atoms
from benchmarks.speed.context import Context
from benchmarks.speed.eager_adcsd import EagerADCSD
from benchmarks.speed.neighbours import BruteForce, Hnsw, installed
from benchmarks.speed.rounds import Measured, Round, Side, seconds
from streamadapt import ADCSD, ErrorMemory
from streamadapt.learners.dictionary import OrthogonalDictionary
from streamadapt.models.contract import BaseOutput, Spec

__all__ = ["adcsd", "adcsd_sides", "dictionary", "memory", "memory_sides", "sketch_flat"]

STEPS, WINDOW = 12, 12
ALPHA = 0.2
"""The penalty of scikit-learn's dictionary, which changes its time little."""
CALLS = "Ours: the learner's `predict` and `learn`, one call each, as torch tensors."
Forecasts = list[tuple[Tensor, Tensor]]


# -- ADCSD


def _spec(nodes: int) -> Spec:
    loc, scale = torch.linspace(-1.0, 1.0, nodes), torch.linspace(1.0, 2.0, nodes)
    return Spec(
        "forecast", WINDOW, nodes, STEPS, nodes, loc, scale, loc, scale, torch.device("cpu")
    )


def _forecasts(nodes: int, many: int) -> Forecasts:
    """Return forecasts of the base, and what came true, (steps, nodes) each."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(many):
        walk = torch.randn(STEPS, nodes, generator=generator).cumsum(0)
        found.append((walk, walk + 0.5 + torch.randn(STEPS, nodes, generator=generator)))
    return found


def adcsd_sides(nodes: int) -> tuple[ADCSD, EagerADCSD]:
    """Return ours and the eager form, which starts from our weights."""
    spec, learner = _spec(nodes), ADCSD()
    learner.build(spec)
    eager = EagerADCSD(STEPS, nodes, spec.output_loc, spec.output_scale, learner.lr)
    eager.take(learner.state_dict())
    return learner, eager


def adcsd(nodes: int, usual: int, name: str, ctx: Context) -> Measured:
    """``adcsd-N``: one forecast is corrected and one is learned."""
    entries = ctx.many(usual)
    stream = _forecasts(nodes, min(entries, 32))
    ours, eager = adcsd_sides(nodes)
    window = torch.zeros(WINDOW, nodes)
    known = torch.ones(STEPS, nodes, dtype=torch.bool)

    def own() -> None:
        for i in range(entries):
            base, target = stream[i % len(stream)]
            ours.predict(window, BaseOutput(base))
            ours.learn(window, BaseOutput(base), target, known)

    shaped = [(base[None, ..., None], target[None, ..., None]) for base, target in stream]
    mask = known[None, ..., None]

    def theirs() -> None:
        for i in range(entries):
            base, target = shaped[i % len(shaped)]
            eager.predict(base)
            eager.learn(base, target, mask)

    rounds = ctx.compare(
        Side.of("ours", lambda: partial(seconds, own, entries)),
        [Side.of("eager torch", lambda: partial(seconds, theirs, entries))],
    )
    text = (
        f"{nodes} nodes, rounds of {entries:,} entries. ADCSD in its original form, horizon "
        f"{STEPS}, hidden size 128, float32, whole labels: an entry corrects one forecast and "
        f"makes one step of Adam on the masked mean absolute error of another. {CALLS} Rival: the "
        f"published form as modules of torch (Linear, LayerNorm over all, GELU, Linear), autograd "
        f"and torch.optim.Adam, from the same weights."
    )
    return Measured(name, "us an entry", text, rounds)


# -- error memories


class _Examples:
    """Random embeddings, labels and outputs of the base: other ones in each round."""

    def __init__(self, many: int) -> None:
        self.many, self.rounds = many, count(1)

    def next(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return the examples of a round: embedding, label, base."""
        generator = torch.Generator().manual_seed(next(self.rounds))
        n, classes = self.many, memory_cost.CLASSES
        embeddings = torch.randn(n, memory_cost.FEATURES, generator=generator)
        labels = torch.eye(classes)[torch.randint(classes, (n,), generator=generator)]
        base = torch.softmax(torch.randn(n, classes, generator=generator), 1)
        return list(zip(embeddings, labels, base, strict=True))


def _filled(learner: ErrorMemory, entries: int) -> ErrorMemory:
    learner.build(memory_cost.spec())
    memory_cost.feed(learner, entries, torch.Generator().manual_seed(0))
    return learner


def _own_round(learner: ErrorMemory, many: int) -> Round:
    examples = _Examples(many)
    inputs = torch.zeros(1, 1)
    known = torch.ones(1, memory_cost.CLASSES, dtype=torch.bool)

    def work() -> float:
        rows = [(BaseOutput(p[None], h), y[None]) for h, y, p in examples.next()]

        def loop() -> None:
            for base, target in rows:
                learner.predict(inputs, base)
                learner.learn(inputs, base, target, known)

        with torch.no_grad():
            return seconds(loop, many)

    return work


def _their_round(rival: BruteForce | Hnsw, many: int) -> Round:
    examples = _Examples(many)

    def work() -> float:
        rows = examples.next()

        def loop() -> None:
            for embedding, label, base in rows:
                rival.predict(embedding, base)
                rival.learn(embedding, label)

        with torch.no_grad():
            return seconds(loop, many)

    return work


def memory_sides(entries: int) -> dict[str, Callable[[], BruteForce | Hnsw]]:
    """Return the rivals that are installed, each to be made from the same random entries."""

    def made(make: Callable[[Tensor, Tensor], Any]) -> Any:
        generator = torch.Generator().manual_seed(0)
        keys = torch.randn(entries, memory_cost.FEATURES, generator=generator)
        labels = torch.randint(memory_cost.CLASSES, (entries,), generator=generator)
        return make(keys, nn.functional.one_hot(labels, memory_cost.CLASSES).float())

    rivals: dict[str, Callable[[], BruteForce | Hnsw]] = {
        "brute-force torch": partial(made, BruteForce)
    }
    if installed("hnswlib"):
        rivals["hnswlib"] = partial(made, Hnsw)
    return rivals


def memory(entries: int, usual: int, name: str, ctx: Context) -> Measured:
    """``memory-N``: the exact memory with N entries."""
    many, rivals = ctx.many(usual), memory_sides(entries)
    rounds = ctx.compare(
        Side.of("ours", lambda: _own_round(_filled(ErrorMemory(capacity=entries), entries), many)),
        [
            Side.of(rival, partial(lambda make: _their_round(make(), many), make))
            for rival, make in rivals.items()
        ],
    )
    hnsw = (
        "hnswlib (M 16, ef 50): the same with an index, whose neighbours are approximate and "
        "whose oldest entry is marked as deleted and replaced"
        if "hnswlib" in rivals
        else "hnswlib: not installed"
    )
    text = (
        f"A full memory of {entries:,} entries, rounds of {many:,} entries. Classification into "
        f"{memory_cost.CLASSES} classes from an embedding of {memory_cost.FEATURES} random "
        f"numbers: an entry reads its 10 nearest, and then takes the place of the oldest. {CALLS} "
        f"Rivals in the same form; the ratio is to the faster one. brute-force torch: a float32 "
        f"matrix of all keys, a product and topk. {hnsw}."
    )
    return Measured(name, "us an entry", text, rounds)


SHORT, LONG = 10**3, 10**7


def sketch_flat(name: str, ctx: Context) -> Measured:
    """The sketch after few entries and after many."""
    many, long = ctx.many(500), max(10 * SHORT, ctx.many(LONG))
    ctx.progress(f"feeding {long:,} entries")

    def after(entries: int) -> Round:
        return _own_round(_filled(ErrorMemory(store="sketch"), entries), many)

    rival = f"itself after {SHORT:,} entries"
    rounds = ctx.compare(
        Side.of("ours", lambda: after(long)), [Side.of(rival, lambda: after(SHORT))]
    )
    text = (
        f"The sketch of the error memory (64 tables of 2^8 buckets) on the stream of memory-N: "
        f"its time after {long:,} entries against that after {SHORT:,}; 1 is flat. {CALLS} Rounds "
        f"of {many:,} entries, which are learned too."
    )
    return Measured(name, "us an entry", text, rounds)


# -- dictionaries


def dictionary(atoms: int, usual: int, name: str, ctx: Context) -> Measured:
    """``dictionary-N``: one update per entry."""
    entries = ctx.many(usual)
    stream, _ = entries_and_atoms(Setting(n=atoms), 0, (1_000,))
    ours = OrthogonalDictionary(atoms, generator=torch.Generator().manual_seed(0))
    first = ours.dictionary.numpy().T.copy()
    vectors = list(torch.from_numpy(stream))
    at = count()

    def own() -> None:
        for _ in range(entries):
            ours.update(vectors[next(at) % len(vectors)])

    def theirs() -> Round:
        from sklearn.decomposition import MiniBatchDictionaryLearning

        model = MiniBatchDictionaryLearning(
            atoms, alpha=ALPHA, batch_size=1, fit_algorithm="cd", dict_init=first, random_state=0
        )
        rows, where = [row[None] for row in stream], count()

        def loop() -> None:
            for _ in range(entries):
                model.partial_fit(rows[next(where) % len(rows)])

        def work() -> float:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a lasso that did not converge
                return seconds(loop, entries)

        return work

    rounds = ctx.compare(
        Side.of("ours", lambda: partial(seconds, own, entries)),
        [Side.of("scikit-learn", theirs)],
    )
    text = (
        f"{atoms} atoms, and as many numbers in an entry; rounds of {entries:,} entries. An "
        f"orthogonal dictionary, float64, on a stream as that of `dictionary-n20` in "
        f"docs/results.md: one update an entry. Ours: `OrthogonalDictionary.update` with one "
        f"tensor. Rival: `MiniBatchDictionaryLearning.partial_fit` with one row (batch_size 1, "
        f"cd, alpha {ALPHA:g}), from the same first dictionary."
    )
    return Measured(name, "us an entry", text, rounds)
