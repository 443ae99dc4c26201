"""The cost of an error memory after any number of entries: ``python -m benchmarks.memory_cost
--json FILE``.

Time of one predict-and-learn step and memory in bytes, after 10^3, 10^5 and 10^7 entries.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from streamadapt import ErrorMemory
from streamadapt.learners import BaseOutput, Spec
from streamadapt.learners.boxes import lot_box, parts_box
from streamadapt.learners.compiled import kernel_of, shared_of
from streamadapt.learners.lots import LEARN, Lot, Parts, empty_lot
from streamadapt.testing.checks.costs import size_of

__all__ = ["SEEN", "STORES", "Cost", "main", "measure", "page"]

SEEN = (10**3, 10**5, 10**7)
STORES: dict[str, Callable[[], ErrorMemory]] = {
    "sketch": lambda: ErrorMemory(store="sketch"),
    "exact": ErrorMemory,
}
FEATURES, CLASSES = 32, 2
CHUNK = 1024
BLOCKS, ENTRIES = 41, 50
"""Number of timed blocks, and entries in each."""
SETTINGS = {
    "sketch": "64 tables of 2^8 buckets, decay .98 (the default)",
    "exact": "a ring of 500, the 10 nearest (the default)",
}
PROTOCOL = (
    f"Classification into {CLASSES} classes, keyed on an embedding of {FEATURES} numbers, all "
    f"random and different "
    "(standard normal). The entries before the measured ones are really learned, one entry at a "
    "time in lots; the measured ones go through the learner's predict and learn. Process "
    f"time, one thread, median of {BLOCKS} blocks of {ENTRIES} entries; the three states take "
    f"turns block by block, so "
    "that a machine that is slow for a while is slow for all, and each block starts from the "
    "state with just so many "
    "entries seen. The ratio is the median of the blocks' ratios to the turn's first state. "
    "Bytes: everything that the "
    "learner reaches, its settings included."
)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a store after a number of entries.

    Attributes
    ----------
    seen : int
    microseconds : float
        Time of one predict and one learn.
    ratio : float
        Relative to the smallest number of entries.
    size : int, bytes
    """

    seen: int
    microseconds: float
    ratio: float
    size: int


def spec() -> Spec:
    """The spec with which the learner is built."""
    zero, one = torch.zeros(1), torch.ones(1)
    classes = (torch.zeros(CLASSES), torch.ones(CLASSES))
    return Spec(
        "classification",
        1,
        1,
        1,
        CLASSES,
        zero,
        one,
        *classes,
        torch.device("cpu"),
        embedding=FEATURES,
    )


def feed(learner: ErrorMemory, n: int, generator: torch.Generator) -> None:
    """Let the learner learn `n` random examples, in lots."""
    lot, kernel = empty_lot(CHUNK, 1, 1, (1, 1, CLASSES), FEATURES, 0), _kernel_of(learner)
    lot.kinds[:] = LEARN
    lot.known[:] = True
    for start in range(0, n, CHUNK):
        many = min(CHUNK, n - start)
        arrays = (lot.embeddings, lot.targets[:, 0], lot.bases[:, 0])
        for array, tensor in zip(arrays, _examples(many, generator), strict=True):
            array[:many] = tensor.numpy()
        kernel(lot, many)


def _kernel_of(learner: ErrorMemory) -> Callable[[Lot, int], None]:
    """Return what takes a learner through the first events of a lot."""
    shared, state = shared_of(learner.spec), learner.state
    settings, room = learner.settings(learner.spec), learner.room(learner.spec)
    parts = parts_box(Parts(shared, settings, state, room, 0, 1))
    kernel = kernel_of(learner.steps_for(learner.spec))
    return lambda lot, size: kernel(lot_box(lot), 0, size, parts)


def _examples(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings, labels and the base's outputs, one row each."""
    embeddings = torch.randn(n, FEATURES, generator=generator)
    labels = torch.eye(CLASSES)[torch.randint(CLASSES, (n,), generator=generator)]
    return embeddings, labels, torch.softmax(torch.randn(n, CLASSES, generator=generator), 1)


def measure(
    make: Callable[[], ErrorMemory], seen: Sequence[int] = SEEN, blocks: int = BLOCKS
) -> list[Cost]:
    """Measure one store after each number of entries, in increasing order."""
    generator = torch.Generator().manual_seed(0)
    learner = make()
    learner.build(spec())
    states, before = [], 0
    for n in seen:
        feed(learner, n - before, generator)
        before = n
        states.append((learner.snapshot(), size_of(learner)))
    times = np.zeros((blocks, len(seen)))
    for block in range(-1, blocks):  # the first warms up
        examples = _examples(ENTRIES, generator)
        for i, (state, _) in enumerate(states):
            learner.restore(state)
            took = _seconds(learner, examples)
            if block >= 0:
                times[block, i] = took
    ratios = np.median(times / times[:, :1], axis=0)
    each = 1e6 * np.median(times, axis=0) / ENTRIES
    return [Cost(n, float(each[i]), float(ratios[i]), states[i][1]) for i, n in enumerate(seen)]


def _seconds(learner: ErrorMemory, examples: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the process time of a predict and a learn of each example."""
    inputs, mask = torch.zeros(1, 1), torch.ones(1, CLASSES, dtype=torch.bool)
    rows = [(BaseOutput(p[None], h), y[None]) for h, y, p in zip(*examples, strict=True)]
    with torch.no_grad():
        start = time.process_time()
        for base, target in rows:
            learner.predict(inputs, base)
            learner.learn(inputs, base, target, mask)
        return time.process_time() - start


def page(costs: dict[str, list[Cost]]) -> str:
    """Return the figures as a page of documentation."""
    lines = [
        "# The cost of an error memory",
        "",
        "Written by `python -m benchmarks.memory_cost --markdown docs/memory_cost.md`. The "
        "ratios show whether cost and memory are constant; the times are from one machine, which "
        "had other load.",
        "",
        "| store | entries seen | predict and learn, us | ratio | bytes |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, rows in costs.items():
        lines += [
            f"| {name} | {c.seen:,} | {c.microseconds:.0f} | {c.ratio:.3f} | {c.size:,} |"
            for c in rows
        ]
    settings = [f"* `{name}`: {SETTINGS[name]}." for name in costs]
    return "\n".join([*lines, "", *settings, "", PROTOCOL, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_cost", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument(
        "--seen",
        type=int,
        nargs="+",
        default=SEEN,
        metavar="N",
        help="entries, in increasing order",
    )
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    costs: dict[str, list[Cost]] = {}
    for name, make in STORES.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        costs[name] = measure(make, asked.seen)
    table = Table("store", "seen", "us", "ratio", "bytes", title="predict and learn, one entry")
    for name, rows in costs.items():
        for c in rows:
            table.add_row(
                name, f"{c.seen:,}", f"{c.microseconds:.0f}", f"{c.ratio:.3f}", f"{c.size:,}"
            )
    Console().print(table)
    if asked.json is not None:
        figures = {name: [asdict(c) for c in rows] for name, rows in costs.items()}
        asked.json.write_text(
            json.dumps({**figures, "protocol": PROTOCOL}, indent=2) + "\n", encoding="utf-8"
        )
    if asked.markdown is not None:
        asked.markdown.write_text(page(costs), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
