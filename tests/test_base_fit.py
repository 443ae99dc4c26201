"""Bases: fitted ones equal scikit-learn's ridge, saved ones load unchanged, the user's own model
is never modified."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import entries, walk
from safetensors.torch import save_file
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from streamadapt import (
    Batch,
    Bias,
    Forecast,
    FrozenModel,
    Linear,
    Persistence,
    Pipeline,
    Supervised,
)
from streamadapt.errors import ConfigError, ShapeError
from streamadapt.models.builtin import load_module
from streamadapt.models.contract import as_base
from streamadapt.models.fit import fit_forecast, fit_supervised


def history(n: int = 300, channels: int = 3, missing: float = 0.0) -> Batch:
    values = walk(n, channels, seed=4, missing=missing)
    values[0] = 10.0
    return Batch(values, np.arange(n))


def filled(values: Any) -> Any:
    """Replace missing values by the last one seen."""
    out = values.astype(np.float64).copy()
    for t in range(1, len(out)):
        out[t] = np.where(np.isnan(out[t]), out[t - 1], out[t])
    return out


@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize(("window", "horizon"), [(6, 3), (4, 4), (1, 1)])
def test_forecast_fit_is_sklearns_ridge(
    window: int, horizon: int, strong: bool, shared: bool, missing: float
) -> None:
    """The constant is a feature like the others, with the same penalty: Ridge without an
    intercept, on a column of ones."""
    batch = history(missing=missing)
    fitted = fit_forecast(
        batch, window, horizon, ridge=0.7, subtract_last=strong, shared_scale=shared
    )
    axis = None if shared else 0
    loc = np.broadcast_to(np.nanmean(batch.values, axis=axis, dtype=np.float64), 3).astype(
        np.float32
    )
    scale = np.broadcast_to(np.nanstd(batch.values, axis=axis, dtype=np.float64), 3).astype(
        np.float32
    )
    z = (filled(batch.values).astype(np.float32) - loc) / scale
    rows, targets = [], []
    for t in range(len(z) - window - horizon + 1):
        for c in range(3):
            if np.isnan(batch.values[t + window : t + window + horizon, c]).any():
                continue
            x, y = (
                z[t : t + window, c].astype(np.float64),
                z[t + window : t + window + horizon, c].astype(np.float64),
            )
            rows.append(np.append(x[:-1] - x[-1] if strong else x, 1.0))
            targets.append(y - x[-1] if strong else y)
    oracle = Ridge(alpha=0.7, fit_intercept=False).fit(np.array(rows), np.array(targets))
    np.testing.assert_allclose(
        fitted.weights.T.numpy(), np.atleast_2d(oracle.coef_), rtol=1e-4, atol=1e-5
    )
    inputs = filled(batch.values)[-window:].astype(np.float32)
    scaled = (inputs - loc) / scale
    for c in range(3):
        x = np.append(scaled[:-1, c] - scaled[-1, c] if strong else scaled[:, c], 1.0)
        wanted = (oracle.predict(x[None])[0] + (scaled[-1, c] if strong else 0.0)) * scale[
            c
        ] + loc[c]
        output = fitted(torch.from_numpy(inputs)).output[:, c].numpy()
        np.testing.assert_allclose(output, wanted, rtol=1e-4)


@pytest.mark.parametrize("window", [1, 3])
def test_supervised_fit_is_sklearns_ridge(window: int) -> None:
    values = walk(200, 2, seed=1)
    labels = (values @ np.array([[1.0, -2.0], [0.5, 3.0]]) + 7.0).astype(np.float32)
    labels[::5] = np.nan
    fitted = fit_supervised(Batch(values, np.arange(200), labels), window, ridge=0.3)
    z = (values - values.mean(0, dtype=np.float64).astype(np.float32)) / values.std(
        0, dtype=np.float64
    ).astype(np.float32)
    mean = np.nanmean(labels, 0, dtype=np.float64).astype(np.float32)
    std = np.nanstd(labels, 0, dtype=np.float64).astype(np.float32)
    at = [t for t in range(window - 1, 200) if not np.isnan(labels[t]).any()]
    x = np.array([np.append(z[t - window + 1 : t + 1].ravel(), 1.0) for t in at])
    oracle = Ridge(alpha=0.3, fit_intercept=False).fit(x, (labels[at] - mean) / std)
    np.testing.assert_allclose(
        fitted.weights.T.numpy(), np.atleast_2d(oracle.coef_), rtol=1e-4, atol=1e-5
    )
    output = fitted(torch.from_numpy(values[50 - window : 50])).output.numpy()
    features = np.append(z[50 - window : 50].ravel(), 1.0)[None]
    np.testing.assert_allclose(output, oracle.predict(features) * std + mean, rtol=1e-4)


def test_statistics_are_those_of_the_fit() -> None:
    fitted = fit_forecast(history(), 5, 2)
    prior = fitted.prior()
    assert prior is not None
    assert prior.gram.shape == (3, 5, 5)
    assert prior.moment.shape == (3, 5, 2)
    assert prior.gram[:, -1, -1].tolist() == [294.0] * 3, (
        "the constant's square, summed over the examples"
    )
    # The residual of ridge regression: its moment is the penalty times the weights, over all
    # channels together.
    total = prior.moment.sum(0).numpy()
    np.testing.assert_allclose(total, 0.1 * fitted.weights.double().numpy(), atol=1e-3)


@pytest.mark.parametrize("kind", ["weak", "strong", "regression"])
def test_a_saved_base_loads_unchanged(kind: str, tmp_path: Path) -> None:
    if kind == "regression":
        values = walk(100, 2)
        fitted = fit_supervised(Batch(values, np.arange(100), values[:, :1] * 2.0), 3)
    else:
        fitted = fit_forecast(history(), 5, 2, subtract_last=kind == "strong")
    path = tmp_path / "base.safetensors"
    fitted.save(path)
    loaded = Linear.load(path)
    inputs = torch.from_numpy(walk(5, 3)) if kind != "regression" else torch.from_numpy(walk(3, 2))
    assert torch.equal(fitted(inputs).output, loaded(inputs).output)
    assert (loaded.window, loaded.kind_of_task, loaded.channels) == (
        fitted.window,
        fitted.kind_of_task,
        fitted.channels,
    )
    first, second = fitted.prior(), loaded.prior()
    assert first is not None
    assert second is not None
    assert torch.equal(first.gram, second.gram)
    assert torch.equal(first.moment, second.moment)


def tampered(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> Path:
    from safetensors import safe_open
    from safetensors.torch import load_file

    fit_forecast(history(), 5, 2).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


CHANGES: dict[str, Callable[[dict[str, Tensor], dict[str, str]], Any]] = {
    "another format": lambda t, m: m.update(format="other"),
    "no format": lambda t, m: m.pop("format"),
    "no task": lambda t, m: m.pop("task"),
    "a strange task": lambda t, m: m.update(task="cooking"),
    "no window": lambda t, m: m.pop("window"),
    "a window that is no number": lambda t, m: m.update(window="many"),
    "another window": lambda t, m: m.update(window="9"),
    "no weights": lambda t, m: t.pop("weights"),
    "no scaling": lambda t, m: t.pop("output_scale"),
    "an unknown tensor": lambda t, m: t.update({"forward": torch.zeros(1)}),
    "a gram without its moment": lambda t, m: t.pop("moment"),
    "weights of one axis": lambda t, m: t.update(weights=torch.zeros(5)),
    "a scale of another width": lambda t, m: t.update(input_scale=torch.ones(7)),
    "NaN weights": lambda t, m: t.update(weights=torch.full((5, 2), torch.nan)),
    "an infinite scale": lambda t, m: t.update(output_scale=torch.full((3,), torch.inf)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_damaged_and_foreign_files_are_refused(change: Any, tmp_path: Path) -> None:
    path = tampered(tmp_path / "base.safetensors", change)
    with pytest.raises(ConfigError, match=r"base\.weights"):
        Linear.load(path)


@pytest.mark.parametrize("content", [b"", b"not a file of this kind", b"\xff" * 100, None])
def test_files_other_than_safetensors_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"base\.weights"):
        Linear.load(path)


def test_a_base_is_compared_with_the_task() -> None:
    fitted = fit_forecast(history(), 5, 2)
    for task, text in (
        (Forecast(6, 2), "window"),
        (Forecast(5, 3), "responses"),
        (Supervised(5), "regression"),
    ):
        with pytest.raises(ConfigError, match=text):
            Pipeline(task, fitted)
    with pytest.raises(ConfigError, match="forecasts"):
        Pipeline(Supervised(), Persistence(1))


def test_too_little_history_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least window"):
        fit_forecast(history(5), 4, 2)
    with pytest.raises(ConfigError, match="label"):
        fit_supervised(history(), 2)
    few = np.full((50, 1), np.nan, np.float32)
    few[0] = 1.0
    with pytest.raises(ConfigError, match="labelled rows"):
        fit_supervised(Batch(walk(50, 2), np.arange(50), few), 2)
    values = walk(50, 2)
    values[:, 1] = np.nan
    with pytest.raises(ConfigError, match="without any value"):
        fit_forecast(Batch(values, np.arange(50)), 2, 1)


def test_a_constant_column_has_scale_one() -> None:
    values = walk(60, 2)
    values[:, 1] = 3.0
    fitted = fit_forecast(Batch(values, np.arange(60)), 3, 2)
    assert fitted.input_scale is not None
    assert fitted.input_scale[1] == 1.0
    np.testing.assert_allclose(fitted(torch.from_numpy(values[:3])).output[:, 1], 3.0, atol=0.1)


class Net(nn.Module):
    """A network that changes itself in training mode, in two ways."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(2, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.drop(self.norm(x[:, -1]))
        return self.out(hidden).unsqueeze(1), hidden


