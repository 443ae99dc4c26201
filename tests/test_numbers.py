"""Numbers keep their precision: values far from zero are predicted, learned and judged exactly."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import logging_as_before
from streamadapt_connectors.codecs import FieldMap, JsonCodec, encode_prediction
from torch import Tensor, nn
from variants import variants

from streamadapt import (
    RLS,
    Batch,
    Bias,
    Dictionary,
    Entry,
    Forecast,
    Gain,
    KeyedPipeline,
    Label,
    Panel,
    Persistence,
    Pipeline,
    Position,
    Supervised,
)
from streamadapt.app.commands import run_command
from streamadapt.errors import EntryError, Reason
from streamadapt.learners.defaults import default_learners
from streamadapt.models.builtin import Linear
from streamadapt.models.contract import Base
from streamadapt.models.fit import fit_forecast, fit_supervised
from streamadapt.pipeline.intervals import Intervals
from streamadapt.records import Record
from streamadapt.state.pack import pack, unpack

logging_restored = pytest.fixture(autouse=True)(logging_as_before)
LEVELS = (1e6, 2e7, 2e8, 1.7e9, 1e12)


def meter(level: float, **parts: Any) -> Pipeline:
    return Pipeline(Forecast(6, 1), Persistence(1), [Bias(0.1), RLS(0.99)], **parts)


def errors(pipeline: Any, values: list[float], **more: Any) -> tuple[list[float], list[float]]:
    """Observe a series; return the absolute errors of the served prediction and of the base,
    against the true next value."""
    served, base = [], []
    for t, value in enumerate(values[:-1]):
        for p in pipeline.observe([Entry(np.array([value]), t * 10**9, **more)]):
            served.append(abs(float(p.served[0, 0]) - values[t + 1]))
            base.append(abs(float(p.base[0, 0]) - values[t + 1]))
    return served, base


@pytest.mark.parametrize("level", LEVELS)
def test_a_total_that_grows_by_one_is_predicted_and_judged_precisely(level: float) -> None:
    pipeline = meter(level)
    served, base = errors(pipeline, [level + t for t in range(300)])
    assert base == [1.0] * len(base)
    assert max(served[100:]) < 0.01
    assert pipeline.stats.mean_loss("base") == 1.0
    expected = sum(served[:-1]) / len(served[:-1])  # the newest forecast is still open
    assert pipeline.stats.mean_loss("served") == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_the_default_learners_predict_at_any_level_as_at_zero() -> None:
    steps = np.random.default_rng(0).normal(1.0, 0.3, size=250).cumsum()

    def served(level: float) -> list[float]:
        return errors(
            Pipeline(Forecast(6, 1), Persistence(1), default_learners("forecast")),
            (level + steps).tolist(),
        )[0]

    plain = np.mean(served(0.0)[100:])
    for level in (2e8, 1.7e9):
        assert np.mean(served(level)[100:]) == pytest.approx(plain, rel=0.02)


def test_from_json_to_json_at_two_hundred_million() -> None:
    codec = JsonCodec(
        FieldMap(values=("total",), time="t", time_format="unix_s"), streams=["meter"]
    )
    pipeline, level, off = meter(2e8), 200_000_000, []
    for t in range(200):
        raw = json.dumps({"t": t, "total": level + t}).encode()
        for p in pipeline.observe([codec.decode(Record(Position("meter", 0, t), None, raw, 0))]):
            served = json.loads(encode_prediction(p))["served"][0]
            off.append(abs(served - (level + t + 1)))
    assert max(off[100:]) < 0.01


def test_the_command_line_keeps_a_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps({"t": t, "total": 1_700_000_000 + t}) + "\n" for t in range(150))
    (tmp_path / "in.jsonl").write_text(rows)
    (tmp_path / "config.toml").write_text(
        '[task]\nkind = "forecast"\nwindow = 6\nhorizon = 1\n\n[base]\nkind = '
        '"persistence"\nhorizon = 1\n\n'
        '[[learners]]\nkind = "rls"\nforgetting = 0.99\n\n[source]\nkind = "files"\npath = '
        '"in.jsonl"\n\n'
        '[fields]\nvalues = ["total"]\ntime = "t"\ntime_format = "unix_s"\n\n'
        '[sink]\nkind = "files"\npath = "out.jsonl"\n'
    )
    assert run_command(["replay", "config.toml", "in.jsonl", "--out", "out.jsonl"]).code == 0
    predictions = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    off = [abs(p["served"][0] - (1_700_000_000 + p["time"] // 10**9 + 1)) for p in predictions]
    assert len(off) == 145
    assert max(off[60:]) < 0.05


def test_keys_at_different_levels_each_keep_their_level() -> None:
    keyed = KeyedPipeline(lambda: meter(0.0))
    for key, level in (("a", 5.0), ("b", 2e8)):
        served, base = errors(keyed, [level + t for t in range(200)], key=key)
        assert base == [1.0] * len(base)
        assert max(served[100:]) < 0.01


def test_meters_of_a_panel_beside_a_small_sensor() -> None:
    pipeline = meter(0.0, panel=Panel(sensors=["small", "total"], lateness="0s"))
    off = []
    for t in range(200):
        for key, value in (("small", 5.0 + t), ("total", 2e8 + t)):
            predictions = pipeline.observe([Entry(np.array([value]), t * 10**9, key=key)])
            off += [
                np.abs(p.served[0] - (np.array([5.0, 2e8]) + p.time // 10**9 + 1)).max()
                for p in predictions
            ]
    assert max(off[100:]) < 0.01


def test_a_missing_start_and_an_outlier_set_no_origin() -> None:
    """A value of about 20 minus 4294967295 in float32 would be a multiple of 256."""
    values = [float("nan"), 20.0, 21.0, 4294967295.0, 19.0, 20.0]
    pipeline = Pipeline(Forecast(6, 1), Persistence(1), [Bias(0.1)])
    pipeline.observe([Entry(np.array([v]), t) for t, v in enumerate(values)])
    assert "input_origin" not in pipeline.state_dict()["spec"]


class Near(nn.Module):
    """Twice the newest value, plus a level: roughly a label of ``3 x + level``."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1:] * 2.0 + self.level


