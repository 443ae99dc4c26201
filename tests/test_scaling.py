"""Scales do not depend on the first window: they settle, or come from the base or the config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cli_helpers import run_command
from safetensors.torch import save_file
from torch import Tensor
from variants import variants

from streamadapt import Entry, Forecast, Persistence, Pipeline, Supervised
from streamadapt.build import make_pipeline
from streamadapt.config.tables import parse_config
from streamadapt.errors import ConfigError
from streamadapt.learners import ADCSD, RLS, Bias, Calibration, ErrorMemory
from streamadapt.learners.base import Learner

Array = npt.NDArray[np.float64]
WINDOW, HORIZON = 12, 3


class ScalingGiven(Persistence):
    """Persistence with a scaling of its own."""

    def __init__(self, loc: float, scale: float) -> None:
        super().__init__(HORIZON)
        for name in ("input", "output"):
            setattr(self, f"{name}_loc", torch.tensor([loc]))
            setattr(self, f"{name}_scale", torch.tensor([scale]))


def wave(n: int, still: int, seed: int = 3) -> Array:
    """20 +- 5, autocorrelated; the first `still` values hardly move."""
    rng = np.random.default_rng(seed)
    x = np.zeros(n)
    for t in range(1, n):
        x[t] = 0.9 * x[t - 1] + rng.standard_normal()
    values = 20.0 + 2.2 * x
    values[:still] = 20.0 + 0.003 * rng.standard_normal(still)
    return values[:, None]


def ran(values: Array, base: Any, *chosen: Learner, parts: int = 1) -> Pipeline:
    learners = list(chosen) or [
        RLS((0.9995, 0.998), clip=1.0),
        ADCSD(share_norm=True),
        Bias(0.005),
        ErrorMemory(),
    ]
    pipeline = Pipeline(Forecast(WINDOW, HORIZON), base, learners, device="cpu")
    items = [Entry(row, 300 * 10**9 * (t + 1), str(t)) for t, row in enumerate(values)]
    for i in range(0, len(items), -(-len(items) // parts)):
        pipeline.observe(items[i : i + -(-len(items) // parts)])
    return pipeline


def loss(pipeline: Pipeline, name: str) -> float:
    mean = pipeline.stats.mean_loss(name)
    assert mean is not None
    return mean


def test_a_constant_start_is_learned_as_well_as_with_a_known_scale() -> None:
    values = wave(900, WINDOW)
    free, with_known_scale = (
        ran(values, Persistence(HORIZON)),
        ran(values, ScalingGiven(20.0, 5.0)),
    )
    for name in ("rls-0.9995", "rls-0.998"):
        assert loss(free, name) <= 1.06 * loss(free, "base")
    assert loss(free, "served") <= 1.003 * loss(with_known_scale, "served")
    gain = [loss(of, "base") - loss(of, "adcsd-share-norm") for of in (free, with_known_scale)]
    assert gain[0] >= 0.8 * gain[1] > 0.0


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_a_sensor_may_be_constant_for_hundreds_of_entries(noise: float) -> None:
    values = wave(1000, 600)
    values[:600] = 20.0 + noise * np.random.default_rng(1).standard_normal((600, 1))
    free = ran(values, Persistence(HORIZON), RLS((0.9995, 0.998), clip=1.0))
    for name in ("rls-0.9995", "rls-0.998"):
        assert loss(free, name) <= 1.15 * loss(free, "base")
    assert loss(free, "served") <= 1.01 * loss(free, "base")


def test_channels_of_very_different_sizes_and_a_constant_one_are_learned_equally() -> None:
    """Each channel has a quiet first window: the remaining error is that of each channel alone."""
    one = wave(500, WINDOW)
    rows = np.hstack([1e-6 * one, 1e6 * one, np.full_like(one, 7.0)])
    found = []
    for c in range(3):
        alone = ran(rows[:, c : c + 1], Persistence(HORIZON), RLS(0.998, clip=1.0))
        found.append((loss(alone, "rls-0.998"), loss(alone, "base")))
    assert found[0][0] / found[0][1] == pytest.approx(found[1][0] / found[1][1], rel=0.01)
    assert found[2] == (0.0, 0.0)
    panel = ran(rows, Persistence(HORIZON), RLS(0.998, clip=1.0), Bias(0.02))
    assert all(np.isfinite(loss(panel, name)) for name in panel.stats.loss_sum)
    assert loss(panel, "rls-0.998") == pytest.approx(found[1][0] / 3.0, rel=0.01)


def test_an_outlier_in_the_first_window_does_not_set_the_scale() -> None:
    values = wave(400, 0)
    wrong = values.copy()
    wrong[[0, 5], 0] = -9999.0, 1e12
    plain, found = ran(values, Persistence(HORIZON)), ran(wrong, Persistence(HORIZON))
    for name in ("served", "rls-0.998", "adcsd-share-norm"):
        assert loss(found, name) / loss(found, "base") <= 1.02 * loss(plain, name) / loss(
            plain, "base"
        )


@pytest.mark.parametrize("unit", variants([1e-6, 1e6]))
def test_labels_of_any_size_are_learned_alike(unit: float) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((500, 2))
    y = x @ np.array([2.0, 1.0]) + 3.0 + 0.3 * rng.standard_normal(500)

    def relative(unit: float) -> float:
        def frozen(inputs: Tensor) -> Tensor:
            return unit * (2.0 * inputs[-1:, :1] + 1.0)

        learners: list[Learner] = [Calibration((0.9, 0.98)), RLS(0.995), Bias(0.05)]
        pipeline = Pipeline(Supervised(1), frozen, learners, device="cpu")
        pipeline.observe(
            [Entry(row, t + 1, str(t), label=np.array([unit * y[t]])) for t, row in enumerate(x)]
        )
        return loss(pipeline, "served") / loss(pipeline, "base")

    assert relative(unit) == pytest.approx(relative(1.0), rel=0.05)


@pytest.mark.parametrize("stop", variants([10, 14, 20, 26, 31, 90], quick=3))
def test_what_settles_survives_a_restart_to_the_bit_however_entries_are_grouped(stop: int) -> None:
    values = wave(140, WINDOW)
    learners = (RLS(0.998, clip=1.0), Bias(0.02))
    whole = ran(values, Persistence(HORIZON), *learners)
    grouped = ran(values, Persistence(HORIZON), RLS(0.998, clip=1.0), Bias(0.02), parts=7)
    first = ran(values[:stop], Persistence(HORIZON), RLS(0.998, clip=1.0), Bias(0.02))
    fresh = [RLS(0.998, clip=1.0), Bias(0.02)]
    second = Pipeline(Forecast(WINDOW, HORIZON), Persistence(HORIZON), fresh, device="cpu")
    second.load_state_dict(first.state_dict())
    second.observe(
        [Entry(row, 300 * 10**9 * (t + 1), str(t)) for t, row in enumerate(values)][stop:]
    )
    sums = [of.stats.loss_sum for of in (whole, grouped, second)]
    assert sums[0] == sums[1] == sums[2]


# -- from the config

CONFIG = """
[task]
kind = "forecast"
window = 3
horizon = 2

