"""Keys: each key has a whole pipeline of its own, in memory or evicted, with the same results."""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from core_helpers import KINDS, bits, pipeline_of, stream_of
from hypothesis import given, settings
from hypothesis import strategies as st
from states import assert_same_state

from streamadapt import (
    Bias,
    DriftMonitor,
    Entry,
    Forecast,
    Label,
    Persistence,
    Pipeline,
    Supervised,
)
from streamadapt.errors import CheckpointError, ConfigError, EntryError, Reason
from streamadapt.models.contract import as_base
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.pipeline.label_routes import Routes
from streamadapt.pipeline.panel import Panel
from streamadapt.state.key_store import DirectoryKeyStore, KeyStore
from streamadapt.state.pack import unpack
from streamadapt.state.tree import decode, encode

KEYS = [f"k{i}" for i in range(6)]


def keyed_streams(kind, n=16):
    """Return a stream of `stream_of` for each key, with unique ids."""
    streams = {}
    for i, key in enumerate(KEYS):
        items = stream_of(kind, n, seed=i)
        own = {"key": key}
        streams[key] = [
            replace(x, id=f"{key}-{x.id}", **(own if isinstance(x, Entry) else {})) for x in items
        ]
    return streams


def shuffled(streams, seed=0):
    """Return all items in one order that keeps each key's own order."""
    rng, left = random.Random(seed), {key: list(items) for key, items in streams.items()}
    order = []
    while any(left.values()):
        key = rng.choice([key for key in left if left[key]])
        order.append((key, left[key].pop(0)))
    return order


def state_of(keyed, key):
    """Return one key's own state, in memory or evicted."""
    return keyed._state_of(keyed._resident.get(key) or keyed._fetch(key))


def tree(keyed):
    return decode(*encode(keyed.state_dict()))


