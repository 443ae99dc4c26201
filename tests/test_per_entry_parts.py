"""The parts of per-entry adaptation against slow loops that follow the documented formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamadapt.learners.tta.continuity import Continuity
from streamadapt.learners.tta.memory import BalancedMemory
from streamadapt.learners.tta.norms import DrivenBatchNorm, Given
from streamadapt.learners.tta.polarity import Polarity
from streamadapt.learners.tta.running import Running
from streamadapt.learners.tta.selection import Selection
from streamadapt.learners.tta.signature import Signature

CPU = torch.device("cpu")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def distributions(n: int, classes: int, seed: int = 0) -> Tensor:
    return (2.0 * numbers(n, classes, seed=seed)).softmax(1)


def batch_norm(channels: int, seed: int = 3) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        for i, tensor in enumerate((layer.weight, layer.bias, layer.running_mean)):
            assert tensor is not None
            tensor.copy_(numbers(channels, seed=seed + i))
        assert layer.running_var is not None
        layer.running_var.copy_(numbers(channels, seed=9).exp())
    return layer


def test_a_driven_batch_norm_with_the_source_statistics_equals_the_layer() -> None:
    layer = batch_norm(5)
    driven = DrivenBatchNorm(layer)
    x = numbers(4, 5, 3, 3)
    driven.given = Given(driven.source_mean, driven.source_var, torch.zeros(()))
    torch.testing.assert_close(driven(x), layer(x))
    driven.given = None
    torch.testing.assert_close(driven(x), layer.train()(x))


def test_each_entry_may_have_its_own_statistics_and_sign() -> None:
    layer = batch_norm(5)
    driven = DrivenBatchNorm(layer)
    x, means, variances = numbers(2, 5, 3, 3), numbers(2, 5, seed=1), numbers(2, 5, seed=2).exp()
    driven.given = Given(means, variances, torch.zeros(2, 1), torch.tensor([[1.0], [-1.0]]))
    outputs = driven(x).detach()
    for i, sign in enumerate((1.0, -1.0)):
        z = (x[i] - means[i].view(5, 1, 1)) / (variances[i] + layer.eps).sqrt().view(5, 1, 1)
        assert layer.bias is not None
        expected = sign * layer.weight.view(5, 1, 1) * z + layer.bias.view(5, 1, 1)
        torch.testing.assert_close(outputs[i], expected.detach(), rtol=1e-4, atol=1e-5)


def test_moving_by_one_over_k_gives_the_statistics_of_all_entries_together() -> None:
    driven = DrivenBatchNorm(batch_norm(3))
    entries = numbers(12, 3, 4, 4)
    mean, var = torch.zeros(3), torch.zeros(3)
    for k in range(12):
        driven.given = Given(mean, var, torch.full((), 1.0 / (k + 1)))
        driven(entries[k : k + 1])
        mean, var = (t[0] for t in driven.used)
    flat = entries.transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, flat.mean(1))
    torch.testing.assert_close(var, flat.var(1, correction=0))


def test_running_statistics_start_at_the_source_and_slow_down() -> None:
    running = Running(torch.tensor([3.0]), torch.tensor([2.0]))
    rates = []
    for _ in range(200):
        mean, var, rate, count = running.evaluate(False)
        rates.append(rate)
        running.commit({"mean": mean + 1.0, "var": var, "count": count})
    assert rates[:3] == [1 / 4, 1 / 5, 1 / 6]
    assert rates[-1] == 0.01
    mean, _, rate, count = running.evaluate(True)
    assert (mean.item(), rate, int(count)) == (3.0, 1 / 4, 1), "the statistics start again"
    assert running.mean.item() == 203.0, "evaluating changes nothing"
    running.reset()
    assert (running.mean.item(), int(running.count)) == (3.0, 0)


class SlowMemory:
    """A list of (label, mean, var), the oldest first."""

    def __init__(self, size: int, classes: int) -> None:
        self.size, self.classes = size, classes
        self.items: list[tuple[int, Tensor, Tensor]] = []

    def add(self, label: int, mean: Tensor, var: Tensor) -> None:
        if len(self.items) == self.size:
            counts = [sum(y == c for y, _, _ in self.items) for c in range(self.classes)]
            full = [c for c in range(self.classes) if counts[c] == max(counts)]
            victims = [label] if label in full else full
            del self.items[next(i for i, (y, _, _) in enumerate(self.items) if y in victims)]
        self.items.append((label, mean, var))

    def statistics(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        counts = [sum(y == c for y, _, _ in self.items) for c in range(self.classes)]
        weights = [1.0 / counts[y] for y, _, _ in self.items]
        total = sum(weights)
        mu = sum(
            ((w / total) * m for w, (_, m, _) in zip(weights, self.items, strict=True)),
            torch.zeros_like(mean),
        )
        s2 = torch.zeros_like(var)
        for w, (_, m, v) in zip(weights, self.items, strict=True):
            s2 = s2 + (w / total) * (v + (m - mu) ** 2)
        n = sum(min(c, self.size / self.classes) for c in counts)
        a = n / (n + 4.0)
        return (1 - a) * mean + a * mu, (1 - a) * var + a * s2 + a * (1 - a) * (mu - mean) ** 2


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_the_memory_equals_the_slow_one(labels: list[int]) -> None:
    mean, var = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5])
    memory, slow = BalancedMemory(8, 4, mean, var), SlowMemory(8, 4)
    for at, m, v in (
        (t, numbers(2, seed=t), numbers(2, seed=t + 99).exp()) for t in range(len(labels))
    ):
        memory.add(torch.tensor(labels[at]), m, v)
        slow.add(labels[at], m, v)
        for mine, theirs in zip(memory.statistics(), slow.statistics(mean, var), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_memory_of_sorted_labels_keeps_every_class() -> None:
    memory = BalancedMemory(8, 4, torch.zeros(1), torch.ones(1))
    for label in range(4):
        for _ in range(50):
            memory.add(torch.tensor(label), torch.zeros(1), torch.ones(1))
    assert torch.bincount(memory.labels).tolist() == [2, 2, 2, 2]
    memory.reset()
    assert [t.item() for t in memory.statistics()] == [0.0, 1.0], (
        "an empty memory has the source's statistics"
    )


def test_continuity_equals_the_slow_one() -> None:
    classes, stays = 4, (0.0, 0.5, 0.9, 0.97)
    part = Continuity(classes, CPU)
    q = [[1.0 / classes] * classes for _ in stays]
    evidence = [0.0 if rho == 0 else -2.0 for rho in stays]
    pi = [1.0 / classes] * classes
    for o in distributions(60, classes).double():
        answer, new = part.evaluate(o.float())
        part.commit(new)
        for r, rho in enumerate(stays):
            prior = [rho * q[r][y] + (1 - rho) / classes for y in range(classes)]
            home = 0.0 if rho == 0 else -2.0
            support = sum(prior[y] * float(o[y]) / pi[y] for y in range(classes))
            evidence[r] = home + 0.98 * (evidence[r] - home) + math.log(support)
            q[r] = [prior[y] * max(float(o[y]), 1e-4) for y in range(classes)]
            q[r] = [v / sum(q[r]) for v in q[r]]
        pi = [p + 0.01 * (float(v) - p) for p, v in zip(pi, o, strict=True)]
        a = torch.tensor(evidence).softmax(0).tolist()
        expected = [sum(a[r] * q[r][y] for r in range(len(stays))) for y in range(classes)]
        torch.testing.assert_close(answer, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def runs(n: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return labels in runs, and answers that are usually right."""
    labels = (torch.arange(n) // length) % 4
    logits = numbers(n, 4, seed=seed) * 1.2
    logits[torch.arange(n), labels] += 1.0
    return labels, logits.softmax(1)


@pytest.mark.parametrize(("length", "least"), [(40, 0.2), (1, -0.02)])
def test_continuity_helps_with_labels_in_runs_and_does_no_harm_otherwise(
    length: int, least: float
) -> None:
    labels, outputs = runs(600, length)
    if length == 1:
        order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
        labels, outputs = labels[order], outputs[order]
    part, right = Continuity(4, CPU), 0
    for o, y in zip(outputs, labels, strict=True):
        answer, new = part.evaluate(o)
        part.commit(new)
        right += int(answer.argmax() == y)
    assert right / 600 - (outputs.argmax(1) == labels).float().mean() > least


def test_a_constant_model_is_no_evidence_for_constant_labels() -> None:
    part = Continuity(4, CPU)
    stuck = torch.tensor([0.9, 0.05, 0.03, 0.02])
    for _ in range(1_500):
        _, new = part.evaluate(stuck)
        part.commit(new)
    assert part.evidence.softmax(0)[0] > 0.5, "independent labels stay the best explanation"


def test_selection_equals_the_formula() -> None:
    part = Selection((False, True, False), 4, CPU)
    answers = torch.stack([distributions(50, 4, seed=s) for s in range(3)], 1)  # (50, 3, 4)
    mean, doubt = torch.zeros(3, 4), torch.zeros(3)
    for t, p in enumerate(answers, 1):
        choice = part.evaluate(p, fresh=False)
        part.commit(choice.new)
        rate = max(0.004, 1.0 / t)
        mean = mean + rate * (p - mean)
        doubt = doubt + rate * (-(p * p.log()).sum(1) - doubt)
        information = (-(mean * mean.log()).sum(1) - doubt) * min(1.0, t / 16)
        expected = (20.0 * information).softmax(0) @ p
        torch.testing.assert_close(choice.answer, expected, rtol=1e-4, atol=1e-6)


def test_selection_prefers_varied_and_decided_answers() -> None:
    part = Selection((False, False, False), 4, CPU)
    eye = torch.eye(4) * 0.96 + 0.01
    for t in range(40):
        stuck, undecided, good = eye[0], torch.full((4,), 0.25), eye[t % 4]
        choice = part.evaluate(torch.stack([stuck, undecided, good]), fresh=False)
        part.commit(choice.new)
    torch.testing.assert_close(choice.answer, eye[39 % 4], atol=0.01, rtol=0.0)


def test_selection_leaves_out_the_statistics_that_follow_the_newest_if_labels_are_sorted() -> None:
    part = Selection((False, True), 4, CPU)
    eye = torch.eye(4) * 0.96 + 0.01
    for t in range(200):
        choice = part.evaluate(torch.stack([eye[t // 50], eye[(t // 5) % 4]]), fresh=False)
        part.commit(choice.new)
    assert torch.equal(choice.answer, eye[3])


def source(n: int = 300, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 6, 6) of two kinds that look different, and their kind."""
    labels = torch.arange(n) % 2
    skewed = numbers(n, 3, 6, 6, seed=seed).exp()  # positively skewed
    return skewed * (1.0 + 0.3 * labels.view(-1, 1, 1, 1)) + 0.5 * numbers(
        n, 1, 1, 1, seed=seed + 1
    ), labels


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def walk(part: Signature, x: Tensor) -> list[Any]:
    looks = []
    for entry in x:
        looks.append(part.evaluate(entry.unsqueeze(0)))
        part.commit(looks[-1].new)
    return looks


def test_the_source_is_familiar_and_has_no_drift_even_if_sorted() -> None:
    x, labels = source()
    for order in (torch.arange(300), labels.argsort(stable=True)):
        looks = walk(Signature(x, labels, generator()), x[order])
        assert not any(look.drift for look in looks)
        assert sum(look.familiar for look in looks) >= 297


def test_a_change_and_its_return_are_each_noticed_soon_and_once() -> None:
    x, labels = source()
    part = Signature(x, labels, generator())
    looks = walk(part, torch.cat([x[:100], 5.0 * x[100:200] + 4.0, x[200:]]))
    assert not any(look.familiar for look in looks[100:200])
    assert all(look.familiar for look in looks[210:])
    drifts = [t for t, look in enumerate(looks) if look.drift]
    assert [t // 100 for t in drifts] == [1, 2], drifts
    assert all(t % 100 < 8 for t in drifts)


def test_the_change_score_equals_the_formula() -> None:
    x, labels = source()
    part = Signature(x, labels, generator())
    most = float(part.limits[3])
    entries = torch.cat([x[:40], x[40:60] + torch.linspace(0.0, 3.0, 20).view(-1, 1, 1, 1)])
    m, v = x.flatten(2).mean(2), x.flatten(2).var(2, correction=0)
    s = torch.cat([m, (v + 1e-3 * v.mean(0)).log()], 1)
    held: list[Tensor] = []
    for t, entry in enumerate(entries):
        flat = entry.flatten(1)
        features = torch.cat([flat.mean(1), (flat.var(1, correction=0) + 1e-3 * v.mean(0)).log()])
        held.append((features - s.mean(0)) / s.std(0))
        older, recent = held[:-8], torch.stack(held[-8:]).mean(0)
        change = 0.0
        if len(older) >= 4:
            n, stack = len(older), torch.stack(older)
            var = stack.var(0, correction=0) * n / (n + 4)
            change = float(((recent - stack.mean(0)) ** 2 / var.clamp_min(1.0)).mean())
        look = part.evaluate(entry.unsqueeze(0))
        part.commit(look.new)
        assert look.score == pytest.approx(float((held[-1] ** 2).mean().log()), abs=1e-3)
        assert look.drift == (change > most), t
        if look.drift:
            assert t > 40
            return
    raise AssertionError("no drift was there to be seen")


def test_overflowing_values_leave_no_trace() -> None:
    x, labels = source()
    part = Signature(x, labels, generator())
    look = part.evaluate(torch.full((1, 3, 6, 6), 1e30))
    assert (look.usable, look.familiar, look.drift, look.new) == (False, False, False, {})


def test_a_second_outlier_in_a_row_is_accepted() -> None:
    x, labels = source()
    part = Signature(x, labels, generator())
    looks = walk(part, torch.cat([x[:20], 1e6 * x[20:21], x[21:40], 1e6 * x[40:44]]))
    assert [t for t, look in enumerate(looks) if not look.usable] == [20, 40]
    assert [t for t, look in enumerate(looks) if look.drift] == [41]


def test_without_positions_the_signature_consists_of_the_values() -> None:
    x = numbers(100, 6)
    part = Signature(x, torch.zeros(100, dtype=torch.int64), generator())
    assert part.centre.shape == (6,)
    assert part.evaluate(x[:1]).familiar
    assert not part.evaluate(x[:1] + 20.0).familiar


def test_polarity_detects_inverted_inputs_only() -> None:
    x, _ = source()
    for factor, sign in ((1.0, 1.0), (0.3, 1.0), (-1.0, -1.0), (-0.4, -1.0)):
        part = Polarity(x)
        flips = 0
        for entry in x[:30]:
            turn = part.evaluate(factor * entry.unsqueeze(0) + 1.0, fresh=False)
            part.commit(turn.new)
            flips += turn.flipped
        assert part.sign.item() == sign
        assert flips == (sign < 0)
        assert part.evaluate(x[:1], fresh=True).sign.item() == 1.0, (
            "after a reset the sign is unknown"
        )
