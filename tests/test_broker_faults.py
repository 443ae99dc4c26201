"""A broker that is away for longer than the client's own timeouts, and a topic that has lost
requested records."""

from __future__ import annotations

import pytest
from kafka_helpers import produce
from streamadapt_connectors.kafka import KafkaSource
from streamadapt_connectors.kafka.client import Reach

from benchmarks.faults.brokers import one_round
from benchmarks.faults.counts import Counts
from benchmarks.faults.memory_job import Job
from streamadapt.engine.engine import Engine
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import ConnectorError
from streamadapt.records import StreamPartition
from streamadapt.state.store import CheckpointStore
from streamadapt.testing import IdentityCodec, MemoryDeadLetters, MemorySink, encode

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

TIMEOUT_MS = 1500
LONGER_S = 4.0


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("due", [0, 400], ids=["start", "middle"])
@pytest.mark.parametrize("what", ["held", "refused"])
def test_away_for_longer_than_the_time_outs(monkeypatch, due, what):
    """Nothing is lost, doubled or learned twice, whether connections are refused or packets
    dropped."""
    common = Reach.common
    monkeypatch.setattr(
        Reach, "common", lambda self: common(self) | {"request_timeout_ms": TIMEOUT_MS}
    )
    counts = Counts()
    made, fine = one_round(Job(800), counts, [(due, what, LONGER_S)])
    assert (made, fine) == (1, True), counts
    assert (counts.lost, counts.doubled, counts.state_differs) == (0, 0, 0)


@pytest.mark.parametrize(("policy", "raises"), [("error", True), ("earliest", False)])
def test_a_checkpoint_whose_position_is_out_of_retention(
    kafka_servers, topic, tmp_path, policy, raises
):
    """An error, and the checkpoint stays unchanged; or the configured policy."""
    job = Job(30)
    name = topic()
    at = StreamPartition(name, 0)
    produce(kafka_servers, name, [[encode(entry) for entry in job.entries]])
    with CheckpointStore(tmp_path / f"{name}-0") as store:
        store.save(job.make().state_dict(), {at: 1000}, config_digest="", summary={})
    sink = MemorySink()
    source = KafkaSource(kafka_servers, name, out_of_range=policy)
    engine = Engine(
        source,
        job.make,
        sink,
        IdentityCodec(),
        MemoryDeadLetters(),
        settings=EngineSettings(checkpoint_path=tmp_path, checkpoint_every_entries=10),
    )
    if raises:
        with pytest.raises(
            ConnectorError, match=r"position 1000 is outside .* source.out_of_range"
        ):
            engine.run()
        assert CheckpointStore(tmp_path / f"{name}-0").load_latest("").positions == {at: 1000}
        assert sink.predictions == []
        return
    engine.source.open(engine)
    while len(sink.predictions) < 28:
        engine.step()
    engine.stop()
    engine.run()
    assert [p.position.offset for p in sink.predictions] == list(range(2, 30))
