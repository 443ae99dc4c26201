"""Classification with a frozen network: will the electricity price go up (Elec2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.scenarios.measure import (
    SEEDS,
    Errors,
    Learners,
    Losses,
    Measure,
    Measured,
    Progress,
    Sums,
    cost_of,
    judge_all,
    mean_of,
    of_seed,
    over_seeds,
    seeds_protocol,
)
from streamadapt import Batch, Entry, FrozenModel, Pipeline, Prediction, Supervised
from streamadapt.guard.base import Guard
from streamadapt.learners import RLS, Bias, ErrorMemory, LastValue, Learner, River

__all__ = ["ELEC2", "Setting", "fit", "items_of", "learners", "measure", "pipeline_for"]

AUC = Measure("auc", "area under the ROC curve", higher=True)
ACCURACY = Measure("accuracy", "accuracy", higher=True)
LOG_LOSS = Measure("log_loss", "log loss, nats (probabilities floored at 1e-6)")
FLOOR = 1e-6
"""The lowest probability of the actual class, as in the pipeline's own log loss."""
LAST_HIDDEN = "network.3"
COST_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Setting:
    """The split of the stream, and the fit of the frozen network."""

    name: str = "elec2"
    train: float = 0.2
    hidden: tuple[int, int] = (64, 32)
    epochs: int = 30
    batch: int = 200
    lr: float = 1e-3
    decay: float = 1e-4

    def split(self, batch: Batch) -> int:
        """Return the number of training rows."""
        return int(self.train * len(batch))

    def protocol(self) -> str:
        """Describe the figures."""
        return (
            f"{self.name}: Elec2 (45,312 half-hours of the New South Wales electricity market, "
            f"6 features, class 1: "
            f"the price goes up); every row after the first {self.train:.0%} is predicted and "
            f"judged: AUC of the "
            "emitted probability of class 1 (scikit-learn's roc_auc_score), accuracy (class 1 "
            "above 1/2), log loss "
            f"(floored at 1e-6). Base, frozen: a network with hidden layers of {self.hidden[0]} "
            f"and {self.hidden[1]} "
            f"(ReLU), fitted on that first part (Adam, rate {self.lr:g}, batches of "
            f"{self.batch}, weight decay "
            f"{self.decay:g}, {self.epochs} epochs); features are z-scores of the training "
            f"part, but those that are "
            "constant there (price and demand of Victoria, and the transfer) are only centred: "
            "divided by a deviation "
            "of next to nothing they make the base far worse (AUC .54), and adaptation look "
            "better than it is. Delay: "
            "each entry's label is inside the entry and is learned at the arrival of the next "
            "one, before that is "
            "predicted. All experts are as their kinds are by default, but for the exact memory "
            "of 50 keys and 5 "
            "neighbours and the forest of 10 trees; river's classifiers see the base's "
            "probabilities beside the "
            "features; persistence is no-change, the last label. One pass in the file's order; "
            "learners start "
            "untrained; the sizes of memory, sketch and forest are those of the reference "
            "figures, the "
            "memories of bias and rls were chosen with this stream in sight, nothing else was."
        )


