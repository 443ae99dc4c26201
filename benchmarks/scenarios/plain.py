"""Scenarios whose results are rows of figures, converted to the common form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.scenarios import dictionary, digits
from benchmarks.scenarios.measure import PART, Figure, Measure, Measured, Progress

__all__ = ["of_dictionary", "of_digits"]

ACCURACY = Measure("accuracy", "accuracy", higher=True)
RIVAL = "sklearn"
Rows = Mapping[str, Mapping[str, float]]


def of_digits(name: str, folder: Path, progress: Progress) -> Measured:
    """Measure test-time adaptation: one measure, a frozen base, and rows beside the mixture."""
    del folder  # the images are in scikit-learn
    return digits_measured(name, digits.measure(name, progress))


def digits_measured(name: str, rows: Rows) -> Measured:
    """Name the unadapted network ``base``; figures that belong to no expert go to the details."""
    named = {_based(row): _figure(figure) for row, figure in rows.items()}
    experts = {row: {ACCURACY.key: figure} for row, figure in named.items() if PART not in row}
    details = {row: figure for row, figure in named.items() if PART in row}
    mixed = tuple(
        row for row in experts if row != "served" and not row.endswith(f"-{digits.BATCH}")
    )
    protocol = f"{name}: {digits.PROTOCOLS[name]} base: the source network, unadapted."
    return Measured(name, protocol, (ACCURACY,), experts, mixed, details=details)


def _based(row: str) -> str:
    """``source`` is the base; ``worst served - source`` is ``served - base @ worst``."""
    row = row.replace("source", "base")
    return f"{row.removeprefix('worst ')}{PART}worst stream" if row.startswith("worst ") else row


def of_dictionary(name: str, folder: Path, progress: Progress) -> Measured:
    """Measure the recovery of a dictionary: one measure for each number of entries; nothing is
    adapted."""
    del folder  # the entries are drawn
    return dictionary_measured(name, dictionary.measure(name, progress))


def dictionary_measured(name: str, rows: Rows) -> Measured:
    """Split ``"<method>, <entries>"`` into expert and measure; the rival's settings go to the
    protocol."""
    figures: dict[str, dict[str, Figure]] = {}
    measures: dict[str, Measure] = {}
    settings = ""
    for row, figure in rows.items():
        method, _, count = row.rpartition(", ")
        if method.startswith(RIVAL):
            settings = f" Here: {method}."
            method = RIVAL
        key = f"after_{count.replace(',', '')}"
        measures[key] = Measure(key, f"{_title()} after {count} entries", higher=True)
        figures.setdefault(method, {})[key] = _figure(figure)
    protocol = f"{name}: {dictionary.PROTOCOL}{settings}"
    return Measured(name, protocol, tuple(measures.values()), figures, tuple(figures))


def _title() -> str:
    return dictionary.MEASURE.partition(" (")[0]


def _figure(row: Mapping[str, float]) -> Figure:
    return Figure(row["mean"], row.get("spread") or None)
