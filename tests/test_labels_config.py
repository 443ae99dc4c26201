"""The settings of labels in a config, and the label request in a written prediction."""

from __future__ import annotations

import json

import numpy as np
import pytest
from config_cases import make_weights, text_of
from streamadapt_connectors.codecs import encode_prediction

from streamadapt import Entry, Supervised
from streamadapt.build import make_pipeline, make_task
from streamadapt.config.tables import parse_config
from streamadapt.errors import ConfigError


@pytest.fixture
def text(tmp_path):
    return text_of(make_weights(tmp_path / "base.safetensors"))


def test_a_config_has_a_budget_and_durations(text):
    pipeline = make_pipeline(
        parse_config(
            text + "[labels]\nrate = 0.05\nfloor = 0.5\n", settings=["task.correction_window=2s"]
        )
    )
    budget = pipeline.label_requests.budget
    assert (budget.rate, budget.floor) == (0.05, 0.5)
    assert pipeline.task.correction_window == 2 * 10**9
    task = make_task(
        {"kind": "supervised", "classes": 2, "negative_after": "5m", "ttl": "7d", "absurd": 30}
    )
    assert isinstance(task, Supervised)
    assert task.negative_after == 300 * 10**9
    assert task.absurd.limit == 30.0


@pytest.mark.parametrize(
    ("more", "path"),
    [("[labels]\nrate = 2.0\n", "labels.rate"), ("[labels]\nrat = 0.1\n", "labels.rat"),
     ("[labels]\nfloor = 0.0\n", "labels.floor")],
)  # fmt: skip
def test_a_bad_budget_is_named(text, more, path):
    with pytest.raises(ConfigError) as caught:
        make_pipeline(parse_config(text + more))
    assert caught.value.path == path


@pytest.mark.parametrize(
    "setting", ["task.correction_window=2", "task.negative_after=soon", "task.negative_after=5s"]
)
def test_a_bad_duration_is_named(text, setting):
    with pytest.raises(ConfigError, match=r"task\.(correction_window|negative_after|classes)"):
        make_pipeline(parse_config(text, settings=[setting]))


def test_a_budget_changes_the_digest_and_its_absence_does_not(text):
    plain, asked = parse_config(text), parse_config(text + "[labels]\nrate = 0.05\n")
    assert plain.digest() != asked.digest()
    assert plain.digest() == parse_config(text).digest()


def test_label_requests_are_written(text):
    pipeline = make_pipeline(parse_config(text + "[labels]\nrate = 0.5\n"))
    plain = make_pipeline(parse_config(text))
    entries = [
        Entry(np.array([t, 1.0], np.float32), t, str(t), label=np.ones(1, np.float32))
        for t in range(12)
    ]
    asked = [json.loads(encode_prediction(p)) for p in pipeline.observe(entries)]
    assert {p["ask"] for p in asked} == {True, False}
    assert all(0.0 < p["ask_probability"] <= 1.0 for p in asked)
    assert "estimated_loss" not in asked[0]
    assert asked[-1]["estimated_loss"] >= 0.0
    assert not any("ask" in json.loads(encode_prediction(p)) for p in plain.observe(entries))