def near_linear(level: float) -> Linear:
    x = np.random.default_rng(2).normal(size=(300, 1))
    return fit_supervised(Batch(x, np.arange(300), level + 2.0 * x), 1)


def regression(base: Any, level: float, *, apart: bool = False) -> tuple[Pipeline, list[float]]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=400)
    y = level + 3.0 * x + 0.1 * rng.normal(size=400)
    pipeline = Pipeline(Supervised(1), base, default_learners("regression"))
    off = []
    for t in range(400):
        label = np.array([y[t]])
        items: list[Entry | Label] = [
            Entry(np.array([x[t]]), t * 10**9, str(t), label=None if apart else label)
        ]
        if apart:
            items.append(Label(str(t), label, t * 10**9))
        off += [abs(float(p.served[0, 0]) - y[t]) for p in pipeline.observe(items)]
    return pipeline, off


@pytest.mark.parametrize("apart", variants([False, True]))
def test_labels_far_from_zero_are_learned_as_labels_near_it(apart: bool) -> None:
    near = np.mean(regression(near_linear(0.0), 0.0, apart=apart)[1][150:])
    for base in (near_linear(2e8), Near(2e8)):  # the module can only return multiples of 16
        pipeline, off = regression(base, 2e8, apart=apart)
        assert np.mean(off[150:]) < 1.1 * near
        expected = sum(off[:-1]) / len(off[:-1])
        assert pipeline.stats.mean_loss("served") == pytest.approx(expected, rel=0.02)


def test_an_outlier_as_first_label_or_prediction_sets_no_origin() -> None:
    for base, first in ((Near(0.0), 4e9), (Near(4e9), 1.0)):
        pipeline = Pipeline(Supervised(1), base, [Bias(0.1)])
        pipeline.observe(
            [Entry(np.zeros(1), 0, "0", label=np.array([first])), Entry(np.zeros(1), 1, "1")]
        )
        assert "output_origin" not in pipeline.state_dict()["spec"]


def test_a_fit_at_a_level_equals_the_fit_without_it() -> None:
    steps = np.random.default_rng(0).normal(1.0, 0.5, size=(600, 1)).cumsum(0)
    plain, far = (fit_forecast(Batch(steps + level, np.arange(600)), 6, 2) for level in (0.0, 2e8))
    torch.testing.assert_close(far.weights, plain.weights, rtol=1e-3, atol=1e-3)
    window = torch.from_numpy(steps[100:106])
    torch.testing.assert_close(
        far(window + 2e8).output - 2e8, plain(window).output, rtol=1e-3, atol=1e-3
    )


def test_a_gain_is_relative_to_zero_and_not_to_the_origin() -> None:
    """The base predicts 10 % too little for every value, however far from zero it is."""
    pipeline = Pipeline(Supervised(1), lambda w: w[-1:] * 0.9, [Gain(0.1)])
    for t, x in enumerate(np.random.default_rng(0).uniform(2e5, 9e5, size=300).astype(np.float32)):
        (prediction,) = pipeline.observe([Entry(np.array([x]), t, str(t), label=np.array([x]))])
    assert float(prediction.experts["gain-0.1"][0, 0]) == pytest.approx(float(x), rel=1e-3)


def test_a_learner_that_calls_the_base_uses_original_units() -> None:
    pipeline = Pipeline(Forecast(6, 1), Persistence(1), [Dictionary()])
    for t in range(200):
        for p in pipeline.observe([Entry(np.array([2e8 + np.sin(t / 5.0)]), t * 10**9)]):
            assert abs(float(p.experts["dictionary"][0, 0]) - 2e8) < 10.0


