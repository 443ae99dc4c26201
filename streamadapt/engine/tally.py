"""What one run has read, predicted, learned and refused.

A pipeline's `Stats` go on from run to run; this does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from streamadapt.engine.merge import Arrived
from streamadapt.engine.partition import Lane
from streamadapt.pipeline.stats import Stats
from streamadapt.records import DeadLetter, Label, Skipped
from streamadapt.tasks import Supervised

__all__ = ["Tally"]

NOT_LEARNED = frozenset({"corrected", "absurd", "unpredicted", "expired", "confirmed", "refused"})
"""Outcomes of labels from which nothing was learned."""
NO_LABEL = frozenset({"corrected", "expired", "negative", "refused"})
"""Outcomes that are not of a label that came, or of one that is counted among the refused."""


class Tally:
    """Counts of one run, over all partitions it has had.

    Attributes
    ----------
    records : int
        Read and processed.
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

    def opened(self, lane: Lane) -> None:
        """Note where a partition's statistics stand before anything is read.

        One that is begun again from its last commit counts from where it stood at first: what was
        lost is done again.
        """
        task = lane.pipeline.task
        waits = (
            getattr(task, "correction_window", 0) > 0
        )  # labels may then be learned long after the last entry
        self._expects_labels = isinstance(task, Supervised) and task.labelled and not waits
        self._before.setdefault(lane.partition, _counts(lane.pipeline.stats))

    def closed(self, lane: Lane) -> None:
        """Keep what was counted for a partition that another engine takes over."""
        self._done += self._since(lane)
        self._before.pop(lane.partition, None)

    def add(self, lane: Lane, released: Sequence[Arrived], letters: Sequence[DeadLetter]) -> None:
        """Count processed records and those of them that were refused."""
        self.records += len(released)
        labels = lane.streams[1:]
        refused = {id(letter.record): letter for letter in letters}
        for arrived in released:
            of_labels = isinstance(arrived.item, Label) or arrived.record.position.stream in labels
            self._read["entries"] += not of_labels and not isinstance(arrived.item, Skipped)
            letter = refused.get(id(arrived.record))
            if letter is not None:
                of_labels = (
                    of_labels or letter.stage == "label"
                )  # the entry that it came with was taken
                self._refused["labels" if of_labels else "entries", letter.reason] += 1
                self.examples.setdefault(letter.reason, letter)

    def facts(self, lanes: Sequence[Lane], *, ended: bool) -> dict[str, Any]:
        """Return what `streamadapt.app.outcome` judges, as plain values.

        Parameters
        ----------
        ended : bool
            Whether a finite source was read to its end; else the run was stopped.

        Returns
        -------
        dict
            ``records``, ``entries``, ``predictions``, ``learned``: counts of this run; ``ended``;
            ``expects_labels``; ``ever_predicted``, ``ever_learned``: whether that was so, in
            earlier runs too; ``window``: entries that a prediction is made from; ``read``: how
            many ``entries`` and ``labels`` came; ``refused``: kind -> reason -> count;
            ``examples``: reason -> ``position``, ``detail`` and ``stage`` of the first one.
        """
        total = self._done + sum((self._since(lane) for lane in lanes), Counter())
        refused = {
            kind: {reason: n for (of, reason), n in self._refused.items() if of == kind}
            for kind in ("entries", "labels")
        }
        read = {
            "entries": self._read["entries"],
            "labels": sum(refused["labels"].values()) + total["labels"],
        }
        ever = sum((_counts(lane.pipeline.stats) for lane in lanes), self._done.copy())
        return {
            "records": self.records,
            **{name: total[name] for name in ("entries", "predictions", "learned")},
            "ended": ended,
            "expects_labels": self._expects_labels,
            "ever_predicted": ever["predictions"] > 0,
            "ever_learned": ever["learned"] > 0,
            "window": max((lane.pipeline.task.window_length for lane in lanes), default=1),
            "read": read,
            "refused": refused,
            "examples": {reason: _example(letter) for reason, letter in self.examples.items()},
        }

    def _since(self, lane: Lane) -> Counter[str]:
        before = self._before.get(lane.partition)
        return Counter() if before is None else _counts(lane.pipeline.stats) - before


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
