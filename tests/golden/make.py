"""Write the golden checkpoint of the current format: ``python tests/golden/make.py``, once for
each format, never again.

A golden checkpoint shows that a state of an earlier release still loads, and continues as it would
have in that release.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from streamadapt import (
    ADCSD,
    RLS,
    Bias,
    DriftMonitor,
    Entry,
    Forecast,
    Label,
    Persistence,
    Pipeline,
    Position,
    River,
    Supervised,
)
from streamadapt.records import StreamPartition
from streamadapt.state.store import FORMAT_VERSION, CheckpointStore

GOLDEN = Path(__file__).parent
BEFORE, AFTER = 120, 40
HOUR_NS = 3600 * 10**9


def forecast() -> Pipeline:
    return Pipeline(Forecast(4, 3), Persistence(3), [Bias((0.1, 0.02)), RLS(0.99), ADCSD(1e-3)])


def supervised() -> Pipeline:
    learners = [Bias(0.1), RLS(0.98), River("linear_model.LinearRegression")]
    drift = [DriftMonitor("adwin", "loss", "boost"), DriftMonitor("page-hinkley")]
    return Pipeline(
        Supervised(3, ttl=20 * HOUR_NS),
        lambda inputs: inputs[-1:, :1] * 2.0,
        learners,
        drift=drift,
    )


PIPELINES: dict[str, Callable[[], Pipeline]] = {"forecast": forecast, "supervised": supervised}


def stream(kind: str) -> list[Entry | Label]:
    """Return entries, and labels six hours late, in order of time."""
    rng = np.random.default_rng(5)
    n = BEFORE + AFTER
    x = np.cumsum(rng.normal(size=(n, 2 if kind == "forecast" else 1)), axis=0).astype(np.float32)
    entries = [
        Entry(x[i], i * HOUR_NS, f"e{i}", position=Position("golden", 0, i)) for i in range(n)
    ]
    if kind == "forecast":
        return list(entries)
    y = (3.0 * x[:, :1] + 1.0).astype(np.float32)
    labels = [
        Label(f"e{i}", y[i], (i + 6) * HOUR_NS, Position("golden", 0, i)) for i in range(n - 6)
    ]
    return sorted([*entries, *labels], key=lambda item: (item.time, isinstance(item, Entry)))


def predict_all(pipeline: Pipeline, items: list[Entry | Label]) -> list[list[float]]:
    return [p.served.ravel().tolist() for p in pipeline.observe(items)]


def main() -> int:
    for kind, make in PIPELINES.items():
        folder = GOLDEN / f"format-{FORMAT_VERSION}" / kind
        if folder.exists():
            print(
                f"{folder} is there already: a golden checkpoint is never written again",
                file=sys.stderr,
            )
            return 1
        pipeline = make()
        items = stream(kind)
        pipeline.observe(items[:BEFORE])
        with CheckpointStore(folder) as store:
            at = {StreamPartition("golden", 0): BEFORE}
            store.save(
                pipeline.state_dict(),
                at,
                config_digest="golden",
                summary=pipeline.stats.state_dict(),
            )
        for name in (".lock", ".fence-000001"):
            (folder / name).unlink(missing_ok=True)
        (folder / "expected.json").write_text(
            json.dumps(predict_all(pipeline, items[BEFORE:])) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