class Standardised(nn.Module):
    """A network behind a fixed scaling: (1, 1, features) in original units -> (1, classes)
    logits."""

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, hidden: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)
        first, second = hidden
        self.network = nn.Sequential(
            nn.Linear(len(loc), first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale the newest entry and classify it."""
        logits: Tensor = self.network((inputs[..., -1, :] - self.loc) / self.scale)
        return logits


def scaling(values: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the columns, float32; 1 for columns that are constant
    to rounding."""
    exact = values.astype(np.float64)
    loc, scale = exact.mean(axis=0), exact.std(axis=0)
    scale = np.where(scale > 1e-6 * (1.0 + np.abs(loc)), scale, 1.0)
    return torch.from_numpy(loc).float(), torch.from_numpy(scale).float()


def fit(setting: Setting, batch: Batch, seed: int) -> FrozenModel:
    """Fit the base on the training part; its embedding is the last hidden layer."""
    assert batch.labels is not None
    n = setting.split(batch)
    x = torch.from_numpy(batch.values[:n]).unsqueeze(1)
    y = torch.from_numpy(batch.labels[:n, 0]).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Standardised(*scaling(batch.values[:n]), setting.hidden, 2)
        adam = torch.optim.Adam(model.parameters(), lr=setting.lr, weight_decay=setting.decay)
        for _ in range(setting.epochs):
            for rows in torch.randperm(n).split(setting.batch):
                adam.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                adam.step()
    base = FrozenModel(model, softmax=True, embedding=LAST_HIDDEN)
    base.input_loc, base.input_scale = model.loc.clone(), model.scale.clone()
    return base


def learners() -> list[Learner]:
    """Make the experts."""
    return [
        LastValue(),
        Bias((0.5, 0.1)),
        RLS((0.9, 0.98)),
        ErrorMemory(capacity=50, k=5),
        ErrorMemory(store="sketch"),
        River("linear_model.LogisticRegression"),
        River("tree.HoeffdingAdaptiveTreeClassifier"),
        River("forest.ARFClassifier", {"n_models": 10}),
    ]


def items_of(setting: Setting, batch: Batch) -> list[Entry]:
    """Return the test part's entries, each with its label inside."""
    return list(batch.entries())[setting.split(batch) :]


def pipeline_for(
    base: FrozenModel, chosen: Sequence[Learner], guard: Guard | None = None, *, seed: int = 0
) -> Pipeline:
    """Make a pipeline, with the default guard if none is given."""
    return Pipeline(Supervised(1, classes=2), base, chosen, guard, device="cpu", seed=seed)


class _Judge:
    """Keeps every expert's probability of class 1, and its log loss."""

    def __init__(self, setting: Setting, batch: Batch) -> None:
        assert batch.labels is not None
        self.first = setting.split(batch)
        self.truth = batch.labels[:, 0].astype(np.int64)
        self.issued: list[int] = []
        self.ups: dict[str, list[float]] = {}
        self.losses = Errors()
        self.sums = Sums()

    def __call__(self, prediction: Prediction) -> None:
        row = int(prediction.id)
        self.issued.append(row)
        outputs = {
            name: p[0].astype(np.float64)
            for name, p in {**prediction.experts, "served": prediction.served}.items()
        }
        truth = self.truth[row]
        losses = {name: float(-np.log(max(p[truth], FLOOR))) for name, p in outputs.items()}
        self.losses.take(losses)
        for name, p in outputs.items():
            self.ups.setdefault(name, []).append(float(p[1]))
        # The last entry's own label is never learned: nothing arrives after it.
        if row + 1 < len(self.truth):
            self.sums.add(losses, 1)


def figures_of(
    ups: Sequence[float], losses: npt.NDArray[np.float64], truth: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Return the three measures of one expert's probabilities of class 1."""
    p = np.array(ups)
    return {
        "auc": float(roc_auc_score(truth, p)),
        "accuracy": float(((p > 0.5) == (truth == 1)).mean()),
        "log_loss": float(losses.mean()),
    }


def measure(
    setting: Setting,
    batch: Batch,
    progress: Progress,
    make: Learners = learners,
    seeds: Sequence[int] = SEEDS,
) -> Measured:
    """Fit the base and run the experts over the test part, once per seed."""
    runs, figures = [], []
    for seed in seeds:
        base = fit(setting, batch, seed)
        losses, row = _run(
            setting, batch, pipeline_for(base, make(), seed=seed), of_seed(progress, seed)
        )
        runs.append(losses)
        figures.append(row)
    measures = (AUC, ACCURACY, LOG_LOSS)
    over = {
        name: {m.key: mean_of([f[name][m.key] for f in figures]) for m in measures}
        for name in figures[0]
    }
    items = items_of(setting, batch)
    cost = cost_of(partial(pipeline_for, base), make, items, COST_ENTRIES)
    return Measured(
        setting.name, f"{setting.protocol()} {seeds_protocol(seeds)}", measures, over,
        tuple(name for name in over if name != "served"), losses=over_seeds(runs), loss="log loss",
        cost=cost,
    )  # fmt: skip


def _run(
    setting: Setting, batch: Batch, pipeline: Pipeline, progress: Callable[[str], None]
) -> tuple[Losses, dict[str, dict[str, float]]]:
    """Return every expert's log loss on every row of the test part, and its figures."""
    judge = _Judge(setting, batch)
    expected = range(judge.first, len(batch))
    judge_all(setting.name, pipeline, items_of(setting, batch), judge, expected, progress)
    losses, truth = judge.losses.arrays(), judge.truth[judge.first :]
    return losses, {name: figures_of(judge.ups[name], losses[name], truth) for name in losses}


ELEC2 = Setting()
