"""Checkpoints in object stores: complete or absent without a rename, and owned by the newest
process without a lock."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from fault_counts import IN_FULL
from hypothesis import given, settings
from hypothesis import strategies as st
from object_stores import FailingFileSystem, fresh
from streamadapt_connectors.object_folder import ObjectFolder, _FileSystem
from test_checkpoint import ARRAYS, AT, DIGEST, FILES, SCALARS, TENSORS, Crash, bits, save

from benchmarks.faults.counts import Counts
from benchmarks.faults.memory_job import Job, final_state, make_keyed, make_plain, written_by
from streamadapt.app.commands import run_command
from streamadapt.errors import CheckpointError, ConfigError
from streamadapt.records import StreamPartition
from streamadapt.state.fence import Fence, FencedError
from streamadapt.state.folder import LocalFolder, folder_of
from streamadapt.state.key_store import DirectoryKeyStore
from streamadapt.state.store import EPOCH, CheckpointStore

KINDS = ["memory", "local"]
STEPS = ["encode", "write state.safetensors", "write state.json", "write manifest.json", "prune"]


@pytest.fixture(params=KINDS)
def url(request, tmp_path):
    """A URL under which nothing exists yet."""
    return fresh(request.param, tmp_path)


def value_of(place):
    return CheckpointStore(place).load_latest(DIGEST).state["value"]


def at(place, sequence):
    return folder_of(place).child(f"{sequence:012d}")


def test_every_kind_of_leaf_returns_bit_for_bit(url):
    """Read through another store than the one that wrote it."""
    state = {"tensors": TENSORS, "arrays": ARRAYS, "scalars": SCALARS}
    with CheckpointStore(url) as store:
        written = store.save(state, AT, config_digest=DIGEST, summary={"loss": 0.5})
    other = CheckpointStore(url)
    loaded = other.load_latest(DIGEST)
    assert bits(loaded.state) == bits(state)
    assert loaded.positions == AT
    assert other.list() == [written]
    assert str(written.path) == f"{url}/{written.sequence:012d}"


def test_the_files_are_those_of_a_folder_on_disk(tmp_path):
    """A state copied from a bucket to a disk, or back, can be resumed."""
    with CheckpointStore(f"local://{tmp_path}/state") as store:
        save(store, "from a bucket")
    assert value_of(tmp_path / "state") == "from a bucket"
    with CheckpointStore(tmp_path / "state") as store:
        save(store, "from a disk")
    assert value_of(f"local://{tmp_path}/state") == "from a disk"


def test_the_steps_are_the_ones_that_these_tests_know(url):
    seen = []
    save(CheckpointStore(url), 1, on_step=seen.append)
    assert seen == STEPS


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_crash_before_any_step_leaves_the_previous_or_the_new_one(url, step, before):
    """A later save, by this owner or its successor, removes what the crash left."""

    def crash(name):
        if name == step:
            raise Crash

    store = CheckpointStore(url)
    for value in range(before):
        save(store, value)
    with pytest.raises(Crash):
        save(store, before, on_step=crash)
    published = step == "prune"
    if published or before:
        assert value_of(url) == (before if published else before - 1)
    else:
        assert CheckpointStore(url).load_latest(DIGEST) is None
    for owner in (store, CheckpointStore(url)):
        save(owner, "after")
        assert value_of(url) == "after"
        there = sorted(name for name in owner.folder.names() if not name.startswith("."))
        assert there == [f"{number:012d}" for number in owner.sequences()]


def test_only_the_newest_are_kept_and_numbers_go_on(url):
    """Each owner counts from a round number; one token remains."""
    store = CheckpointStore(url, keep=2)
    for value in range(5):
        save(store, value)
    assert store.sequences() == [EPOCH + 3, EPOCH + 4]
    store = CheckpointStore(url, keep=2)
    assert save(store, 5).sequence == 2 * EPOCH
    there = sorted(store.folder.names())
    assert there == [".fence-000002", f"{EPOCH + 4:012d}", f"{2 * EPOCH:012d}"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "longer", "flipped"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(url, name, damage, caplog):
    """Without a manifest it is not a checkpoint, and there is no warning."""
    store = CheckpointStore(url)
    save(store, ["old", torch.ones(3)])
    new = at(url, save(store, ["new", torch.ones(3)]).sequence)
    data = new.read(name)
    flipped = bytes([data[len(data) // 2] ^ 1])
    if damage == "missing":
        new.delete(name)
    else:
        half = len(data) // 2
        spoiled = {"empty": b"", "half": data[:half], "longer": data + b"x"}
        new.write({name: spoiled.get(damage, data[:half] + flipped + data[half + 1 :])})
    with caplog.at_level(logging.WARNING):
        assert value_of(url)[0] == "old"
    if (name, damage) != ("manifest.json", "missing"):
        assert "skipping the damaged checkpoint" in caplog.text
        assert name in caplog.text


def test_an_unreachable_store_is_not_a_damaged_checkpoint(tmp_path):
    """Whichever request fails: one of our errors with the reason, never an older state or an empty
    start."""
    url = fresh("failing", tmp_path)
    FailingFileSystem.set_up()
    store = CheckpointStore(url)
    save(store, "old")
    save(store, "new")
    FailingFileSystem.set_up()
    assert value_of(url) == "new"
    asked = len(FailingFileSystem.asked)
    assert asked >= 5
    for fail_at in range(asked):
        FailingFileSystem.set_up(fail_at)
        with pytest.raises(CheckpointError, match="no route"):
            CheckpointStore(url).load_latest(DIGEST)
    FailingFileSystem.set_up()
    assert CheckpointStore(url).damaged == 0


@pytest.mark.parametrize(
    ("kind", "tears"), [("local", True), ("memory", False), ("asynchronous", False)]
)
def test_a_manifest_is_renamed_only_where_a_file_can_be_half_written(tmp_path, kind, tears):
    """Elsewhere a rename would be a copy, and it could replace an existing object."""
    assert _FileSystem(fresh(kind, tmp_path)).tears is tears


# -- one owner


@pytest.mark.parametrize("shared", [False, True])
def test_a_new_owner_takes_over_and_fences_the_previous_one(url, shared):
    """With a group or without: there are no locks, and two owners never write at the same time."""
    old, new = (CheckpointStore(url, shared=shared) for _ in range(2))
    first = save(old, 1)
    new.acquire()
    with pytest.raises(FencedError, match=r"token 2, this one has 1"):
        save(old, 2)
    with pytest.raises(FencedError):
        old.check_owner()
    second = save(new, 3)
    assert [first.fence, second.fence] == [1, 2]
    assert value_of(url) == 3
    new.check_owner()


@pytest.mark.parametrize("step", STEPS[:-1])
def test_taken_over_in_the_middle_of_a_checkpoint(url, step):
    """Whatever the old owner was doing: its manifest is not written, and its successor is not
    disturbed."""
    old, new = (CheckpointStore(url) for _ in range(2))
    save(old, 1)

    def take_over(name):
        if name == step:
            new.acquire()
            assert new.load_latest().state["value"] == 1
            save(new, 10)

    with pytest.raises(FencedError):
        save(old, 2, on_step=take_over)
    assert value_of(url) == 10
    save(new, 11)
    assert value_of(url) == 11
    assert len(new.sequences()) == 3


def test_a_late_manifest_is_not_the_newest(url):
    """The manifest arrives after the last look at the token: the old owner's checkpoint appears,
    numbered below its successor's."""
    old, new = (CheckpointStore(url) for _ in range(2))
    save(old, 1)
    old.check_owner = new.acquire
    late = save(old, 2)
    assert late.sequence in new.sequences()
    assert save(new, 10).sequence > late.sequence
    assert value_of(url) == 10