class MemoryKeyStore(KeyStore):
    """Keeps every state that was ever put, as the disk would; lists the calls."""

    def __init__(self):
        self.kept, self.calls, self.full = {}, [], False

    def begin(self, live):
        missing = set(live) - set(self.kept)
        if missing:
            raise CheckpointError(f"missing {missing}")

    def put(self, name, data):
        if self.full:
            raise CheckpointError("memory: cannot write: no space left")
        self.kept[name] = data
        return f"{len(self.kept):08x}"

    def get(self, name, checksum):
        return self.kept[name]

    def release(self, name):
        self.calls.append(f"release {name}")

    def sync(self):
        self.calls.append("sync")

    def checkpointed(self):
        self.calls.append("checkpointed")

    def close(self):
        """Nothing is open."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_has_the_bits_of_a_pipeline_of_its_own(kind, tmp_path):
    """Six keys in turn with room for two in memory: predictions and states, through files."""
    streams = keyed_streams(kind)
    alone = {key: pipeline_of(kind) for key in KEYS}
    wanted = {key: bits(alone[key].observe(streams[key])) for key in KEYS}
    keyed = KeyedPipeline(lambda: pipeline_of(kind), 2, DirectoryKeyStore(tmp_path))
    bits_by_key = {key: [] for key in KEYS}
    for key, item in shuffled(streams):
        bits_by_key[key] += bits(keyed.observe([item]))
        assert len(keyed.resident) <= 2
    assert bits_by_key == wanted
    assert keyed.stats.keys["evicted"] > 40
    assert keyed.stats.keys["forgotten"] == 0
    assert keyed.stats.keys["restored"] == keyed.stats.keys["evicted"] - 4
    # River's naive Bayes holds unseeded random numbers.
    for key in KEYS if kind != "classes" else ():
        state = alone[key].state_dict()
        del state["stats"]
        assert_same_state(state_of(keyed, key), state)
    assert len(list(tmp_path.iterdir())) == 4, "a key that came back leaves no file"


@pytest.mark.parametrize("kind", KINDS)
def test_the_statistics_are_those_of_all_keys(kind):
    """Summed: entries, labels, losses, pending."""
    streams = keyed_streams(kind)
    alone = [pipeline_of(kind) for _ in KEYS]
    for one, key in zip(alone, KEYS, strict=True):
        one.observe(streams[key])
    keyed = KeyedPipeline(lambda: pipeline_of(kind), 2, MemoryKeyStore())
    keyed.observe([item for _, item in shuffled(streams)])
    for name in ("entries", "predictions", "pending"):
        assert getattr(keyed.stats, name) == sum(getattr(one.stats, name) for one in alone)
    assert keyed.stats.labels == sum(
        (one.stats.labels for one in alone), start=type(keyed.stats.labels)()
    )
    for role, total in keyed.stats.loss_sum.items():
        assert total == pytest.approx(sum(one.stats.loss_sum[role] for one in alone), rel=1e-9)
        assert keyed.stats.loss_cells[role] == sum(one.stats.loss_cells[role] for one in alone)


def small():
    return Pipeline(Supervised(2, ttl=1000), lambda x: x[-1:, :1] + 1.0, [Bias(0.1)])


def small_items(orders):
    """Return entries and labels of keys in the given order: each key's n-th turn is its n-th
    item."""
    turns, items = dict.fromkeys("abcde", 0), []
    for time, key in enumerate(orders):
        n, turns[key] = turns[key], turns[key] + 1
        if n % 3 == 2:
            items.append(Label(f"{key}{n - 2}", np.array([float(time % 7)], np.float32), time))
        else:
            items.append(Entry(np.array([float(n), 1.0], np.float32), time, f"{key}{n}", key))
    return items


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from("abcde"), max_size=36), st.integers(1, 3), st.integers(0, 36))
def test_interleaving_grouping_and_restarts_change_no_bit(orders, max_keys, at):
    """Each key has the bits that it has alone; saved and loaded in the middle, polled one by one
    or at once, the state is the same."""
    items = small_items(orders)
    of = {x.id: x.key for x in items if isinstance(x, Entry)}
    alone = {key: small() for key in "abcde"}
    wanted = [bits(alone[of[item.id]].observe([item])) for item in items]
    with tempfile.TemporaryDirectory() as folder:
        one = KeyedPipeline(small, max_keys, DirectoryKeyStore(Path(folder) / "one"))
        assert [bits(one.observe([item])) for item in items] == wanted
        two = KeyedPipeline(small, max_keys, DirectoryKeyStore(Path(folder) / "two"))
        predictions = two.observe(items[:at])
        saved = tree(two)
        two = KeyedPipeline(small, max_keys, DirectoryKeyStore(Path(folder) / "two"))
        two.load_state_dict(saved)
        predictions += two.observe(items[at:])
        assert bits(predictions) == [b for one in wanted for b in one]
        assert_same_state(one.state_dict(), two.state_dict())
        assert len(one.resident) == min(max_keys, len(set(of.values())))


def test_a_refused_record_changes_nothing_in_memory_or_store():
    """Neither the order of use nor the stored keys change; a flood of bad keys evicts no key."""
    store = MemoryKeyStore()
    keyed = KeyedPipeline(small, 2, store)
    keyed.observe(small_items("aabbcc"))
    before, calls, kept = keyed.state_dict(), list(store.calls), set(store.kept)
    wide = [Entry(np.zeros(7, np.float32), 99, f"x{i}", f"new-{i}") for i in range(5)]
    bad = [
        *wide,
        Entry(np.full(2, np.inf, np.float32), 99, "y", "a"),
        Label("nobody", np.zeros(1, np.float32), 5),
    ]
    refused = []
    keyed.on_rejected = lambda item, error: refused.append(error.reason)
    keyed.observe([Entry(np.zeros(0, np.float32), 99, f"x{i}", f"new-{i}") for i in range(5)])
    assert keyed.observe(bad[5:]) == []
    assert refused == [Reason.WRONG_WIDTH] * 5 + [Reason.NOT_FINITE, Reason.UNKNOWN_LABEL]
    assert keyed.stats.rejected == {"wrong_width": 5, "not_finite": 1, "unknown_label": 1}
    after = keyed.state_dict()
    for state in (before, after):
        state["stats"].pop("rejected")
    assert_same_state(before, after)
    assert (store.calls[: len(calls)], set(store.kept)) == (calls, kept)
    with pytest.raises(EntryError):
        KeyedPipeline(small, 2).observe(bad[6:])


def test_labels_find_their_key_by_id_and_ids_must_differ_among_keys():
    """A label has no key: two keys with the same id would be ambiguous."""
    keyed = KeyedPipeline(small, 1, MemoryKeyStore())
    keyed.observe(small_items("aaabb"))
    assert keyed.resident == ["b"]
    with pytest.raises(EntryError, match="another key") as caught:
        keyed.observe([Entry(np.zeros(2, np.float32), 9, "a0", "b")])
    assert caught.value.reason is Reason.DUPLICATE_ID
    keyed.observe([Label("a1", np.ones(1, np.float32), 9)])
    assert keyed.resident == ["a"]
    assert keyed.stats.labels == {"unpredicted": 1, "learned": 1}
    assert keyed.stats.pending == 1
    with pytest.raises(EntryError, match="duplicate_label"):
        keyed.observe([Label("a1", np.ones(1, np.float32), 9)])


def test_forecasts_take_no_labels_and_repeat_ids_as_they_like():
    """A task without joins keeps no ids."""
    keyed = KeyedPipeline(lambda: Pipeline(Forecast(2, 1), Persistence(1), [Bias(0.1)]), 2)
    keyed.observe([Entry(np.ones(1, np.float32), t, "", "ab"[t % 2]) for t in range(10)])
    with pytest.raises(EntryError, match="unknown_label"):
        keyed.observe([Label("", np.ones(1, np.float32), 9)])
    assert keyed.state_dict()["routes"] is None


def test_predict_changes_nothing():
    """`predict` reads an evicted key without moving it."""
    keyed = KeyedPipeline(small, 1, MemoryKeyStore())
    alone = small()
    for item in small_items("aabbaab"):
        keyed.observe([item])
        if getattr(item, "key", None) == "a" or item.id == "a0":
            alone.observe([item])
    before = keyed.state_dict()
    question = Entry(np.array([5.0, 1.0], np.float32), 50, "q", "a")
    assert keyed.resident == ["b"]
    assert bits([keyed.predict(question)]) == bits([alone.predict(question)])
    assert_same_state(before, keyed.state_dict())
    with pytest.raises(ConfigError, match="a window that is full"):
        keyed.predict(replace(question, key="new"))
    assert_same_state(before, keyed.state_dict())


def test_without_a_store_evicted_keys_are_forgotten_and_counted():
    """Memory is bounded all the same; labels of a forgotten key are unknown."""
    keyed = KeyedPipeline(small, 1)
    keyed.observe(small_items("aabb"))
    assert keyed.resident == ["b"]
    assert keyed.stats.keys == {"resident": 1, "stored": 0, "forgotten": 1}
    assert keyed.stats.pending == 1
    with pytest.raises(EntryError, match="unknown_label"):
        keyed.observe([Label("a1", np.zeros(1, np.float32), 4)])
    assert len(tree(keyed)["resident"]) == 1


def test_the_number_of_evicted_keys_is_bounded_too():
    """Beyond `max_stored` the least recently used key is forgotten, and its state is released."""
    store = MemoryKeyStore()
    keyed = KeyedPipeline(small, 1, store, max_stored=2)
    keyed.observe(small_items("abcd"))
    assert keyed.stats.keys == {"resident": 1, "stored": 2, "evicted": 3, "forgotten": 1}
    assert store.calls == ["release 000000000001"]
    keyed.observe([Entry(np.zeros(2, np.float32), 9, "again", "a")])
    assert keyed.stats.keys["restored"] == 0


def test_a_full_store_is_an_error_and_a_restart_goes_on():
    """Nothing refers to a state that was not written."""
    store = MemoryKeyStore()
    items = small_items("abcabcab")
    keyed = KeyedPipeline(small, 2, store)
    keyed.observe(items[:3])
    saved = tree(keyed)
    store.full = True
    with pytest.raises(CheckpointError, match="no space left"):
        keyed.observe(items[3:])
    store.full = False
    again, undisturbed = KeyedPipeline(small, 2, store), KeyedPipeline(small, 2, MemoryKeyStore())
    again.load_state_dict(saved)
    again.observe(items[3:])
    undisturbed.observe(items)
    for keyed in (again, undisturbed):
        keyed.store.sync()
    states = [keyed.state_dict() for keyed in (again, undisturbed)]
    for state in states:
        state["stored"].pop("checksums")  # this store's checksums are only counts
    assert_same_state(*states)


def test_a_state_of_keys_needs_its_store_and_its_experts():
    """An error before anything is predicted."""
    keyed = KeyedPipeline(small, 1, MemoryKeyStore())
    keyed.observe(small_items("ab"))
    saved = tree(keyed)
    with pytest.raises(CheckpointError, match="give the store"):
        KeyedPipeline(small, 1).load_state_dict(saved)
    with pytest.raises(CheckpointError, match="missing"):
        KeyedPipeline(small, 1, MemoryKeyStore()).load_state_dict(saved)
    with pytest.raises(CheckpointError, match="experts"):
        KeyedPipeline(lambda: pipeline_of("forecast"), 1, MemoryKeyStore()).load_state_dict(saved)
    with pytest.raises(CheckpointError, match="experts"):
        keyed.load_state_dict(small().state_dict())


def test_one_frozen_base_for_all_keys():
    """The base is never copied, even if every pipeline was made with a base of its own."""
    module = torch.nn.Linear(2, 1)
    base = as_base(module)
    for make in (
        lambda: Pipeline(Supervised(1), base, [Bias(0.1)]),
        lambda: Pipeline(Supervised(1), module, [Bias(0.1)]),
    ):
        keyed = KeyedPipeline(make, 2, MemoryKeyStore())
        keyed.observe([Entry(np.zeros(2, np.float32), t, str(t), "abc"[t % 3]) for t in range(9)])
        assert {id(one.base) for one in keyed._resident.values()} == {id(keyed.base)}
        assert all(one.spec.model is keyed.base for one in keyed._resident.values())


def test_drifts_and_reactions_are_counted_for_all():
    """There is a monitor per key; the counts are summed over keys."""

    def make():
        return Pipeline(
            Forecast(3, 2),
            Persistence(2),
            [Bias(0.1)],
            drift=[DriftMonitor("adwin", "loss", "boost")],
        )

    rng = np.random.default_rng(0)
    keyed = KeyedPipeline(make, 2, MemoryKeyStore())
    for block in range(10):
        for key in "abc":
            values = rng.normal(size=(20, 2)).astype(np.float32) * (20.0 if block > 5 else 1.0)
            keyed.observe(
                [Entry(value, 20 * block + t, "", key) for t, value in enumerate(values)]
            )
    assert keyed.stats.drifts["adwin:loss"] >= 3
    assert keyed.stats.reactions["boost"] >= 3


@pytest.mark.parametrize(
    ("given_", "path"),
    [({"max_keys": 0}, "keys.max_keys"), ({"max_stored": 0}, "keys.max_stored")],
)
def test_a_wrong_setting_is_named_with_its_path(given_, path):
    """The error names the setting's path."""
    with pytest.raises(ConfigError) as caught:
        KeyedPipeline(small, **given_)
    assert caught.value.path == path


