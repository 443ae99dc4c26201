"""The promises of the pipeline: no leakage, grouping has no effect, replay is exact, bad items are
harmless, the state is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import (
    KINDS,
    bits,
    entries,
    entry,
    linear_base,
    pipeline_of,
    state,
    stream_of,
    walk,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from streamadapt import (
    RLS,
    Bias,
    DriftMonitor,
    Entry,
    Forecast,
    Label,
    NoGuard,
    Persistence,
    Pipeline,
    Supervised,
)
from streamadapt.errors import CheckpointError, ConfigError, EntryError, Reason
from streamadapt.learners import ADCSD
from streamadapt.testing.checks.cases import state_bytes, through_a_checkpoint


def noise_from(items: list[Entry | Label], cut: int) -> list[Entry | Label]:
    """Replace everything after item `cut` by noise, also the label that item `cut` brings."""
    rng = np.random.default_rng(99)
    changed: list[Entry | Label] = items[:cut]
    for i, item in enumerate(items[cut:], cut):
        if isinstance(item, Label):
            value = (
                item.value
                if i == cut
                else rng.normal(50.0, 9.0, item.value.shape).astype(np.float32)
            )
            changed.append(Label(item.id, value, item.time, item.position))
            continue
        values = (
            item.values
            if i == cut
            else rng.normal(50.0, 9.0, item.values.shape).astype(np.float32)
        )
        label = item.label
        if label is not None:
            classes = len(label) == 1
            noise = rng.integers(0, 3, 1) if classes else rng.normal(50.0, 9.0, label.shape)
            label = noise.astype(np.float32)
        changed.append(Entry(values, item.time, item.id, item.key, label, item.position))
    return changed


@pytest.mark.parametrize("cut", [30, 57])
@pytest.mark.parametrize("kind", KINDS)
def test_no_prediction_uses_later_items(kind: str, cut: int) -> None:
    """Nor the label of its own entry: all items are handed over at once, so looking ahead would be
    possible."""
    items = stream_of(kind)
    clean, noisy = (
        pipeline_of(kind).observe(stream) for stream in (items, noise_from(items, cut))
    )
    until = {item.id for item in items[: cut + 1] if isinstance(item, Entry)}
    before = [p for p in clean if p.id in until]
    assert before
    assert bits(before) == bits([p for p in noisy if p.id in until])
    assert bits(clean) != bits(noisy), "the noise affects later predictions"


def constant_base(inputs: Any) -> Any:
    del inputs
    return torch.zeros(1, 1)


def test_shuffled_labels_give_no_gain() -> None:
    """With labels of other entries no learner beats the best constant; with the real ones the
    learners do."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(800, 2)).astype(np.float32)
    labels = (values @ np.array([[1.0], [-2.0]]) + 0.3 * rng.normal(size=(800, 1))).astype(
        np.float32
    )
    gains = {}
    for name, given_labels in (("real", labels), ("shuffled", rng.permutation(labels))):
        pipeline = Pipeline(Supervised(1), constant_base, [Bias((0.1, 0.01)), RLS((0.999, 0.99))])
        rows = zip(values, given_labels, strict=True)
        pipeline.observe(entry(v, t + 1, id=str(t), label=y) for t, (v, y) in enumerate(rows))
        served, based = pipeline.stats.mean_loss("served"), pipeline.stats.mean_loss("base")
        assert served is not None
        assert based is not None
        gains[name] = 1.0 - served / based
    assert gains["real"] > 0.7
    assert -0.02 < gains["shuffled"] < 0.01, "and the loss is almost zero"


def test_noise_cannot_be_forecast() -> None:
    values = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)

    def zero(inputs: Any) -> Any:
        return torch.zeros(3, inputs.shape[1])

    pipeline = Pipeline(Forecast(4, 3), zero, [Bias((0.1, 0.01)), RLS(0.999), ADCSD(1e-3)])
    pipeline.observe(entries(values))
    assert pipeline.stats.mean_loss("served") > 0.99 * pipeline.stats.mean_loss("base")  # type: ignore[operator]