def test_a_token_that_two_owners_created_belongs_to_the_later_one(tmp_path, monkeypatch):
    """On a file system without "create": the earlier owner reads the later owner's token in the
    file."""
    folder = folder_of(fresh("careless", tmp_path))
    one, two = Fence(folder), Fence(folder)
    one.take()
    with monkeypatch.context() as patch:
        patch.setattr(Fence, "_tokens", lambda self: [])  # it looked before the other owner wrote
        two.take()
    assert one.token == two.token == 1
    with pytest.raises(FencedError):
        one.check()
    two.check()


def test_a_taken_token_is_skipped_and_an_own_token_is_recognised(url):
    """A driver that retries after a lost answer finds its own file."""
    folder = folder_of(url)
    folder.create("x", b"mine")
    folder.create("x", b"mine")
    with pytest.raises(FileExistsError):
        folder.create("x", b"another process's")
    assert folder.read("x") == b"mine"


def test_an_engine_looks_for_a_successor_at_most_once_a_second(tmp_path):
    """A look costs two requests."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        def time_ns(self):
            return 1

    FailingFileSystem.set_up()
    url, clock = fresh("failing", tmp_path), Clock()
    store = CheckpointStore(url, clock=clock)
    store.acquire()
    FailingFileSystem.set_up()
    for _ in range(100):
        clock.now += 0.03
        store.check_owner_throttled()
    assert len(FailingFileSystem.asked) == 2 * 2
    CheckpointStore(url).acquire()
    clock.now += 1.0
    with pytest.raises(FencedError):
        store.check_owner_throttled()


OWNERS = st.integers(0, 2)
ACTIONS = st.sampled_from(["save", "save", "come", "leave", *STEPS])


@pytest.mark.parametrize("kind", ["memory", "local"])
@given(acts=st.lists(st.tuples(OWNERS, ACTIONS), max_size=12))
@settings(max_examples=25, deadline=None)
def test_the_newest_checkpoint_is_the_last_one_of_the_last_owner(tmp_path_factory, kind, acts):
    """Owners start, save, crash at any step and come back in any order: they read what the last
    owner wrote."""
    place = tmp_path_factory.mktemp("p") if kind == "local" else fresh(kind, None)
    owners = [CheckpointStore(place, keep=1, shared=True) for _ in range(3)]
    owner, newest, n = None, None, 0

    def crash_at(step):
        def crash(name):
            if name == step:
                raise Crash

        return crash

    for i, action in acts:
        store = owners[i]
        if action in ("come", "leave"):
            store.close()
            owner = None if owner == i else owner
        if action == "come" or (action != "leave" and store._fence is None):
            store.acquire()
            owner = i
        if action in ("save", *STEPS):
            n += 1
            with suppress(FencedError, Crash):
                save(store, n, on_step=crash_at(action))
                assert owner == i
                newest = n
            if action == "prune" and owner == i:
                newest = n
        found = CheckpointStore(place).load_latest(DIGEST)
        assert (None if found is None else found.state["value"]) == newest


# -- a run


@pytest.mark.parametrize("make", [make_plain, make_keyed])
@pytest.mark.parametrize("how", ["before", "torn", "after"])
def test_after_any_failed_request_a_restart_ends_as_an_undisturbed_run(
    tmp_path, monkeypatch, make, how
):
    """Each request of a run fails in a trial of its own: the engine stops with one of our errors,
    and is started again."""
    monkeypatch.setattr(_FileSystem, "tears", how == "torn")
    # Otherwise the number of requests depends on the time that they take.
    monkeypatch.setattr(ObjectFolder, "owner_check_interval_s", float("inf"))
    job, counts = Job(45, make, 30), Counts()
    FailingFileSystem.set_up()
    job.engine(fresh("failing", tmp_path))[0].run()
    trials = list(enumerate(FailingFileSystem.asked))
    assert {"ls", "info", "cat", "pipe overwrite", "pipe create"} <= set(FailingFileSystem.asked)
    if how == "torn":
        trials = [(fail_at, name) for fail_at, name in trials if name.startswith(("pipe", "mv"))]
    if not IN_FULL:
        trials = trials[how == "after" :: 2 if how == "torn" else 4]
    for fail_at, name in trials:
        url, sinks, stopped = fresh("failing", tmp_path), [], False
        for failing in (fail_at, None):
            FailingFileSystem.set_up(failing, how)
            engine, sink = job.engine(url)
            sinks.append(sink)
            try:
                engine.run()
            except CheckpointError:
                stopped = True
        assert stopped, (fail_at, name)
        assert job.judge(counts, final_state(engine), written_by(*sinks)), (fail_at, name)


KILLED = """
import os, sys
from pathlib import Path
from benchmarks.faults.memory_job import Job, make_keyed, make_plain

