"""EATA against a slow textbook loop: filters for each entry, plain autograd and
torch.optim.SGD."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import built
from safetensors.torch import save_file
from test_tent import (
    CHANNELS,
    CLASSES,
    NORMS,
    batches,
    image_model,
    model_of,
    run_stream,
    spec_with,
    tent_as_published,
)
from torch import Tensor, nn

from streamadapt import EATA
from streamadapt.errors import ConfigError

E0 = 0.4 * math.log(CLASSES)


class Textbook:
    """The algorithm of METHODS 5, written plainly."""

    def __init__(
        self, model: nn.Module, lr: float, d: float, samples: Tensor | None, weight: float
    ) -> None:
        self.net = copy.deepcopy(model)
        self.parameters = tent_as_published(self.net)
        self.optimiser = torch.optim.SGD(self.parameters, lr, momentum=0.9)
        self.d, self.weight = d, weight
        self.m: Tensor | None = None
        self.kept: list[int] = []
        self.reliable: list[int] = []
        self.start = [p.detach().clone() for p in self.parameters]
        self.fisher = [torch.zeros_like(p) for p in self.parameters]
        parts = [] if samples is None else samples.split(8)
        for part in parts:
            logits = self.net(part)
            loss = nn.CrossEntropyLoss()(logits, logits.max(1)[1])
            self.optimiser.zero_grad()
            loss.backward()
            for f, p in zip(self.fisher, self.parameters, strict=True):
                assert p.grad is not None
                f += p.grad**2 / len(parts)

    def step(self, inputs: Tensor) -> Tensor:
        logits = self.net(inputs)
        p = torch.softmax(logits, 1)
        kept, terms = [], []
        self.reliable.append(0)
        for row in p:
            h = -(row * row.log()).sum()
            if h.item() >= E0:
                continue
            self.reliable[-1] += 1
            if self.m is not None:
                cos = (self.m @ row.detach()) / (self.m.norm() * row.detach().norm())
                if abs(cos.item()) >= self.d:
                    continue
            kept.append(row.detach())
            terms.append(math.exp(E0 - h.item()) * h)
        self.kept.append(len(kept))
        if kept:
            mean = torch.stack(kept).mean(0)
            self.m = mean if self.m is None else 0.9 * self.m + 0.1 * mean
            loss = torch.stack(terms).mean()
            for f, p_, start in zip(self.fisher, self.parameters, self.start, strict=True):
                loss = loss + self.weight * (f * (p_ - start) ** 2).sum()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
        return p.detach()


def confident(norm: str) -> nn.Sequential:
    """Return a model whose predictions are confident often enough to be kept."""
    model = image_model() if norm == "image" else model_of(norm)
    with torch.no_grad():
        model[-1].weight *= 12.0
        adapted = copy.deepcopy(model)
        tent_as_published(adapted)
        # No class is predicted for every entry.
        model[-1].bias -= adapted(torch.cat(batches(20, 8))).mean(0)
    return model


@pytest.mark.parametrize(("weight", "d"), [(None, 2.0), (50.0, 2.0), (0.0, 0.7), (5.0, 0.7)])
@pytest.mark.parametrize("norm", [*NORMS, "image"])
def test_equals_the_textbook_over_batches(norm: str, weight: float | None, d: float) -> None:
    model = confident(norm)
    samples = None if weight is None else torch.cat(batches(5, 8, seed=7))
    book = Textbook(model, 0.005, d, samples, weight or 0.0)
    learner = built(
        EATA(8, 0.005, fisher=samples, fisher_weight=weight or 0.0, d=d), spec_with(model)
    )
    for inputs in batches(20, 8):
        torch.testing.assert_close(
            learner.adapt_batch(inputs), book.step(inputs), rtol=1e-4, atol=1e-5
        )
    reliable = sum(book.reliable)
    assert 0 < reliable < 8 * 20, "some entries are uncertain"
    assert sum(book.kept) == reliable if d > 1.0 else sum(book.kept) < reliable, (
        "some entries are redundant"
    )
    assert sum(kept > 0 for kept in book.kept) > 4, "there were steps"
    assert book.m is not None
    torch.testing.assert_close(learner.kept, book.m, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(learner.copy.parameters_driven, book.parameters, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-3, atol=1e-5)


def test_the_fisher_information_holds_the_parameters_back() -> None:
    samples = torch.cat(batches(5, 8, seed=7))
    moved = []
    for weight in (0.0, 50.0):
        learner = built(
            EATA(8, 0.005, fisher=samples, fisher_weight=weight, d=2.0),
            spec_with(confident("batch")),
        )
        start = [p.detach().clone() for p in learner.copy.parameters_driven]
        for inputs in batches(40, 8):
            learner.adapt_batch(inputs)
        now = learner.copy.parameters_driven
        moved.append(
            sum(float((a - b).detach().square().sum()) for a, b in zip(start, now, strict=True))
        )
    assert 0.0 < moved[1] < 0.8 * moved[0]


def test_without_kept_entries_there_is_no_step() -> None:
    model = model_of("batch")
    with torch.no_grad():
        model[-1].weight *= 1e-3  # uncertain about every entry
        model[-1].bias.zero_()
    learner = built(EATA(8, 0.02), spec_with(model))
    before = learner.snapshot()
    for inputs in batches(3, 8):
        learner.adapt_batch(inputs)
    after = learner.snapshot()
    assert all(torch.equal(before[k], after[k]) for k in before), (
        "the momentum does not decay either"
    )


def test_in_a_stream_the_steps_are_the_same() -> None:
    samples = torch.cat(batches(5, 8, seed=7))
    made = [
        built(EATA(8, 0.02, fisher=samples, d=0.9), spec_with(confident("batch")))
        for _ in range(2)
    ]
    for inputs in batches(6, 8):
        run_stream(made[0], inputs)
        made[1].adapt_batch(inputs)
    assert all(map(torch.equal, made[0].copy.parameters_driven, made[1].copy.parameters_driven))
    assert torch.equal(made[0].kept, made[1].kept)


def test_a_file_of_source_samples_is_read_in_every_format(tmp_path: Path) -> None:
    samples = torch.cat(batches(5, 8, seed=7))
    # (samples, channels) if the window is 1
    np.save(tmp_path / "a.npy", samples.squeeze(1).numpy())
    np.savez(tmp_path / "b.npz", inputs=samples.numpy().astype(np.float64))
    save_file({"inputs": samples}, tmp_path / "c.safetensors")
    expected = built(EATA(8, fisher=samples), spec_with(model_of("batch")))._anchors
    for name in ("a.npy", "b.npz", "c.safetensors"):
        found = built(EATA(8, fisher=tmp_path / name), spec_with(model_of("batch")))._anchors
        assert all(
            torch.equal(a, b)
            for pair in zip(found, expected, strict=True)
            for a, b in zip(*pair, strict=True)
        )


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return name -> the file and the expected error text."""
    good = torch.cat(batches(5, 8, seed=7)).numpy()
    nan = good.copy()
    nan[3, 0, 2] = np.nan
    arrays: dict[str, Any] = {
        "few": good[:3], "narrow": good[:, :, :-1], "flat": good.reshape(-1), "nan": nan,
        "objects": np.array([{}], dtype=object),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    np.savez(folder / "unnamed.npz", samples=good)
    (folder / "text.safetensors").write_text("no tensors")
    (folder / "table.csv").write_text("1,2\n")
    error_texts = {
        "few": "8 samples",
        "narrow": str(CHANNELS),
        "flat": "samples",
        "nan": "finite",
        "objects": "readable",
    }
    found = {name: (folder / f"{name}.npy", text) for name, text in error_texts.items()}
    found["unnamed"] = (folder / "unnamed.npz", "inputs")
    found["text"] = (folder / "text.safetensors", "readable")
    found["table"] = (folder / "table.csv", "npy")
    found["absent"] = (folder / "absent.npy", "readable")
    return found


@pytest.mark.parametrize(
    "name", ["few", "narrow", "flat", "nan", "objects", "unnamed", "text", "table", "absent"]
)  # fmt: skip
def test_a_file_with_other_content_is_refused(tmp_path: Path, name: str) -> None:
    file, message = bad_files(tmp_path)[name]
    with pytest.raises(ConfigError, match=message) as caught:
        built(EATA(8, fisher=file), spec_with(model_of("batch")))
    assert caught.value.path == "fisher"


@pytest.mark.parametrize(
    "wrong", [{"d": 0.0}, {"fisher_weight": -1.0}, {"fisher_weight": math.inf}]
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        EATA(**wrong)