def bad_items(kind: str) -> list[tuple[Entry | Label, Reason]]:
    """Return items that are refused anywhere after the first few of a stream of `stream_of`."""
    found: list[tuple[Entry | Label, Reason]] = [
        (entry([1.0, 2.0], -(10**10), id="new"), Reason.TIME_BACKWARDS),
        (entry([1.0, 2.0, 3.0], 10**9, id="new"), Reason.WRONG_WIDTH),
        (entry([1.0, np.inf], 10**9, id="new"), Reason.NOT_FINITE),
        (Label("nobody", np.zeros(1, np.float32), 10**9), Reason.UNKNOWN_LABEL),
    ]
    if kind == "forecast":
        return found
    wide = 1 if kind == "classes" else 2
    found.append((entry([1.0, 2.0], 10**9, id="0"), Reason.DUPLICATE_ID))
    found.append(
        (entry([1.0, 2.0], 10**9, id="new", label=np.zeros(5, np.float32)), Reason.WRONG_WIDTH)
    )
    found.append(
        (
            entry([1.0, 2.0], 10**9, id="new", label=np.full(wide, np.inf, np.float32)),
            Reason.NOT_FINITE,
        )
    )
    if kind != "late labels":
        found.append((Label("0", np.zeros(wide, np.float32), 3), Reason.DUPLICATE_LABEL))
    if kind == "classes":
        for wrong in (3.0, -1.0, 0.5):
            label = np.full(1, wrong, np.float32)
            found.append((entry([1.0, 2.0], 10**9, id="new", label=label), Reason.BAD_CLASS))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_bad_item_raises_its_reason_and_changes_nothing(kind: str) -> None:
    pipeline = pipeline_of(kind)
    pipeline.observe(stream_of(kind, 30))
    for item, reason in bad_items(kind):
        before = pipeline.state_dict()
        with pytest.raises(EntryError) as caught:
            pipeline.observe([item])
        assert caught.value.reason is reason, item
        assert caught.value.position == item.position
        after = pipeline.state_dict()
        assert (
            after["stats"]["rejected"][reason.value]
            == before["stats"]["rejected"].get(reason.value, 0) + 1
        )
        del after["stats"]["rejected"], before["stats"]["rejected"]
        assert state_bytes(after) == state_bytes(before)


@settings(max_examples=8, deadline=None)
@given(st.data(), st.sampled_from(KINDS))
def test_bad_items_anywhere_and_any_grouping_change_no_prediction(data: Any, kind: str) -> None:
    """The grouping by polls, and refused items in between, change neither predictions nor
    state."""
    items = stream_of(kind, 40)
    # A bad label inside an entry is refused alone: such an entry changes the state.
    bad = [one for one in bad_items(kind) if not isinstance(one[0], Entry) or one[0].label is None]
    mixed = list(items)
    places = data.draw(
        st.lists(
            st.tuples(st.integers(3, len(items)), st.sampled_from(range(len(bad)))), max_size=6
        )
    )
    for place, which in sorted(places, reverse=True):
        mixed.insert(place, bad[which][0])
    rejected: list[Any] = []
    grouped = pipeline_of(
        kind, on_rejected=lambda item, error: rejected.append((item, error.reason))
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(mixed)), max_size=8)))
    predictions = []
    for start, stop in zip([0, *cuts], [*cuts, len(mixed)], strict=True):
        predictions += grouped.observe(mixed[start:stop])
    alone = pipeline_of(kind)
    one_by_one = [p for item in items for p in alone.observe([item])]
    assert bits(predictions) == bits(one_by_one)
    assert sorted(reason for _, reason in rejected) == sorted(bad[which][1] for _, which in places)
    mine, other = grouped.state_dict(), alone.state_dict()
    del mine["stats"]["rejected"], other["stats"]["rejected"]
    if kind == "forecast":  # the river learner's blob is judged by its predictions, above
        assert state_bytes(mine) == state_bytes(other)


