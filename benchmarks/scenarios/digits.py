"""Test-time adaptation on corrupted digits: single entries through the deployed pipeline, and
batches of 64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.scenarios.digits_data import (
    CHANGES,
    CLASSES,
    CORRUPTIONS,
    HALVES,
    UNSEEN,
    Digits,
    Stream,
    as_tensor,
    changing_stream,
    load_digits,
    one_stream,
    train,
)
from streamadapt import (
    EATA,
    Entry,
    FrozenModel,
    Hedge,
    Label,
    PerEntry,
    Pipeline,
    Supervised,
    Tent,
)
from streamadapt.learners import Learner, Spec

__all__ = ["NAMES", "PROTOCOLS", "measure"]

Hits = dict[str, float]
SEEDS = (0, 1, 2)
BATCH = 64
LABELLED, DELAY = 0.05, 50
PRIOR = 0.9
ETA, SHARE = 0.3, 0.1

STREAMS: dict[str, tuple[str, ...]] = {
    **{f"digits-{name}": (f"iid-{name}",) for name in CORRUPTIONS},
    "digits-sorted": tuple(f"sorted-{name}" for name in CORRUPTIONS),
    "digits-changing": ("change", "change-sorted", "change-half"),
    "digits-unseen": tuple(f"{order}-{name}" for name in UNSEEN for order in ("iid", "sorted")),
}
"""Scenario -> its streams; the first eight contain the fifteen streams used to build the per-entry
recipe."""
NAMES = tuple(STREAMS)

_COMMON = (
    "scikit-learn digits, 900 source and 897 stream images, small conv net with BatchNorm "
    "trained on the source; "
    "accuracy, mean and standard deviation over 3 seeds (split, net, order, noise). Single "
    "entries: predict, then "
    "adapt. served: the hedge guard over source and the learners (prior: per_entry .9, to which "
    "a tenth of the weight "
    "returns at every label; eta .3), with labels of 5 % of the entries, 50 entries late; eta "
    "and share were chosen "
    "with all these streams in sight, digits-unseen too (served differs by less than .5 % of "
    "its accuracy in every "
    "scenario over eta .2 to 1 and share .1 to .3). -64: batches of 64 in the same order "
    "(batch-64: batch statistics "
    "alone). "
    "Settings of tent (Adam, 1e-3) and eata (SGD, 5e-3, d .4, Fisher weight 1): the papers' for "
    "small images. "
)
_OF_THE_STREAMS = (
    "The mean over the streams; 'worst ...': the smallest difference on one "
    "stream, mean over seeds. "
)
PROTOCOLS: dict[str, str] = {
    **{
        f"digits-{name}": f"{_COMMON}All images with {name}, in random order."
        for name in CORRUPTIONS
    },
    "digits-sorted": f"{_COMMON}{_OF_THE_STREAMS}Six corruptions, each sorted by label.",
    "digits-changing": f"{_COMMON}{_OF_THE_STREAMS}Another corruption every 150 entries, "
    f"returning: in random order, "
    "sorted by label within each, and with every second one clean.",
    "digits-unseen": f"{_COMMON}{_OF_THE_STREAMS}Corruptions written down before the first run "
    f"and used for nothing "
    "but this measurement, in random order and sorted; tent and eata left out.",
}


def measure(name: str, progress: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Run one scenario.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    progress : callable
        Called with messages of progress.

    Returns
    -------
    dict
        Expert -> ``{"mean": accuracy, "spread": standard deviation over the seeds}``; of several
        streams the accuracy is the mean over them, each stream's figures follow as
        ``expert @ stream``.
    """
    by_seed: list[dict[str, Hits]] = []
    for seed in SEEDS:
        digits, net = _prepared(seed)
        by_seed.append({})
        for stream in STREAMS[name]:
            progress(f"seed {seed}, {stream}")
            data = _stream(digits, stream, seed)
            everything = name != "digits-unseen"
            found = _single_entries(digits, net, data, seed, everything=everything)
            by_seed[-1][stream] = found | (_batches(digits, net, data, seed) if everything else {})
    return _summary(by_seed)


@cache
def _prepared(seed: int) -> tuple[Digits, nn.Module]:
    digits = load_digits(seed)
    return digits, train(digits, seed)


def _stream(digits: Digits, name: str, seed: int) -> Stream:
    order, _, rest = name.partition("-")
    if order == "change":
        return changing_stream(
            digits, HALVES if rest == "half" else CHANGES, seed, in_order=rest == "sorted"
        )
    return one_stream(digits, rest, seed, in_order=order == "sorted")


