"""Configs: an error names the path; the environment overrides; every kind can be built."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from cli_helpers import logging_as_before
from config_cases import BROKEN, make_weights, text_of
from onnx_helpers import rows_of, save
from safetensors.torch import save_file

from streamadapt.app.commands import run_command
from streamadapt.build import check_config, make_engine, make_pipeline
from streamadapt.config.durations import duration_ns
from streamadapt.config.registry import build
from streamadapt.config.tables import load_config, parse_config
from streamadapt.engine.summary import summarise
from streamadapt.errors import ConfigError
from streamadapt.pipeline.stats import Stats

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _logging():
    yield from logging_as_before()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights that fit `CONFIG`, others that do not, and a truncated file."""
    folder = tmp_path_factory.mktemp("weights")
    good = make_weights(folder / "base.safetensors")
    make_weights(folder / "forecast.safetensors", "forecast", responses=4)
    make_weights(folder / "window5.safetensors", window=5)
    make_weights(folder / "three.safetensors", channels=3)
    save_file({"w": torch.zeros(1)}, folder / "stranger.safetensors")
    save_file(
        {"weights": torch.zeros(1)},
        folder / "halfway.safetensors",
        {"format": "streamadapt-linear-1"},
    )
    (folder / "torn.safetensors").write_bytes(good.read_bytes()[:50])
    return good


def test_the_config_of_these_tests_is_valid(weights):
    """The invalid configs below differ from this one."""
    assert check_config(parse_config(text_of(weights))).names == ["base", "bias-0.1", "rls-0.9995"]


@pytest.mark.parametrize(
    ("old", "new", "path", "fragment"),
    BROKEN,
    ids=[f"{row[2]}-{i}" for i, row in enumerate(BROKEN)],
)
def test_an_error_names_its_path(weights, old, new, path, fragment):
    """Exactly this path, and the expected value, before anything connects."""
    text = text_of(weights)
    assert text.count(old) >= 1
    with pytest.raises(ConfigError) as failed:
        check_config(parse_config(text.replace(old, new, 1)))
    if fragment == "TOML":  # the file is not TOML
        assert "TOML" in str(failed.value)
        return
    assert failed.value.path == path
    assert fragment in str(failed.value)
    assert str(failed.value).startswith(f"{path}: expected ")


def test_a_forecast_takes_no_labels(weights):
    """A label topic in a forecast is a misunderstanding; its labels are not read and refused."""
    text = text_of(weights).replace('kind = "supervised"', 'kind = "forecast"\nhorizon = 4')
    text = text.replace("base.safe", "forecast.safe")
    with pytest.raises(
        ConfigError, match=r"source\.label_topic: expected none: this task learns from no labels"
    ):
        check_config(parse_config(text))
    assert (
        check_config(parse_config(text.replace('label_topic = "labels"', ""))).names[0] == "base"
    )


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("250ms", 250_000_000),
        ("10s", 10**10),
        ("1.5m", 90 * 10**9),
        ("6h", 21_600 * 10**9),
        (" 1d ", 86_400 * 10**9),
    ],
)
def test_durations(text, nanoseconds):
    """In the forms that people write."""
    assert duration_ns("x", text) == nanoseconds


@pytest.mark.parametrize(
    "value",
    ["", "10", "10 sec", "-1s", "s", "1h30m", "1e3s", "infs", None, 10, True, "10S", "٣s x"],
)
def test_invalid_durations(value):
    """Above all a missing unit."""
    with pytest.raises(ConfigError, match=r"task\.ttl: expected a duration with its unit"):
        duration_ns("task.ttl", value)


# -- secrets

SECRET = "hunter2-geheim"


