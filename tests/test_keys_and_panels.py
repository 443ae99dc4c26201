"""Keys and panels end to end: the engine, checkpoints, crashes, configs, and the statements of
their docs page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from states import assert_same_state
from streamadapt_connectors.codecs import FieldMap, JsonCodec, encode_prediction
from variants import variants

from streamadapt import (
    RLS,
    Bias,
    Entry,
    Forecast,
    Label,
    Persistence,
    Pipeline,
    Position,
    Supervised,
)
from streamadapt.build import check_config, make_engine
from streamadapt.config.tables import parse_config
from streamadapt.engine.engine import Engine
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import CheckpointError, ConfigError
from streamadapt.models.fit import fit_supervised
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.pipeline.panel import Panel
from streamadapt.records import Batch, Record
from streamadapt.state.store import CheckpointStore
from streamadapt.testing import (
    CRASH,
    IdentityCodec,
    ManualClock,
    MemoryDeadLetters,
    MemorySink,
    MemorySource,
    SimulatedCrash,
)

S = 10**9
PAGE = Path(__file__).parent.parent / "docs" / "panels_and_keys.md"


def make_keyed():
    def make():
        return Pipeline(Supervised(2), lambda x: x[-1:, :1] * 2.0, [Bias(0.1), RLS(0.98)])

    return KeyedPipeline(make, max_keys=2)


def keyed_items(n=180, keys=7, delay=9):
    """Entries of seven keys in random order, each labelled a little later, in one stream."""
    rng = np.random.default_rng(0)
    items = []
    for t in range(n):
        key = f"key-{rng.integers(keys)}"
        x = rng.normal(size=1).astype(np.float32)
        items.append((t, 1, Entry(x, t * S, f"e{t}", key)))
        items.append((t + delay, 0, Label(f"e{t}", 2.0 * x + 1.0, (t + delay) * S)))
    return [item for *_, item in sorted(items, key=lambda one: one[:2])]


def engine_of(items, path=None, make=make_keyed, metrics=None, every=40, **settings):
    sink, letters = MemorySink(), MemoryDeadLetters()
    options = EngineSettings(
        checkpoint_path=path, checkpoint_every_entries=every, keep=2, **settings
    )
    source = MemorySource(items, finite=settings.pop("finite", True), batch=50)
    engine = Engine(
        source,
        make,
        sink,
        IdentityCodec(),
        letters,
        settings=options,
        clock=ManualClock(),
        metrics=metrics,
    )
    return engine, sink


def written_predictions(*sinks):
    """Position -> value of everything written; repeated values must be equal."""
    found = {}
    for sink in sinks:
        for p in sink.predictions:
            assert found.setdefault(p.position, p.served.tobytes()) == p.served.tobytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """An undisturbed run."""
    engine, sink = engine_of(keyed_items(), tmp_path_factory.mktemp("calm"))
    engine.run()
    return engine.runners[0].pipeline.state_dict(), written_predictions(sink)


@pytest.mark.parametrize("crash_at", variants([3, 70, 119, 200, 359], quick=2))
def test_a_crash_between_evictions_and_a_checkpoint_leaves_no_trace(
    tmp_path, undisturbed, crash_at
):
    """Files that no checkpoint knows are written over by the replay: same state, same
    predictions."""
    items = keyed_items()
    crashed, first = engine_of([*items[:crash_at], CRASH, *items[crash_at:]], tmp_path)
    with pytest.raises(SimulatedCrash):
        crashed.run()
    resumed, second = engine_of(items, tmp_path)
    resumed.run()
    assert_same_state(undisturbed[0], resumed.runners[0].pipeline.state_dict())
    assert written_predictions(first, second) == undisturbed[1]


@pytest.mark.parametrize(
    "step", ["encode", "write state.safetensors", "rename", "prune", "commit"]
)
def test_a_crash_at_any_step_of_a_checkpoint_leaves_no_trace(tmp_path, undisturbed, step):
    """Also between a complete checkpoint and the deletion of files that it no longer needs."""
    reached = []

    def crash(name):
        reached.append(name)
        if reached.count(step) == 4:
            raise SimulatedCrash

    crashed, first = engine_of(keyed_items(), tmp_path)
    crashed.on_checkpoint_step = crash
    with pytest.raises(SimulatedCrash):
        crashed.run()
    resumed, second = engine_of(keyed_items(), tmp_path)
    resumed.run()
    assert_same_state(undisturbed[0], resumed.runners[0].pipeline.state_dict())
    assert written_predictions(first, second) == undisturbed[1]


def test_everything_that_an_older_checkpoint_refers_to_still_exists(tmp_path, undisturbed):
    """After a rollback to the oldest kept checkpoint, later entries are processed again with the
    same result."""
    items = keyed_items()
    crashed, first = engine_of([*items[:300], CRASH, *items[300:]], tmp_path)
    with pytest.raises(SimulatedCrash):
        crashed.run()
    crashed.runners[0].close()
    store = CheckpointStore(tmp_path / "memory-0", keep=2)
    kept = store.list()
    assert len(kept) == 2
    store.rollback(kept[0].sequence)
    store.close()
    resumed, second = engine_of(items, tmp_path)
    resumed.run()
    assert resumed.runners[0].store.list()[0].sequence > kept[0].sequence
    assert_same_state(undisturbed[0], resumed.runners[0].pipeline.state_dict())
    assert written_predictions(first, second) == undisturbed[1]


def test_the_folder_holds_what_the_kept_checkpoints_refer_to_and_not_much_more(tmp_path):
    """Over five hundred evictions: the files are those of the keys away, in two checkpoints and
    now."""
    engine, _ = engine_of(keyed_items(450), tmp_path, every=30)
    engine.run()
    stats = engine.runners[0].pipeline.stats
    assert stats.keys["evicted"] > 500
    files = set((tmp_path / "memory-0" / "keys").iterdir())
    assert stats.keys["stored"] == 5
    assert 5 <= len(files) <= 3 * 5
    for info in CheckpointStore(tmp_path / "memory-0").list():
        state = CheckpointStore(tmp_path / "memory-0").load(info.sequence).state
        assert {f"{n:012d}.safetensors" for n in state["stored"]["numbers"]} <= {
            file.name for file in files
        }


def test_without_checkpoints_keys_go_to_a_temporary_folder(undisturbed):
    """A backtest has the same predictions, and leaves nothing behind."""
    engine, sink = engine_of(keyed_items(), None)
    engine.run()
    assert written_predictions(sink) == undisturbed[1]
    store = engine.runners[0].pipeline.store
    assert engine.runners[0].pipeline.stats.keys["forgotten"] == 0
    assert not store.folder.path.exists()


def test_keys_are_stored_in_the_configured_folder(tmp_path):
    """It has a folder per partition."""
    engine, _ = engine_of(keyed_items(), tmp_path / "checkpoints", keys_path=tmp_path / "keys")
    engine.run()
    assert len(list((tmp_path / "keys" / "memory-0").iterdir())) >= 5
    assert not (tmp_path / "checkpoints" / "memory-0" / "keys").exists()


def test_a_damaged_key_stops_the_engine_with_a_clear_error(tmp_path):
    """It does not silently start with an empty state."""
    items = keyed_items()
    engine, _ = engine_of(items[:200], tmp_path)
    engine.run()
    for file in (tmp_path / "memory-0" / "keys").iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    resumed, _ = engine_of(items, tmp_path)
    with pytest.raises(CheckpointError, match="a key's state is damaged"):
        resumed.run()
    resumed.runners[0].close()
    for file in (tmp_path / "memory-0" / "keys").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match="are missing"):
        engine_of(items, tmp_path)[0].run()


def test_no_metric_holds_a_key(tmp_path):
    """Their number would be unbounded; the count of keys is shown."""
    metrics = Metrics()
    engine, _ = engine_of(keyed_items(), tmp_path, metrics=metrics)
    engine.run()
    samples = metrics.samples()
    assert dict(samples["streamadapt_keys"]) == {("0", "resident"): 2, ("0", "stored"): 5}
    moves = dict(samples["streamadapt_key_moves_total"])
    assert set(moves) == {("0", "evicted"), ("0", "restored"), ("0", "forgotten")}
    assert moves["0", "forgotten"] == 0
    assert moves["0", "evicted"] - moves["0", "restored"] == 5
    assert not [
        labels
        for found in samples.values()
        for labels, _ in found
        if any("key-" in one for one in labels)
    ]


# -- panels


def make_panel():
    panel = Panel(max_sensors=3, step="10s", lateness="25s", max_ahead="1h")
    return Pipeline(Forecast(3, 2), Persistence(2), [Bias(0.1), RLS(0.99)], panel=panel)


def panel_items(n=60, jitter=25):
    """Three sensors every ten seconds, out of order within the lateness; one joins late."""
    rng = np.random.default_rng(1)
    records = []
    for step in range(1, n):
        for i, sensor in enumerate("abc"):
            if sensor != "c" or step > n // 2:
                t = 10 * step - rng.integers(10)
                value = np.array([i + np.sin(step) + 0.1 * rng.normal()], np.float32)
                records.append(
                    (
                        t + rng.uniform(0, jitter),
                        Entry(value, int(t) * S, f"{sensor}{step}", sensor),
                    )
                )
    return [record for _, record in sorted(records, key=lambda one: one[0])]


def test_a_panel_is_flushed_at_the_end_of_the_source_and_not_by_a_stop(tmp_path):
    """Waiting rows are predicted at the end of the source; after a stop they keep waiting."""
    items = panel_items()
    engine, sink = engine_of(items, tmp_path / "whole", make_panel)
    summary = engine.run()
    assert summary["entries"] == 59
    assert len(sink.predictions) == 57
    stopped, first = engine_of(items, tmp_path / "stopped", make_panel)
    stopped.on_checkpoint_step = lambda step: stopped.stop()
    stopped.run()
    assert 10 < len(first.predictions) < 50
    assert stopped.runners[0].pipeline.state_dict()["panel"]["times"].size > 3
    resumed, second = engine_of(items, tmp_path / "stopped", make_panel)
    resumed.run()
    assert written_predictions(first, second) == written_predictions(sink)
    assert_same_state(
        engine.runners[0].pipeline.state_dict(), resumed.runners[0].pipeline.state_dict()
    )
    places = [p.position for p in sink.predictions]
    assert places == [Position("memory", 0, 10 * step * S) for step in range(3, 60)]


@pytest.mark.parametrize("crash_at", variants([1, 40, 100, 147], quick=2))
def test_a_panel_survives_a_crash_anywhere(tmp_path, crash_at):
    """Waiting rows are part of the checkpoint."""
    items = panel_items()
    calm_engine, calm_sink = engine_of(items, tmp_path / "calm", make_panel)
    calm_engine.run()
    crashed, first = engine_of(
        [*items[:crash_at], CRASH, *items[crash_at:]], tmp_path / "crash", make_panel
    )
    with pytest.raises(SimulatedCrash):
        crashed.run()
    resumed, second = engine_of(items, tmp_path / "crash", make_panel)
    resumed.run()
    assert_same_state(
        calm_engine.runners[0].pipeline.state_dict(), resumed.runners[0].pipeline.state_dict()
    )
    assert written_predictions(first, second) == written_predictions(calm_sink)


@pytest.mark.parametrize("ahead", [10**4, 10**9])
def test_a_record_dated_far_ahead_does_not_delay_a_panel(tmp_path, ahead):
    """By less than limits.max_ahead, which the lookahead accepts, and by more."""
    items = panel_items()
    engine, sink = engine_of(items, tmp_path / "calm", make_panel)
    engine.run()
    wrong = Entry(np.ones(1, np.float32), (200 + ahead) * S, "wrong", "a")
    disturbed, other = engine_of([*items[:60], wrong, *items[60:]], tmp_path / "wrong", make_panel)
    disturbed.run()
    assert written_predictions(other) == written_predictions(sink)
    assert sum(disturbed.runners[0].pipeline.stats.rejected.values()) == 1
    assert set(disturbed.runners[0].pipeline.stats.rejected) == {"bad_time"}


def test_late_records_and_unknown_sensors_are_dead_letters(tmp_path):
    """They have their reasons, and the stream continues."""
    items = panel_items()
    late = Entry(np.ones(1, np.float32), 5 * S, "late", "a")
    fourth = Entry(np.ones(1, np.float32), 590 * S, "d", "d")
    engine, _ = engine_of([*items, late, fourth], tmp_path, make_panel)
    summary = engine.run()
    assert [letter.reason for letter in engine.dead_letters.letters] == [
        "late_record",
        "too_many_sensors",
    ]
    assert summary["dead_letters"] == {"late_record": 1, "too_many_sensors": 1}
    assert summary["entries"] == 59


# -- records and configs


def test_a_long_form_record_is_one_value_of_one_sensor():
    """From a field or from the record's own key, as Kafka has it."""
    fields = FieldMap(values=("speed",), time="at", time_format="unix_s", key="sensor")
    place = Position("speeds", 2, 17)
    entry = JsonCodec(fields, streams=["speeds"]).decode(
        Record(place, None, b'{"sensor": "road-17", "at": 12, "speed": 3.5}', 0)
    )
    assert (entry.key, entry.time, entry.values.tolist(), entry.position) == (
        "road-17",
        12 * S,
        [3.5],
        place,
    )
    fields = FieldMap(values=("speed",), time="at", time_format="unix_s")
    entry = JsonCodec(fields, streams=["speeds"]).decode(
        Record(place, b"road-18", b'{"at": 12, "speed": null}', 0)
    )
    assert (entry.key, entry.values.shape) == ("road-18", (1,))
    assert np.isnan(entry.values[0])


