"""The page of the drift benchmark; sentences with numbers are generated from the figures."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.drift.channels import INERTIA, Family
from benchmarks.drift.compare import DUMMIES, GROUPS, SEEDS, SLOW, Compared, Row
from benchmarks.drift.measured import FAILURE_HORIZON, PAUSE, SENSOR_HORIZON, SHIFT, Sureness
from benchmarks.drift.measured import HOUR_NS as HOUR
from benchmarks.drift.score import Tally
from benchmarks.drift.signals import MOVING, RATE
from benchmarks.drift.synthetic import CREEP, FIT, SPACING, WIDTHS
from benchmarks.drift.words import READING
from benchmarks.results_page_tables import rows_of

__all__ = ["PROTOCOL", "page"]

INTRODUCTION = """# How well drift is detected

Written by `python -m benchmarks.drift --json build/drift.json --markdown docs/drift.md`.

Every detector at river's defaults, on the pipeline's own signals, on streams with known changes; and two dummies: one that
always fires and one that never fires. *Away* and *back*: changes away from the concept that the frozen base was fitted on,
and back to it. *Detected* counts changes with an alarm within the horizon; *delay* is the median of their delays, in
entries. *False*: alarms outside all horizons, per 10,000 entries there. *By chance*: the number of changes that the same
number of random alarms would have detected; a detector that is not above this number has found nothing. *Repeats*: further
alarms within the horizons. The last three columns: the same with a cool-down as long as the horizon.
"""  # noqa: E501

PROTOCOL = f"""## Protocol

