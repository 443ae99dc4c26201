"""The digits scenarios: their measures and their report, on little data."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.scenarios import digits as scenario
from benchmarks.scenarios.digits_data import (
    CHANGES,
    CORRUPTIONS,
    HALVES,
    UNSEEN,
    Digits,
    changing_stream,
    corrupted,
    load_digits,
    one_stream,
    train,
)

pytestmark = pytest.mark.slow

torch.set_num_threads(1)  # small steps: a second thread costs more than it saves


@cache
def few(seed: int) -> tuple[Digits, nn.Module]:
    digits = load_digits(seed)
    short = replace(digits, stream=digits.stream[:70], stream_labels=digits.stream_labels[:70])
    return short, train(digits, seed, epochs=1)


def test_a_scenario_gives_every_expert_a_mean_and_a_spread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scenario, "SEEDS", (0, 1))
    monkeypatch.setattr(scenario, "_prepared", few)
    monkeypatch.setitem(scenario.STREAMS, "digits-sorted", ("sorted-clean", "iid-contrast"))
    messages: list[str] = []
    found = scenario.measure("digits-sorted", messages.append)
    assert messages == [
        f"seed {s}, {stream}" for s in (0, 1) for stream in ("sorted-clean", "iid-contrast")
    ]
    experts = {"source", "per-entry", "tent", "eata", "served", "tent-64", "eata-64", "batch-64"}
    assert {name for name in found if " " not in name} == experts
    assert {tuple(figure) for figure in found.values()} == {("mean", "spread")}
    streams = ("sorted-clean", "iid-contrast")
    both = [found[f"per-entry @ {s}"]["mean"] for s in streams]
    assert found["per-entry"]["mean"] == pytest.approx(np.mean(both))
    ahead = [found[f"per-entry @ {s}"]["mean"] - found[f"source @ {s}"]["mean"] for s in streams]
    assert found["worst per-entry - source"]["mean"] == pytest.approx(min(ahead))


def test_every_scenario_has_its_protocol_and_the_streams_are_fifteen_and_twenty() -> None:
    assert scenario.PROTOCOLS.keys() == set(scenario.NAMES)
    built_with = [
        s for name in scenario.NAMES if name != "digits-unseen" for s in scenario.STREAMS[name]
    ]
    assert len(set(built_with)) == 15
    assert len(scenario.STREAMS["digits-unseen"]) == 20
    assert not set(CORRUPTIONS) & set(UNSEEN)


@pytest.mark.parametrize("name", [*CORRUPTIONS, *UNSEEN])
def test_corruptions_are_deterministic_for_each_image(name: str) -> None:
    images = load_digits(0).stream[:20]
    kept = images.copy()
    first, second = (corrupted(images, name, np.random.default_rng(1)) for _ in range(2))
    assert first.dtype == np.float32
    assert first.shape == images.shape
    assert np.array_equal(first, second)
    assert np.array_equal(images, kept)
    assert np.isfinite(first).all()
    assert (name == "clean") == np.array_equal(first, images)


def test_streams_match_their_names() -> None:
    digits = load_digits(0)
    in_order = one_stream(digits, "contrast", 0, in_order=True)
    assert (np.diff(in_order.labels) >= 0).all()
    assert sorted(in_order.labels) == sorted(one_stream(digits, "contrast", 0).labels)
    changing = changing_stream(digits, CHANGES, 0, in_order=True)
    assert len(changing.labels) == 12 * 150
    assert all((np.diff(part) >= 0).all() for part in changing.labels.reshape(12, 150))
    halves = changing_stream(digits, HALVES, 0).images.reshape(12, 150, -1)
    assert all(part.max() <= 1.0 and part.min() == 0.0 for part in halves[::2])


def test_the_split_uses_every_image_once() -> None:
    digits = load_digits(2)
    assert (len(digits.source), len(digits.stream)) == (900, 897)
    everything = np.concatenate([digits.source, digits.stream]).reshape(1797, -1)
    assert len(np.unique(everything, axis=0)) > 1790