def test_the_output_names_the_sensor_of_each_column():
    """In addition to the numbers; records of other pipelines have no such field."""
    pipeline = make_panel()
    predictions = pipeline.observe(panel_items())
    said_ = json.loads(encode_prediction(predictions[-1]))
    assert said_["columns"] == ["a", "b", "c"]
    assert len(said_["served"][0]) == 3
    assert json.loads(encode_prediction(predictions[0]))["columns"] == ["a", "b", ""]
    plain = Pipeline(Forecast(1, 1), Persistence(1)).observe([Entry(np.ones(1, np.float32), 1)])
    assert "columns" not in json.loads(encode_prediction(plain[0]))


CONFIG = """
[source]
kind = "files"
path = "{folder}/in.jsonl"
[fields]
values = ["speed"]
time = "at"
time_format = "unix_s"
key = "sensor"
[task]
kind = "forecast"
window = 3
horizon = 2
[base]
kind = "persistence"
[[learners]]
kind = "bias"
rate = 0.1
[sink]
kind = "files"
path = "{folder}/out.jsonl"
[checkpoint]
path = "{folder}/state"
"""


def run_config(folder, more):
    lines = [
        {"sensor": e.key, "at": e.time // S, "speed": float(e.values[0])} for e in panel_items()
    ]
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (folder / "out.jsonl").unlink(missing_ok=True)
    engine = make_engine(parse_config(CONFIG.format(folder=folder) + more))
    summary = engine.run()
    return summary, [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_a_config_assembles_a_panel(tmp_path):
    """From a file of long-form records to wide forecasts."""
    summary, out = run_config(
        tmp_path, '[panel]\nmax_sensors = 3\nstep = "10s"\nlateness = "25s"\n'
    )
    assert summary["entries"] == 59
    assert len(out) == 57
    assert out[-1]["columns"] == ["a", "b", "c"]
    assert out[-1]["time"] == 590 * S
    assert out[-1]["entry"] == str(590 * S)


def test_a_config_gives_every_key_its_pipeline(tmp_path):
    """The results equal those of one pipeline per key, made from the same config without the
    table."""
    long = {e.key: [] for e in panel_items()}
    for e in sorted(panel_items(), key=lambda one: one.time):
        long[e.key].append(e)
    keyed = check_config(parse_config(CONFIG.format(folder=tmp_path) + "[keys]\nmax_keys = 2\n"))
    assert isinstance(keyed, KeyedPipeline)
    for items in long.values():
        alone = check_config(parse_config(CONFIG.format(folder=tmp_path)))
        wanted = [p.served.tobytes() for p in alone.observe(items)]
        assert [p.served.tobytes() for p in keyed.observe(items)] == wanted
    _, out = run_config(tmp_path, "[keys]\nmax_keys = 2\n[limits]\nmax_bad_share = 1.0\n")
    assert {line["key"] for line in out} == {"a", "b", "c"}
    assert len(list((tmp_path / "state" / "in.jsonl-0" / "keys").iterdir())) >= 1


def test_the_digest_covers_settings_that_the_state_depends_on(tmp_path):
    """The folder of keys is not part of it; a config without these tables keeps its digest."""

    def digest(more=""):
        return parse_config(CONFIG.format(folder=tmp_path) + more).digest()

    assert digest("[keys]\nmax_keys = 5\n") == digest('[keys]\nmax_keys = 5\npath = "elsewhere"\n')
    different = [
        "",
        "[keys]\nmax_keys = 5\n",
        "[keys]\nmax_keys = 6\n",
        "[panel]\nmax_sensors = 3\n",
    ]
    different.append('[panel]\nmax_sensors = 3\nlateness = "1m"\n')
    assert len({digest(more) for more in different}) == len(different)


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ("[keys]\nmax_keys = 0\n", "keys.max_keys"),
        ("[keys]\nmax_stored = 0\n", "keys.max_stored"),
        ("[keys]\nmost = 1\n", "keys.most"),
        ("[panel]\n", "panel.sensors"),
        ("[panel]\nmax_sensors = 3\nstep = 5\n", "panel.step"),
        ('[panel]\nsensor = ["a"]\n', "panel.sensor"),
        ('[panel]\nmax_sensors = 3\nlateness = "2d"\nmax_ahead = "3d"\n', "limits.max_ahead"),
        ("[panel]\nmax_sensors = 3\n[keys]\n", "keys"),
    ],
)
def test_a_config_error_names_the_full_path(tmp_path, more, path):
    """Before anything connects."""
    with pytest.raises(ConfigError) as caught:
        check_config(parse_config(CONFIG.format(folder=tmp_path) + more))
    assert caught.value.path == path