def test_the_users_model_is_never_modified() -> None:
    model = Net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    frozen = as_base(model)
    frozen.train()
    pipeline = Pipeline(Supervised(2), frozen, [Bias(0.1)])
    values = walk(60, 2)
    for t, e in enumerate(entries(values)):
        pipeline.observe([type(e)(e.values, e.time, e.id, "", values[t, :1])])
    assert model.training, "its mode is unchanged, too"
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(before[k], v) for k, v in frozen.model.state_dict().items())  # type: ignore[union-attr]
    assert not frozen.training
    inputs = torch.from_numpy(values[:2])
    assert torch.equal(frozen(inputs).output, frozen(inputs).output), "no dropout"


def test_outputs_of_the_model_are_reshaped() -> None:
    inputs = torch.zeros(4, 2)
    assert FrozenModel(Net(3))(inputs).output.shape == (1, 3)
    assert FrozenModel(Net(3))(inputs).embedding.shape == (2,)  # type: ignore[union-attr]
    assert FrozenModel(lambda x: x.sum())(inputs).output.shape == (1, 1)
    assert FrozenModel(lambda x: [1.0, 2.0])(inputs).output.tolist() == [[1.0, 2.0]]
    assert FrozenModel(lambda x: x.unsqueeze(0).double())(inputs).output.dtype == torch.float32
    with pytest.raises(ShapeError, match="rows, columns"):
        FrozenModel(lambda x: torch.zeros(2, 3, 4))(inputs)