job = Job(250, {"plain": make_plain, "keyed": make_keyed}[sys.argv[1]], 30)
engine, sink = job.engine(sys.argv[2])
seen = []

def step(name):
    seen.append(name)
    if seen.count("write manifest.json") == 2:
        Path(sys.argv[3]).write_text(repr([(str(p.position), p.served.tobytes()) for p in sink.predictions]))
        os.kill(os.getpid(), 9)

engine.on_checkpoint_step = step
engine.run()
"""  # noqa: E501


@pytest.mark.slow  # ten seconds; a kill between two steps is quick in `test_checkpoint`
@pytest.mark.parametrize(("kind", "make"), [("plain", make_plain), ("keyed", make_keyed)])
def test_a_killed_process_resumes_bit_for_bit(tmp_path, kind, make):
    """SIGKILL between a checkpoint's files and its manifest; another process resumes."""
    import ast
    import subprocess

    url, output_path = f"local://{tmp_path}/state", tmp_path / "output"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, kind, url, output_path], capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr
    job = Job(250, make, 30)
    engine, sink = job.engine(url)
    engine.run()
    assert len(sink.predictions) < len(job.undisturbed[1]), (
        "it resumed at the killed process's checkpoint"
    )
    before = ast.literal_eval(output_path.read_text())
    assert job.judge(Counts(), final_state(engine), [*before, *written_by(sink)])


