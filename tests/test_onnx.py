"""ONNX bases: their outputs equal the model's in its own framework, and hostile files do no
harm."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli_helpers import lines, logging_as_before, write_csv
from core_helpers import entries, walk
from onnx import TensorProto, helper
from onnx_helpers import constant, export, model_of, outside, rows_of, save
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor, nn

from streamadapt import Bias, Entry, Forecast, Label, Persistence, Pipeline, Supervised
from streamadapt.app.commands import run_command
from streamadapt.config.tables import load_config
from streamadapt.errors import ConfigError, EntryError, Reason, ShapeError
from streamadapt.learners.adcsd import ADCSD
from streamadapt.learners.dictionary import Dictionary
from streamadapt.learners.error_memory import ErrorMemory
from streamadapt.learners.tta.tent import Tent
from streamadapt.models.builtin import load_module
from streamadapt.models.onnx import OnnxBase

_ = pytest.fixture(autouse=True)(logging_as_before)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 8),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Linear(8, 6),
        nn.Unflatten(1, (3, 2)),
    )


class Conv(nn.Module):
    """A network with a convolution, a batch normalisation, a constant, and the embedding as second
    output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = (
            nn.Conv1d(2, 4, 3, padding=1),
            nn.BatchNorm1d(4),
            nn.Linear(24, 3),
        )
        self.register_buffer("steps", torch.arange(3.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.norm(self.conv(x.transpose(1, 2)))).flatten(1)
        return self.out(hidden) + self.steps + torch.tensor(1.5), hidden


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.out = (
            nn.LSTM(2, 5, batch_first=True),
            nn.GRU(5, 4, batch_first=True),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(self.lstm(x)[0])[0][:, -1:])


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "conv": Conv, "recurrent": Recurrent}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Torch models, each exported once: an export takes a second."""
    folder = tmp_path_factory.mktemp("exported")
    found = {name: export(made(make), folder / f"{name}.onnx") for name, make in MODELS.items()}
    found["conv, dynamic"] = export(made(Conv), folder / "dynamic.onnx", dynamic=True)
    found["mlp, two files"] = export(made(wide), folder / "two.onnx", external=True)
    return found


def wide() -> nn.Module:
    """A model large enough that the exporter puts its weights into a second file."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 400), nn.ReLU(), nn.Linear(400, 6), nn.Unflatten(1, (3, 2))
    )


# -- outputs


@pytest.mark.parametrize("name", ["mlp", "conv", "recurrent", "conv, dynamic", "mlp, two files"])
def test_an_exported_torch_model_gives_the_outputs_of_the_eager_model(
    name: str, exported: dict[str, Path]
) -> None:
    model = made(wide if name == "mlp, two files" else MODELS[name.partition(",")[0]])
    base = OnnxBase(exported[name])
    assert (exported[name].with_name("two.onnx.data")).exists()
    for seed in range(5):
        inputs = torch.from_numpy(walk(6, 2, seed))
        with torch.no_grad():
            output = model(inputs.unsqueeze(0))
        output, embedding = output if isinstance(output, tuple) else (output, None)
        found = base(inputs)
        torch.testing.assert_close(
            found.output, output.reshape(found.output.shape), rtol=1e-5, atol=1e-5
        )
        if embedding is None:
            assert found.embedding is None
        else:
            torch.testing.assert_close(found.embedding, embedding.flatten(), rtol=1e-5, atol=1e-5)
    assert base.channels == 2
    assert base.kind == "onnx"


def history(n: int = 80, window: int = 6) -> tuple[Any, Any]:
    """Return windows of two channels, flattened with the oldest entry first, and the entries."""
    values = walk(n, 2, 5).astype(np.float32)
    return np.stack([values[i : i + window].ravel() for i in range(n - window)]), values


