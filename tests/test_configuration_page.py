"""The configuration page: it is complete, its examples are valid, and errors refer to it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import onnx_helpers
import pytest
import torch
from config_cases import make_weights
from safetensors.torch import save_file
from torch import nn

from streamadapt.app.commands import run_command
from streamadapt.app.config_examples import EXAMPLES
from streamadapt.app.config_keys import Key, Table, find_tables, tables
from streamadapt.app.config_page import config_markdown
from streamadapt.app.config_words import type_text
from streamadapt.app.docstrings import described, summary_of
from streamadapt.build import check_config
from streamadapt.config.registry import kinds
from streamadapt.config.tables import Config, LimitKeys, parse_config
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import ConfigError

DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"
TABLES = tables()
WITHOUT_EXAMPLE = {
    "task",
    "base",
    "source",
    "sink",
    "dead_letters",
    "learners",
    "guard",
}  # their kinds have examples

SUPERVISED = {
    "source": '[source]\nkind = "files"\npath = "entries.csv"\n',
    "fields": '[fields]\nvalues = ["a", "b"]\nlabel = "y"\nid = "id"\n',
    "task": '[task]\nkind = "supervised"\nwindow = 6\n',
    "base": '[base]\nkind = "linear"\nweights = "base.safetensors"\n',
    "sink": '[sink]\nkind = "files"\npath = "out.jsonl"\n',
}
FORECAST = SUPERVISED | {
    "task": '[task]\nkind = "forecast"\nwindow = 12\nhorizon = 3\n',
    "base": '[base]\nkind = "persistence"\n',
}
CLASSES = SUPERVISED | {
    "task": '[task]\nkind = "supervised"\nwindow = 1\nclasses = 2\n',
    "base": '[base]\nkind = "module"\nfactory = "my_models:make_classes"\n',
}
KAFKA = SUPERVISED | {
    "source": '[source]\nkind = "kafka"\nservers = "broker:9092"\ntopic = "entries"\n'
}
AROUND = {
    "top": SUPERVISED | {"checkpoint": '[checkpoint]\npath = "state"\n'},
    "source.security": KAFKA,
    "keys": KAFKA,
    "panel": FORECAST | {"source": KAFKA["source"], "fields": '[fields]\nvalues = ["value"]\n'},
    "guard.none": FORECAST | {"learners": '[[learners]]\nkind = "bias"\n'},
}
AROUND |= dict.fromkeys(
    (
        "task.unlabelled", "learners.eata", "learners.logistic", "learners.per_entry",
        "learners.tent",
    ),
    CLASSES,
)  # fmt: skip
AROUND |= dict.fromkeys(("task.forecast", "base.persistence", "base.onnx"), FORECAST)
AROUND |= {f"learners.{kind}": FORECAST for kind in ("adcsd", "holt", "persistence", "seasonal")}
TENT = '[[learners]]\nkind = "tent"\n[guard]\nkind = "two-layer"\nprior = { tent = 0.9 }\n'

MODELS = """
import torch
from torch import nn

