"""Correct a frozen forecaster online, from a CSV of your own.

    python examples/correct_forecaster.py panel.csv [--window 24] [--horizon 12] [--train 0.6]

One row is one time step; every numeric column is a channel (a first column of dates is ignored).
A linear forecaster is fitted on the first part and frozen; ADCSD, a bias and recursive least
squares correct it on the rest. To correct your own model, pass its module to `Pipeline` in place
of `base`: it is called with a tensor of shape (1, window, channels).
"""

import argparse
import csv

import numpy as np

from streamadapt import ADCSD, RLS, Batch, Bias, Forecast, Pipeline
from streamadapt.models.fit import fit_forecast


def read_panel(path):
    """Return the numbers of the file, (steps, channels); an empty or invalid cell is missing."""

    def number(cell):
        try:
            return float(cell)
        except ValueError:
            return np.nan

    with open(path, newline="", encoding="utf-8") as file:
        values = np.array(
            [[number(cell) for cell in row] for row in csv.reader(file)][1:], np.float32
        )
    return values[:, ~np.isnan(values).all(axis=0)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv")
    parser.add_argument("--window", type=int, default=24)
    parser.add_argument("--horizon", type=int, default=12)
    parser.add_argument("--train", type=float, default=0.6)
    options = parser.parse_args()

    values = read_panel(options.csv)
    times = np.arange(len(values)) * 10**9
    split = int(options.train * len(values))
    base = fit_forecast(Batch(values[:split], times[:split]), options.window, options.horizon)
    pipeline = Pipeline(
        Forecast(options.window, options.horizon),
        base,
        [ADCSD(), ADCSD(share_norm=True), Bias(0.02), RLS(0.9995)],
    )
    start = split - options.window + 1  # the first forecast is made at the split
    for _ in map(
        pipeline.observe, ([entry] for entry in Batch(values[start:], times[start:]).entries())
    ):
        pass
    print(
        f"{len(values)} steps, {values.shape[1]} channels; mean absolute error after step {split}:"
    )
    for name in (*pipeline.names, "served"):
        print(f"{name:20s} {pipeline.stats.mean_loss(name):10.4f}")


if __name__ == "__main__":
    main()