def _single_entries(
    digits: Digits, net: nn.Module, stream: Stream, seed: int, *, everything: bool
) -> Hits:
    """Return the accuracy of every expert of the pipeline that would be deployed."""
    source = as_tensor(digits.source)
    learners: list[Learner] = [PerEntry(source)]
    if everything:
        learners += [_tent(), _eata(digits)]
    guard = Hedge(ETA, SHARE, prior={"per_entry": PRIOR})
    base = FrozenModel(net, softmax=True)
    pipeline = Pipeline(
        Supervised(1, classes=CLASSES), base, learners, guard, device="cpu", seed=seed
    )
    known = np.random.default_rng([seed, 3]).random(len(stream.labels)) < LABELLED
    hits: dict[str, int] = {}
    for t, (image, truth) in enumerate(zip(stream.images, stream.labels, strict=True)):
        items: list[Entry | Label] = []
        if t > DELAY and known[t - DELAY - 1]:
            late = t - DELAY - 1
            items.append(Label(str(late), np.array([stream.labels[late]], np.float32), time=t + 1))
        items.append(Entry(image.ravel(), time=t + 1, id=str(t)))
        (prediction,) = pipeline.observe(items)
        for expert, p in {**prediction.experts, "served": prediction.served}.items():
            hits[expert] = hits.get(expert, 0) + int(p.argmax() == truth)
    return {_shown(expert): count / len(stream.labels) for expert, count in hits.items()}


def _tent() -> Tent:
    return Tent(BATCH, optimiser="adam")


def _eata(digits: Digits) -> EATA:
    return EATA(BATCH, 5e-3, fisher=as_tensor(digits.source))


def _shown(expert: str) -> str:
    kind = expert.partition("-")[0]  # without the settings
    return {"base": "source", "per_entry": "per-entry"}.get(kind, kind)


def _batches(digits: Digits, net: nn.Module, stream: Stream, seed: int) -> Hits:
    """Return the accuracy of the published forms on batches; a last batch of less than half joins
    the previous one."""
    inputs, labels = as_tensor(stream.images), torch.from_numpy(stream.labels)
    count = max(1, round(len(inputs) / BATCH))
    cuts = [BATCH * i for i in range(1, count)]
    learners = {"tent-64": _tent(), "eata-64": _eata(digits), "batch-64": _tent()}
    hits = dict.fromkeys(learners, 0)
    spec = _spec(digits, net, seed)
    for name, learner in learners.items():
        learner.build(spec)
        parts = zip(
            torch.tensor_split(inputs, cuts), torch.tensor_split(labels, cuts), strict=True
        )
        for x, y in parts:
            logits = (
                learner.copy.run(x).logits.detach()
                if name == "batch-64"
                else learner.adapt_batch(x)
            )
            hits[name] += int((logits.argmax(1) == y).sum())
    return {name: count / len(labels) for name, count in hits.items()}


def _spec(digits: Digits, net: nn.Module, seed: int) -> Spec:
    """Return the spec with which the pipeline would build a learner."""
    pixels = digits.source[0].size
    zeros, ones = torch.zeros(pixels), torch.ones(pixels)
    base = FrozenModel(net, softmax=True)
    return Spec(
        "classification",
        1,
        pixels,
        1,
        CLASSES,
        zeros,
        ones,
        zeros[:CLASSES],
        ones[:CLASSES],
        torch.device("cpu"),
        seed,
        model=base,
    )


def _summary(by_seed: Sequence[dict[str, Hits]]) -> dict[str, dict[str, float]]:
    """Return means over the streams, then mean and spread over the seeds, followed by each
    stream's own figures."""
    streams = list(by_seed[0])
    experts = list(by_seed[0][streams[0]])
    # (seeds, streams, experts)
    figures = np.array([[[of[s][e] for e in experts] for s in streams] for of in by_seed])
    found = {e: _figure(figures[:, :, i].mean(1)) for i, e in enumerate(experts)}
    if len(streams) > 1:
        for expert in ("per-entry", "served"):
            ahead = figures[:, :, experts.index(expert)] - figures[:, :, experts.index("source")]
            found[f"worst {expert} - source"] = _figure(ahead[:, ahead.mean(0).argmin()])
        for j, stream in enumerate(streams):
            found |= {f"{e} @ {stream}": _figure(figures[:, j, i]) for i, e in enumerate(experts)}
    return found


def _figure(of_seeds: npt.NDArray[np.float64]) -> dict[str, float]:
    return {"mean": float(of_seeds.mean()), "spread": float(of_seeds.std(ddof=1))}