def test_keys_and_a_panel_exclude_each_other():
    """In a panel a key is a sensor."""
    with pytest.raises(ConfigError, match="panel"):
        KeyedPipeline(lambda: Pipeline(Forecast(2, 1), Persistence(1), panel=Panel(max_sensors=2)))


# -- ids


def test_ids_expire_by_their_own_keys_clock():
    """After twice the time-to-live; a key far ahead expires no other key's ids; the number of ids
    is bounded."""
    newest = {"slow": 0, "fast": 0}
    routes = Routes(ttl=10, most=5)
    routes.add("s", "slow", 0, newest.get)
    newest["fast"] = 10**9
    routes.add("f", "fast", 10**9, newest.get)
    assert routes.find("s", newest.get) == "slow"
    newest["slow"] = 21
    assert routes.find("s", newest.get) is None
    assert routes.find("f", newest.get) == "fast"
    for i in range(20):
        routes.add(f"f{i}", "fast", 10**9, newest.get)
        assert len(routes) <= 5
    again = Routes(10, 5)
    again.load_state_dict(decode(*encode(routes.state_dict())))
    assert_same_state(again.state_dict(), routes.state_dict())
    assert routes.find("f19", {}.get) is None, "the key was forgotten"


def test_unchanged_keys_are_not_packed_again():
    """A checkpoint costs as much as changed since the last one, and its content is never stale."""
    keyed = KeyedPipeline(small, 4, MemoryKeyStore())
    keyed.observe(small_items("aabbccdd"))
    first = dict(keyed.state_dict()["resident"])
    keyed.observe([Entry(np.zeros(2, np.float32), 9, "b9", "b")])
    second = dict(keyed.state_dict()["resident"])
    assert {key for key in second if second[key] is not first[key]} == {"b"}
    for key in "abcd":
        assert_same_state(unpack(second[key].tobytes()), keyed._state_of(keyed._resident[key]))


def test_the_least_recently_used_key_is_evicted():
    """An entry or a label is a use; a question or a refused record is not."""
    keyed = KeyedPipeline(small, 3, MemoryKeyStore())
    keyed.observe(small_items("aaabbcb"))  # the third item of each key is a label
    assert keyed.resident == ["a", "c", "b"]
    keyed.observe([Entry(np.zeros(2, np.float32), 9, "a9", "a")])
    with pytest.raises(EntryError):
        keyed.observe([Entry(np.zeros(3, np.float32), 9, "c9", "c")])
    keyed.predict(Entry(np.zeros(2, np.float32), 9, "b9", "b"))
    assert keyed.resident == ["c", "b", "a"]
    keyed.observe([Entry(np.zeros(2, np.float32), 9, "d9", "d")])
    assert keyed.resident == ["b", "a", "d"]
