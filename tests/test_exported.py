"""Exported bases: they say what the eager model says, are never written to, and run nothing that a file may hold."""

from __future__ import annotations

import io
import json
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import hostile
import pytest
import torch
from cli_helpers import lines, logging_as_before, write_csv
from core_helpers import entries, walk
from export_helpers import save
from torch import Tensor, nn

from streamadapt import Bias, Forecast, Pipeline, Supervised
from streamadapt.app.commands import run_command
from streamadapt.config import load_config
from streamadapt.errors import ConfigError
from streamadapt.exported import load_export
from streamadapt.exported_archive import UnreadableError
from streamadapt.exported_ops import ATEN, operator_of
from streamadapt.learners.tent import Tent

_ = pytest.fixture(autouse=True)(logging_as_before)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 6), nn.Unflatten(1, (3, 2))
    )


class Conv(nn.Module):
    """A convolution, batch normalisation in both senses of a buffer, a constant, and the embedding as second output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Linear(24, 3)
        self.register_buffer("steps", torch.arange(3.0))
        self.register_buffer("ones", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.norm(self.conv(x.transpose(1, 2)))).flatten(1)
        return self.out(hidden) + self.steps * self.ones + torch.tensor(1.5), hidden


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.out = nn.LSTM(2, 5, batch_first=True), nn.GRU(5, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(self.lstm(x)[0])[0][:, -1:])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(2, 1, 8, batch_first=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[:, -1:])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "conv": Conv,
    "recurrent": Recurrent,
    "attention": Attention,
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@pytest.mark.parametrize("form", ["static", "dynamic", "decomposed"])
@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_says_what_the_eager_one_says(name: str, form: str, tmp_path: Path) -> None:
    model = made(MODELS[name])
    base = load_export(save(model, tmp_path / "model.pt2", form=form))
    for seed in range(5):
        inputs = torch.from_numpy(walk(6, 2, seed))
        with torch.no_grad():
            said = model(inputs.unsqueeze(0))
        output, embedding = said if isinstance(said, tuple) else (said, None)
        found = base(inputs)
        torch.testing.assert_close(found.output, output.reshape(found.output.shape), rtol=1e-6, atol=1e-6)
        if embedding is None:
            assert found.embedding is None
        else:
            torch.testing.assert_close(found.embedding, embedding.flatten(), rtol=1e-6, atol=1e-6)
    assert base.channels == 2
    assert base.kind == "export"


def test_a_window_without_a_batch_and_logits(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(0), nn.Linear(12, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (torch.ones(6, 2),)), tmp_path / "model.pt2")
    inputs = torch.from_numpy(walk(6, 2))
    output = load_export(tmp_path / "model.pt2", softmax=True)(inputs).output
    assert torch.equal(output, model(inputs).softmax(0).unsqueeze(0).detach())


def test_the_base_is_never_written_to(tmp_path: Path) -> None:
    path = save(made(Conv), tmp_path / "model.pt2")
    base = load_export(path)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    inputs = torch.from_numpy(walk(6, 2))
    first = base(inputs).output
    pipeline = Pipeline(Supervised(6, outputs=3), base, [Bias(0.1)])
    base.train()
    for entry in entries(walk(30, 2)):
        pipeline.observe([entry])
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(base(inputs).output, first)
    assert not base.training
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())


def test_it_is_held_against_the_task(tmp_path: Path) -> None:
    base = load_export(save(made(mlp), tmp_path / "model.pt2"))
    Pipeline(Forecast(6, 3), base)
    for task, said in ((Forecast(5, 3), "window"), (Forecast(6, 2), "returns"), (Supervised(6), "returns")):
        with pytest.raises(ConfigError, match=said):
            Pipeline(task, base)


def test_learners_that_need_layers_say_so(tmp_path: Path) -> None:
    base = load_export(save(made(Conv), tmp_path / "m.pt2"), softmax=True)
    pipeline = Pipeline(Supervised(6, classes=3), base, [Tent()])
    with pytest.raises(ConfigError, match=r"base\.kind.*'export'"):
        pipeline.observe(entries(walk(8, 2)))


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1:] + torch.rand_like(x[:, -1:])


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1.0)
        return x[:, -1:] + self.count


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y[:, -1:] + 1, lambda y: y[:, -1:] - 1, (x,))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 2)).train(), r"model\.eval\(\)"),
        (Conv().train(), r"model\.eval\(\)"),
        (Noisy(), "not on the list"),
        (Writes(), r"model\.eval\(\)|run_decompositions"),
        (Branches(), "export a model|not read|only plain operators"),
        (nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(12, 2)).eval(), "run_decompositions"),
    ],
    ids=["dropout", "batch norm", "dice", "a buffer", "branches", "in place"],
)
def test_models_that_cannot_be_bases_are_told_the_cure(model: nn.Module, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_export(save(model, tmp_path / "model.pt2"))


# -- hostile archives, made of a genuine one


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = save(made(Conv), tmp_path_factory.mktemp("genuine") / "model.pt2")
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def packed(members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def changed(members: dict[str, bytes], name: str, change: Callable[[Any], Any]) -> dict[str, bytes]:
    value = json.loads(members[f"model/{name}"])
    change(value)
    return members | {f"model/{name}": json.dumps(value).encode()}


PROGRAM, WEIGHTS, CONSTANTS = (
    "models/model.json", "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
)  # fmt: skip


def graph(program: Any) -> Any:
    return program["graph_module"]["graph"]


def called(target: str, *arguments: tuple[str, Any]) -> Callable[[Any], None]:
    """Have the graph call something first."""

    def change(program: Any) -> None:
        inputs = [{"name": name, "arg": arg, "kind": 1} for name, arg in arguments]
        node = {"target": target, "inputs": inputs, "outputs": [{"as_none": True}], "metadata": {}, "name": "evil"}
        graph(program)["nodes"].insert(0, node)

    return change


def meta(name: str, **more: Any) -> Callable[[Any], None]:
    return lambda config: config["config"][name]["tensor_meta"].update(more)


X = ("self", {"as_tensor": {"name": "x"}})
PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "os.system": called("os.system", ("command", {"as_string": "true"})),
    "builtins.exec": called("builtins.exec", ("code", {"as_string": "x"})),
    "a dotted way out": called("torch.ops.aten.add.__globals__.x", X),
    "load_library": called("torch.ops.load_library", ("path", {"as_string": "evil"})),
    "another namespace": called("torch.ops.prims.device_put.default", X),
    "a file that is read": called("torch.ops.aten.from_file.default", ("filename", {"as_string": "secret"})),
    "a file that is written": called("torch.ops.aten.save.default", X, ("filename", {"as_string": "canary"})),
    "dice": called("torch.ops.aten.rand_like.default", X),
    "an overload that is none": called("torch.ops.aten.relu.__class__", X),
    "in place": called("torch.ops.aten.relu_.default", X),
    "written out": called("torch.ops.aten.add.out", X, ("other", X[1]), ("out", X[1])),
    "a string with a path": called("torch.ops.aten.gelu.default", X, ("approximate", {"as_string": "../../x"})),
    "memory without end": called("torch.ops.aten.zeros.default", ("size", {"as_ints": [1 << 40]})),
    "an expansion without end": called("torch.ops.aten.repeat.default", X, ("repeats", {"as_ints": [1 << 20] * 3})),
    "a custom object": called(
        "torch.ops.aten.relu.default", ("self", {"as_custom_obj": {"name": "x", "class_fqn": "os"}})
    ),
    "an operator as argument": called("torch.ops.aten.relu.default", ("self", {"as_operator": "os.system"})),
    "a graph as argument": called("torch.ops.aten.relu.default", ("self", {"as_graph": {"name": "x", "graph": {}}})),
    "a value that is not there": called("torch.ops.aten.relu.default", ("self", {"as_tensor": {"name": "__import__"}})),
    "no such argument": called("torch.ops.aten.relu.default", ("__class__", {"as_int": 1})),
    "a higher-order call": called("torch.ops.higher_order.cond", X),
    "a node with more": lambda p: graph(p)["nodes"][0].update(code="x"),
    "a symbolic input": lambda p: graph(p)["tensor_values"]["x"]["sizes"].__setitem__(
        1, {"as_expr": {"expr_str": "__import__('os').mkdir('canary')", "hint": None}}
    ),
    "an input of 2**60": lambda p: graph(p)["tensor_values"]["x"]["sizes"].__setitem__(1, {"as_int": 1 << 60}),
    "schema 7": lambda p: p["schema_version"].update(major=7),
    "schema 9": lambda p: p["schema_version"].update(major=9),
    "schema true": lambda p: p["schema_version"].update(major=True),
    "no graph": lambda p: p.pop("graph_module"),
    "a mutated buffer": lambda p: p["graph_module"]["signature"]["output_specs"].insert(
        0, {"buffer_mutation": {"arg": {"name": "add"}, "buffer_name": "steps"}}
    ),
    "a custom object as input": lambda p: p["graph_module"]["signature"]["input_specs"].insert(
        0, {"custom_obj": {"arg": {"name": "o", "class_fqn": "os"}, "custom_obj_name": "o"}}
    ),
    "batch norm in training": lambda p: next(
        i for n in graph(p)["nodes"] for i in n["inputs"] if i["name"] == "training"
    ).update(arg={"as_bool": True}),
}
TABLES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "pickled weights": (WEIGHTS, lambda c: c["config"]["out.weight"].update(use_pickle=True)),
    "pickled constants": (CONSTANTS, lambda c: c["config"]["ones"].update(use_pickle=True)),
    "pickled as 1": (WEIGHTS, lambda c: c["config"]["out.weight"].update(use_pickle=1)),
    "weights elsewhere": (WEIGHTS, lambda c: c["config"]["out.weight"].update(path_name="../../../secret")),
    "weights that are not there": (WEIGHTS, lambda c: c["config"]["out.weight"].update(path_name="weight_99")),
    "a custom object": (CONSTANTS, lambda c: c["config"]["ones"].update(path_name="custom_obj_0")),
    "an opaque object": (CONSTANTS, lambda c: c["config"]["ones"].update(path_name="opaque_obj_0")),
    "2**62 numbers": (WEIGHTS, meta("out.weight", sizes=[{"as_int": 1 << 31}] * 2)),
    "beyond the end": (WEIGHTS, meta("out.weight", storage_offset={"as_int": 1})),
    "before the start": (WEIGHTS, meta("out.weight", storage_offset={"as_int": -1})),
    "a stride back": (WEIGHTS, meta("out.weight", strides=[{"as_int": -24}, {"as_int": 1}])),
    "one number as many": (WEIGHTS, meta("out.weight", sizes=[{"as_int": 1 << 40}], strides=[{"as_int": 0}])),
    "sizes that are text": (WEIGHTS, meta("out.weight", sizes=[{"as_expr": {"expr_str": "exec('x')"}}])),
    "a complex type": (WEIGHTS, meta("out.weight", dtype=10)),
    "no type": (WEIGHTS, meta("out.weight", dtype="load")),
    "sparse": (WEIGHTS, meta("out.weight", layout=1)),
}


def is_refused(path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an error that names the file, before torch's own loader, a pickle or an import is asked for anything."""
    path.write_bytes(data)

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a hostile file reached a loader that trusts it")

    for place in ("torch.load", "torch.export.load", "pickle.loads", "pickle.load", "torch.ops.load_library"):
        monkeypatch.setattr(place, never)
    with pytest.raises(ConfigError) as caught:
        load_export(path)
    assert path.name in str(caught.value)
    assert "base.path" in str(caught.value)
    assert not (path.parent / "canary").exists()


