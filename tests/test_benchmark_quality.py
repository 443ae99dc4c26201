"""The verdicts of the quality benchmark: a slow computation by hand gives the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality
from benchmarks.scenarios import SCENARIOS, forecast, glucose
from benchmarks.scenarios.measure import Sums, cross_check
from streamadapt import Batch, Bias, Entry, Label, Linear, Pipeline
from streamadapt.learners import Learner
from streamadapt.records import FloatArray

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
RATE = 0.1
HOUR = 3_600_000_000_000

needs_data = pytest.mark.skipif(
    not (DATA / "ETTh1.csv").exists(), reason="the measured data sets are not here"
)

TINY = forecast.Setting(
    "tiny", lambda folder: waves(), 0.5, 6, strong=True, shared_scale=False, horizon=4
)
LATE = glucose.Setting("late", train=0.3, window=3)


def quiet(text: str) -> None:
    del text


def one_bias() -> Sequence[Learner]:
    return [Bias(RATE)]


def waves(rows: int = 240) -> Batch:
    """Three waves with a jump of the level in the second half."""
    t = np.arange(rows, dtype=np.float64)[:, None]
    noise = np.random.default_rng(0).normal(size=(rows, 3))
    values = (
        np.sin(t / np.array([3.0, 5.0, 8.0]))
        + 0.1 * noise
        + (t > 0.6 * rows) * np.array([1.0, 2.0, -1.0])
    )
    return Batch(values.astype(np.float32), np.arange(rows, dtype=np.int64))


def sensor(rows: int = 300) -> Batch:
    """A sensor read every 10 to 15 minutes, with a drifting gain."""
    rng = np.random.default_rng(1)
    current = rng.normal(20.0, 3.0, size=(rows, 1))
    labels = current * np.linspace(5.0, 8.0, rows)[:, None]
    times = np.cumsum(rng.integers(10, 16, rows)) * (HOUR // 60)
    return Batch(current.astype(np.float32), times.astype(np.int64), labels.astype(np.float32))


def base_forecasts(base: Linear, batch: Batch, window: int) -> dict[int, FloatArray]:
    """Return the base's forecasts at each row t with a full window."""
    pipeline = Pipeline(forecast.Forecast(window, TINY.horizon), base, [], device="cpu")
    return {int(p.id): p.base for entry in batch.entries() for p in pipeline.observe([entry])}


def test_a_forecast_figure_equals_a_computation_by_hand() -> None:
    """Issue times, the maturing of rows and the mean over all cells follow the protocol."""
    batch, w, horizon = waves(), TINY.window, TINY.horizon
    first, n = 120 + w, len(batch)
    forecasts = base_forecasts(TINY.fit(batch), batch, w)
    bias = np.zeros((horizon, 3))
    errors: dict[str, list[float]] = {"base": [], "bias-0.1": [], "persistence": []}
    for t in range(first, n - horizon):
        # The targets that row t makes known, of the forecasts since the first judged one.
        for h in range(1, horizon + 1):
            if t - h >= first:
                bias[h - 1] += RATE * (batch.values[t] - forecasts[t - h][h - 1] - bias[h - 1])
        actual = batch.values[t + 1 : t + 1 + horizon]
        for name, expected in (
            ("base", forecasts[t]),
            ("bias-0.1", forecasts[t] + bias),
            ("persistence", batch.values[t]),
        ):
            errors[name].append(float(np.abs(expected - actual).mean()))
    measured = forecast.measure(TINY, batch, quiet, one_bias)
    for name, by_hand in errors.items():
        np.testing.assert_allclose(measured.losses[name], by_hand, rtol=2e-5, err_msg=name)
    assert measured.mixed == ("base", "bias-0.1")
    assert (
        list(measured.losses)
        == list(measured.figures)
        == ["base", "bias-0.1", "persistence", "served"]
    )


def test_issue_times_follow_the_protocol() -> None:
    """t in [n_train + W, n - T), and the pipeline observes nothing before the first judged
    window."""
    assert forecast.issue_times(TINY, 240) == range(126, 236)
    assert [int(entry.id) for entry in forecast.stream_of(TINY, waves())] == list(range(121, 240))


def test_later_rows_change_no_earlier_error() -> None:
    """Errors of forecasts that were complete before row 200 stay the same when the rest of the
    stream is noise."""
    batch = waves()
    values = batch.values.copy()
    values[200:] = np.random.default_rng(2).normal(50.0, 20.0, size=(40, 3))
    before = forecast.measure(TINY, batch, quiet, one_bias).losses
    after = forecast.measure(TINY, Batch(values, batch.times), quiet, one_bias).losses
    whole = 200 - TINY.horizon - forecast.issue_times(TINY, len(batch)).start
    for name in before:
        np.testing.assert_array_equal(before[name][:whole], after[name][:whole], err_msg=name)
        assert not np.array_equal(before[name][whole:], after[name][whole:])


@pytest.mark.parametrize("every", [1, 7])
def test_labels_arrive_as_the_protocol_says(every: int) -> None:
    """A label arrives before the first entry that is not older than its time, and no earlier entry
    follows it."""
    setting, batch = replace(LATE, every=every), sensor()
    items = glucose.items_of(setting, batch)
    entries = [item for item in items if isinstance(item, Entry)]
    assert [int(entry.id) for entry in entries] == list(range(90, 300))
    now = 0
    for i, item in enumerate(items):
        now = max(now, item.time)
        assert item.time == now, "items are in the order of their arrival"
        if isinstance(item, Label):
            assert item.time - batch.times[int(item.id)] == 6 * HOUR
            assert (int(item.id) - 90) % every == 0
            before = [entry.time for entry in items[:i] if isinstance(entry, Entry)]
            assert max(before) < item.time


