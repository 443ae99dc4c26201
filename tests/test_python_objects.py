"""Entries and labels from Python: accepted in the forms that people have, or refused before
anything changes."""

from __future__ import annotations

import array
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamadapt_connectors.files import JsonlSink

from streamadapt import (
    RLS,
    Bias,
    Entry,
    Forecast,
    KeyedPipeline,
    Label,
    Panel,
    Persistence,
    Pipeline,
    Position,
    Supervised,
)
from streamadapt.errors import EntryError, Reason


class NAType:
    """Stands for ``pandas.NA``, which is known by its type's name."""


class Row:
    """Stands for a row of a data frame: it has ``__array__`` and labels of its own, and reshapes
    like nothing else."""

    def __init__(self, values: list[Any], dtype: Any = object) -> None:
        self.data = np.array(values, dtype)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.data if dtype is None else self.data.astype(dtype)


class Hostile:
    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


READ_ONLY = np.array([1.5, 2.0])
READ_ONLY.flags.writeable = False
TAKEN = {
    "list": [1.5, 2],
    "tuple of numpy scalars": (np.float32(1.5), np.int64(2)),
    "float16": np.array([1.5, 2.0], np.float16),
    "longdouble": np.array([1.5, 2.0], np.longdouble),
    "big-endian": np.array([1.5, 2.0], ">f8"),
    "every other": np.array([1.5, 9.0, 2.0])[::2],
    "backwards": np.array([2.0, 1.5])[::-1],
    "read-only": READ_ONLY,
    "objects": np.array([Decimal("1.5"), 2], object),
    "fractions": [Fraction(3, 2), 2],
    "buffer": array.array("d", [1.5, 2.0]),
    "row": Row([1.5, 2]),
    "row of floats": Row([1.5, 2], np.float32),
    "tensor": torch.tensor([1.5, 2.0]),
    "tensor with gradient": torch.tensor([1.5, 2.0], requires_grad=True),
    "bfloat16": torch.tensor([1.5, 2.0], dtype=torch.bfloat16),
    "tensors": [torch.tensor(1.5), torch.tensor(2)],
}
WHOLE = {
    "int64": np.array([1, 2]),
    "uint8": np.array([1, 2], np.uint8),
    "range": range(1, 3),
    "int tensor": torch.tensor([1, 2]),
    "flag": [True, 2],
}
MISSING = {
    "None": [None, 2.0],
    "NA": [NAType(), 2.0],
    "row with NA": Row([NAType(), 2.0]),
    "masked": np.ma.masked_array([7.0, 2.0], [True, False]),
    "masked scalar": [np.ma.masked, 2.0],
    "NaN": [float("nan"), 2],
}
REFUSED = {
    "text": ("1.5", Reason.WRONG_TYPE),
    "texts": (["1.5", "2"], Reason.WRONG_TYPE),
    "bytes": (b"12", Reason.WRONG_TYPE),
    "dict": ({"a": 1.5, "b": 2}, Reason.WRONG_TYPE),
    "set": ({1.5, 2.0}, Reason.WRONG_TYPE),
    "generator": ((x for x in (1.5, 2.0)), Reason.WRONG_TYPE),
    "nothing": (None, Reason.WRONG_TYPE),
    "complex": (np.array([1.5, 2j]), Reason.WRONG_TYPE),
    "complex tensor": (torch.tensor([1.5, 2j]), Reason.WRONG_TYPE),
    "dates": (np.array(["2025-01-01", "2025-01-02"], "datetime64[D]"), Reason.WRONG_TYPE),
    "ragged": ([[1.5], [2.0, 3.0]], Reason.WRONG_TYPE),
    "records": (np.zeros(2, [("a", float)]), Reason.WRONG_TYPE),
    "meta tensor": (torch.zeros(2, device="meta"), Reason.WRONG_TYPE),
    "hostile": (Hostile(), Reason.WRONG_TYPE),
    "matrix": (np.zeros((1, 2)), Reason.WRONG_WIDTH),
    "frame": (Row([[1.5, 2.0]]), Reason.WRONG_WIDTH),
    "empty": ([], Reason.WRONG_WIDTH),
    "one of two": ([1.5], Reason.WRONG_WIDTH),
    "single number": (1.5, Reason.WRONG_WIDTH),
    "infinite": ([1.5, np.inf], Reason.NOT_FINITE),
    "huge": ([1.5, 10**400], Reason.NOT_FINITE),
    "beyond float32": (np.array([1.5, 1e300]), Reason.NOT_FINITE),
}
BASE = 1_700_000_000 * 10**9
TIMES = {
    "int64": np.int64(BASE),
    "0-d": np.array(BASE),
    "tensor": torch.tensor(BASE),
    "float seconds": 1_700_000_000.0,
    "float64 seconds": np.float64(1_700_000_000),
    "Decimal": Decimal(1_700_000_000),
    "datetime": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
    "another zone": datetime(
        2023, 11, 15, 3, 43, 20, tzinfo=timezone(timedelta(hours=5, minutes=30))
    ),
    "naive": datetime(2023, 11, 14, 22, 13, 20),
    "datetime64 s": np.datetime64("2023-11-14T22:13:20"),
    "datetime64 ns": np.datetime64(BASE, "ns"),
}
BAD_TIMES: dict[str, Any] = {
    "text": "2023-11-14",
    "None": None,
    "bool": True,
    "NaN": float("nan"),
    "inf": np.inf,
    "NaT": np.datetime64("NaT"),
    "ns as float": 1.7e18,
    "far": 2**63,
    "far year": np.datetime64("3000-01-01", "s"),
    "array": np.array([1, 2]),
}