@pytest.mark.parametrize("change", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_hostile_programs(change: Any, genuine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text(hostile.SECRET)
    is_refused(tmp_path / "model.pt2", packed(changed(genuine, PROGRAM, change)), monkeypatch)


@pytest.mark.parametrize(("table", "change"), TABLES.values(), ids=TABLES.keys())
def test_hostile_tables(table: str, change: Any, genuine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = changed(genuine, table, change) | dict.fromkeys(
        ("model/data/weights/weight_98",), hostile.pickles(tmp_path / "canary")["torch.save"]
    )
    is_refused(tmp_path / "model.pt2", packed(members), monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        "../canary", "/canary", "model/../canary", "model\\..\\canary", "other/byteorder", "model/extra/note",
        "model/data/aotinductor/model/evil.so", "model/data/constants/custom_obj_0", "model/data/weights/model.pt",
        "model/data/constants/opaque_obj_0", "model/models/other.json", "model/data/sample_inputs/other.pt",
        "model/byte\0order.so", "serialized_state_dict.pt", "version",
    ],
)  # fmt: skip
def test_members_that_are_not_on_the_list(
    name: str, genuine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = hostile.pickles(tmp_path / "canary")["pickle"]
    is_refused(tmp_path / "model.pt2", packed(genuine | {name: evil}), monkeypatch)
    is_refused(tmp_path / "model.pt2", packed({name: evil} | genuine), monkeypatch)


def test_archives_that_lie(genuine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed, cut, flipped, twice the same member, JSON with a name twice or nested too deep, another byte order."""
    path, whole = tmp_path / "model.pt2", packed(genuine)
    with monkeypatch.context() as patch:
        is_refused(path, packed(genuine, compression=zipfile.ZIP_DEFLATED), patch)
        buffer = io.BytesIO(whole)
        with zipfile.ZipFile(buffer, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr(f"model/{PROGRAM}", b"{}")
        is_refused(path, buffer.getvalue(), patch)
        for part, value in (
            ("byteorder", b"big"), ("archive_format", b"ts"), ("archive_version", b"9"), (PROGRAM, b"[" * 100_000),
            (PROGRAM, genuine[f"model/{PROGRAM}"][:-1] + b',"graph_module":{}}'), (WEIGHTS, b"[]"), (PROGRAM, b"7"),
        ):  # fmt: skip
            is_refused(path, packed(genuine | {f"model/{part}": value}), patch)
        for name in genuine:
            if name.rpartition("/")[2] not in ("version", "serialization_id", "model.pt"):
                is_refused(path, packed({k: v for k, v in genuine.items() if k != name}), patch)
        for at in range(0, len(whole), 997):
            is_refused(path, whole[:at], patch)
        nan = changed(genuine, WEIGHTS, lambda c: None) | {"model/data/weights/weight_0": b"\xff" * 96}
        is_refused(path, packed(nan), patch)
    path.write_bytes(whole)
    load_export(path)


def test_the_sample_inputs_are_never_opened(genuine: Any, tmp_path: Path) -> None:
    """They are a pickle, which torch writes into every archive and its own loader unpickles."""
    path, evil = tmp_path / "model.pt2", hostile.pickles(tmp_path / "canary")["torch.save"]
    path.write_bytes(packed(genuine | {"model/data/sample_inputs/model.pt": evil}))
    load_export(path)
    assert not (tmp_path / "canary").exists()


def test_no_operator_that_may_be_called_takes_a_file_or_writes_to_its_arguments() -> None:
    """Text is only ever the name of a way to do it, what comes out are tensors; each name is one of this torch's."""
    admitted = 0
    for name in ATEN:
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            try:
                call = operator_of(f"torch.ops.aten.{name}.{overload}")
            except UnreadableError:
                continue
            schema = call._schema
            words = {entry.name for entry in schema.arguments if "str" in str(entry.type)}
            assert not any("file" in word or "path" in word or word in ("name", "self", "format") for word in words)
            assert all("Tensor" in str(entry.type) for entry in schema.returns)
            assert not any(entry.alias_info is not None and entry.alias_info.is_write for entry in schema.arguments)
            admitted += 1
    assert admitted > len(ATEN)


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
kind = "export"
path = "model.pt2"
[[learners]]
kind = "bias"
rate = 0.1
[sink]
kind = "files"
path = "predictions.jsonl"
"""


def test_a_config_with_an_exported_base_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(CONFIG)
    save(made(mlp), Path("model.pt2"))
    values = walk(40, 2)
    write_csv(Path("entries.csv"), [(f"e{i}", i * 60, float(x), float(y)) for i, (x, y) in enumerate(values)])
    assert run_command(["check", "config.toml"]).code == 0
    assert run_command(["run", "config.toml"]).code == 0
    found = lines("predictions.jsonl")
    assert len(found) == 35
    with torch.no_grad():
        expected = made(mlp)(torch.from_numpy(values[-6:]).unsqueeze(0))[0]
    torch.testing.assert_close(torch.tensor(found[-1]["base"]), expected, rtol=1e-4, atol=1e-4)
    digest = load_config(Path("config.toml")).digest()
    torch.manual_seed(9)
    save(mlp().eval(), Path("model.pt2"))
    assert load_config(Path("config.toml")).digest() != digest, "another program is another base"
    Path("model.pt2").write_bytes(b"x")
    assert run_command(["check", "config.toml"]).code == 2


@pytest.mark.parametrize(
    ("base", "outputs", "path"),
    [
        ('kind = "export"\npath = "model.pt2"', 6, ""),
        ('kind = "export"\npath = "model.pt2"', 4, "base.path: expected a model that makes [1, 4]"),
        ('kind = "module"\nfactory = "own_model:make"', 6, ""),
        ('kind = "module"\nfactory = "own_model:make"', 4, "base.factory: expected a model that makes [1, 4]"),
        ('kind = "module"\nfactory = "own_model:narrow"', 6, "mat1 and mat2 shapes cannot be multiplied"),
        ('kind = "module"\nfactory = "own_model:flat"', 6, "must return (rows, columns)"),
    ],
)
def test_check_asks_the_model_for_the_shape_that_the_task_needs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    base: str,
    outputs: int,
    path: str,
) -> None:
    """Else a run would find it at its first full window."""
    monkeypatch.chdir(tmp_path)
    own = ModuleType("own_model")
    own.make = lambda: flat(6)  # type: ignore[attr-defined]
    own.narrow = lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 6))  # type: ignore[attr-defined]
    own.flat = lambda: nn.Unflatten(1, (2, 3))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_model", own)
    save(flat(6).eval(), Path("model.pt2"))
    task = f'kind = "supervised"\nwindow = 6\noutputs = {outputs}'
    text = CONFIG.replace('kind = "forecast"\nwindow = 6\nhorizon = 3', task).replace("[task]", 'label = "l"\n[task]')
    Path("config.toml").write_text(text.replace('kind = "export"\npath = "model.pt2"', base))
    Path("entries.csv").write_text("id,time,x,y,l\n")
    assert run_command(["check", "config.toml"]).code == (2 if path else 0)
    assert path in capsys.readouterr().err


def flat(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, outputs))