class RecordsInputs(Base):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.seen = dtype, torch.zeros(0)

    def input_dtype(self, *, far: bool) -> torch.dtype:
        return self.dtype if far else torch.float32

    def forward(self, inputs: Tensor) -> Any:
        self.seen = inputs
        from streamadapt.models.contract import BaseOutput

        return BaseOutput(inputs[-1:])


def test_a_module_receives_float32_in_original_units_with_one_warning_about_precision(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = RecordsInputs(torch.float32)
    with caplog.at_level(logging.WARNING, "streamadapt"):
        for _ in range(2):  # the pipelines of all keys share a base
            pipeline = Pipeline(Forecast(2, 1), base, [Bias(0.1)])
            pipeline.observe([Entry(np.array([2e8 + t]), t) for t in range(5)])
    assert base.seen.dtype == torch.float32
    assert base.seen[-1].item() == np.float32(2e8 + 4)
    assert len(caplog.records) == 1
    assert "differences" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "streamadapt"):
        exact = RecordsInputs(torch.float64)
        Pipeline(Forecast(2, 1), exact, [Bias(0.1)]).observe(
            [Entry(np.array([2e8 + t]), t) for t in range(5)]
        )
    assert exact.seen[-1].item() == 2e8 + 4
    assert not caplog.records


def test_a_module_of_float64_receives_float64() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1)).double()
    pipeline = Pipeline(Forecast(2, 1), net, [Bias(0.1)])
    predictions = pipeline.observe([Entry(np.array([float(t)]), t) for t in range(4)])
    wanted = net(torch.tensor([[2.0, 3.0]], dtype=torch.float64)).item()
    assert float(predictions[-1].base[0, 0]) == wanted


@pytest.mark.parametrize("value", [1e39, -1e39, 1.8e308, np.inf])
def test_numbers_beyond_float32_are_refused_and_smaller_ones_do_no_harm(value: float) -> None:
    pipeline = Pipeline(Supervised(1), Near(0.0), [Bias(0.1)])
    pipeline.observe([Entry(np.zeros(1), 0, "0")])
    for item in (
        Entry(np.array([value]), 1, "1"),
        Entry(np.zeros(1), 1, "1", label=np.array([value])),
        Label("0", np.array([value]), 1),
    ):
        with pytest.raises(EntryError, match=r"3\.4") as caught:
            pipeline.observe([item])
        assert caught.value.reason is Reason.NOT_FINITE
    big = float(np.finfo(np.float32).max)
    counter = meter(0.0)
    for t in range(30):
        for p in counter.observe([Entry(np.array([2e8 + t if t != 15 else -big]), t)]):
            assert np.isfinite(p.served).all()


def test_a_checkpoint_and_a_packed_state_resume_bit_for_bit() -> None:
    values = (2e8 + np.random.default_rng(0).normal(1.0, 0.3, size=120).cumsum()).tolist()
    whole, first = (
        Pipeline(
            Forecast(6, 2), Persistence(2), default_learners("forecast"), intervals=Intervals()
        )
        for _ in "ab"
    )
    entries = [Entry(np.array([v]), t * 10**9) for t, v in enumerate(values)]
    wanted = whole.observe(entries)[-40:]
    first.observe(entries[:80])
    second = Pipeline(
        Forecast(6, 2), Persistence(2), default_learners("forecast"), intervals=Intervals()
    )
    second.load_state_dict(unpack(pack(first.state_dict())))
    for a, b in zip(wanted, second.observe(entries[80:]), strict=True):
        np.testing.assert_array_equal(a.served, b.served)
        np.testing.assert_array_equal(a.low, b.low)


def test_a_regression_resumes_bit_for_bit_before_and_after_its_level_is_known() -> None:
    def items(start: int, stop: int) -> list[Entry | Label]:
        found: list[Entry | Label] = []
        for t in range(start, stop):
            found.append(Entry(np.array([float(t % 7)]), t, str(t)))
            if t >= 10:
                found.append(Label(str(t - 10), np.array([2e8 + 3.0 * ((t - 10) % 7)]), t))
        return found

    def made() -> Pipeline:
        return Pipeline(Supervised(1), Near(2e8), default_learners("regression"))

    whole = made()
    wanted = whole.observe(items(0, 60))
    for cut in (5, 30):
        first, second = made(), made()
        first.observe(items(0, cut))
        second.load_state_dict(unpack(pack(first.state_dict())))
        for a, b in zip(wanted[cut:], second.observe(items(cut, 60)), strict=True):
            np.testing.assert_array_equal(a.served, b.served)


def test_float32_arrays_keep_their_exact_values() -> None:
    values = np.random.default_rng(0).normal(20.0, 5.0, size=100).astype(np.float32)
    predictions = [
        Pipeline(Forecast(6, 2), Persistence(2), default_learners("forecast")).observe(
            [Entry(row, t) for t, row in enumerate(rows)]
        )
        for rows in (values[:, None], values[:, None].astype(np.float64))
    ]
    for a, b in zip(*predictions, strict=True):
        np.testing.assert_array_equal(a.served, b.served)
        assert a.served.dtype == np.float64