def test_without_on_rejected_items_before_the_bad_one_are_kept() -> None:
    pipeline = pipeline_of("forecast")
    good = stream_of("forecast", 20)
    with pytest.raises(EntryError):
        pipeline.observe([*good[:10], entry([1.0], 11), *good[10:]])
    assert pipeline.stats.entries == 10
    rest = pipeline.observe(good[10:])
    assert bits(rest) == bits(pipeline_of("forecast").observe(good)[-10:])


@pytest.mark.parametrize("kind", KINDS)
def test_replay_gives_the_same_bits(kind: str) -> None:
    torch.manual_seed(1)
    first = pipeline_of(kind, seed=3).observe(stream_of(kind))
    torch.manual_seed(2)
    assert bits(first) == bits(pipeline_of(kind, seed=3).observe(stream_of(kind)))


def test_the_seed_reaches_the_learners() -> None:
    first, second = (
        pipeline_of("forecast", seed=s).observe(stream_of("forecast")) for s in (1, 2)
    )
    assert bits(first) != bits(second)


def drifting(kind: str) -> Pipeline:
    monitors = [
        DriftMonitor("adwin", "loss", "boost"),
        DriftMonitor("page-hinkley", "input", "alert"),
    ]
    return pipeline_of(kind, drift=monitors)


