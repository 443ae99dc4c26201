"""River's synthetic streams with changes at chosen places, predicted by a base that knows the
first concept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.drift.score import Change
from benchmarks.drift.signals import CLASSIFICATION, MOVING, Stream
from benchmarks.scenarios import elec2
from streamadapt import Batch, FrozenModel, Linear, NoGuard, Pipeline, Supervised
from streamadapt.drift.monitor import DriftMonitor
from streamadapt.models.fit import fit_supervised

__all__ = ["FAMILIES", "FIT", "SPACING", "friedman", "of_family", "streams"]

FIT = 2000
"""Number of entries of the first concept on which the base is fitted."""
SPACING = 1200
"""Entries from one change to the next; half of them before the first and after the last change."""
WIDTHS = {"abrupt": 8, "gradual": 500}
"""Widths of river's sigmoid, in entries. River's formula overflows for widths below about a
hundredth of the spacing."""
BASE = elec2.Setting(name="drift", train=1.0, hidden=(32, 16), epochs=20, batch=100)
REGRESSION = ("loss", MOVING, "error", "residual", "input")
CREEP = 0.005
"""Movement of the centres of the moving RBF stream per entry, in units of the side of their
space."""

Concept = Callable[[int], Any]
"""Makes a river stream of one concept from the seed of its sample."""


def families(seed: int) -> dict[str, tuple[Concept, Concept]]:
    """Return the concepts between which each family changes; the base knows the first."""
    from river.datasets import synth

    return {
        "sea": (lambda s: synth.SEA(0, 0.1, s), lambda s: synth.SEA(3, 0.1, s)),
        "agrawal": (
            lambda s: synth.Agrawal(0, s, perturbation=0.05),
            lambda s: synth.Agrawal(2, s, perturbation=0.05),
        ),
        "sine": (lambda s: synth.Sine(0, s), lambda s: synth.Sine(2, s)),
        "mixed": (lambda s: synth.Mixed(0, s), lambda s: synth.Mixed(1, s)),
        "stagger": (lambda s: synth.STAGGER(0, s), lambda s: synth.STAGGER(1, s)),
        "rbf": (lambda s: synth.RandomRBF(10 + seed, s), lambda s: synth.RandomRBF(20 + seed, s)),
    }


FAMILIES = ("sea", "agrawal", "sine", "mixed", "stagger", "rbf")
FRIEDMAN = ("gra", "gsg", "lea")


def streams(seed: int) -> Iterator[tuple[str, Callable[[], Stream]]]:
    """Yield the name of every stream and its factory."""
    for name in FAMILIES:
        for group in ("abrupt", "gradual", "stationary"):
            yield f"{name}-{group}", partial(of_family, name, group, seed)
    yield "rbf-creeping", partial(creeping, seed)
    for kind in (*FRIEDMAN, "none"):
        yield f"friedman-{kind}", partial(friedman, kind, seed)


def of_family(
    name: str, group: str, seed: int, *, spacing: int = SPACING, fit: int = FIT
) -> Stream:
    """Away, back, away: three changes through river's `ConceptDriftStream`; or none.

    Every part has a sample of its own. A gradual change begins where its sigmoid is at .12.
    """
    from river.datasets import synth

    first, second = families(seed)[name]
    history = _rows(first(_sample(seed, 0)), fit)
    rows = []
    for k in range(3):
        a, b = (first, second) if k % 2 == 0 else (second, first)
        if group == "stationary":
            part = first(_sample(seed, 2 * k + 1))
        else:
            part = synth.ConceptDriftStream(
                a(_sample(seed, 2 * k + 1)),
                b(_sample(seed, 2 * k + 2)),
                spacing // 2,
                WIDTHS[group],
                _sample(seed, k),
            )
        rows += _rows(part, spacing)
    early = WIDTHS["gradual"] // 2 if group == "gradual" else 0
    kinds = () if group == "stationary" else ("away", "back", "away")
    changes = tuple(
        Change(k * spacing + spacing // 2 - early, kind) for k, kind in enumerate(kinds)
    )
    return _classified(group, f"{name}-{group}", seed, (history, rows), changes, spacing // 2)


def creeping(seed: int, *, spacing: int = SPACING, fit: int = FIT) -> Stream:
    """The centres of the first concept start to move, and keep moving until the stream ends."""
    from river.datasets import synth

    def still(sample: int) -> Any:
        return synth.RandomRBF(10 + seed, sample)

    moving = synth.RandomRBFDrift(10 + seed, _sample(seed, 2), change_speed=CREEP)
    part = synth.ConceptDriftStream(
        still(_sample(seed, 1)), moving, spacing // 2, WIDTHS["abrupt"], _sample(seed, 0)
    )
    rows = _rows(part, 2 * spacing)
    history = _rows(still(_sample(seed, 0)), fit)
    return _classified(
        "creeping",
        "rbf-creeping",
        seed,
        (history, rows),
        (Change(spacing // 2, "away"),),
        2 * spacing - spacing // 2,
    )


def friedman(kind: str, seed: int, *, spacing: int = SPACING, fit: int = FIT) -> Stream:
    """`FriedmanDrift`: global and recurring, global and gradual, local and expanding; or none."""
    from river.datasets import synth

    places = [fit + spacing // 2 + k * spacing for k in range(3)]
    if kind == "none":
        made = synth.Friedman(_sample(seed, 0))
    else:
        made = synth.FriedmanDrift(
            kind,
            tuple(places if kind == "lea" else places[:2]),
            WIDTHS["gradual"],
            _sample(seed, 0),
        )
    kinds = {"gra": ("away", "back"), "gsg": ("away", "away"), "lea": ("away",) * 3, "none": ()}[
        kind
    ]
    batch = _batch(_rows(made, fit + 3 * spacing))
    changes = tuple(Change(place - fit, kind) for place, kind in zip(places, kinds, strict=False))
    assert batch.labels is not None
    base = fit_supervised(
        Batch(batch.values[:fit], batch.times[:fit], batch.labels[:fit]), window=1
    )
    group = "stationary" if kind == "none" else "regression"
    items = list(batch.entries())[fit:]
    return Stream(
        group,
        f"friedman-{kind}",
        seed,
        items,
        partial(_pipeline, None, base),
        changes,
        spacing // 2,
        REGRESSION,
    )


def _classified(
    group: str,
    name: str,
    seed: int,
    rows: tuple[Sequence[tuple[Any, Any]], Sequence[tuple[Any, Any]]],
    changes: tuple[Change, ...],
    horizon: int,
) -> Stream:
    history, follows = (_batch(part) for part in rows)
    base = elec2.fit(BASE, history, seed)
    embedded = FrozenModel(base.model, softmax=True, embedding=elec2.LAST_HIDDEN)
    embedded.input_loc, embedded.input_scale = base.input_loc, base.input_scale
    made = partial(_pipeline, 2, embedded)
    return Stream(
        group, name, seed, list(follows.entries()), made, changes, horizon, CLASSIFICATION
    )


def _pipeline(
    classes: int | None, base: FrozenModel | Linear, monitors: Sequence[DriftMonitor]
) -> Pipeline:
    return Pipeline(Supervised(1, classes=classes), base, [], NoGuard(), monitors, device="cpu")


def _sample(seed: int, part: int) -> int:
    return 1000 * (seed + 1) + part


def _rows(made: Any, count: int) -> list[tuple[Any, Any]]:
    return list(islice(iter(made), count))


def _batch(rows: Sequence[tuple[Any, Any]]) -> Batch:
    """Return entries a second apart, with their labels inside."""
    values = np.array([[float(v) for v in x.values()] for x, _ in rows], np.float32)
    labels = np.array([[float(y)] for _, y in rows], np.float32)
    return Batch(values, np.arange(len(rows), dtype=np.int64) * 1_000_000_000, labels)