@pytest.mark.parametrize("every", [1, 7])
def test_a_regression_figure_equals_a_computation_by_hand(every: int) -> None:
    """All predictions are judged; only labels that have arrived are learned."""
    setting, batch = replace(LATE, every=every), sensor()
    assert batch.labels is not None
    pipeline = glucose.pipeline_for(setting, setting.fit(batch), [])
    entries = list(Batch(batch.values, batch.times).entries())[90:]
    predictions = {
        int(p.id): float(p.base[0, 0]) for entry in entries for p in pipeline.observe([entry])
    }
    bias, waiting, errors = 0.0, [row for row in range(90, 300) if (row - 90) % every == 0], []
    for row in range(92, 300):
        while waiting and batch.times[waiting[0]] + 6 * HOUR <= batch.times[row]:
            arrived = waiting.pop(0)
            if arrived in predictions:
                bias += RATE * (float(batch.labels[arrived, 0]) - predictions[arrived] - bias)
        errors.append(abs(predictions[row] + bias - float(batch.labels[row, 0])))
    measured = glucose.measure(setting, batch, quiet, one_bias)
    np.testing.assert_allclose(measured.losses["bias-0.1"], errors, rtol=1e-4, atol=1e-3)
    assert measured.figure("bias-0.1") == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_no_change_forecast_is_the_newest_label_that_has_arrived() -> None:
    """Compared with a search through all labels."""
    batch = sensor(60)
    assert batch.labels is not None
    plain = glucose.no_change(replace(LATE, every=3), batch)
    first = LATE.split(batch)
    for row in range(len(batch)):
        known = [
            r
            for r in range(row)
            if (r - first) % 3 == 0 and batch.times[r] + 6 * HOUR <= batch.times[row]
        ]
        expected = float(batch.labels[known[-1], 0]) if known else np.nan
        np.testing.assert_equal(plain[row], expected)


def test_a_pipeline_with_different_counts_is_detected() -> None:
    """The cross-check refuses a sum or a count that differs."""
    pipeline = forecast.pipeline_for(TINY, TINY.fit(waves()), [Bias(RATE)])
    pipeline.observe(forecast.stream_of(TINY, waves()))
    counted, cells = pipeline.stats.loss_sum["base"], pipeline.stats.loss_cells["base"]

    def summed(total: float, count: int) -> Sums:
        sums = Sums()
        sums.add({"base": total}, count)
        return sums

    cross_check(pipeline, summed(counted, cells))
    with pytest.raises(AssertionError, match="base: the pipeline counted"):
        cross_check(pipeline, summed(1.001 * counted, cells))
    with pytest.raises(AssertionError, match="cells"):
        cross_check(pipeline, summed(counted, cells + 1))


@pytest.mark.parametrize("warm_up", [0, 40])
def test_the_warm_up_changes_the_learners_but_not_the_judged_rows(warm_up: int) -> None:
    """The same issue times and base errors; a bias that has learned more before the first judged
    row."""
    cold = forecast.measure(TINY, waves(), quiet, one_bias, seeds=(0,))
    setting = replace(TINY, warm_up=warm_up)
    assert [int(entry.id) for entry in forecast.stream_of(setting, waves())] == list(
        range(121 - warm_up, 240)
    )
    warm = forecast.measure(setting, waves(), quiet, one_bias, seeds=(0,))
    np.testing.assert_array_equal(warm.losses["base"], cold.losses["base"])
    assert np.array_equal(warm.losses["bias-0.1"], cold.losses["bias-0.1"]) == (warm_up == 0)
    assert (f"{warm_up} rows before" in warm.protocol) == (warm_up > 0)


def test_the_warm_up_needs_training_entries() -> None:
    with pytest.raises(ValueError, match="122 entries to warm up, 121 there are"):
        forecast.stream_of(replace(TINY, warm_up=122), waves())


def test_the_command_names_a_missing_data_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without data: the file, and the option for its folder."""
    assert quality.main(["--only", "etth1-weak", "--data", str(tmp_path)]) == 2
    assert (
        quality.main(["--only", "etth1-weak", "elec2", "--jobs", "2", "--data", str(tmp_path)])
        == 2
    )
    with pytest.raises(SystemExit, match="2"):
        quality.main(["--jobs", "0"])
    output = capsys.readouterr().err
    assert "ETTh1.csv" in output
    assert "--data" in output


def test_the_scenarios_keep_their_names() -> None:
    """Names are permanent: figures of different versions are compared by them."""
    first = [
        "cgm-6h",
        "cgm-sparse",
        "etth1-weak",
        "etth1-strong",
        "los-weak",
        "los-strong",
        "elec2",
        "linkload",
    ]
    assert list(SCENARIOS)[: len(first)] == first
    assert {name.split("-")[0] for name in list(SCENARIOS)[len(first) :]} == {
        "digits",
        "dictionary",
    }
    assert {"digits-sorted", "digits-changing", "dictionary-n20"} <= set(SCENARIOS)


@needs_data
@pytest.mark.parametrize(
    ("setting", "figure"),
    list(zip(forecast.FORECASTS, (2.1470, 1.3292, 3.8743, 3.5731), strict=True)),
    ids=[setting.name for setting in forecast.FORECASTS],
)
def test_the_frozen_bases_reach_their_reference_figures(
    setting: forecast.Setting, figure: float
) -> None:
    """Reference figures of the same protocol, from an independent implementation."""
    cold = replace(setting, warm_up=0)  # nothing to warm up or to seed
    measured = forecast.measure(cold, setting.load(DATA), quiet, lambda: [], seeds=(0,))
    assert measured.figure("base") == pytest.approx(figure, abs=1e-4)
    np.testing.assert_allclose(measured.losses["served"], measured.losses["base"], rtol=1e-5)