def pipeline() -> Pipeline:
    return Pipeline(Forecast(4, 2), Persistence(2), [Bias(0.1), RLS(0.99)])


def wave(t: int) -> np.ndarray[Any, Any]:
    return np.array([np.sin(t / 3.0), np.cos(t / 5.0)])


def check_refused_without_effect(item: Any, reason: Reason) -> None:
    """Check that an item is refused with and without `on_rejected`, and that later results are
    those of an undisturbed pipeline."""
    disturbed, plain = pipeline(), pipeline()
    rejected: list[tuple[Any, Reason]] = []
    for t in range(12):
        for p in (disturbed, plain):
            p.observe([Entry(wave(t), BASE + t)])
    with pytest.raises(EntryError) as caught:
        disturbed.observe([item])
    assert caught.value.reason is reason
    disturbed.on_rejected = lambda item, error: rejected.append((item, error.reason))
    assert disturbed.observe([item]) == []
    assert rejected[0][0] is item
    assert rejected[0][1] is reason
    assert disturbed.stats.rejected[reason.value] == 2
    for t in range(12, 24):
        (a,), (b,) = (p.observe([Entry(wave(t), BASE + t)]) for p in (disturbed, plain))
        np.testing.assert_array_equal(a.served, b.served)


@pytest.mark.parametrize("name", [*TAKEN, *WHOLE, *MISSING])
def test_numbers_of_common_types_are_accepted(name: str) -> None:
    found, wanted = pipeline(), pipeline()
    row = np.array([1.5, 2.0] if name in TAKEN else [1.0, 2.0] if name in WHOLE else [np.nan, 2.0])
    for p, values in ((found, (TAKEN | WHOLE | MISSING)[name]), (wanted, row)):
        p.observe([Entry(wave(t), t) for t in range(8)])
        p.observe([Entry(values, 8)])
    (a,), (b,) = (p.observe([Entry(wave(9), 9)]) for p in (found, wanted))
    np.testing.assert_array_equal(a.served, b.served)


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_values_are_refused_before_anything_changes(name: str) -> None:
    values, reason = REFUSED[name]
    check_refused_without_effect(Entry(values, BASE + 12), reason)


@pytest.mark.parametrize("name", TIMES)
def test_times_of_common_types_are_accepted(name: str, tmp_path: Path) -> None:
    p = pipeline()
    p.observe([Entry(wave(t), BASE - 10 + t) for t in range(4)])
    predictions = p.observe([Entry(wave(5), TIMES[name])])
    assert type(predictions[0].time) is int
    assert predictions[0].time == BASE
    sink = JsonlSink(str(tmp_path / "out.jsonl"))
    sink.write(predictions)  # only an int can be encoded
    sink.close()


@pytest.mark.parametrize("name", BAD_TIMES)
def test_invalid_times_are_refused_before_anything_changes(name: str) -> None:
    check_refused_without_effect(Entry(wave(0), BAD_TIMES[name]), Reason.BAD_TIME)


@pytest.mark.parametrize(
    "item", [{"values": [1.0, 2.0], "time": 3}, np.zeros(2), None, "entry", 5]
)
def test_other_objects_than_entries_are_refused_by_type_name(item: Any) -> None:
    check_refused_without_effect(item, Reason.WRONG_TYPE)
    with pytest.raises(EntryError, match="an Entry or a Label, got"):
        KeyedPipeline(pipeline).observe([item])


