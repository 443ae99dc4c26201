"""Renamed config keys and arguments: both names work, the old one warns, and earlier checkpoints
can be resumed."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from streamadapt import DriftMonitor, ErrorMemory, Liquid, Supervised
from streamadapt.app.commands import run_command
from streamadapt.app.config_keys import find_tables
from streamadapt.build import check_config, make_pipeline, make_task
from streamadapt.config.digest import changes
from streamadapt.config.overrides import variable_of
from streamadapt.config.renamed import RENAMED
from streamadapt.config.tables import load_config, parse_config
from streamadapt.errors import ConfigError
from streamadapt.state.store import CheckpointStore

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("golden_renamed", GOLDEN / "renamed.py")
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)
OLD = golden.OLD
PLACES = {
    "task.settle": "correction_window",
    "learners[0].lam": "strength",
    "learners[0].floor": "min_entries",
    "learners[1].late": "max_label_delay",
    "learners[2].learner.lam": "strength",
    "drift[0].keep": "keep_fraction",
    "drift[1].trial": "refit_trial",
}
"""Every old name in `OLD`, with its new name."""
NEW = OLD
for _path, _name in PLACES.items():
    NEW = re.sub(rf"\b{_path.rpartition('.')[2]} = ", f"{_name} = ", NEW)
MADE = {
    "drift": (DriftMonitor, {"keep": 0.5, "trial": 7}),
    "learners.error_memory": (ErrorMemory, {"lam": 0.5, "floor": 7.0}),
    "learners.liquid": (Liquid, {"late": 7}),
    "task.supervised": (Supervised, {"settle": 7}),
}
ALIASES = [(table, old, new) for table, names in RENAMED.items() for old, new in names.items()]


def parsed(text, **more):
    """Return a config, and its warnings."""
    lines = []
    return parse_config(text, warn=lines.append, **more), lines


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the config names, and an earlier checkpoint."""
    shutil.copytree(GOLDEN / "renamed", tmp_path, dirs_exist_ok=True)
    rows = "".join(f"{i},{i}.0,{i}.0,1.0,e{i}\n" for i in range(20))
    (tmp_path / "entries.csv").write_text("time,a,b,y,id\n" + rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- in a config


def test_every_alias_is_tried_here():
    assert {(p.split(".")[0].split("[")[0], new) for p, new in PLACES.items()} == {
        (table.split(".")[0], new) for table, _, new in ALIASES
    }
    assert {(table, old) for table, (_, given) in MADE.items() for old in given} == {
        (table, old) for table, old, _ in ALIASES
    }


def test_old_names_warn_once_each_with_the_path_and_the_new_name():
    config, lines = parsed(OLD, settings=["task.settle=5s"])
    assert config == parsed(NEW)[0]
    assert lines == [
        f"{path}: {path.rpartition('.')[2]} was renamed to {new}; the old name stops working in "
        f"the next release"
        for path, new in PLACES.items()
    ]
    assert parsed(NEW)[1] == []
    with pytest.warns(FutureWarning) as caught:
        parse_config(OLD)
    assert [str(one.message) for one in caught] == lines


@pytest.mark.parametrize("path", PLACES)
def test_both_names_are_an_error(path):
    old, new = path.rpartition(".")[2], PLACES[path]
    within = path.count(".") > 1
    pattern, between = (rf", ({old} = .*?), ", ", ") if within else (rf"(?m)^({old} = .*)$", "\n")
    line = re.search(pattern, OLD)[1]
    text = OLD.replace(line, f"{line}{between}{line.replace(old, new)}", 1)
    with pytest.raises(ConfigError, match=f"either {new} or its old name {old}") as caught:
        parsed(text)
    assert caught.value.path == f"{path.rpartition('.')[0]}.{new}"


def test_the_environment_and_the_command_line_override_either_spelling():
    variables = {
        "STREAMADAPT__TASK__SETTLE": "6s",
        "STREAMADAPT__LEARNERS__0__LAM": "0.6",
        "STREAMADAPT__DRIFT__0__KEEP_FRACTION": "0.6",
    }
    for text in (OLD, NEW):
        config, lines = parsed(text, environment=variables, settings=["learners.0.strength=0.7"])
        assert config.task["correction_window"] == "6s"
        assert config.drift[0]["keep_fraction"] == 0.6
        assert config.learners[0]["strength"] == 0.7
        assert len([line for line in lines if line.startswith("task.settle: ")]) == 1
        config, _ = parsed(text, environment=variables, settings=["learners.0.lam=0.8"])
        assert config.learners[0]["strength"] == 0.8
    both = {**variables, "STREAMADAPT__TASK__CORRECTION_WINDOW": "7s"}
    with pytest.raises(ConfigError, match="either correction_window or its old name"):
        parsed(NEW, environment=both)
    assert variable_of("task.correction_window", variables) == "STREAMADAPT__TASK__SETTLE"
    assert variable_of("learners[0].strength", variables) == "STREAMADAPT__LEARNERS__0__LAM"
    assert variable_of("task.window", variables) is None


def test_the_kind_may_follow_the_old_name():
    text = OLD.replace('kind = "liquid"\n', "")
    config, _ = parsed(text, environment={"STREAMADAPT__LEARNERS__1__KIND": "liquid"})
    assert config == parsed(NEW)[0]


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ('[[learners]]\nkind = "bias"\nlam = 1.0\n', "learners[3].lam"),
        ("[labels]\nlam = 0.5\n", "labels.lam"),
        ('[[learners]]\nkind = "liquid"\nkeep = 1\n', "learners[3].keep"),
    ],
)
def test_other_tables_have_no_old_names(folder, more, path):
    """`floor` of [labels] and `keep` of [checkpoint] were not renamed."""
    with pytest.raises(ConfigError) as caught:
        check_config(parsed(NEW + more)[0])
    assert caught.value.path == path
    config, lines = parsed(NEW + "keep = 5\n[labels]\nfloor = 0.5\n")
    assert (config.checkpoint.keep, config.labels.floor, lines) == (5, 0.5, [])