class Regression(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(12, width)

    def forward(self, inputs):
        return self.layer(inputs.flatten(1)).sum(-1, keepdim=True)

class Classes(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, inputs):
        return torch.softmax(self.norm(inputs[:, -1]), -1)

make, make_classes = Regression, Classes
"""


class Last(nn.Module):
    """Forecasts the last value, three times."""

    def forward(self, inputs):
        return inputs[:, -1:].expand(-1, 3, -1).clone()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the examples name."""
    (tmp_path / "my_models.py").write_text(MODELS)
    (tmp_path / "password.txt").write_text("correct horse\n")
    make_weights(tmp_path / "base.safetensors", window=6)
    layer = nn.Linear(12, 4).state_dict()
    save_file(
        {f"layer.{name}": tensor for name, tensor in layer.items()},
        tmp_path / "weights.safetensors",
    )
    save_file({"inputs": torch.randn(64, 1, 2)}, tmp_path / "source.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_models", None)


def whole(path: str) -> str:
    """A whole config around the example of a table."""
    root = path.partition(".")[0]
    around = AROUND.get(path, SUPERVISED)
    if path.count(".") and not EXAMPLES[path].startswith((f"[{root}]", f"[[{root}]]")):
        root = path  # a table within a table
    parts = {**around, root: EXAMPLES[path]}
    if path == "task.unlabelled":
        parts["learners"] = TENT
    return "".join([parts.pop("top", ""), *parts.values()])


def test_the_page_is_up_to_date() -> None:
    assert DOCS.read_text(encoding="utf-8") == config_markdown(), (
        "streamadapt config --markdown > docs/configuration.md"
    )


def keys() -> list[tuple[Table, Key]]:
    return [(table, key) for table in TABLES for key in table.keys]


def test_every_key_has_a_type_and_a_meaning() -> None:
    short = [
        (table.path, key.name) for table, key in keys() if not key.type or len(key.meaning) < 10
    ]
    assert short == []
    assert [table.path for table in TABLES if not table.summary] == []
    assert len(keys()) > 150


def test_meanings_contain_no_notation_of_the_source_code() -> None:
    """No reStructuredText references, and no numbers that TOML would not accept."""
    text = "\n".join(f"{key.meaning} {key.type} {key.default}" for _, key in keys())
    assert re.findall(r"\]_|``|(?<![\w.])\.\d", text) == []


def test_every_table_and_kind_has_an_example() -> None:
    assert {table.path for table in TABLES} - set(EXAMPLES) == WITHOUT_EXAMPLE
    assert set(EXAMPLES) <= {table.path for table in TABLES}


@pytest.mark.parametrize("path", EXAMPLES)
def test_examples_build_what_they_describe(path, folder) -> None:
    """Each example is part of a config that passes the whole check."""
    if path == "base.onnx":
        onnx_helpers.export(Last(), folder / "model.onnx", window=12)
    config = parse_config(whole(path))
    assert check_config(config) is not None
    assert not (folder / "out.jsonl").exists()


def test_every_table_of_the_config_is_there() -> None:
    about = described(Config)
    assert set(about) == set(Config.__struct_fields__)
    names = {table.path for table in TABLES} | {key.name for key in find_tables("top")[0].keys}
    assert names >= set(Config.__struct_fields__)


def test_defaults_of_limits_are_those_of_the_parts() -> None:
    """They are written in two places, since the core knows no connector."""
    limits = get_type_hints(kinds("codecs")["json"].load().__init__)["limits"]
    limits = next(member for member in get_args(limits) if member is not type(None))()
    for name in ("record_bytes", "depth", "width", "id_bytes"):
        assert getattr(LimitKeys(), name) == getattr(limits, name)
    assert (LimitKeys().max_buffer, LimitKeys().max_bad_share) == (
        EngineSettings.max_buffer,
        EngineSettings.max_bad_share,
    )


@pytest.mark.parametrize(
    ("old", "new", "command"),
    [
        ('kind = "bias"\n', 'kind = "bias"\nrat = 0.1\n', "streamadapt config learners.bias"),
        ('kind = "bias"\n', 'kind = "bia"\n', "streamadapt config learners"),
        ("window = 12\n", "windw = 12\n", "streamadapt config task.forecast"),
        ('path = "out.jsonl"\n', 'pth = "out.jsonl"\n', "streamadapt config sink.files"),
        ('label = "y"\n', 'lable = "y"\n', "streamadapt config fields"),
        ("[source]", "[limits]\ndepht = 3\n[source]", "streamadapt config limits"),
        ("[source]", '[drift.x]\ny = "z"\n[source]', "drift"),
        ("[source]", '[[drift]]\nkind = "adwin"\n[source]', "streamadapt config drift"),
        ("[source]", "[metrics]\nprot = 1\n[source]", "streamadapt config metrics"),
        ("[source]", "sede = 1\n[source]", "streamadapt config"),
    ],
)
def test_errors_name_the_command_that_explains_the_keys(old, new, command, folder, capsys) -> None:
    """The command that they name exists."""
    text = "".join([*FORECAST.values(), '[[learners]]\nkind = "bias"\n'])
    with pytest.raises(ConfigError) as caught:
        check_config(parse_config(text.replace(old, new)))
    if command.startswith("streamadapt"):
        assert f"`{command}`" in caught.value.expected
        assert run_command(command.split()[1:]).code == 0
        assert capsys.readouterr().out


def test_the_command_lists_the_tables(capsys) -> None:
    assert run_command(["config"]).code == 0
    output = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{output}" for name in ("top", *Config.__struct_fields__[:5]))
    assert run_command(["config", "sauce"]).code == 2
    assert "expected one of top, source" in capsys.readouterr().err


def test_the_command_explains_a_kind(capsys) -> None:
    assert run_command(["config", "[source.files]"]).code == 0
    output = capsys.readouterr().out
    assert "label_path  (path or list of paths; default none)" in output
    assert 'kind = "files"' in output


class Documented:
    """One sentence
    on two lines [1]_.

    Parameters
    ----------
    rate : float or sequence of floats, in (0, 1], optional
        First ``line``,
        second: .5 [2]_.
    one, two : int, >= 1, in entries
        Both.
    three
        As for `Other`.

    Raises
    ------
    wrong : int
        No parameter.
    """


class Other:
    """Other.

    Parameters
    ----------
    three : {"a", "b"}
        From the other.
    """


def test_docstrings_are_read() -> None:
    found = described(Documented)
    assert summary_of(Documented) == "One sentence on two lines."
    assert set(found) == {"rate", "one", "two", "three"}
    assert found["rate"].text == "First `line`, second: 0.5."
    assert found["two"] == ("int, >= 1, in entries", "Both.")
    assert found["three"] == ('{"a", "b"}', "From the other.")


@pytest.mark.parametrize(
    ("hint", "documented", "default", "text"),
    [
        (
            float | list[float],
            "float or sequence of floats, in (0, 1], optional",
            0.1,
            "number or list of numbers, in (0, 1]",
        ),
        (int | None, "int >= 2, or sequence of str", None, "whole number, >= 2"),
        (str, "str", "10s", "duration"),
        (str, '{"a", "b"}', "a", 'one of "a", "b"'),
        (str | Path, "Path or str", "x", "path"),
        (dict, "dict", None, "table"),
    ],
)
def test_types_are_described_in_words(hint, documented, default, text) -> None:
    assert type_text(hint, documented, default) == text