def test_fields_must_be_of_one_sensor(tmp_path):
    """One value, and a field that names the sensor."""
    panel = "[panel]\nmax_sensors = 3\n"
    for old, new, path in (
        ('values = ["speed"]', 'values = ["speed", "flow"]', "fields.values"),
        ('key = "sensor"', "channels = 3\nkey = 'sensor'", "fields.channels"),
        ('key = "sensor"', "", "fields.key"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_config(parse_config(CONFIG.format(folder=tmp_path).replace(old, new) + panel))
        assert caught.value.path == path


def test_the_configs_on_the_page_are_valid(tmp_path):
    """Each TOML block that is a whole config, unchanged."""
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    history = Batch(
        np.random.default_rng(0).normal(size=(90, 2)).astype(np.float32),
        np.arange(90),
        np.ones((90, 1)),
    )
    fit_supervised(history, 4, ridge=0.1).save(tmp_path / "base.safetensors")
    blocks = [
        block.replace("base.safetensors", f"{tmp_path}/base.safetensors") for block in blocks
    ]
    names = [
        check_config(parse_config(block.replace('"state/', f'"{tmp_path}/'))).names
        for block in blocks
    ]
    assert all(found[0] == "base" for found in names)


def test_the_page_names_every_setting():
    """Of both tables."""
    text = PAGE.read_text(encoding="utf-8")
    settings = [
        "sensors",
        "max_sensors",
        "step",
        "lateness",
        "max_gap",
        "max_ahead",
        "max_waiting",
    ]
    assert [
        name for name in [*settings, "max_keys", "max_stored", "path"] if f"`{name}`" not in text
    ] == []