def test_a_classifier_of_scikit_learn_gives_its_probabilities(tmp_path: Path) -> None:
    """The model returns the label first, which is not a float output, and takes a flat window."""
    x, _ = history()
    for classes in (np.array([0, 1, 2]), np.array(["down", "flat", "up"])):
        y = classes[np.digitize(x[:, 0] - x[:, -2], [-0.5, 0.5])]
        fitted = LogisticRegression(max_iter=5000).fit(x, y)
        model = to_onnx(fitted, x[:1], options={"zipmap": False})
        base = OnnxBase(save(model, tmp_path / "model.onnx"))
        Pipeline(Supervised(6, classes=3), base)
        for row in x[:20]:
            found = base(torch.from_numpy(row.reshape(6, 2))).output
            np.testing.assert_allclose(
                found.numpy(), fitted.predict_proba(row[None]), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(
    "make", [Ridge, lambda: RandomForestRegressor(5, random_state=0)], ids=["ridge", "forest"]
)
def test_a_forecaster_of_scikit_learn_returns_its_horizon_in_one_row(
    make: Any, tmp_path: Path
) -> None:
    x, values = history()
    # Three entries of two channels.
    y = np.stack([values[i + 6 : i + 9].ravel() for i in range(len(x) - 3)])
    fitted = make().fit(x[:-3], y)
    base = OnnxBase(save(to_onnx(fitted, x[:1]), tmp_path / "model.onnx"), rows=3)
    Pipeline(Forecast(6, 3), base)
    for row in x[:20]:
        found = base(torch.from_numpy(row.reshape(6, 2))).output
        np.testing.assert_allclose(
            found.numpy(), fitted.predict(row[None]).reshape(3, 2), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT, torch.float32), (TensorProto.DOUBLE, torch.float64),
        (TensorProto.FLOAT16, torch.float32),
    ],
)  # fmt: skip
def test_every_float_type_is_accepted(kind: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """float64 is not rounded to float32 on the way."""
    base = OnnxBase(save(rows_of(3, kind=kind), tmp_path / "model.onnx"))
    assert base.input_dtype(far=True) == dtype
    value = 2.0**30 + 1.0 if dtype == torch.float64 else 1.5
    found = base(torch.full((6, 2), value, dtype=dtype)).output
    assert found.dtype == dtype
    assert found.tolist() == [[value] * 2] * 3


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
def test_integer_inputs_are_accepted_and_fractions_refused(kind: int, tmp_path: Path) -> None:
    cast = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["f"], ["y"]),
    ]
    base = OnnxBase(save(model_of(cast, ["batch", 6, 2], kind=kind), tmp_path / "model.onnx"))
    assert base(torch.full((6, 2), 3.0, dtype=torch.float64)).output.tolist() == [[-3.0] * 2] * 6
    for wrong in (1.5, float("nan"), 1e30):
        with pytest.raises(ShapeError, match="takes whole numbers"):
            base(torch.full((6, 2), wrong, dtype=torch.float64))


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        ((1, 6, 2), (1, 6, 2)), (("n", 6, 2), (1, 6, 2)), (("n", "t", 2), (1, 6, 2)),
        (("n", "t", "c"), (1, 6, 2)), ((6, 2), (6, 2)), (("t", 2), (6, 2)), ((1, 12), (1, 12)),
        (("n", 12), (1, 12)), (("n", "f"), (1, 12)), ((12,), (12,)),
    ],
)  # fmt: skip
def test_a_window_has_the_shape_that_the_model_declares(
    shape: Any, given: Any, tmp_path: Path
) -> None:
    """In every shape, the numbers are in the order of time, and the channels of an entry are
    adjacent."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["x", "flat"], ["e"]),
    ]  # fmt: skip
    model = model_of(nodes, shape, ("y", "e"), held=[constant("flat", [-1], np.int64)])
    inputs = torch.arange(12.0).reshape(6, 2)
    output = OnnxBase(save(model, tmp_path / "model.onnx"))(inputs)
    assert output.output.int().tolist() == [list(given)]
    assert output.embedding is not None
    assert output.embedding.tolist() == list(range(12))


def three(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node(op, ["x"], [name])
        for op, name in (("Neg", "a"), ("Abs", "b"), ("Identity", "c"))
    ]
    return save(model_of(nodes, outputs=("a", "b", "c")), tmp_path / "three.onnx")


def test_outputs_are_chosen_by_name(tmp_path: Path) -> None:
    inputs = torch.from_numpy(walk(6, 2))
    output = OnnxBase(three(tmp_path), output="b", embedding="a")(inputs)
    assert torch.equal(output.output, inputs.abs())
    assert output.embedding is not None
    assert torch.equal(output.embedding, -inputs.flatten())
    assert OnnxBase(three(tmp_path), output="c")(inputs).embedding is None
    for settings in ({}, {"embedding": "a"}, {"output": "d"}, {"output": "a", "embedding": "d"}):
        with pytest.raises(
            ConfigError, match=r"base\.(output|embedding): expected the name of an output"
        ):
            OnnxBase(three(tmp_path), **settings)


def test_logits_become_probabilities(tmp_path: Path, exported: dict[str, Path]) -> None:
    inputs = torch.from_numpy(walk(6, 2))
    with torch.no_grad():
        logits = made(Conv)(inputs.unsqueeze(0))[0]
    found = OnnxBase(exported["conv"], softmax=True)(inputs).output
    torch.testing.assert_close(found, logits.softmax(-1), rtol=1e-5, atol=1e-5)
    pipeline = Pipeline(Supervised(6, classes=3), OnnxBase(exported["conv"]))
    with pytest.raises(ConfigError, match=r"base\.softmax"):
        pipeline.observe(entries(walk(8, 2)))


# -- as a base in a pipeline


def predictions(base: Any, n: int = 60, **parts: Any) -> Any:
    pipeline = Pipeline(Forecast(6, 3), base, [Bias(0.1)], **parts)
    return np.array([p.served for entry in entries(walk(n, 2)) for p in pipeline.observe([entry])])


def test_it_gives_the_results_of_the_same_base_in_python(tmp_path: Path) -> None:
    """Bit for bit: the last value repeated, once in ONNX and once in Python."""
    base = OnnxBase(save(rows_of(3, kind=TensorProto.DOUBLE), tmp_path / "model.onnx"))
    assert np.array_equal(predictions(base), predictions(Persistence(3)))


@pytest.mark.parametrize("learner", [ErrorMemory, Dictionary], ids=["error_memory", "dictionary"])
def test_learners_that_use_the_embedding_run_on_an_onnx_base(
    learner: Any, exported: dict[str, Path]
) -> None:
    pipeline = Pipeline(Supervised(6, outputs=3), OnnxBase(exported["conv"]), [learner()])
    served = [p for item in labelled(60) for p in pipeline.observe([item])]
    assert pipeline.stats.faults.total() == 0
    assert len(served) == 55
    assert pipeline.spec is not None
    assert pipeline.spec.embedding == 24


def test_adcsd_runs_on_an_onnx_base(exported: dict[str, Path]) -> None:
    pipeline = Pipeline(Forecast(6, 3), OnnxBase(exported["mlp"]), [ADCSD()])
    assert len(pipeline.observe(entries(walk(60, 2)))) == 55
    assert pipeline.stats.faults.total() == 0


def test_learners_that_need_gradients_name_the_base_kind_to_use(
    exported: dict[str, Path],
) -> None:
    pipeline = Pipeline(
        Supervised(6, classes=3), OnnxBase(exported["conv"], softmax=True), [Tent()]
    )
    with pytest.raises(ConfigError, match=r"base\.kind.*\"module\".*'onnx'"):
        pipeline.observe(entries(walk(8, 2)))


def test_copies_and_pickles_share_the_model(exported: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported["mlp"].read_bytes())
    base = OnnxBase(path)
    pipeline = Pipeline(Forecast(6, 3), base, [Bias(0.1)])
    pipeline.observe(entries(walk(20, 2)))
    assert copy.deepcopy(pipeline).base.session is base.session
    data = pickle.dumps(base)
    inputs = torch.from_numpy(walk(6, 2))
    assert torch.equal(pickle.loads(data)(inputs).output, base(inputs).output)
    assert len(data) < 4_000, "the pickle does not contain the model"
    export(made(mlp), tmp_path / "other.onnx")
    path.write_bytes(exported["conv"].read_bytes())
    with pytest.raises(ConfigError, match="changed since"):
        pickle.loads(data)


def test_threads_may_run_an_onnx_base_at_the_same_time(exported: dict[str, Path]) -> None:
    base = OnnxBase(exported["conv"])
    windows = [torch.from_numpy(walk(6, 2, seed)) for seed in range(8)]
    expected = [base(window).output for window in windows]
    wrong: list[int] = []

    def ask(i: int) -> None:
        wrong.extend(
            i for _ in range(200) if not torch.equal(base(windows[i]).output, expected[i])
        )

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_process_wide_settings_do_not_change_an_onnx_base(exported: dict[str, Path]) -> None:
    base = OnnxBase(exported["conv"])
    expected = predictions_of(base)
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(predictions_of(base), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def predictions_of(base: OnnxBase) -> Any:
    pipeline = Pipeline(Supervised(6, outputs=3), base, [Bias(0.1)])
    return np.array([p.served for item in labelled(40) for p in pipeline.observe([item])])


def labelled(n: int) -> list[Entry | Label]:
    """Entries, each followed by its label."""
    found: list[Entry | Label] = []
    for t, values in enumerate(walk(n, 2)):
        found += [
            Entry(values, 2 * t, id=str(t)),
            Label(str(t), np.cumsum(np.full(3, values.sum())), 2 * t + 1),
        ]
    return found


def test_nan_outputs_are_masked_as_with_other_bases(tmp_path: Path) -> None:
    """The logarithm of a negative value: the served prediction equals that of the same model in
    Python."""
    nodes = [*rows_of(3).graph.node[:1], helper.make_node("Log", ["last"], ["l"]),
             helper.make_node("Tile", ["l", "times"], ["y"])]  # fmt: skip
    model = model_of(nodes, held=rows_of(3).graph.initializer)
    values = np.abs(walk(40, 2)) + 1.0
    values[20:24] *= -1.0

    def served(base: Any) -> Any:
        pipeline = Pipeline(Forecast(6, 3), base, [Bias(0.1)])
        return np.array([p.served for e in entries(values) for p in pipeline.observe([e])])

    found = served(OnnxBase(save(model, tmp_path / "model.onnx")))
    assert len(found) == 35
    assert np.isnan(found).any()
    np.testing.assert_allclose(found, served(lambda x: x[-1:].log().repeat(3, 1)), rtol=1e-5)


def test_an_entry_on_which_the_model_fails_is_refused(tmp_path: Path) -> None:
    """A lookup beyond its table: the entry is refused with its reason, and the next one is
    predicted."""
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "i"], ["y"]),
    ]  # fmt: skip
    path = save(
        model_of(nodes, (1, 1, 1), held=[constant("table", [5.0, 6.0])]), tmp_path / "model.onnx"
    )
    refused: list[Any] = []
    pipeline = Pipeline(
        Forecast(1, 1), OnnxBase(path), on_rejected=lambda item, error: refused.append(error)
    )
    predictions = pipeline.observe(entries(np.array([[0.0], [1.0], [7.0], [0.0]])))
    assert [p.base.item() for p in predictions] == [5.0, 6.0, 5.0]
    assert [error.reason for error in refused] == [Reason.BASE_FAILED]
    assert "model.onnx" in str(refused[0])
    assert "/onnxruntime_src" not in str(refused[0])


# -- refused models, each with a remedy


def relu(shape: Any = (1, 6, 2), **more: Any) -> onnx.ModelProto:
    return model_of([helper.make_node("Relu", ["x"], ["y"])], shape, **more)


def two_inputs() -> onnx.ModelProto:
    return model_of(
        [helper.make_node("Add", ["x", "mask"], ["y"])],
        more=[("mask", (1, 6, 2), TensorProto.FLOAT)],
    )


def zipmap() -> onnx.ModelProto:
    x, _ = history()
    found: onnx.ModelProto = to_onnx(
        LogisticRegression(max_iter=5000).fit(x, x[:, 0] > np.median(x[:, 0])), x[:1]
    )
    return found


WRONG: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "text": (lambda: b"this is none\n", "an ONNX model"),
    "nothing": (lambda: b"", "an ONNX model"),
    "an ORT file": (lambda: b"ORTM" * 64, "an ONNX model"),
    "an opset to come": (lambda: relu(opset=99), "[Oo]pset 99"),
    "an unknown operator": (lambda: model_of([helper.make_node("Evil", ["x"], ["y"])]), "Evil"),
    "a custom operator": (
        lambda: model_of([helper.make_node("Evil", ["x"], ["y"], domain="org.evil")]),
        "org.evil:Evil.*not a registered",
    ),
    "two inputs": (
        two_inputs,
        r"one input, the window; it has 'x' tensor\(float\) \[1, 6, 2\], " r"'mask'",
    ),
    "no input": (lambda: model_of([helper.make_node("Constant", [], ["y"], value_float=1.0)]), ""),
    "text as input": (
        lambda: model_of(
            [helper.make_node("Identity", ["x"], ["y"])],
            kind=TensorProto.STRING,
            output_kind=TensorProto.STRING,
        ),
        r"input is one of " r"tensor\(float16\).*tensor\(string\)",
    ),
    "a batch of eight": (lambda: relu((8, 6, 2)), r"\[8, 6, 2\]"),
    "four dimensions": (lambda: relu((1, 1, 6, 2)), r"\[1, 1, 6, 2\]"),
    "no dimension": (lambda: relu(()), r"\[\]"),
    "integers as output": (
        lambda: model_of([helper.make_node("Shape", ["x"], ["y"])], output_kind=TensorProto.INT64),
        "an output of floats",
    ),
    "a map as output": (zipmap, "zipmap.*False"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG.keys())
def test_models_that_cannot_be_bases(make: Any, message: str, tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", make()
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    if message == "":
        model.graph.ClearField("input")
        path.write_bytes(model.SerializeToString())
        message = "one input, the window; it has none"
    with pytest.raises(ConfigError, match=message) as caught:
        OnnxBase(path)
    text = str(caught.value)
    assert text.startswith("base.path")
    assert "model.onnx" in text
    assert "/onnxruntime_src" not in text
    assert len(text) < 700


def test_a_missing_file_and_a_missing_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"base\.path.*no\.onnx"):
        OnnxBase(tmp_path / "no.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"base\.kind.*pip install 'streamadapt\[onnx\]'"):
        OnnxBase(save(relu(), tmp_path / "model.onnx"))


def test_the_model_is_compared_with_the_task(exported: dict[str, Path], tmp_path: Path) -> None:
    base = OnnxBase(exported["mlp"])
    Pipeline(Forecast(6, 3), base)
    for task, text in (
        (Forecast(5, 3), r"'.*' tensor\(float\) \[1, 6, 2\] does not fit a window of \[5, 2\]"),
        (Forecast(6, 2), r"returns \[2, 2\]"), (Supervised(6), r"returns \[1, None\]"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=text):
            Pipeline(task, base)
    pipeline = Pipeline(Supervised(6, outputs=3), OnnxBase(exported["conv"]))
    with pytest.raises(EntryError, match="expected 2 values"):
        pipeline.observe(entries(walk(8, 3)))
    pipeline = Pipeline(
        Forecast(6, 3), OnnxBase(save(rows_of(3, ("n", 6, "c")), tmp_path / "any.onnx"))
    )
    assert len(pipeline.observe(entries(walk(8, 3)))) == 3, "as many channels as the entries have"
    flat_row = model_of([helper.make_node("Relu", ["x"], ["y"])], ("n", 12))
    pipeline = Pipeline(
        Supervised(6, outputs=12), OnnxBase(save(flat_row, tmp_path / "flat.onnx"))
    )
    with pytest.raises(ShapeError, match=r"\[\?, 12\] does not fit a window of \[6, 3\]"):
        pipeline.observe(entries(walk(8, 3)))


# -- hostile files


PLACES = [
    "secret.bin",
    "./secret.bin",
    "../secret.bin",
    "{}/secret.bin",
    "sub/../secret.bin",
    "link",
    "/dev/zero",
    "*/_ORT_MEM_ADDR_/*",
    "",
]


@pytest.mark.parametrize("form", ["weights", "a constant", "a branch"])
@pytest.mark.parametrize("place", PLACES)
def test_weights_are_read_only_from_the_file_beside_the_model(
    place: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "secret.bin", folder / "secret.bin"):
        np.full(2, 7.0, np.float32).tofile(path)
    (folder / "link").symlink_to(tmp_path / "secret.bin")
    weights = outside("w", place.format(tmp_path), [2])
    if form == "weights":
        model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], held=[weights])
    elif form == "a constant":
        nodes = [
            helper.make_node("Constant", [], ["w"], value=weights),
            helper.make_node("Add", ["x", "w"], ["y"]),
        ]
        model = model_of(nodes)
    else:
        output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        branch = helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["z"])], "b", [], [output], [weights]
        )
        true = helper.make_node("Constant", [], ["t"], value=constant("t", True, np.bool_))
        model = model_of(
            [true, helper.make_node("If", ["t"], ["y"], then_branch=branch, else_branch=branch)]
        )
    save(model, folder / "model.onnx")
    for where in (
        folder,
        tmp_path,
    ):  # names are not relative to the working directory, either
        monkeypatch.chdir(where)
        with pytest.raises(ConfigError, match=r"base\.path.*model\.onnx"):
            OnnxBase(folder / "model.onnx")
    (folder / "model.onnx.data").write_bytes(bytes(8))  # nor if there is a weights file
    with pytest.raises(ConfigError, match=r"base\.path.*model\.onnx"):
        OnnxBase(folder / "model.onnx")


def test_offsets_beyond_the_end_of_the_weights_file_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    for key, value in (
        ("offset", "4"),
        ("length", "1000000"),
        ("offset", "-8"),
        ("offset", "9" * 30),
        ("length", "x"),
    ):
        weights = outside("w", "model.onnx.data", [2])
        weights.external_data.add(key=key, value=value)
        save(model_of(nodes, held=[weights]), tmp_path / "model.onnx")
        (tmp_path / "model.onnx.data").write_bytes(np.ones(2, np.float32).tobytes())
        with pytest.raises(ConfigError, match=r"base\.path.*model\.onnx"):
            OnnxBase(tmp_path / "model.onnx")


def test_the_weights_file_must_be_a_regular_file(tmp_path: Path) -> None:
    save(relu(), tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").mkdir()
    with pytest.raises(ConfigError, match=r"model\.onnx\.data"):
        OnnxBase(tmp_path / "model.onnx")


FUZZ = """
import contextlib, random, sys
from pathlib import Path
import torch
from streamadapt.errors import StreamadaptError
from streamadapt.models.onnx import OnnxBase