* Streams of classification: river's SEA (variants 0 and 3, noise .1), Agrawal (0 and 2, perturbation .05), Sine (0
  and 2), Mixed (0 and 1: the labels turned round), STAGGER (0 and 1) and RandomRBF (two models), through
  `ConceptDriftStream`: first concept, second, first, second, {SPACING:,} entries from one change to the next and half
  of that before the first and after the last; seeds {", ".join(map(str, SEEDS))}. Width of the change:
  {WIDTHS["abrupt"]} entries (abrupt; river's formula overflows for less) or {WIDTHS["gradual"]} (gradual; it begins
  where its sigmoid is at .12, and delays count from there). Creeping: the centres of RandomRBF begin to move
  ({CREEP:g} an entry) and do not stop. Horizon: {SPACING // 2} entries, for the creeping stream all that is left. Only
  RandomRBF's changes, of these, move the inputs: in all others `input`, `confidence` and `embedding` can only detect
  chance.
* Their base: a network (32 and 16 hidden units) fitted on {FIT:,} entries of the first concept and frozen; its stream begins
  at the next entry. Regression: `FriedmanDrift` (global recurring; global gradual; local expanding, which touches a
  small part of the inputs' space only), ridge regression as base. Labels come with their entries and are known at the
  next one: no delay is less than one entry, except for `input`, `confidence` and `embedding`.
* `linkload`: the scenario of docs/results.md (two links fail every 144 entries, loads routed around them), horizon
  {FAILURE_HORIZON} entries, the first failure after 300; `linkload-still` is the same demand with no failure: the daily
  cycle goes on, and all alarms are false. The base forecasts the change of the last value, so that
  most of a failure's loss is one entry's.
* `glucose`: the scenario `cgm-6h`, labels six hours late. The data do not say when a sensor was changed. Taken as a
  change: the first row after at least {PAUSE // HOUR} h without a usable one, because such a sensor sends no
  readings for that time after it was put in (rows whose current is `nil` count as missing; there is one run of them). Horizon:
  {SENSOR_HORIZON} entries. The text at the table says how certain that is.
* Signals are recorded once, by a monitor inside the pipeline (base, no learners), and every detector receives the same
  values from `DriftMonitor.update`; a test checks that monitors in the pipeline fire at the same entries.
  {" and ".join(SLOW).upper()} watches the first seed's streams only. `{MOVING}` is no signal of the product: the base's
  loss in units of a running mean of itself (rate {RATE:g}), to see what such a unit would hide; `loss` is in units
  of the usual loss in its first entries.
* An alarm belongs to a change from the change's first entry until the horizon or the next change; the first is the
  detection, others are repeats. Costs: process time of `DriftMonitor.update`, one thread, on a shared machine: the
  ratios are more reliable than the times.
"""  # noqa: E501


def page(compared: Compared, families: Sequence[Family], sure: Sureness | None) -> str:
    """Return the page in Markdown."""
    parts = [INTRODUCTION, READING]
    for group in compared.groups():
        parts += [f"## {GROUPS[group][0].upper()}{GROUPS[group][1:]}\n", _table(compared, group)]
        if group == "glucose" and sure is not None:
            parts.append(_sureness(sure))
        if group == "gradual":
            parts.append("![detected changes against false alarms](plots/drift.png)\n")
    by_family = [
        g for g in compared.groups() if len({key[1] for key in compared.raw if key[0] == g}) > 1
    ]
    if by_family:
        parts.append(
            "## Stream by stream\n\nDetected of all changes (in brackets: false alarms per "
            "10,000 entries), without "
            "cool-down, all seeds.\n"
        )
        parts += [_streams(compared, group) for group in by_family]
    if families:
        parts += [_channels(families)]
    if compared.raw:
        parts += [_costs(compared)]
    return "\n".join([*parts, PROTOCOL])


def _name(row: Row) -> str:
    return f"*{row[0]}*" if row[0] in DUMMIES else ":".join(row)


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _table(compared: Compared, group: str) -> str:
    """Return a table with detectors as rows, the best by detections above chance first."""
    rows = compared.rows(group)
    tallies = {
        row: (compared.total(row, group), compared.total(row, group, quiet=True)) for row in rows
    }
    first = tallies[rows[0]][0]
    if not first.count:
        ranked = sorted(rows, key=lambda row: tallies[row][0].false_rate or 0.0)
        header = ["detector:signal", "alarms", "per 10,000", "with cool-down, per 10,000"]
        lines = [
            [_name(r), _number(t.alarms), _number(t.false_rate, 1), _number(q.false_rate, 1)]
            for r, (t, q) in ((r, tallies[r]) for r in ranked)
        ]
        return f"{first.entries:,} entries, no change.\n\n" + rows_of(header, lines)
    ranked = sorted(
        rows, key=lambda row: (-tallies[row][0].above_chance, tallies[row][0].delay or 0.0)
    )
    kinds = list(first.changes)
    header = [
        "detector:signal",
        *(kind if kind != "event" else "detected" for kind in kinds),
        "by chance", "delay", "false", "repeats", "cool-down: detected", "false", "repeats",
    ]  # fmt: skip
    lines = [[_name(row), *_cells(*tallies[row], kinds)] for row in ranked]
    return f"{first.entries:,} entries, {first.count} changes.\n\n" + rows_of(header, lines)


def _cells(tally: Tally, quiet: Tally, kinds: Sequence[str]) -> list[str]:
    found = [f"{len(tally.delays[kind])}/{tally.changes[kind]}" for kind in kinds]
    own = [
        f"{tally.chance:.1f}",
        _number(tally.delay),
        _number(tally.false_rate, 1),
        str(tally.repeats),
    ]
    return [
        *found,
        *own,
        f"{quiet.detected}/{quiet.count}",
        _number(quiet.false_rate, 1),
        str(quiet.repeats),
    ]


def _sureness(sure: Sureness) -> str:
    return (
        f"How sure the {sure.marks} changes are: between the half days before and after, the "
        f"sensor's gain (glucose "
        f"over current; not used in the definition) moves by more than {SHIFT:.0%} at "
        f"{sure.large:.0%} of them, "
        f"against {sure.large_elsewhere:.0%} of {sure.elsewhere} places far from any pause; "
        f"{sure.three_days:.0%} of "
        "the times between neighbouring ones are 3 or 6 days (give or take a quarter of one), "
        "once or twice the three "
        "days that such a sensor is made for. So about half of them are changes that a detector "
        "should see; some "
        "pauses are the same sensor after a lost connection, and the gain moves elsewhere, too: "
        "*missed* and *false* "
        "are upper bounds.\n"
    )


def _streams(compared: Compared, group: str) -> str:
    names = list(dict.fromkeys(key[1] for key in compared.raw if key[0] == group))
    lines = []
    for row in compared.rows(group):
        if row[0] in DUMMIES:
            continue
        tallies = [compared.total(row, group, name) for name in names]
        lines.append([_name(row), *(_cell(t) for t in tallies)])
    return rows_of([group, *(name.removesuffix(f"-{group}") for name in names)], lines)


def _cell(tally: Tally) -> str:
    rate = f"({tally.false_rate or 0.0:.1f})"
    return f"{tally.detected}/{tally.count} {rate}" if tally.count else rate


def _channels(families: Sequence[Family]) -> str:
    head = (
        '## False alarms of many channels\n\n`DriftMonitor(channels="each")`: a detector per '
        "channel, an alarm if any "
        "fires. Channels that do not depend on each other and never change: independent "
        "log-normal noise, or the size "
        f"of a first-order autoregression (coefficient {INERTIA:g}). *Level*: of one test; "
        f"divided (Bonferroni): by "
        "the number of channels. Any alarm: the share of runs with at least one. A detector "
        "tests at every entry or "
        "so: its level bounds one test, not a whole run.\n\n"
    )
    header = [
        "detector, noise, level", "channels", "level divided", "entries x runs",
        "any alarm in a run", "alarms per 10,000", "us an entry",
    ]  # fmt: skip
    return head + rows_of(header, [_family(f) for f in families])


def _family(f: Family) -> list[str]:
    divided = "" if f.channels == 1 else "yes" if f.corrected else "no"
    runs = [f"{f.entries:,} x {f.runs}", f"{f.any_alarm:.1%}".replace("%", " %")]
    name = f"{f.detector}, {f.noise}, {f.level:g}"
    return [name, str(f.channels), divided, *runs, f"{f.per_10000:.1f}", f"{f.microseconds:,.0f}"]


def _costs(compared: Compared) -> str:
    cheapest = min(
        (compared.cost(row) for row in compared.rows() if row[0] not in DUMMIES), default=1.0
    )
    rows = sorted(compared.rows(), key=compared.cost)
    lines = [
        [_name(r), f"{compared.cost(r):.1f}", f"{compared.cost(r) / cheapest:.1f}"] for r in rows
    ]
    return "## Cost\n\n" + rows_of(
        ["detector:signal", "us an entry", "ratio to the cheapest detector"], lines
    )
