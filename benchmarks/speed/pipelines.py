"""Whole pipelines: against the old commit, and against loops written by hand with river."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.scenarios import forecast
from benchmarks.speed.context import Context
from benchmarks.speed.processes import OLD_COMMIT, ROOT, Job, running
from benchmarks.speed.rounds import Measured, Round, Side, seconds
from benchmarks.speed.streams import (
    LATE,
    WINDOW,
    Array,
    Items,
    electricity,
    forecasts,
    sensors,
)

__all__ = ["classification_lot", "forecast_lot", "regression", "regression_river"]

OLD = f"the old commit ({OLD_COMMIT[:7]})"
LOTS = (
    "Ours: `Pipeline.observe_lot`, in lots of at most 1,024 items, arrays in and arrays out; the "
    "`Columns` are made within the time."
)
ONE = (
    "Ours: `Pipeline.observe([item])`, one item in a call; the entries, labels and predictions "
    "are objects that are made within the time."
)
TURNS = (
    "A pipeline runs in a process of its own; the sides wait for each other's rounds. A warm-up "
    "of the stream's first entries and one round of each side are not counted; kernels are "
    "compiled by then."
)
REGRESSION = (
    f"A stream of 8 autoregressive channels; the label, a linear function of the last {WINDOW} "
    f"entries (24 inputs) whose weights turn slowly, arrives as a record of its own {LATE} "
    "entries later. The default regression set (14 experts with the base), default guard, drift "
    "monitor adwin on loss, a linear base fitted on 2,000 earlier entries. The time is that of an "
    "entry and a label."
)


@contextmanager
def _pipeline(ctx: Context, root: Path, job: Job, warm_up: int, items: int) -> Iterator[Round]:
    """Start a pipeline in a process, warm it up, and give a round of `items` items."""
    with running(root, job, ctx.folder) as worker:
        worker.ask(items=warm_up)

        def work() -> float:
            found = worker.ask(items=items)
            return float(found["seconds"]) / int(found["entries"])

        yield work


def _ours(ctx: Context, job: Job, way: str, warm_up: int, items: int) -> Side:
    return Side("ours", lambda: _pipeline(ctx, ROOT, {**job, "way": way}, warm_up, items))


def _old(ctx: Context, job: Job, way: str, warm_up: int, items: int) -> Side:
    return Side(OLD, lambda: _pipeline(ctx, ctx.old.path, {**job, "way": way}, warm_up, items))


def _sensor_job(ctx: Context, items: int) -> tuple[Items, Job, int]:
    """Return the regression stream for rounds of `items` items, its job and its warm-up."""
    warm_up = 2 * ctx.many(1_000) + LATE
    stream = sensors((warm_up + (ctx.rounds + 1) * items) // 2 + LATE + 2)
    paths = stream.save(ctx.folder, "sensors")
    return stream, {**paths, "kind": "regression", "window": WINDOW}, warm_up


def regression(name: str, way: str, ctx: Context) -> Measured:
    """``regression-lot`` and ``regression-one``: the old commit's `Pipeline.observe`."""
    items = 2 * ctx.many(8_192 if way == "columns" else 2_048)
    theirs = 2 * ctx.many(256)
    _, job, warm_up = _sensor_job(ctx, items)
    old_way = "objects" if way == "columns" else "one"
    rounds = ctx.compare(
        _ours(ctx, job, way, warm_up, items), [_old(ctx, job, old_way, warm_up, theirs)]
    )
    given = (
        "its list of objects is made before its time begins."
        if way == "columns"
        else "measured in the same way, objects included."
    )
    text = (
        f"{REGRESSION} {LOTS if way == 'columns' else ONE} Rival: `Pipeline.observe` of the old "
        f"commit; {given} Rounds of {items // 2:,} entries, and of {theirs // 2:,} for the rival. "
        f"{TURNS}"
    )
    return Measured(name, "us an entry", text, rounds)


def regression_river(name: str, ctx: Context) -> Measured:
    """All experts against one linear model of river."""
    items, theirs = 2 * ctx.many(8_192), ctx.many(2_048)
    stream, job, warm_up = _sensor_job(ctx, items)
    rival = Side.of(
        "river: StandardScaler | LinearRegression",
        partial(_river_regression, stream.arrays, theirs),
    )
    rounds = ctx.compare(_ours(ctx, job, "columns", warm_up, items), [rival])
    text = (
        f"{REGRESSION} {LOTS} Rival: a loop by hand: `predict_one` on the 24 inputs of an entry, "
        f"and `learn_one` when its label arrives; the dicts of inputs are made before its time "
        f"begins. Rounds of {items // 2:,} entries, and of {theirs:,} for the rival. {TURNS}"
    )
    return Measured(name, "us an entry", text, rounds)


def _river_regression(arrays: dict[str, Array], count: int) -> Round:
    from river.linear_model import LinearRegression
    from river.preprocessing import StandardScaler

    entries = ~arrays["is_label"]
    values = arrays["values"][entries]
    told = arrays["labels"][~entries, 0].tolist()  # of the entries 0, 1, ...
    last = len(told)
    rows = [
        {f"x{j}": v for j, v in enumerate(values[t - WINDOW + 1 : t + 1].ravel().tolist())}
        for t in range(WINDOW - 1, min(last, 2 * count + WINDOW))
    ]
    labels = [told[t] for t in range(WINDOW - 1, min(last, 2 * count + WINDOW))]
    model: Any = StandardScaler() | LinearRegression()
    waiting: deque[tuple[dict[str, float], float]] = deque()
    at = 0

    def loop() -> None:
        nonlocal at
        for _ in range(count):
            x, y = rows[at], labels[at]
            if len(waiting) == LATE:
                model.learn_one(*waiting.popleft())
            model.predict_one(x)
            waiting.append((x, y))
            at = (at + 1) % len(rows)

    return lambda: seconds(loop, count)