@pytest.mark.parametrize(
    "parts",
    [
        {"id": 1.5},
        {"key": b"a"},
        {"id": "\ud800"},
        {"key": True},
        {"position": "here"},
        {"position": ("s", 0, None)},
    ],
)
def test_ids_keys_and_positions_of_other_types_are_refused(parts: dict[str, Any]) -> None:
    check_refused_without_effect(Entry(wave(0), BASE + 12, **parts), Reason.WRONG_TYPE)


def test_whole_numbers_are_ids_and_keys_as_from_json() -> None:
    keyed = KeyedPipeline(lambda: Pipeline(Supervised(1), lambda w: w[-1:], [Bias(0.1)]))
    (prediction,) = keyed.observe(
        [Entry([1.0], 1, np.int64(7), np.int64(3), position=("s", np.int64(0), np.int64(5)))]
    )
    assert (prediction.id, prediction.key, prediction.position) == ("7", "3", Position("s", 0, 5))
    keyed.observe([Label(7, [True], np.int64(2)), Entry(2.0, 3, "8", np.str_("3"))])
    assert keyed.stats.labels["learned"] == 1


@pytest.mark.parametrize("value", ["up", {"a": 1}, [[1.0]], None, [1.0, 2.0], 1j])
def test_a_label_that_is_not_a_number_is_refused(value: Any) -> None:
    p = Pipeline(Supervised(1), lambda w: w[-1:], [Bias(0.1)])
    p.observe([Entry([1.0], 1, "a")])
    with pytest.raises(EntryError):
        p.observe([Label("a", value, 2)])
    assert p.task.pending == 1


def test_a_buffer_used_again_for_every_entry_and_label_corrupts_nothing() -> None:
    def run(reuse: bool, kind: str) -> list[Any]:
        values, label, predictions = np.zeros(1), np.zeros(1), []
        made: Any = {
            "supervised": lambda: Pipeline(
                Supervised(3, correction_window=2 * 10**9), lambda w: w[-1:], [Bias(0.1)]
            ),
            "forecast": lambda: Pipeline(Forecast(4, 2), Persistence(2), [Bias(0.1)]),
            "panel": lambda: Pipeline(
                Forecast(4, 2), Persistence(2), [Bias(0.1)], panel=Panel(["a"], lateness="1s")
            ),
        }[kind]()
        for t in range(40):
            if not reuse:
                values, label = np.zeros(1), np.zeros(1)
            values[:], label[:] = np.sin(t), np.cos(t)
            given = label if kind == "supervised" else None
            predictions += made.observe([Entry(values, t * 10**9, str(t), "a", given)])
            values[:], label[:] = 1e6, 1e6
        return [p.served.tolist() for p in predictions]

    for kind in ("supervised", "forecast", "panel"):
        assert run(True, kind) == run(False, kind)


def test_predict_accepts_and_refuses_the_same_values() -> None:
    p, keyed = pipeline(), KeyedPipeline(pipeline)
    for one in (p, keyed):
        one.observe([Entry(wave(t), t) for t in range(8)])
        a, b = (
            one.predict(Entry(values, np.int64(9)))
            for values in ([1.5, None], np.array([1.5, np.nan]))
        )
        np.testing.assert_array_equal(a.served, b.served)
        for bad in (Entry(["x", 1.0], 9), Label("a", [1.0], 9), {}):
            with pytest.raises(EntryError):
                one.predict(bad)  # type: ignore[arg-type] # what is tested


def test_a_row_of_a_real_data_frame() -> None:
    pd = pytest.importorskip("pandas")
    index = pd.date_range("2025-01-01", periods=30, freq="5min")
    frame = pd.DataFrame({"a": np.sin(np.arange(30)), "b": np.arange(30)}, index=index)
    p, q = pipeline(), pipeline()
    for i, (time, row) in enumerate(frame.iterrows()):
        predictions = p.observe([Entry(row, time)])
        wanted = q.observe([Entry(frame.to_numpy()[i], int(time.value))])
        assert [s.time for s in predictions] == [s.time for s in wanted]
        assert all((a.served == b.served).all() for a, b in zip(predictions, wanted, strict=True))
    with pytest.raises(EntryError) as caught:
        p.observe([Entry(row, pd.NaT)])
    assert caught.value.reason is Reason.BAD_TIME
    p.observe([Entry(pd.Series([1, pd.NA], dtype="Int64"), index[-1])])
