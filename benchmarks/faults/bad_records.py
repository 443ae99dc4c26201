"""Broken records: hundreds of thousands through the decoder and tens of thousands through the
whole engine.

For any bytes the decoder must give an entry, a label or an error with a reason of the catalogue.
In the engine the broken records are mixed with good ones: each must become one dead letter, and
the predictions of the good ones and the final state must be those of a run without them.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
from streamadapt_connectors.codecs import FieldMap, JsonCodec
from torch import Tensor

from benchmarks.faults.counts import Counts
from benchmarks.faults.mutate import Mutator
from benchmarks.faults.states import differing
from streamadapt import RLS, Bias, DriftMonitor, Pipeline, Supervised
from streamadapt.engine.engine import Engine
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import EntryError, Reason
from streamadapt.records import Entry, Label, Position, Record
from streamadapt.testing import ManualClock, MemoryDeadLetters, MemorySink, MemorySource

__all__ = ["bad_records", "through_decoder", "through_engine"]

DECODED, IN_ENGINE = 100_000, 10_000
GOOD, DELAY_H, HOUR = 400, 6, 3600
STREAMS = ("entries", "labels")
FIELDS = FieldMap(values=("x",), time="time", time_format="unix_s", id="id", label="y", channels=2)

_x = np.random.default_rng(0).normal(size=(GOOD, 2)).round(4).tolist()
ENTRIES = [json.dumps({"id": f"e{i}", "time": i * HOUR, "x": _x[i]}).encode() for i in range(GOOD)]
LABELS = [
    json.dumps(
        {"id": f"e{i}", "time": (i + DELAY_H) * HOUR, "y": 2.0 * _x[i][0] + 5.0 * (i > GOOD // 2)}
    ).encode()
    for i in range(GOOD)
]


def bad_records(quick: bool) -> Counts:
    """Test decoder and engine."""
    share = 10 if quick else 1
    counts = through_decoder(DECODED // share, seed=1)
    engine = through_engine(IN_ENGINE // share, seed=2)
    for name in ("tried", "survived", "lost", "doubled", "state_differs"):
        setattr(counts, name, getattr(counts, name) + getattr(engine, name))
    counts.more |= engine.more
    return counts


def through_decoder(wanted: int, seed: int, codec: Any = None) -> Counts:
    """Decode mutated messages until `wanted` of them were refused, and count the valid ones."""
    codec = codec or JsonCodec(FIELDS, streams=STREAMS)
    mutate = Mutator([*ENTRIES, *LABELS], seed)
    counts = Counts(more={"still_valid": 0})
    reasons: Counter[str] = Counter()
    while counts.tried < wanted:
        stream = STREAMS[counts.tried % 2]
        try:
            found = codec.decode(_record(mutate(), stream, counts.tried))
        except EntryError as error:
            counts.tried += 1
            counts.survived += isinstance(error.reason, Reason) and bool(error.detail)
            reasons[str(error.reason)] += 1
        except Exception:  # a decoder must never raise it
            counts.tried += 1
        else:
            counts.more["still_valid"] += 1
            if not isinstance(found, Entry | Label):
                counts.tried += 1
    counts.more["reasons"] = dict(reasons.most_common())
    return counts


def through_engine(wanted: int, seed: int) -> Counts:
    """Run a stream with broken records between its good ones, and compare it with the clean
    run."""
    codec = JsonCodec(FIELDS, streams=STREAMS)
    mutate = Mutator([*ENTRIES, *LABELS], seed)
    mixed = []
    for good, stream in zip((ENTRIES, LABELS), STREAMS, strict=True):
        broken: list[bytes] = []
        while len(broken) < wanted // 2:
            value = mutate()
            # A record that is still valid in its topic would rightly be learned, or refused for
            # another reason.
            if _refused(codec, value, stream):
                broken.append(value)
        mixed.append(_mixed(good, broken))
    sent = sum(map(len, mixed)) - len(ENTRIES) - len(LABELS)
    clean, expected, _ = _run(ENTRIES, LABELS)
    state, seen, letters = _run(*mixed)
    counts = Counts(tried=sent)
    counts.compare(expected, Counter(seen.keys()))
    counts.state_differs = bool(differing(clean, state)) or seen != expected
    counts.survived = min(sent, letters) if not counts.state_differs else 0
    return counts


def _refused(codec: JsonCodec, value: bytes, stream: str) -> bool:
    try:
        codec.decode(_record(value, stream, 0))
    except EntryError:
        return True
    return False


def _mixed(good: list[bytes], broken: list[bytes]) -> list[bytes]:
    """Spread the broken records evenly."""
    per = -(-len(broken) // len(good))
    mixed: list[bytes] = []
    for i, value in enumerate(good):
        mixed += [*broken[i * per : (i + 1) * per], value]
    return mixed


def _record(value: bytes, stream: str, offset: int) -> Record:
    return Record(Position(stream, 0, offset), None, value, 0)


def _run(
    entries: list[bytes], labels: list[bytes]
) -> tuple[dict[str, Any], dict[str, bytes], int]:
    """Return the final state, the served predictions by entry id, and the number of dead
    letters."""
    letters, sink = MemoryDeadLetters(), MemorySink()
    engine = Engine(
        MemorySource(entries, labels, streams=STREAMS), _pipeline, sink,
        JsonCodec(FIELDS, streams=STREAMS), letters, settings=EngineSettings(max_bad_share=1.0),
        clock=ManualClock(),
    )  # fmt: skip
    engine.run()
    state = engine.runners[0].pipeline.state_dict()
    state["stats"].pop("rejected")
    return state, {p.id: p.served.tobytes() for p in sink.predictions}, len(letters.letters)


def _pipeline() -> Pipeline:
    learners = [Bias((0.1, 0.01)), RLS(0.98)]
    return Pipeline(Supervised(3), _base, learners, drift=[DriftMonitor("adwin", "loss", "boost")])


def _base(inputs: Tensor) -> Tensor:
    return inputs[-1:, :1] * 2.0