def classification_lot(name: str, ctx: Context) -> Measured:
    """The default set of classifiers against one logistic regression of river, on Elec2."""
    ctx.file("elec.csv")
    stream = electricity(ctx.data)
    warm_up, items = ctx.many(1_000), ctx.many(2_048)
    # The stream has an end: with more rounds, they are shorter.
    items = min(items, (len(stream.arrays["values"]) - warm_up) // (ctx.rounds + 1))
    job: Job = {
        **stream.save(ctx.folder, "electricity"),
        "kind": "classification",
        "window": 1,
    }
    rival = Side.of(
        "river: StandardScaler | LogisticRegression, ADWIN",
        partial(_river_classification, stream.arrays, items),
    )
    rounds = ctx.compare(_ours(ctx, job, "columns", warm_up, items), [rival])
    served, words, problem = _served(ctx, job, ctx.many(len(stream.arrays["values"])))
    text = (
        f"Elec2 after its first 20 %, on which the base, a logistic regression, is fitted; each "
        f"entry has its label inside. The default classification set with the base, default "
        f"guard, drift monitor adwin on loss. {LOTS} Rival: a loop by hand: `predict_proba_one`, "
        f"`learn_one`, and ADWIN on the error; its dicts are made before its time begins. Rounds "
        f"of {items:,} entries. {TURNS} {words}"
    )
    return Measured(name, "us an entry", text, rounds, problem, more=served)


def _river_classification(arrays: dict[str, Array], count: int) -> Round:
    from river.drift import ADWIN
    from river.linear_model import LogisticRegression
    from river.preprocessing import StandardScaler

    rows = [{f"x{j}": v for j, v in enumerate(row)} for row in arrays["values"].tolist()]
    labels = [bool(y) for y in arrays["labels"][:, 0].tolist()]
    model: Any = StandardScaler() | LogisticRegression()
    adwin, at = ADWIN(), 0

    def loop() -> None:
        nonlocal at
        for _ in range(count):
            x, y = rows[at], labels[at]
            up = model.predict_proba_one(x)[True]
            model.learn_one(x, y)
            adwin.update((up > 0.5) != y)
            at = (at + 1) % len(rows)

    return lambda: seconds(loop, count)


def _served(ctx: Context, job: Job, entries: int) -> tuple[dict[str, Any], str, str]:
    """Return the mean log loss of what both commits' default sets serve, words, and a problem."""
    found: dict[str, float] = {}
    for name, root in (("ours", lambda: ROOT), ("old", lambda: ctx.old.path)):
        ctx.progress(f"log loss of {entries:,} entries, {name}")
        try:
            with running(root(), {**job, "way": "objects"}, ctx.folder) as worker:
                found[name] = float(worker.ask(judge=entries)["log_loss"])
        except Exception as exc:
            problem = f"served log loss, {name}: {exc}"
            return {"served_log_loss": found}, f"Not measured: {problem}.", problem
    change = found["ours"] / found["old"] - 1.0
    words = (
        f"Served log loss over {entries:,} entries: {found['ours']:.4f}; the default set of "
        f"{OLD}: {found['old']:.4f} ({100 * change:+.2f} %)."
    )
    return {"served_log_loss": {**found, "change": change}}, words, ""


SETTINGS = {
    "forecast-etth1": ("etth1-strong", "ETTh1.csv", 400),
    "forecast-los": ("los-strong", "los_speed.csv", 80),
}
"""Scenario -> the scenario of `benchmarks.quality`, its file, and entries of a round."""


def forecast_lot(name: str, ctx: Context) -> Measured:
    """The default forecast set against the old commit."""
    scenario, file, usual = SETTINGS[name]
    ctx.file(file)
    setting = next(one for one in forecast.FORECASTS if one.name == scenario)
    stream = forecasts(setting, ctx.data)
    n, channels = stream.arrays["values"].shape
    warm_up = ctx.many(setting.warm_up)
    items = min(ctx.many(usual), (n - warm_up) // (ctx.rounds + 1))
    job: Job = {
        **stream.save(ctx.folder, name),
        "kind": "forecast",
        "window": setting.window,
        "horizon": setting.horizon,
    }
    rounds = ctx.compare(
        _ours(ctx, job, "columns", warm_up, items), [_old(ctx, job, "objects", warm_up, items)]
    )
    text = (
        f"`{scenario}` of docs/results.md: {channels} channels, window {setting.window}, horizon "
        f"{setting.horizon}, the default forecast set with the base, default guard. {LOTS} Rival: "
        f"`Pipeline.observe` of the old commit, with its default set; its list of objects is made "
        f"before its time begins. A warm-up of {warm_up:,} entries, then rounds of {items:,} "
        f"entries, the same for both. {TURNS}"
    )
    return Measured(name, "us an entry", text, rounds)