@pytest.mark.parametrize(
    "table",
    [
        f'sasl_plain_password = "{SECRET}"',  # in the wrong table
        f'password = "{SECRET}"',
        f'sasl_plain_pasword = "{SECRET}"',
        f'security = "{SECRET}"',
        f'security = {{ sasl_plain_pasword = "{SECRET}" }}',
        f'security = {{ security_protocol = "TLS", sasl_plain_password = "{SECRET}" }}',
        f'security = {{ ssl_password = "{SECRET}" }}\nmax_poll_records = "x"',
        f'max_poll_records = {{ ssl_password = "{SECRET}" }}',
    ],
)
@pytest.mark.parametrize("where", ['topic = "entries"', 'topic = "predictions"'])
def test_no_error_shows_a_secret(weights, table, where, tmp_path, capsys):
    """Whatever the error is, and in whichever table the password is."""
    path = tmp_path / "config.toml"
    path.write_text(text_of(weights).replace(where, f"{where}\n{table}"))
    for arguments in (["check", str(path)], ["check", str(path), "--json"], ["run", str(path)]):
        assert run_command(arguments).code == 2
        output = capsys.readouterr()
        assert output.out + output.err
        assert SECRET not in output.out + output.err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_invalid_toml_is_named_by_path_line_and_column(weights, tmp_path, encoding):
    path = tmp_path / "config.toml"
    lines = text_of(weights).splitlines()
    path.write_text("\n".join([*lines[:3], "broken = = 1", *lines[3:]]), encoding=encoding)
    with pytest.raises(ConfigError, match=r"line 4, column 10") as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    path.write_text(text_of(weights), encoding=encoding)
    load_config(path)


def test_a_valid_config_shows_no_secret_either(weights):
    """Not in its repr, nor in the repr of the objects made from it."""
    user = f'sasl_plain_username = "u", sasl_plain_password = "{SECRET}"'
    security = f'{{ security_protocol = "SASL_SSL", sasl_mechanism = "PLAIN", {user} }}'
    config = parse_config(
        text_of(weights).replace('topic = "entries"', f'topic = "entries"\nsecurity = {security}')
    )
    assert SECRET not in repr(config)
    assert "PLAIN" in repr(config)
    engine = make_engine(config)
    assert SECRET not in repr([vars(engine), engine.source, engine.sink, engine.dead_letters])


def test_a_password_of_digits_stays_text(weights):
    """Every other environment value that is valid TOML is read as TOML."""
    environment = {"STREAMADAPT__SOURCE__SECURITY__SASL_PLAIN_PASSWORD": "12345"}
    assert parse_config(text_of(weights), environment).source["security"] == {
        "sasl_plain_password": "12345"
    }


def test_credentials_go_to_their_own_servers_only(weights):
    """A sink without servers uses the source's servers and credentials; a sink with its own does
    not."""
    made = {}

    def sink_of(text):
        import streamadapt.build as assemble

        return assemble._sinks(parse_config(text))

    text = text_of(weights).replace(
        'topic = "entries"', 'topic = "entries"\nsecurity = { security_protocol = "SSL" }'
    )
    made["shared"] = [table for table, _ in sink_of(text)]
    made["own"] = [
        table
        for table, _ in sink_of(
            text.replace('"predictions"', '"predictions"\nservers = "other:1"')
        )
    ]
    assert [t.get("security") for t in made["shared"]] == [{"security_protocol": "SSL"}] * 2
    assert [t.get("security") for t in made["own"]] == [None, None]
    assert [t["servers"] for t in made["own"]] == ["other:1"] * 2
    assert made["own"][1]["topic"] == "predictions-dead-letters"


# -- environment and flags


