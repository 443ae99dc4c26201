"""Recovery of an orthogonal dictionary from a stream: ours per entry, in batches and tracking, and
scikit-learn's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streamadapt.learners.dictionary import OrthogonalDictionary

__all__ = [
    "MEASURE",
    "NAMES",
    "PROTOCOL",
    "Setting",
    "cost",
    "entries_and_atoms",
    "measure",
    "recovery",
    "tuned",
]

Array = npt.NDArray[np.float64]

MEASURE = "mean best |cos| to the true atoms (higher is better)"
SEEDS = (0, 1, 2)
TUNING_SEEDS = (100, 101, 102)
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.6)
SIZES = (4, 8, 16)
"""Entries of a scikit-learn mini-batch."""
TRACK = 0.05
TUNED_AFTER = 5_000
ROTATED_EVERY = 50

PROTOCOL = (
    "n orthogonal atoms, drawn; entries are Bernoulli-Gaussian combinations of them (each "
    "active with probability .2, "
    "standard normal coefficients), dictionary-noise with normal noise of .1 on every number. "
    "Figure: for every true "
    "atom the largest |cos| to a learned one, averaged, after so many entries, single pass, "
    "float64; mean and standard "
    f"deviation over seeds {', '.join(map(str, SEEDS))} (of atoms, entries and the first "
    f"dictionary). Ours: one update "
    "per entry ('entry'; 'plain' is the published form, entries not brought to length one), one "
    "per 16 ('batch-16'), "
    f"one per 8 with rates that stay at or above {TRACK} ('tracking'). 'sklearn': "
    f"MiniBatchDictionaryLearning, "
    "partial_fit on the same entries and from the same first dictionary, n components, "
    "coordinate descent; alpha (of "
    f"{', '.join(map(str, ALPHAS))}) and the batch (of {', '.join(map(str, SIZES))}) are those "
    f"with the best mean "
    f"figure after 5,000 entries of other streams of the same kind (seeds "
    f"{', '.join(map(str, TUNING_SEEDS))}), chosen "
    "with the true atoms in view: one stream alone picks an alpha at which others do not "
    "converge. "
    "dictionary-drift: the atoms rotate in random planes, by 1e-4 radians (root mean square) an "
    "entry, and are drawn "
    "anew after 10,000 entries; the figures are of the atoms at that time."
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One stream.

    Attributes
    ----------
    angle : float, radians per entry
    jump : int or None
        The entry at which all atoms change.
    marks : tuple of int
        The numbers of entries after which the figure is measured.
    """

    n: int = 20
    noise: float = 0.0
    angle: float = 0.0
    jump: int | None = None
    marks: tuple[int, ...] = (5_000, 20_000)


NAMES: dict[str, Setting] = {
    "dictionary-n20": Setting(),
    "dictionary-n50": Setting(n=50),
    "dictionary-noise": Setting(noise=0.1),
    "dictionary-drift": Setting(angle=1e-4, jump=10_000, marks=(5_000, 10_000, 12_000, 20_000)),
}

Scores = dict[int, float]
Method = Callable[[Setting, Array, Mapping[int, Array], int], Scores]


def entries_and_atoms(
    setting: Setting, seed: int, marks: Sequence[int]
) -> tuple[Array, dict[int, Array]]:
    """Return the entries up to the last mark, (count, n), and the true atoms (columns) at every
    mark."""
    rng = np.random.default_rng(seed)
    n, count = setting.n, max(marks)
    atoms = np.linalg.qr(rng.normal(size=(n, n)))[0]
    turn = _rotation(rng, n, setting.angle * ROTATED_EVERY)
    lots, at = [], {}
    for start in range(0, count, ROTATED_EVERY):
        if start == setting.jump:
            atoms = np.linalg.qr(rng.normal(size=(n, n)))[0]
        x = rng.normal(size=(ROTATED_EVERY, n)) * (rng.random((ROTATED_EVERY, n)) < 0.2)
        lots.append(x @ atoms.T + setting.noise * rng.normal(size=(ROTATED_EVERY, n)))
        if start + ROTATED_EVERY in marks:
            at[start + ROTATED_EVERY] = atoms
        atoms = atoms @ turn
    return np.concatenate(lots), at


def _rotation(rng: np.random.Generator, n: int, angle: float) -> Array:
    """Return a random rotation whose angles have root mean square `angle`."""
    values, vectors = np.linalg.eigh(1j * _skew(rng.normal(size=(n, n))))
    values *= angle / np.sqrt((values**2).mean())
    turn: Array = ((vectors * np.exp(-1j * values)) @ vectors.conj().T).real
    return turn


def _skew(matrix: Array) -> Array:
    return matrix - matrix.T


