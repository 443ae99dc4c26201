"""The present code predicts what the golden files recorded, and goes on from their checkpoints.

The files are those of the code whose commits `tests/parity/files/manifest.json` names.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import entry_points

import numpy as np
import pytest
from parity import files, tolerances
from parity.all_cases import CASES
from parity.comparing import differences, farness, replayed
from parity.files import FOLDER, load, unpack
from parity.guard_cases import SCOPES
from parity.machine import machine
from parity.recording import record
from parity.streams import digest

from streamadapt import KeyedPipeline
from streamadapt.drift.detectors import DETECTORS
from streamadapt.learners.defaults import default_learners

MADE = json.loads(files.MANIFEST.read_text())
QUICK = [name for name, case in CASES.items() if case.quick]
SLOW = [name for name in CASES if name not in QUICK]


EXPLAINED = {"classes-broken": ("counts", "updates", "loss_sum")}
"""A million that is added to the log odds of every class changes no probability. The old bias was
a float32, which lost its digits there, so that health saw one break more."""


ON_TORCH = ("network", "unlabelled", "adcsd", "liquid", "refits", "default")
"""Cases whose learners train networks: torch chooses its sums by the processor."""


def _compare(name, folder):
    if MADE["machine"] != machine() and any(word in name for word in ON_TORCH):
        pytest.skip("its networks give other last bits on another processor")
    wanted, found = replayed(CASES[name], folder)
    lines = differences(wanted, found, tolerances.table_for(name))
    return [line for line in lines if not line.startswith(EXPLAINED.get(name, ("never",)))]


@pytest.mark.parametrize("name", QUICK)
def test_a_checkpoint_goes_on_as_recorded(name, tmp_path):
    assert _compare(name, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_checkpoint_goes_on_as_recorded(name, tmp_path):
    assert _compare(name, tmp_path) == []


def test_the_files_are_those_of_one_code():
    """No file is missing, was made by other code, or was changed since."""
    stated = MADE["files"]
    assert all(len(made["commit"]) == 40 for made in stated.values()), "uncommitted changes"
    assert len({made["streamadapt"] for made in stated.values()}) == 1, "of different code"
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FOLDER.iterdir()
        if path != files.MANIFEST
    }
    assert found == {name: made["sha256"] for name, made in stated.items()}
    assert {f"{name}.zip" for name in CASES} == {name for name in found if name.endswith("zip")}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6_000_000


# -- what the cases cover


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    made = {}
    for name, case in CASES.items():
        pipeline = case.make(tmp_path_factory.mktemp("keys"))
        made[name] = pipeline.template if isinstance(pipeline, KeyedPipeline) else pipeline
    return made


NEWER = {"logistic"}
"""Kinds of learners that the code which wrote the files did not have."""


def test_every_learner_has_a_case_with_every_task(pipelines):
    found = {
        (learner.kind, pipeline.task.kind)
        for pipeline in pipelines.values()
        for learner in pipeline.learners
    }
    for entry in entry_points(group="streamadapt.learners"):
        if entry.value.startswith("streamadapt."):
            for kind in entry.load().kinds:
                assert (entry.name, kind) in found or entry.name in NEWER


def test_every_learner_without_labels_has_a_case_without_labels(pipelines):
    found = {
        learner.kind
        for name, pipeline in pipelines.items()
        for learner in pipeline.learners
        if not pipeline.task.labelled
    }
    assert found == {"tent", "eata", "per_entry", "dictionary", "liquid"}


def test_every_guard_has_a_case_with_every_task_and_scope(pipelines):
    found = {
        (pipeline.guard.kind, pipeline.task.kind, getattr(pipeline.guard, "scope", ""))
        for pipeline in pipelines.values()
    }
    for task in ("forecast", "regression", "classification"):
        assert {("mean", task, ""), ("none", task, "")} <= found
        assert {(guard, task, scope) for guard in ("two-layer", "hedge") for scope in SCOPES} <= (
            found
        )


def test_every_detector_and_reaction_has_a_case(pipelines):
    monitors = [m for p in pipelines.values() for m in p.monitors.drift_monitors]
    assert {m.detector for m in monitors} == set(DETECTORS)
    assert {m.reaction for m in monitors} == {"alert", "boost", "forget", "reset", "refit"}


def test_the_default_sets_have_their_cases(pipelines):
    """Those that are still the same: that of classification is newer than the files."""
    for name, kind in (("forecast", "forecast"), ("one", "regression")):
        names = [expert for learner in default_learners(kind) for expert in learner.names]
        assert pipelines[f"{name}-default"].names[1:] == names


FACTS = {
    **{f"one-drift-{reaction}": "reactions" for reaction in ("boost", "forget", "reset", "refit")},
    **{f"{task}-forget-all": "reactions" for task in ("forecast", "two", "classes")},
    **{f"{task}-boost-all": "drifts" for task in ("forecast", "two", "classes")},
    "one-budget": "asked",
}


@pytest.mark.parametrize("name", FACTS)
def test_something_happens_after_the_checkpoint(name, tmp_path):
    """A drift, a reaction, a request, a refused label: otherwise the case would show nothing."""
    assert unpack(FOLDER / f"{name}.zip", tmp_path).facts[FACTS[name]]


def test_every_detector_fires_after_the_checkpoint(tmp_path):
    drifts = unpack(FOLDER / "one-drift-alert.zip", tmp_path).facts["drifts"]
    found = {name.partition(":")[0] for _, *names in drifts for name in names}
    assert found == set(DETECTORS)


COUNTS = {
    "one-broken": ("updates", "breaking-0.1", "restored"),
    "forecast-broken": ("updates", "breaking-0.1", "restored"),
    "one-corrections": ("counts", "labels", "corrected"),
    "clicks": ("counts", "labels", "turned"),
    "one-wild": ("counts", "labels", "absurd"),
    "two-simple": ("counts", "labels", "partial"),
    "forecast-wild": ("totals", "absurd"),
    "one-keys-2": ("counts", "keys", "restored"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_what_a_case_is_about_was_counted(name, tmp_path):
    found = unpack(FOLDER / f"{name}.zip", tmp_path).facts
    for key in COUNTS[name]:
        found = found[key]
    assert found > 0


def test_streams_are_the_recorded_ones(tmp_path):
    """On every machine: only then do differences say something about the code."""
    for name in (
        "forecast-simple",
        "two-simple",
        "classes-simple",
        "network-tent",
        "panel",
        "clicks",
    ):
        stream = unpack(FOLDER / f"{name}.zip", tmp_path / name).facts["stream"]
        before, after = CASES[name].parts()
        assert stream == digest([*before, *after])


# -- the comparison finds what it must find


def test_a_learner_with_another_rate_is_found(tmp_path):
    """Of one learner alone: the others and the base are the same."""
    case = CASES["one-simple"]
    wanted = unpack(FOLDER / "one-simple.zip", tmp_path)
    wanted.facts.pop("stream")
    pipeline = load(case, tmp_path)
    bias = pipeline.learners[0]
    settings = bias.settings(bias.spec)
    settings.rate[1] *= 1.005
    bias.settings = lambda spec: settings
    bias._bind()
    found = record(pipeline, case.parts()[1])
    lines = differences(wanted, found, tolerances.PARITY)
    experts = [line.split()[0] for line in lines if line.startswith("expert:")]
    assert experts == ["expert:bias-0.02"]
    assert any(line.startswith("served") for line in lines)


@pytest.mark.parametrize(
    ("column", "size", "allowed"),
    [
        ("expert:rls-0.9", 5e-7, True),
        ("expert:rls-0.9", 2e-6, False),
        ("expert:adcsd", 5e-5, True),
        ("expert:adcsd", 2e-4, False),
        ("served", 5e-6, True),
        ("served", 2e-5, False),
        ("weights", 2e-5, False),
        ("expert:error-memory", 2e-6, False),
    ],
)
def test_a_small_difference_is_judged_by_the_table(column, size, allowed, tmp_path):
    wanted = unpack(FOLDER / "forecast-default.zip", tmp_path)
    wanted.facts["names"] = [*wanted.facts["names"], "rls-0.9"]
    wanted.arrays["expert:rls-0.9"] = wanted.arrays["expert:rls-0.998"]
    found = unpack(FOLDER / "forecast-default.zip", tmp_path / "again")
    found.facts["names"] = wanted.facts["names"]
    found.arrays["expert:rls-0.9"] = wanted.arrays["expert:rls-0.9"].copy()
    assert differences(wanted, found, tolerances.EXACT) == []
    found.arrays[column] = found.arrays[column] + size * np.maximum(
        np.abs(found.arrays[column]), 1.0
    )
    assert (differences(wanted, found, tolerances.PARITY) == []) == allowed
    assert len(differences(wanted, found, tolerances.EXACT)) == 1


def test_a_rare_other_choice_is_allowed_and_a_frequent_one_is_not(tmp_path):
    wanted = unpack(FOLDER / "two-stores.zip", tmp_path)
    found = unpack(FOLDER / "two-stores.zip", tmp_path / "again")
    column = next(name for name in found.arrays if name.startswith("expert:error-memory"))
    for count, allowed in ((1, True), (3, False)):
        found.arrays[column][:count] += 1.0
        assert (differences(wanted, found, tolerances.PARITY) == []) == allowed


@pytest.mark.parametrize("fact", ["drifts", "asked", "names", "ids", "counts", "totals"])
def test_another_decision_is_found(fact, tmp_path):
    wanted = unpack(FOLDER / "one-budget.zip", tmp_path)
    found = unpack(FOLDER / "one-budget.zip", tmp_path / "again")
    found.facts[fact] = None
    assert [line.partition(":")[0] for line in differences(wanted, found, tolerances.PARITY)] == [
        fact
    ]


def test_a_number_that_became_nan_is_infinitely_far():
    one, two = np.array([1.0, np.nan, np.nan, np.inf]), np.array([np.nan, 1.0, np.nan, np.inf])
    assert farness(one, two, 1.0).tolist() == [np.inf, np.inf, 0.0, 0.0]


def test_a_value_near_zero_is_compared_with_the_error_of_the_base():
    assert farness(np.zeros(1), np.full(1, 1e-7), 0.5).tolist() == [2e-7]