# -- keys


def test_keys_that_return_soon_are_not_written_and_the_others_are_written_together(tmp_path):
    """A bounded number of evicted keys waits in memory; a checkpoint writes the rest first."""
    FailingFileSystem.set_up()
    store = DirectoryKeyStore(fresh("failing", tmp_path))
    store.begin(set())
    FailingFileSystem.set_up()
    checksum = store.put("1", b"one")
    assert store.get("1", checksum) == b"one"
    store.release("1")
    for i in range(store.folder.batch - 1):
        store.put(f"{i:012d}", b"x")
    assert FailingFileSystem.asked == []
    store.put(f"{99:012d}", b"last")
    assert len(FailingFileSystem.asked) == store.folder.batch
    store.put(f"{100:012d}", b"y")
    store.sync()
    assert len(store.folder.names()) == store.folder.batch + 1


def test_a_paused_owner_that_lost_its_partition_writes_and_deletes_no_key(url):
    """Its successor's keys have the same names."""
    old = CheckpointStore(url)
    old.acquire()
    keys = DirectoryKeyStore(old.folder.child("keys"), check_owner=old.check_owner)
    keys.begin(set())
    keys.put(f"{1:012d}", b"mine")
    keys.sync()
    keys.put(f"{2:012d}", b"mine")
    new = CheckpointStore(url)
    new.acquire()
    theirs = DirectoryKeyStore(new.folder.child("keys"), check_owner=new.check_owner)
    theirs.begin(set())
    checksums = [theirs.put(f"{i:012d}", b"theirs") for i in (1, 2)]
    theirs.sync()
    keys.release(f"{1:012d}")
    with pytest.raises(FencedError):
        keys.sync()
    assert [
        theirs.get(f"{i:012d}", checksum) for i, checksum in zip((1, 2), checksums, strict=True)
    ] == [b"theirs"] * 2


def test_a_damaged_key_is_refused(url):
    store = DirectoryKeyStore(url)
    store.begin(set())
    checksum = store.put(f"{1:012d}", b"data")
    store.sync()
    store.folder.write({f"{1:012d}.safetensors": b"dat"})
    with pytest.raises(
        CheckpointError, match=r"1\.safetensors: a key's state is damaged.*roll back"
    ):
        store.get(f"{1:012d}", checksum)


# -- commands


@pytest.fixture
def ran(tmp_path):
    """A URL with the checkpoints of two partitions."""
    for partition in (0, 1):
        with CheckpointStore(f"local://{tmp_path}/state/entries-{partition}") as store:
            for i in (1, 2, 3):
                place = {StreamPartition("entries", partition): 100 * i}
                store.save(
                    {"a": i}, place, config_digest="sha256:aa", summary={"entries": 100 * i}
                )
    return f"local://{tmp_path}/state"


def test_the_commands_take_urls(ran, capsys):
    """As they take folders."""
    assert run_command(["checkpoint", "list", ran, "--json"]).code == 0
    rows = json.loads(capsys.readouterr().out)
    numbers = [EPOCH, EPOCH + 1, EPOCH + 2]
    assert [(r["partition"], r["sequence"]) for r in rows] == [
        (f"entries-{p}", s) for p in (0, 1) for s in numbers
    ]
    one = f"{ran}/entries-0"
    assert run_command(["checkpoint", "inspect", one]).code == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["path"] == f"{one}/{numbers[2]:012d}"
    assert seen["summary"] == {"entries": 300}
    at(one, numbers[1]).write({"state.json": b"{}"})
    assert run_command(["checkpoint", "inspect", one, str(numbers[1])]).code == 1
    assert "state.json does not match its checksum" in capsys.readouterr().err
    assert run_command(["checkpoint", "rollback", one, str(numbers[1]), "--yes"]).code == 1
    assert CheckpointStore(one).sequences() == numbers
    assert run_command(["checkpoint", "rollback", one, str(numbers[0]), "--yes"]).code == 0
    assert CheckpointStore(one).sequences() == numbers[:1]
    capsys.readouterr()
    for place, text in ((f"{ran}/nowhere", "no checkpoints here"), (ran, "several partitions")):
        assert run_command(["checkpoint", "inspect", place]).code == 1
        assert text in capsys.readouterr().err