[base]
kind = "persistence"
{scaling}

[source]
kind = "files"
path = "in.jsonl"

[fields]
values = ["a", "b"]

[sink]
kind = "files"
path = "out.jsonl"

[dead_letters]
kind = "files"
path = "bad.jsonl"
"""


def made(scaling: str) -> Pipeline:
    pipeline = make_pipeline(parse_config(CONFIG.format(scaling=scaling)))
    assert isinstance(pipeline, Pipeline)
    return pipeline


def test_scaling_comes_from_the_config() -> None:
    pipeline = made("scaling = { input_loc = [1.0, 2.0], input_scale = [3.0, 4.0] }")
    pipeline.observe([Entry(np.array([t, -t], np.float64), t + 1, str(t)) for t in range(40)])
    assert pipeline.spec is not None
    for name, wanted in (("loc", [1.0, 2.0]), ("scale", [3.0, 4.0])):
        assert getattr(pipeline.spec, f"input_{name}").tolist() == wanted
        assert getattr(pipeline.spec, f"output_{name}").tolist() == wanted


@pytest.mark.parametrize(
    ("scaling", "path"),
    [
        ("scaling = 3", "base.scaling"),
        ('scaling = "nowhere.safetensors"', "base.scaling"),
        ("scaling = { input_loc = [1.0, 2.0] }", "base.scaling"),
        ("scaling = { input_loc = [1.0], input_scale = [1.0] }", "base.scaling"),
        (
            "scaling = { input_loc = [1.0, 2.0], input_scale = [1.0, 0.0] }",
            "base.scaling.input_scale",
        ),
        (
            "scaling = { input_loc = [1.0, 2.0], input_scale = [1.0, nan] }",
            "base.scaling.input_scale",
        ),
        ('scaling = { input_loc = [1.0, 2.0], input_scale = "1" }', "base.scaling.input_scale"),
    ],
)
def test_an_invalid_scaling_is_refused_by_its_path(scaling: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(scaling)
    assert caught.value.path == path


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"input_loc": torch.zeros(2), "input_scale": torch.ones(2)}, file)
    with pytest.raises(ConfigError, match="streamadapt fit wrote"):
        made(f"scaling = {json.dumps(str(file))}")


def test_fit_writes_the_scaling_of_a_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scaling = 'scaling = "scaling.safetensors"'
    Path("config.toml").write_text(CONFIG.format(scaling=scaling))
    Path("history.jsonl").write_text(
        "".join(f'{{"a": {t}, "b": {5 - t % 2}, "time": {t}}}\n' for t in range(100))
    )
    assert run_command(["fit", "config.toml", "history.jsonl"]).code == 0
    found = made(scaling).base
    assert found.input_loc is not None
    assert found.input_scale is not None
    np.testing.assert_allclose(found.input_loc.numpy(), [49.5, 4.5])
    np.testing.assert_allclose(found.input_scale.numpy(), [np.std(np.arange(100)), 0.5], rtol=1e-6)


def test_the_digest_is_unchanged_without_a_scaling() -> None:
    plain = parse_config(CONFIG.format(scaling=""))
    assert "scaling" not in json.dumps(plain.digest().settings)
    assert plain.digest() != parse_config(CONFIG.format(scaling='scaling = "x"')).digest()
