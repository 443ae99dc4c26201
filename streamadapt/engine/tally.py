"""Counts of one run: records read, predicted, learned and refused.

A pipeline's `Stats` continue from run to run; these counts start at 0 in each run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from streamadapt.engine.merge import Arrived
from streamadapt.engine.partition import PartitionRunner
from streamadapt.pipeline.stats import Stats
from streamadapt.records import DeadLetter, Label, Skipped
from streamadapt.tasks import Supervised

__all__ = ["Tally"]

NOT_LEARNED = frozenset({"corrected", "absurd", "unpredicted", "expired", "confirmed", "refused"})
"""Outcomes of labels from which nothing was learned."""
NO_LABEL = frozenset({"corrected", "expired", "negative", "refused"})
"""Outcomes without an arrived label, or whose label is already counted as refused."""


class Tally:
    """Counts of one run, over all partitions that the engine has owned in it.

    Attributes
    ----------
    records : int
        Number of records read and processed.
    examples : dict of str to DeadLetter
        The first refused record of each reason.
    """

    def __init__(self) -> None:
        self.records = 0
        self.examples: dict[str, DeadLetter] = {}
        self._read: Counter[str] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()  # (entries or labels, reason)
        self._done: Counter[str] = Counter()
        self._before: dict[int, Counter[str]] = {}
        self._expects_labels = False

    def opened(self, runner: PartitionRunner) -> None:
        """Store a partition's statistics before anything is read.

        A partition that restarts from its last commit keeps its first stored values, since the
        lost records are processed again.
        """
        task = runner.pipeline.task
        # Labels may then be learned long after the last entry.
        waits = getattr(task, "correction_window", 0) > 0
        self._expects_labels = isinstance(task, Supervised) and task.labelled and not waits
        self._before.setdefault(runner.partition, _counts(runner.pipeline.stats))

    def closed(self, runner: PartitionRunner) -> None:
        """Keep the counts of a partition that another engine takes over."""
        self._done += self._since(runner)
        self._before.pop(runner.partition, None)

    def add(
        self, runner: PartitionRunner, released: Sequence[Arrived], letters: Sequence[DeadLetter]
    ) -> None:
        """Count processed records and those of them that were refused."""
        self.records += len(released)
        labels = runner.streams[1:]
        refused = {id(letter.record): letter for letter in letters}
        for arrived in released:
            of_labels = isinstance(arrived.item, Label) or arrived.record.position.stream in labels
            self._read["entries"] += not of_labels and not isinstance(arrived.item, Skipped)
            letter = refused.get(id(arrived.record))
            if letter is not None:
                # stage "label": the entry that brought the label was accepted
                of_labels = of_labels or letter.stage == "label"
                self._refused["labels" if of_labels else "entries", letter.reason] += 1
                self.examples.setdefault(letter.reason, letter)

    def facts(self, runners: Sequence[PartitionRunner], *, ended: bool) -> dict[str, Any]:
        """Return the run's facts for `streamadapt.app.outcome`, as plain values.

        Parameters
        ----------
        ended : bool
            Whether a finite source was read to its end; False if the run was stopped.

        Returns
        -------
        dict
            ``records``, ``entries``, ``predictions``, ``learned``: counts of this run; ``ended``;
            ``expects_labels``; ``ever_predicted``, ``ever_learned``: whether this or an earlier
            run predicted and learned; ``window``: number of entries that a prediction needs;
            ``read``: number of ``entries`` and ``labels`` that arrived; ``refused``: kind ->
            reason -> count; ``examples``: reason -> ``position``, ``detail`` and ``stage`` of the
            first dead letter.
        """
        total = self._done + sum((self._since(runner) for runner in runners), Counter())
        refused = {
            kind: {reason: n for (of, reason), n in self._refused.items() if of == kind}
            for kind in ("entries", "labels")
        }
        read = {
            "entries": self._read["entries"],
            "labels": sum(refused["labels"].values()) + total["labels"],
        }
        ever = sum((_counts(runner.pipeline.stats) for runner in runners), self._done.copy())
        return {
            "records": self.records,
            **{name: total[name] for name in ("entries", "predictions", "learned")},
            "ended": ended,
            "expects_labels": self._expects_labels,
            "ever_predicted": ever["predictions"] > 0,
            "ever_learned": ever["learned"] > 0,
            "window": max((runner.pipeline.task.window_length for runner in runners), default=1),
            "read": read,
            "refused": refused,
            "examples": {reason: _example(letter) for reason, letter in self.examples.items()},
        }

    def _since(self, runner: PartitionRunner) -> Counter[str]:
        before = self._before.get(runner.partition)
        return Counter() if before is None else _counts(runner.pipeline.stats) - before


def _counts(stats: Stats) -> Counter[str]:
    return Counter(
        entries=stats.entries,
        predictions=stats.predictions,
        learned=sum(n for outcome, n in stats.labels.items() if outcome not in NOT_LEARNED),
        labels=sum(n for outcome, n in stats.labels.items() if outcome not in NO_LABEL),
    )


def _example(letter: DeadLetter) -> Mapping[str, str]:
    return {
        "position": str(letter.record.position),
        "detail": letter.detail,
        "stage": letter.stage,
    }