def recovery(truth: Array, learned: Array) -> float:
    """Return the mean over the true atoms (columns) of the best |cos| to a learned one
    (columns)."""
    norms = np.linalg.norm(learned, axis=0)
    cosines = np.abs(truth.T @ learned) / np.where(norms > 0.0, norms, 1.0)
    return float(cosines.max(axis=1).mean())


def _ours(
    setting: Setting,
    entries: Array,
    atoms: Mapping[int, Array],
    seed: int,
    *,
    batch: int,
    **more: Any,
) -> Scores:
    dictionary = OrthogonalDictionary(
        setting.n, generator=torch.Generator().manual_seed(seed), **more
    )
    stream, found = torch.from_numpy(entries), {}
    for start in range(0, len(entries), batch):
        dictionary.update(stream[start] if batch == 1 else stream[start : start + batch])
        for mark in _passed(atoms, start, batch):
            found[mark] = recovery(atoms[mark], dictionary.dictionary.numpy())
    return found


def _passed(atoms: Mapping[int, Array], start: int, batch: int) -> list[int]:
    return [mark for mark in atoms if start < mark <= start + batch]


def _sklearn(
    setting: Setting,
    entries: Array,
    atoms: Mapping[int, Array],
    seed: int,
    *,
    alpha: float,
    batch: int,
) -> Scores:
    from sklearn.decomposition import (
        MiniBatchDictionaryLearning,
    )  # imported here: it is a rival, not a requirement

    first = OrthogonalDictionary(
        setting.n, generator=torch.Generator().manual_seed(seed)
    ).dictionary.numpy()
    model = MiniBatchDictionaryLearning(
        setting.n,
        alpha=alpha,
        batch_size=batch,
        fit_algorithm="cd",
        dict_init=first.T.copy(),
        random_state=seed,
    )
    found = {}
    for start in range(0, len(entries), batch):
        model.partial_fit(entries[start : start + batch])
        for mark in _passed(atoms, start, batch):
            found[mark] = recovery(atoms[mark], model.components_.T)
    return found


def tuned(setting: Setting) -> tuple[float, int]:
    """Return scikit-learn's best alpha and batch, on streams of their own."""
    scores: dict[tuple[float, int], float] = {}
    for seed in TUNING_SEEDS:
        entries, atoms = entries_and_atoms(setting, seed, (TUNED_AFTER,))
        for alpha, batch in product(ALPHAS, SIZES):
            score = _sklearn(setting, entries, atoms, seed, alpha=alpha, batch=batch)[TUNED_AFTER]
            scores[alpha, batch] = scores.get((alpha, batch), 0.0) + score
    return max(scores, key=lambda which: scores[which])


def _methods(alpha: float, batch: int) -> dict[str, Method]:
    return {
        "entry": partial(_ours, batch=1),
        "plain": partial(_ours, batch=1, normalise=False),
        "batch-16": partial(_ours, batch=16),
        "tracking": partial(_ours, batch=8, floors=(TRACK, TRACK)),
        "sklearn": partial(_sklearn, alpha=alpha, batch=batch),
    }


def measure(
    name: str, progress: Callable[[str], None], seeds: Sequence[int] = SEEDS
) -> dict[str, dict[str, float]]:
    """Run one scenario.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    progress : callable
        Called with messages of progress.

    Returns
    -------
    dict of str to {"mean", "spread"}
        ``"<method>, <entries>"`` -> figure (see `MEASURE`) over the seeds; the spread is a
        standard deviation (n - 1). scikit-learn's method has its settings in brackets.
    """
    setting = NAMES[name]
    alpha, batch = tuned(setting)
    progress(f"scikit-learn does best with alpha {alpha:g} in batches of {batch}")
    figures: dict[str, list[float]] = {}
    for seed in seeds:
        entries, atoms = entries_and_atoms(setting, seed, setting.marks)
        for method, run in _methods(alpha, batch).items():
            row = f"{method} (alpha {alpha:g}, batch {batch})" if method == "sklearn" else method
            for mark, score in run(setting, entries, atoms, seed).items():
                figures.setdefault(f"{row}, {mark:,}", []).append(score)
            progress(f"seed {seed}, {method}")
    return {
        key: {
            "mean": float(np.mean(values)),
            "spread": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        }
        for key, values in figures.items()
    }


def cost(name: str, entries: int = 2_000) -> dict[str, float]:
    """Return each method's CPU time per entry in microseconds, one thread, after as many entries
    to warm up."""
    setting = NAMES[name]
    stream, _ = entries_and_atoms(setting, SEEDS[0], (2 * entries,))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            method: 1e6
            * (_seconds(run, setting, stream) - _seconds(run, setting, stream[:entries]))
            / entries
            for method, run in _methods(0.2, 4).items()
        }
    finally:
        torch.set_num_threads(threads)


def _seconds(run: Method, setting: Setting, stream: Array) -> float:
    start = time.process_time()
    run(setting, stream, {}, 0)
    return time.process_time() - start