def test_environment_values_are_toml_if_they_parse(weights):
    """Numbers, lists and booleans are typed; everything else is text."""
    environment = {
        "STREAMADAPT__SOURCE__SERVERS": "broker:9092",
        "STREAMADAPT__TASK__WINDOW": "5",
        "STREAMADAPT__LEARNERS__0__RATE": "[0.1, 0.01]",
        "STREAMADAPT__SINK__EXPERTS": "true",
        "STREAMADAPT__FIELDS__VALUES__1": "c",
        "STREAMADAPT__GUARD__KIND": "none",
        "STREAMADAPT__SOURCE__TOPIC": '"2024"',
        "OTHER__SOURCE__SERVERS": "nobody:1",
    }
    config = parse_config(text_of(weights), environment)
    assert config.source["servers"] == "broker:9092"
    assert config.source["topic"] == "2024"
    assert config.task["window"] == 5
    assert config.learners[0] == {"kind": "bias", "rate": [0.1, 0.01]}
    assert config.sink["experts"] is True
    assert config.fields["values"] == ["a", "c"]
    assert config.guard == {"kind": "none"}


def test_lists_of_tables_can_come_from_the_environment_alone(weights):
    """In the order of their index, ten after nine."""
    text = (
        text_of(weights).split("[[learners]]")[0] + "[sink]" + text_of(weights).split("[sink]")[1]
    )
    environment = {f"STREAMADAPT__LEARNERS__{i}__KIND": "bias" for i in range(11)}
    environment |= {f"STREAMADAPT__LEARNERS__{i}__RATE": f"0.{i + 1:02d}" for i in range(11)}
    learners = parse_config(text, environment).learners
    assert [learner["rate"] for learner in learners] == [(i + 1) / 100 for i in range(11)]


def test_flag_over_environment_over_file_over_default(weights, tmp_path):
    """The precedence that the documentation promises."""
    path = tmp_path / "config.toml"
    path.write_text(text_of(weights))
    environment = {"STREAMADAPT__TASK__WINDOW": "7", "STREAMADAPT__SEED": "7"}
    assert load_config(path, {}).seed == 0
    assert load_config(path, {}).task["window"] == 3
    assert load_config(path, environment).task["window"] == 7
    config = load_config(
        path, environment, ["task.window=9", "learners.1.clip=4.0", "source.topic=a=b"]
    )
    assert (config.task["window"], config.seed, config.learners[1]["clip"]) == (9, 7, 4.0)
    assert config.source["topic"] == "a=b"


@pytest.mark.parametrize(
    ("name", "value", "path", "fragment"),
    [
        (
            "STREAMADAPT__LEARNERS__7__RATE",
            "1",
            "STREAMADAPT__LEARNERS__7__RATE",
            "an index from 0 to 2",
        ),
        (
            "STREAMADAPT__LEARNERS__X__RATE",
            "1",
            "STREAMADAPT__LEARNERS__X__RATE",
            "an index from 0 to 2",
        ),
        (
            "STREAMADAPT__TASK__WINDOW__DEEP",
            "1",
            "STREAMADAPT__TASK__WINDOW__DEEP",
            "a plain value",
        ),
        ("STREAMADAPT__SOURCE____X", "1", "STREAMADAPT__SOURCE____X", "a name between"),
        ("STREAMADAPT__SURCE__TOPIC", "x", "surce", "did you mean 'source'?"),
        ("STREAMADAPT__TASK__WINDOW", "six", "task.window", "a whole number, got 'six'"),
        ("STREAMADAPT__LEARNERS__2__RATE", "0.5", "learners[2].kind", "one of adcsd"),
    ],
)
def test_bad_overrides(weights, name, value, path, fragment):
    """A variable that names no key, or has a wrong value, is an error like any other."""
    with pytest.raises(ConfigError) as failed:
        check_config(parse_config(text_of(weights), {name: value}))
    assert failed.value.path == path
    assert fragment in str(failed.value)


def test_an_error_says_which_variable_caused_it(weights, tmp_path, capsys, monkeypatch):
    """Otherwise a user looks for it in the file, which does not contain it."""
    path = tmp_path / "config.toml"
    path.write_text(text_of(weights))
    monkeypatch.setenv("STREAMADAPT__LEARNERS__0__RATE", "7")
    assert run_command(["check", str(path)]).code == 2
    assert "learners[0].rate: " in (output := capsys.readouterr().err)
    assert "(set by STREAMADAPT__LEARNERS__0__RATE)" in output


