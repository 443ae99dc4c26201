"""A config that does not match its checkpoint: the error names the changed settings, and no
secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamadapt.config.digest import ConfigDigest, changes
from streamadapt.errors import CheckpointError
from streamadapt.records import StreamPartition
from streamadapt.state.store import CheckpointStore

BEFORE = {
    "learners": [{"kind": "bias", "rate": 0.1}, {"kind": "rls"}],
    "seed": 0,
    "fields": {"values": ["x", "y"]},
}
AT = {StreamPartition("t", 0): 1}


def test_the_error_names_the_changed_settings(tmp_path):
    now = {
        "learners": [{"kind": "bias", "rate": 0.2}, {"kind": "river", "model": "m"}],
        "seed": 0,
        "fields": {"values": ["x"]},
    }
    with CheckpointStore(tmp_path) as store:
        store.save({"n": 1}, AT, config_digest=ConfigDigest(BEFORE), summary={})
        assert store.load_latest(ConfigDigest(dict(reversed(BEFORE.items())))).state == {"n": 1}
        with pytest.raises(CheckpointError) as caught:
            store.load_latest(ConfigDigest(now))
    assert "learners[0].rate: 0.1 -> 0.2" in str(caught.value)
    assert "learners[1].kind: 'rls' -> 'river'" in str(caught.value)
    assert "learners[1].model: not set -> 'm'" in str(caught.value)
    assert "fields.values: ['x', 'y'] -> ['x']" in str(caught.value)
    assert "seed" not in str(caught.value).replace("guarantee", "")


def test_for_an_older_checkpoint_the_error_only_reports_a_difference(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save({"n": 1}, AT, config_digest="0123", summary={})
        with pytest.raises(
            CheckpointError,
            match=r"written with configuration 0123, but this one is \w+; the learned",
        ):
            store.load_latest(ConfigDigest(BEFORE))


def test_no_secret_is_kept():
    digest = ConfigDigest(
        {"base": {"kind": "remote", "token": "hunter2", "auth": {"password": "hunter2"}}}
    )
    assert "hunter2" not in str(digest.settings)
    assert digest != ConfigDigest(
        {"base": {"kind": "remote", "token": "hunter3", "auth": {"password": "hunter2"}}}
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)
tables = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


@given(tables, tables)
def test_a_changed_setting_is_found_whenever_the_digests_differ(one, two):
    before, now = ConfigDigest(one), ConfigDigest(two)
    assert (before == now) or changes(before.settings, now.settings)
    assert changes(before.settings, before.settings) == []