def test_a_base_of_the_wrong_shape_is_an_error_that_names_the_shape() -> None:
    pipeline = Pipeline(Forecast(3, 2), lambda x: torch.zeros(2, 5))
    with pytest.raises(ShapeError, match=r"must return \(2, 2\)"):
        pipeline.observe(entries(walk(5, 2)))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def net(width=2):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(width * 3, 2))\n"
        "def no_module():\n"
        "    return lambda x: x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return "my_models:net"


def test_load_module(module: str, tmp_path: Path) -> None:
    weights = {"1.weight": torch.ones(2, 6), "1.bias": torch.tensor([0.0, 5.0])}
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    base = load_module(module, path)
    assert base(torch.ones(3, 2)).output.tolist() == [[6.0, 11.0]]
    assert load_module(module, None, {"width": 4})(torch.ones(3, 4)).output.shape == (1, 2)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"1.weight": torch.ones(2, 6)}, "1.bias"),
        ({"1.weight": torch.ones(2, 6), "1.bias": torch.ones(2), "more": torch.ones(2)}, "more"),
        ({"1.weight": torch.ones(2, 7), "1.bias": torch.ones(2)}, "size mismatch"),
        (
            {"1.weight": torch.full((2, 6), torch.nan), "1.bias": torch.ones(2)},
            "finite numbers, but 1.weight",
        ),
        (
            {"1.weight": torch.ones(2, 6), "1.bias": torch.full((2,), torch.inf)},
            "finite numbers, but 1.bias",
        ),
        (None, "readable safetensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    module: str, tmp_path: Path, weights: Any, message: str
) -> None:
    path = tmp_path / "weights.safetensors"
    if weights is None:
        path.write_bytes(b"\x80\x04pickle")
    else:
        save_file(weights, path)
    with pytest.raises(ConfigError, match=message):
        load_module(module, path)


@pytest.mark.parametrize(
    ("factory", "params", "message"),
    [
        ("my_models:nothing", {}, "importable"),
        ("no_such_module:net", {}, "importable"),
        ("my_models", {}, "importable"),
        (":net", {}, "importable"),
        ("my_models:net", {"colour": 1}, "colour"),
    ],
)
def test_bad_factories(module: str, factory: str, params: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_module(factory, None, params)


def test_weights_for_an_object_without_weights(module: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ConfigError, match="no torch module"):
        load_module("my_models:no_module", path)