def test_names_inside_passed_on_options_are_unchanged():
    text = NEW + '[[drift]]\ndetector = "adwin"\nparams = { keep = 1, trial = 2 }\n'
    config, lines = parsed(text)
    assert config.drift[2]["params"] == {"keep": 1, "trial": 2}
    assert lines == []
    assert "drift[2].params.keep" in config.digest().settings


@pytest.mark.parametrize("broken", ["setle", "correction_windw"])
def test_a_misspelled_old_name_suggests_the_new_one(broken):
    with pytest.raises(ConfigError, match="did you mean 'correction_window'") as caught:
        make_task({"kind": "supervised", broken: "5s"})
    assert "settle" not in caught.value.expected


# -- checkpoints


def test_the_digest_equals_that_of_the_old_names():
    manifest = json.loads((GOLDEN / "renamed/state/000000000001/manifest.json").read_text())
    base = {"kind": "linear", "weights": str(GOLDEN / "renamed" / "base.safetensors")}
    for text in (OLD, NEW):
        config, _ = parsed(text.replace("base.safetensors", base["weights"]))
        assert config.digest() == manifest["config_digest"]
        assert config.digest().settings == manifest["config"]
    other = parsed(NEW.replace("strength = 0.4", "strength = 0.5"))[0]
    (line,) = [c for c in changes(manifest["config"], other.digest().settings) if "base" not in c]
    assert line == "learners[0].strength: 0.4 -> 0.5"


@pytest.mark.parametrize("text", [OLD, NEW], ids=["old", "new"])
def test_an_earlier_checkpoint_can_be_resumed(text, folder):
    config, _ = parsed(text)
    pipeline = make_pipeline(config)
    assert pipeline.names[1:] == [
        "error-memory-lam0.4-capacity20-floor5",
        "liquid-cfc-4",
        "dictionary-error-memory-lam0.5-capacity10",
    ], "checkpoints and metrics contain names of experts"
    pipeline.load_state_dict(CheckpointStore(folder / "state").load_latest(config.digest()).state)
    found = golden.predict_all(pipeline, golden.items()[golden.BEFORE :])
    wanted = json.loads((folder / "expected.json").read_text())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


# -- in Python


@pytest.mark.parametrize(("table", "old", "new"), ALIASES)
def test_old_arguments_work_and_warn(table, old, new):
    cls, given = MADE[table]
    with pytest.warns(DeprecationWarning, match=f"{old} was renamed to {new}") as caught:
        made = cls(**{old: given[old]})
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name], (
        "the warning points to the caller's line"
    )
    assert getattr(made, new) == given[old]
    assert repr(made) == repr(cls(**{new: given[old]}))
    assert f"{new}=" in repr(made)
    assert old not in inspect.signature(cls).parameters
    with pytest.raises(ConfigError, match=f"either {new} or its old name {old}"):
        cls(**{old: given[old], new: given[old]})


def test_a_subclass_may_have_an_argument_of_the_old_name():
    class Mine(DriftMonitor):
        def __init__(self, keep: str) -> None:
            super().__init__(keep_fraction=0.5)
            self.mine = keep

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert repr(Mine(keep="x")).endswith("Mine(keep='x')")


# -- on the command line, and the page


@pytest.mark.parametrize(("table", "old", "new"), ALIASES)
def test_the_page_names_the_old_name(table, old, new):
    keys = {key.name: key for found in find_tables(table) for key in found.keys}
    assert keys[new].meaning.endswith(f"Old name: `{old}`.")
    assert old not in keys


def test_check_warns_of_each_old_name(folder, capsys):
    Path("old.toml").write_text(OLD)
    Path("new.toml").write_text(NEW)
    assert run_command(["check", "old.toml"]).code == 0
    output = capsys.readouterr().err
    for path, new in PLACES.items():
        assert output.count(f"warning: {path}: ") == 1
        assert f"renamed to {new}" in output
    assert run_command(["check", "old.toml", "--json"]).code == 0
    assert len(json.loads(capsys.readouterr().out)["warnings"]) == len(PLACES)
    assert run_command(["check", "new.toml"]).code == 0
    assert "warning" not in capsys.readouterr().err
    Path("old.toml").write_text(OLD.replace('"5s"', "5"))
    assert run_command(["check", "old.toml"]).code == 2
    output = capsys.readouterr().err
    assert output.index("task.settle: settle was renamed") < output.index(
        "task.correction_window: "
    )


def test_a_file_with_old_names_is_loaded_with_warnings(folder):
    Path("old.toml").write_text(OLD)
    with pytest.warns(FutureWarning) as caught:
        assert load_config(Path("old.toml"), {}) == parsed(NEW)[0]
    assert len(caught) == len(PLACES)