path, step, dice = Path(sys.argv[1]), int(sys.argv[2]), random.Random(7)
whole, window, refused, ran = path.read_bytes(), torch.ones(6, 2), 0, 0
for at in range(0, len(whole), step):
    noise = bytes(dice.randrange(256) for _ in range(8))
    flipped = bytes([whole[at] ^ (1 << dice.randrange(8))])
    for data in (whole[:at], whole[:at] + flipped + whole[at + 1:], whole[:at] + noise + whole[at + 8:]):
        path.write_bytes(data)
        try:
            OnnxBase(path)(window)
            ran += 1
        except StreamadaptError as error:
            assert len(str(error)) < 1000
            refused += 1
print(refused, ran)
"""  # noqa: E501


def test_no_damaged_file_ends_the_process(exported: dict[str, Path], tmp_path: Path) -> None:
    """Truncated, bits flipped, bytes overwritten: the file gives one of our errors, or a model
    that runs."""
    x, _ = history()
    save(
        to_onnx(RandomForestRegressor(3, max_depth=4, random_state=0).fit(x, x[:, :2]), x[:1]),
        tmp_path / "forest",
    )
    for source in (exported["conv"], exported["recurrent"], tmp_path / "forest"):
        path = tmp_path / "model.onnx"
        path.write_bytes(source.read_bytes())
        step = max(1, len(source.read_bytes()) // 150)
        done = subprocess.run(
            [sys.executable, "-c", FUZZ, path, str(step)],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        refused, ran = map(int, done.stdout.split())  # nothing else was printed
        assert refused > 100
        assert refused + ran > 400


# -- from a config

CONFIG = """
[source]
kind = "files"
path = "entries.csv"
[fields]
id = "id"
time = "time"
time_format = "unix_s"
values = ["x", "y"]
[task]
kind = "forecast"
window = 6
horizon = 3
[base]
kind = "onnx"
path = "model.onnx"
[[learners]]
kind = "bias"
rate = 0.1
[sink]
kind = "files"
path = "predictions.jsonl"
"""
ONNX = 'kind = "onnx"\npath = "model.onnx"'


def test_a_config_with_an_onnx_base_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: dict[str, Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(CONFIG)
    Path("model.onnx").write_bytes(exported["mlp"].read_bytes())
    values = walk(40, 2)
    write_csv(
        Path("entries.csv"),
        [(f"e{i}", i * 60, float(x), float(y)) for i, (x, y) in enumerate(values)],
    )
    assert run_command(["check", "config.toml"]).code == 0
    assert run_command(["run", "config.toml"]).code == 0
    found = lines("predictions.jsonl")
    assert len(found) == 35
    with torch.no_grad():
        expected = made(mlp)(torch.from_numpy(values[-6:]).unsqueeze(0))[0]
    torch.testing.assert_close(torch.tensor(found[-1]["base"]), expected, rtol=1e-4, atol=1e-4)
    digests = {load_config(Path("config.toml")).digest()}
    Path("model.onnx").write_bytes(exported["conv"].read_bytes())
    digests.add(load_config(Path("config.toml")).digest())
    Path("model.onnx.data").write_bytes(b"one")
    digests.add(load_config(Path("config.toml")).digest())
    Path("model.onnx.data").write_bytes(b"two")
    digests.add(load_config(Path("config.toml")).digest())
    assert len(digests) == 4, "another model, or other weights beside it, count as another base"
    Path("model.onnx").write_bytes(b"x")
    assert run_command(["check", "config.toml"]).code == 2


@pytest.mark.parametrize("table", ["[keys]\nmax_keys = 2\n", "[panel]\n"], ids=["keys", "panel"])
def test_keys_and_panels_run_on_an_onnx_base(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: dict[str, Path]
) -> None:
    """All keys share one model."""
    monkeypatch.chdir(tmp_path)
    panel = table.startswith("[panel]")
    text = CONFIG.replace("[task]", 'key = "k"\n[task]')
    if panel:
        text = text.replace('["x", "y"]', '["x"]')
        table = '[panel]\nsensors = ["a", "b"]\nstep = "60s"\nlateness = "0s"\n'
    Path("config.toml").write_text(text + table)
    Path("model.onnx").write_bytes(exported["mlp"].read_bytes())
    values = walk(60, 2)
    rows = [f"e{i}{k},{i * 60},{k},{x},{y}" for i, (x, y) in enumerate(values) for k in "ab"]
    Path("entries.csv").write_text("id,time,k,x,y\n" + "\n".join(rows) + "\n")
    assert run_command(["check", "config.toml"]).code == 0
    assert run_command(["run", "config.toml"]).code == 0
    assert len(lines("predictions.jsonl")) > 50


def test_a_scikit_learn_base_from_a_config_knows_the_horizon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, values = history()
    y = np.stack([values[i + 6 : i + 9].ravel() for i in range(len(x) - 3)])
    fitted = Ridge().fit(x[:-3], y)
    save(to_onnx(fitted, x[:1]), Path("model.onnx"))
    Path("config.toml").write_text(CONFIG)
    write_csv(
        Path("entries.csv"),
        [(f"e{i}", i * 60, float(a), float(b)) for i, (a, b) in enumerate(values)],
    )
    assert run_command(["check", "config.toml"]).code == 0
    assert run_command(["run", "config.toml"]).code == 0
    expected = fitted.predict(values[-6:].reshape(1, -1)).reshape(3, 2)
    np.testing.assert_allclose(
        lines("predictions.jsonl")[-1]["base"], expected, rtol=1e-3, atol=1e-3
    )


def test_a_factory_makes_a_scikit_learn_estimator_a_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As docs/models.md shows for estimators that are not exported."""
    x, _ = history()
    fitted = LogisticRegression(max_iter=5000).fit(x, x[:, 0] > np.median(x[:, 0]))
    own = ModuleType("own_model")
    own.make = lambda: lambda window: fitted.predict_proba(window.numpy().reshape(1, -1))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_model", own)
    base = load_module("own_model:make")
    pipeline = Pipeline(Supervised(6, classes=2), base)
    windows = pipeline.observe(entries(walk(40, 2)))
    assert len(windows) == 35
    np.testing.assert_allclose(
        windows[0].base, fitted.predict_proba(walk(40, 2)[:6].reshape(1, -1)), rtol=1e-4
    )