def test_a_setting_without_a_value_is_refused(weights):
    """It is not read as an empty value."""
    with pytest.raises(ConfigError, match=r"--set: expected KEY=VALUE"):
        parse_config(text_of(weights), {}, ["task.window"])


# -- digest


def test_the_digest_changes_with_settings_that_the_state_depends_on(weights, tmp_path):
    """It does not change with other settings: servers, sinks, paths of files."""
    text = text_of(weights)
    digest = parse_config(text).digest()
    for old, new in [
        ("localhost:9092", "elsewhere:9092"), ('"predictions"', '"others"'),
        ('path = "state"', 'path = "/mnt/state"'), ("port = 9108", "port = 1"),
        ('path = "state"', 'path = "state"\nevery = "1m"'),
    ]:  # fmt: skip
        assert parse_config(text.replace(old, new)).digest() == digest
    for old, new in [
        ("window = 3", "window = 4"), ("rate = 0.1", "rate = 0.2"),
        ('topic = "entries"', 'topic = "x"'), ('"adwin"', '"page-hinkley"'), ('"b"]', '"c"]'),
        ("[source]", "seed = 1\n[source]"), ('[[learners]]\nkind = "rls"', ""),
        ("[checkpoint]", '[guard]\nkind = "hedge"\n[checkpoint]'),
    ]:  # fmt: skip
        assert parse_config(text.replace(old, new)).digest() != digest, (old, new)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(weights.read_bytes())
    assert parse_config(text_of(moved)).digest() == digest
    make_weights(moved, window=4)
    assert parse_config(text_of(moved)).digest() != digest


# -- kinds


KIND_TABLES = {
    "learners": {
        "adcsd": {},
        "bias": {},
        "calibration": {},
        "gain": {},
        "rls": {},
        "eata": {},
        "per_entry": {"source": "x.npz"},
        "tent": {},
        "dictionary": {},
        "error_memory": {},
        "holt": {},
        "liquid": {},
        "logistic": {},
        "persistence": {},
        "refit": {},
        "seasonal": {},
        "slot_bias": {},
        "river": {"model": "linear_model.LinearRegression"},
    },
    "bases": {
        "linear": {},
        "module": {"factory": "torch.nn:Identity"},
        "onnx": {},
        "persistence": {"horizon": 3},
    },
    "sources": {"files": {"path": "x.csv"}, "kafka": {"servers": "a:1", "topic": "t"}},
    "sinks": {"files": {"path": "p.jsonl"}, "kafka": {"servers": "a:1", "topic": "t"}},
    "dead_letters": {"files": {"path": "d.jsonl"}, "kafka": {"servers": "a:1", "topic": "t"}},
    "dead_letter_readers": {
        "files": {"path": "d.jsonl"},
        "kafka": {"servers": "a:1", "topic": "t"},
    },
    "stream_writers": {"files": {"path": "x.jsonl"}, "kafka": {"servers": "a:1", "topic": "t"}},
    "codecs": {"json": {"fields": {"values": ["x"]}}},
    "folders": {"fsspec": {"url": "memory://x"}},
}