@pytest.mark.parametrize("stop", [2, 11, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_pipeline_continues_as_the_saved_one(kind: str, stop: int) -> None:
    """Through a checkpoint on disk: before the first prediction, in the middle, and with pending
    labels."""
    items = stream_of(kind)
    saved, loaded = drifting(kind), drifting(kind)
    saved.observe(items[:stop])
    loaded.load_state_dict(through_a_checkpoint(saved.state_dict()))
    assert bits(saved.observe(items[stop:])) == bits(loaded.observe(items[stop:]))
    assert saved.stats == loaded.stats
    if kind == "forecast":
        assert state(saved) == state(loaded)
    leaves = ("task", "guard", "stats", "spec")
    mine, other = saved.state_dict(), loaded.state_dict()
    assert mine["drift"]["fired"] == other["drift"]["fired"]
    assert state_bytes({k: mine[k] for k in leaves}) == state_bytes({k: other[k] for k in leaves})


def test_a_state_is_a_copy() -> None:
    pipeline = drifting("forecast")
    items = stream_of("forecast")
    pipeline.observe(items[:50])
    kept = pipeline.state_dict()
    before = state_bytes(kept)
    pipeline.observe(items[50:])
    assert state_bytes(kept) == before


class FiresOnce(DriftMonitor):
    """Reports drift at its third value."""

    count = 0

    def update(self, value: float) -> bool:
        super().update(value)
        self.count += 1
        return self.count == 3


def test_a_drift_found_by_a_label_is_in_the_next_prediction_also_after_a_restart() -> None:
    pipelines = [pipeline_of("late labels", drift=[FiresOnce()]) for _ in range(2)]
    saved, loaded = pipelines
    items = stream_of("late labels")
    fired_at = next(
        i for i, item in enumerate(items) for _ in [saved.observe([item])] if saved.stats.drifts
    )
    assert isinstance(items[fired_at], Label)
    loaded.load_state_dict(through_a_checkpoint(saved.state_dict()))
    for pipeline in pipelines:
        drifts = [p.drifts for p in pipeline.observe(items[fired_at + 1 :])]
        assert drifts[0] == ("adwin:loss",)
        assert set(drifts[1:]) <= {(), ("adwin:loss",)}


def test_another_pipelines_state_is_refused() -> None:
    other = pipeline_of("forecast").state_dict()
    with pytest.raises(CheckpointError, match=r"bias-0\.1"):
        Pipeline(Forecast(4, 3), Persistence(3)).load_state_dict(other)


@pytest.mark.parametrize("kind", KINDS)
def test_predict_changes_nothing(kind: str) -> None:
    pipeline = drifting(kind)
    items = stream_of(kind)
    pipeline.observe(items[:60])
    before = state(pipeline)
    newest = max(item.time for item in items[:60])
    for value in (11.0, -1e6, np.nan):
        prediction = pipeline.predict(entry([value, 9.0], newest, id="asked"))
        assert prediction.served.shape == prediction.base.shape
        assert state(pipeline) == before
    with pytest.raises(EntryError, match="wrong_width"):
        pipeline.predict(entry([1.0], newest))
    assert bits(pipeline.observe(items[60:])) == bits(
        drifting(kind).observe(items)[-len_of(items[60:]) :]
    )


def len_of(items: list[Entry | Label]) -> int:
    return sum(isinstance(item, Entry) for item in items)


def test_predict_equals_observe_if_nothing_matured() -> None:
    pipeline = pipeline_of("late labels")
    pipeline.observe(stream_of("late labels", 40))
    asked = entry([9.0, 11.0], 10_000, id="asked")
    prediction = pipeline.predict(asked)
    assert bits([prediction]) == bits(pipeline.observe([asked]))


@pytest.mark.parametrize("seen", [0, 1, 2, 3])
def test_predict_before_the_first_prediction_is_refused_and_leaves_no_trace(seen: int) -> None:
    """Also if the given entry would just fill the window: the stream builds the learners, not
    `predict`."""
    values = walk(30, 2)
    asked, fresh = pipeline_of("forecast"), pipeline_of("forecast")
    asked.observe(entries(values)[:seen])
    with pytest.raises(ConfigError, match="window"):
        asked.predict(entry([1e4, -1e4], 10**6))
    rest = asked.observe(entries(values)[seen:])
    assert bits(rest) == bits(fresh.observe(entries(values)))


def test_counts_and_losses_are_those_of_the_predictions() -> None:
    """The statistics against the predictions themselves: same cells, same sums, without masked
    cells."""
    values = walk(80, 2, missing=0.1)
    pipeline = Pipeline(Forecast(3, 2), Persistence(2), [Bias(0.1)])
    predictions = pipeline.observe(entries(values))
    sums = dict.fromkeys(("base", "bias-0.1", "served"), 0.0)
    cells = 0
    for i, p in enumerate(predictions):
        for h in range(2):
            at = i + 3 + h  # prediction i is made at entry i + 2
            if at < len(values):
                known = ~np.isnan(values[at])
                cells += int(known.sum())
                for name, predicted in (*p.experts.items(), ("served", p.served)):
                    sums[name] += float(np.abs(predicted[h] - values[at])[known].sum())
    assert pipeline.stats.predictions == len(predictions) == 78
    assert pipeline.stats.entries == 80
    assert set(pipeline.stats.loss_cells.values()) == {cells}
    for name, total in sums.items():
        assert pipeline.stats.loss_sum[name] == pytest.approx(total, rel=1e-5), name


def test_names_must_differ_and_tasks_must_fit() -> None:
    with pytest.raises(ConfigError, match="differ"):
        Pipeline(Forecast(3, 2), Persistence(2), [Bias(0.1), Bias((0.1, 0.2))])
    with pytest.raises(ConfigError, match="forecast"):
        Pipeline(Supervised(), linear_base, [ADCSD()])
    with pytest.raises(ConfigError, match="horizon"):
        Pipeline(Forecast(3, 2), Persistence(3))


def test_without_a_guard_the_learner_is_served() -> None:
    pipeline = Pipeline(Forecast(3, 2), Persistence(2), [Bias(0.1)], NoGuard(1))
    for p in pipeline.observe(entries(walk(40, 2))):
        assert np.array_equal(p.served, p.experts["bias-0.1"])
        assert p.weights == {"base": 0.0, "bias-0.1": 1.0}