def test_the_removed_kind_names_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(CONFIG.replace(ONNX, 'kind = "export"\npath = "model.pt2"'))
    assert run_command(["check", "config.toml"]).code == 2
    output = capsys.readouterr().err
    for word in ("base.kind", '"onnx"', "torch.onnx.export", "docs/models.md"):
        assert word in output
    assert (
        "torch.onnx.export(" in (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    )


def flat(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, outputs))


@pytest.mark.parametrize(
    ("base", "outputs", "path"),
    [
        (ONNX, 6, ""),
        (ONNX, 4, "base.path: expected a model that makes [1, 4]"),
        ('kind = "module"\nfactory = "own_model:make"', 6, ""),
        (
            'kind = "module"\nfactory = "own_model:make"',
            4,
            "base.factory: expected a model that makes [1, 4]",
        ),
        (
            'kind = "module"\nfactory = "own_model:narrow"',
            6,
            "mat1 and mat2 shapes cannot be multiplied",
        ),
        ('kind = "module"\nfactory = "own_model:flat"', 6, "must return (rows, columns)"),
    ],
)
def test_check_compares_the_models_output_shape_with_the_task(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    base: str,
    outputs: int,
    path: str,
) -> None:
    """Otherwise a run would find the error at its first full window."""
    monkeypatch.chdir(tmp_path)
    own = ModuleType("own_model")
    own.make = lambda: flat(6)  # type: ignore[attr-defined]
    own.narrow = lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 6))  # type: ignore[attr-defined]
    own.flat = lambda: nn.Unflatten(1, (2, 3))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_model", own)
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    save(
        model_of(nodes, ("n", "t", "c"), held=[constant("w", np.ones((12, 6)))]),
        Path("model.onnx"),
    )
    task = f'kind = "supervised"\nwindow = 6\noutputs = {outputs}'
    text = CONFIG.replace('kind = "forecast"\nwindow = 6\nhorizon = 3', task).replace(
        "[task]", 'label = "l"\n[task]'
    )
    Path("config.toml").write_text(text.replace(ONNX, base))
    Path("entries.csv").write_text("id,time,x,y,l\n")
    assert run_command(["check", "config.toml"]).code == (2 if path else 0)
    assert path in capsys.readouterr().err