def test_rolling_back_fences_a_running_engine(ran):
    """No lock can refuse the rollback; the engine stops, and its restart resumes from the
    remaining checkpoint."""
    engine = CheckpointStore(f"{ran}/entries-0")
    engine.acquire()
    assert (
        run_command(["checkpoint", "rollback", f"{ran}/entries-0", str(EPOCH), "--yes"]).code == 0
    )
    with pytest.raises(FencedError):
        save(engine, 4)
    assert CheckpointStore(f"{ran}/entries-0").sequences() == [EPOCH]


# -- errors are reported, secrets are not


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://bucket/state", "pip install s3fs"),
        ("gs://bucket/state", "pip install gcsfs"),
        ("nowhere://bucket/state", "Protocol not known: nowhere"),
        ("simplecache::memory://state", "not a chain"),
        ("memory://state?x=1", "without"),
        ("memory://st*te", "without"),
    ],
)
def test_an_unreadable_place_is_reported_with_its_config_key_and_a_remedy(place, message):
    with pytest.raises(ConfigError, match=r"expected a folder, or a URL") as caught:
        folder_of(place, "keys.path")
    assert caught.value.path == "keys.path"
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "not an empty text"),
        ("s3:/bucket/state", "two slashes"),
        ("file:/state", "two slashes"),
        ("~/state", "without ~"),
        ("file://state", "file:///"),
        ("file:///", None),
    ],
)
def test_a_url_that_would_become_a_local_folder_is_refused(place, message):
    if message is None:
        assert folder_of(place).path == Path("/")
        return
    with pytest.raises(ConfigError, match=message) as caught:
        folder_of(place, "keys.path")
    assert caught.value.path == "keys.path"


def test_a_file_url_is_the_folder_and_has_its_lock(tmp_path):
    """Otherwise a rollback under one name would remove the checkpoints of an engine that runs
    under the other name."""
    with CheckpointStore(tmp_path / "state") as store:
        save(store, 1)
        store.acquire()
        assert (
            run_command(["checkpoint", "rollback", f"file://{tmp_path}/state", "1", "--yes"]).code
            == 1
        )
    assert (
        run_command(["checkpoint", "rollback", f"FILE://{tmp_path}/state", "1", "--yes"]).code == 0
    )


def test_without_fsspec_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(
        ConfigError, match=r"checkpoint\.path: .*pip install 'streamadapt\[object-store\]'"
    ):
        folder_of("memory://state")
    assert isinstance(folder_of("state"), LocalFolder)
    assert isinstance(folder_of(Path("s3://bucket")), LocalFolder)


SECRET = "hunter22secret"


@pytest.mark.parametrize("kind", ["failing", "s3"])
def test_credentials_in_a_url_are_shown_nowhere(kind, caplog):
    """Not in errors and their causes, in logs, in a listing, or where the driver names the
    path."""
    url = f"{kind}://key:{SECRET}@bucket/state"
    texts = []
    try:
        FailingFileSystem.set_up()
        store = CheckpointStore(url)
        save(store, 1)
        texts += [str(store.folder), str(store.list()), repr(store.folder.child("x").path)]
        at(url, save(store, 2).sequence).write({"state.json": b""})
        assert value_of(url) == 1
        for fail_at in range(12):
            FailingFileSystem.set_up(fail_at)
            with suppress(CheckpointError):
                save(store, 3)
            FailingFileSystem.set_up()
        FailingFileSystem.set_up(6)
        save(store, 4)
    except (ConfigError, CheckpointError) as error:
        while error is not None:
            texts.append(f"{error} {error!r}")
            error = error.__cause__
    assert len(texts) >= 2
    assert SECRET not in " ".join(texts) + caplog.text