def test_every_kind_of_the_entry_points_can_be_built(weights, tmp_path):
    """From the minimal settings; a new kind has to be added to the table above."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for group, names in groups.items():
        tables = KIND_TABLES[group.removeprefix("streamadapt.")]
        assert tables.keys() >= names.keys(), group
        for kind in names:
            table = {"kind": kind, **tables[kind]}
            if kind == "linear":
                table["weights"] = str(weights)
            if kind == "onnx":
                table["path"] = str(save(rows_of(1), tmp_path / "model.onnx"))
            if kind == "files":
                table["path"] = str(tmp_path / table["path"])
            made = build(group.removeprefix("streamadapt."), "x", table, streams=["s"])
            assert made is not None
            if hasattr(made, "close"):
                made.close()


def test_the_template_passes_once_its_weights_exist(tmp_path, monkeypatch, capsys):
    """`streamadapt init` writes a config that `streamadapt check` accepts; without the weights it
    names what is missing."""
    monkeypatch.chdir(tmp_path)
    assert run_command(["init", "my.toml"]).code == 0
    written = capsys.readouterr().out
    assert "streamadapt fit my.toml HISTORY" in written
    assert "streamadapt check my.toml" in written
    assert run_command(["init", "my.toml"]).code == 2
    assert "a file that does not exist yet, or --force" in capsys.readouterr().err
    assert run_command(["check", "my.toml"]).code == 2
    refused = capsys.readouterr().err
    assert "base.weights" in refused
    assert "streamadapt fit CONFIG HISTORY" in refused
    make_weights(tmp_path / "base.safetensors", window=6, channels=2)
    assert run_command(["check", "my.toml"]).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "my.toml"]


def test_the_template_names_only_what_exists():
    """The commented-out alternatives, too: uncommented, they are TOML."""
    text = files("streamadapt.app").joinpath("template.toml").read_text(encoding="utf-8")
    lines = [
        line[2:] if line.startswith("# ") and "=" in line and "`" not in line else line
        for line in text.splitlines()
    ]
    names = {line.split("=")[0].strip() for line in lines if "=" in line}
    assert {"group", "classes", "key"} <= names


PLUGIN = """
from streamadapt import Bias
class Third(Bias):
    kind = "third"
    @property
    def names(self):
        return ("third",)
def source(path, **anything):
    raise RuntimeError(f"third: {path} {sorted(anything)}")
"""


def test_a_third_party_kind_is_found(weights, tmp_path):
    """By its entry points, without a change to this package; its own errors get a path."""
    info = tmp_path / "third-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[streamadapt.learners]\nthird = third:Third\ngone = nowhere:Gone\n"
        "[streamadapt.sources]\nthird = third:source\n"
    )
    (tmp_path / "third.py").write_text(PLUGIN)
    text = text_of(weights).replace('kind = "bias"', 'kind = "third"')
    (tmp_path / "config.toml").write_text(text)
    code = (
        "from streamadapt.app.commands import run_command as r\n"
        "c = ['check', 'config.toml']\n"
        "print(r(c).code)\n"
        "print(r([*c, '--set', 'learners.0.kind=gone']).code)\n"
        "print(r([*c, '--set', 'source={kind=\"third\", path=\"p\", odd=1}']).code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.split("\n") == ["ok: experts base, third, rls-0.9995", "0", "2", "2", ""]
    first, second = done.stderr.splitlines()
    assert (
        "learners[0].kind: expected a kind that can be imported (No module named 'nowhere')"
        in first
    )
    assert "source: expected arguments that fit (RuntimeError: third: p ['odd'])" in second


def test_a_summary_adds_up_partitions():
    """Losses are weighted by cells, not by partition; a value that no partition knows is None."""
    one, two = Stats(), Stats()
    one.loss_sum, one.loss_cells = {"base": 6.0, "served": 3.0}, {"base": 3, "served": 3}
    two.loss_sum, two.loss_cells = {"base": 2.0, "served": 0.0}, {"base": 1, "served": 0}
    one.rejected["not_json"] = two.rejected["not_json"] = 2
    summary = summarise([one, two])
    assert (summary["frozen"], summary["served"]) == (2.0, 1.0)
    assert summary["dead_letters"] == {"not_json": 4}
    assert summarise([])["frozen"] is None


def test_the_same_config_makes_equal_pipelines(weights):
    """Every partition gets a pipeline of its own."""
    config = parse_config(text_of(weights))
    one, two = make_pipeline(config), make_pipeline(config)
    assert one.names == two.names
    assert one.learners[0] is not two.learners[0]
