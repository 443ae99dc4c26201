"""The demo's live view, drawn from what the engine's metrics endpoint says."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamadapt.errors import StreamadaptError

__all__ = ["scrape", "watch"]

START_S = 60.0
REFRESH_S = 0.5
PLAIN_EVERY_S = 5.0
WEIGHTS_SHOWN = 5

Samples = Mapping[str, Mapping[str, float]]
"""Metric name without its prefix -> value of its telling label ("" where it has none) -> value."""

_TELLING = ("role", "expert", "detector", "reason", "stream", "outcome")


def scrape(url: str) -> Samples | None:
    """Read the endpoint once; None while it is not up."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as response:
            text = response.read().decode()
    except (urllib.error.URLError, OSError):
        return None
    samples: dict[str, dict[str, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = next((sample.labels[name] for name in _TELLING if name in sample.labels), "")
            name = sample.name.removeprefix("streamadapt_")
            samples[name][label] = samples[name].get(label, 0.0) + sample.value
    return samples


def watch(console: Console, url: str, engine: subprocess.Popen[bytes], *, total: int) -> None:
    """Show the engine at work until it has dealt with `total` records.

    Raises
    ------
    StreamadaptError
        If the engine ends by itself or never answers.
    """
    view = _View(total)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    started = said = time.monotonic()
    with live or nullcontext():
        while True:
            if engine.poll() is not None:
                raise StreamadaptError(f"the engine ended by itself with exit code {engine.returncode}")
            samples = scrape(url)
            now = time.monotonic()
            if samples is None or "entries_total" not in samples:
                if view.done == 0 and now - started > START_S:
                    raise StreamadaptError(f"the engine's metrics did not come up on {url} within {START_S:g} s")
            else:
                view.update(samples, now)
                if live is not None:
                    live.update(view.draw(), refresh=True)
                elif now - said >= PLAIN_EVERY_S:
                    console.print(view.line(), soft_wrap=True)
                    said = now
                if view.done >= total:
                    return
            time.sleep(REFRESH_S)


class _View:
    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.rate = 0.0
        self._before: tuple[float, float] | None = None
        self._samples: Samples = {}
        self._drifts = 0.0
        self._marks: list[str] = []

    def update(self, samples: Samples, now: float) -> None:
        self._samples = samples
        entries = sum(samples["entries_total"].values())
        dead = sum(samples.get("dead_letters_total", {}).values())
        labels = sum(v for k, v in samples.get("labels_total", {}).items() if k != "expired")
        self.done = int(entries + dead + labels)
        if self._before is not None and now > self._before[0]:
            newest = (entries - self._before[1]) / (now - self._before[0])
            self.rate = newest if self.rate == 0.0 else 0.7 * self.rate + 0.3 * newest
        self._before = (now, entries)
        drifts = sum(samples.get("drifts_total", {}).values())
        if drifts > self._drifts:
            self._marks = [*self._marks, f"+{drifts - self._drifts:.0f} at entry {entries:,.0f}"][-4:]
            self._drifts = drifts

    def _error(self, role: str) -> float | None:
        cells = self._samples.get("matured_cells_total", {}).get(role, 0.0)
        return self._samples["matured_loss_total"][role] / cells if cells else None

    def _figures(self) -> dict[str, str]:
        frozen, served = self._error("base"), self._error("served")
        lag = sum(self._samples.get("consumer_lag_records", {}).values())
        weights = sorted(self._samples.get("guard_weight_ratio", {}).items(), key=lambda item: -item[1])[:WEIGHTS_SHOWN]
        return {
            "entries/s": f"{self.rate:,.0f}",
            "lag": f"{lag:,.0f} records",
            "error frozen": "-" if frozen is None else f"{frozen:.2f}",
            "error served": "-" if served is None else f"{served:.2f}",
            "dead letters": f"{sum(self._samples.get('dead_letters_total', {}).values()):,.0f}",
            "drifts": f"{self._drifts:,.0f}" + (f" ({', '.join(self._marks)})" if self._marks else ""),
            "weights": "  ".join(f"{name} {weight:.2f}" for name, weight in weights),
        }

    def line(self) -> str:
        figures = self._figures() | {"drifts": f"{self._drifts:.0f}"}
        return f"{self.done / self.total:4.0%}  " + "  ".join(f"{name} {value}" for name, value in figures.items())

    def draw(self) -> Group:
        table = Table(show_header=False, box=None, padding=(0, 2))
        for name, value in self._figures().items():
            table.add_row(Text(name, style="bold"), value)
        bar = ProgressBar(total=self.total, completed=min(self.done, self.total), width=60)
        return Group(Text(f"{self.done:,} of {self.total:,} records"), bar, table)
