"""Draws the demo's live view from the engine's metrics endpoint."""

from __future__ import annotations

import http.client
import subprocess
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamadapt.app.demo.producer import Producer
from streamadapt.errors import StreamadaptError

__all__ = ["scrape", "show", "watch"]

START_S = 60.0
REFRESH_S = 0.5
PLAIN_EVERY_S = 5.0
STALL_S = 120.0
WEIGHTS_SHOWN = 5
MARKS_SHOWN = 3
BAR = 20
NO_RECORD = ("expired", "negative", "refused")
"""Outcomes of labels that have no record of their own, or whose record counts as a dead letter."""

Samples = Mapping[str, Mapping[str, float]]
"""Metric name without its prefix -> value of its main label ("" without one) -> value."""

_MAIN_LABELS = ("role", "expert", "detector", "reason", "stream", "outcome")


def scrape(url: str) -> Samples | None:
    """Read the metrics endpoint once; None if it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as response:
            text = response.read().decode()
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return None
    samples: dict[str, dict[str, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = (sample.labels[name] for name in _MAIN_LABELS if name in sample.labels)
            label = next(labels, "")
            name = sample.name.removeprefix("streamadapt_")
            samples[name][label] = samples[name].get(label, 0.0) + sample.value
    return samples


def show(console: Console, text: str, **how: Any) -> None:
    """Print a sentence: wrapped on a terminal, else as one line."""
    console.print(text, soft_wrap=not console.is_terminal, highlight=False, **how)


def watch(
    console: Console, url: str, engine: subprocess.Popen[bytes], producer: Producer, *, total: int
) -> None:
    """Show the engine's progress until it has processed `total` records.

    Raises
    ------
    StreamadaptError
        If the engine ends by itself, never answers or makes no progress, or the producer fails.
    """
    view = _View(total)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    printed = time.monotonic()
    with live or nullcontext():
        while True:
            if engine.poll() is not None:
                raise StreamadaptError(
                    f"the engine ended by itself with exit code {engine.returncode}"
                )
            if producer.error is not None:
                raise StreamadaptError(f"the readings could not be sent: {producer.error}")
            samples = scrape(url)
            now = time.monotonic()
            if samples is not None and "entries_total" in samples:
                view.update(samples, now)
                finished = view.done >= total
                if live is not None:
                    live.update(view.draw(), refresh=True)
                elif finished or now - printed >= PLAIN_EVERY_S:
                    show(console, view.line())
                    printed = now
                if finished:
                    return
            view.check_progress(producer.is_alive(), now, url)
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
        self._started = self._moved = time.monotonic()

    def check_progress(self, still_sent: bool, now: float, url: str) -> None:
        if not self._samples and now - self._started > START_S:
            raise StreamadaptError(
                f"the engine's metrics endpoint {url} did not answer within {START_S:g} s"
            )
        if not still_sent and now - max(self._moved, self._started) > STALL_S:
            raise StreamadaptError(
                f"the engine has made no progress for {STALL_S:g} s at {self.done} of "
                f"{self.total} records"
            )

    def update(self, samples: Samples, now: float) -> None:
        self._samples = samples
        before = self.done
        entries = sum(samples["entries_total"].values())
        dead = sum(samples.get("dead_letters_total", {}).values())
        labels = sum(v for k, v in samples.get("labels_total", {}).items() if k not in NO_RECORD)
        self.done = int(entries + dead + labels)
        if self.done > before:
            self._moved = now
        if self._before is not None and now > self._before[0]:
            newest = (entries - self._before[1]) / (now - self._before[0])
            self.rate = newest if self.rate == 0.0 else 0.7 * self.rate + 0.3 * newest
        self._before = (now, entries)
        drifts = sum(samples.get("drifts_total", {}).values())
        if drifts > self._drifts:
            self._marks = [*self._marks, f"{entries:,.0f}"][-MARKS_SHOWN:]
            self._drifts = drifts

    def _error(self, role: str) -> float | None:
        cells = self._samples.get("matured_cells_total", {}).get(role, 0.0)
        return self._samples["matured_loss_total"][role] / cells if cells else None

    def _figures(self) -> dict[str, str]:
        frozen, served = self._error("base"), self._error("served")
        lag = sum(self._samples.get("consumer_lag_records", {}).values())
        return {
            "entries/s": f"{self.rate:,.0f}",
            "lag": f"{lag:,.0f}",
            "error frozen": "-" if frozen is None else f"{frozen:.2f}",
            "error served": "-"
            if served is None
            else f"{served:.2f}" + (_less(served, frozen) if frozen else ""),
            "dead letters": f"{sum(self._samples.get('dead_letters_total', {}).values()):,.0f}",
            "drifts": f"{self._drifts:,.0f}"
            + (f" (newest at entry {', '.join(self._marks)})" if self._marks else ""),
        }

    def _weights(self) -> list[tuple[str, float]]:
        weights = self._samples.get("guard_weight_ratio", {}).items()
        return sorted(weights, key=lambda item: -item[1])[:WEIGHTS_SHOWN]

    def line(self) -> str:
        weights = "  ".join(f"{name} {weight:.2f}" for name, weight in self._weights())
        texts = "  ".join(f"{name} {value}" for name, value in self._figures().items())
        return f"{self.done / self.total:4.0%}  {texts}  weights: {weights}"

    def draw(self) -> Group:
        table = Table(show_header=False, box=None, padding=(0, 2))
        for name, value in self._figures().items():
            table.add_row(Text(name, style="bold"), value)
        weights = self._weights()
        for i in range(WEIGHTS_SHOWN):  # a fixed number of rows: a view that jumps is unreadable
            name, weight = weights[i] if i < len(weights) else ("", 0.0)
            bar = "#" * round(BAR * weight)
            table.add_row(
                Text("weights" if i == 0 else "", style="bold"),
                f"{weight:.2f} {bar:<{BAR}} {name}" if name else "",
            )
        bar_of_all = ProgressBar(total=self.total, completed=min(self.done, self.total), width=60)
        progress = Table.grid()  # a bar alone does not end its line
        progress.add_row(bar_of_all)
        return Group(Text(f"{self.done:,} of {self.total:,} records"), progress, table)


def _less(served: float, frozen: float) -> str:
    return f" ({100.0 * (served / frozen - 1.0):+.0f} %)"
