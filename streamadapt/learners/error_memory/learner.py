"""Error memory: what the base got wrong on entries like this one, looked up and put right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import Tensor

from streamadapt.config.renamed import RENAMED, accepts_old_names
from streamadapt.errors import ConfigError
from streamadapt.learners.base import Maturity, require_shape
from streamadapt.learners.compiled import CompiledLearner, Steps
from streamadapt.learners.error_memory import ring, sketch
from streamadapt.learners.error_memory.keys import (
    EMBEDDING,
    INPUTS,
    KeySettings,
    channel_key,
    key_room,
    key_size,
    length_one_key,
    new_key,
    panel_key,
)
from streamadapt.learners.error_memory.values import StoreShape, value_room
from streamadapt.models.contract import BaseOutput, Spec, TaskKind
from streamadapt.records import Array

__all__ = ["ErrorMemory"]

DAY_S = 86_400.0
LONGEST_KEY = 24
WIDE = 50
"""Forecasts of so many channels remember fewer entries by default: their stores are read as fast
as those of a few."""
LARGEST = 10**7
MOST_TABLES, MOST_BITS = 4096, 20

EXACT, SKETCH = ("capacity", "k", "tau"), ("tables", "bits", "decay")
"""Settings of one store only."""
FORECASTS = ("scope", "key_window", "period")
"""Settings of forecasts only."""
NEEDS_EMBEDDING = (
    "a base that shows its embedding: name the submodule (embedding in the config's [base], "
    'FrozenModel(model, embedding="layers.2")), or let the model return (output, embedding); or '
    '"inputs"'
)


@accepts_old_names("learners.error_memory")
class ErrorMemory(CompiledLearner):
    """ReLoop2's error memory [1]_: ``prediction = base + strength * scale * e``, e the error
    remembered for entries like it.

    Every matured example is put into a store under its key h. For a new one the store gives the
    mean of what it holds under like keys (by similarity: `ring`, the k nearest; by shared buckets:
    `sketch`): of labels, y_bar, and of the base's outputs, p_bar, in scaled units. With p the
    base's output now:

    * ``value="label"``: ``e = gamma (y_bar - p) + (1 - gamma) (y_bar - p_bar)``. gamma = 1 is the
      published form, an ensemble ``(1 - strength) p + strength y_bar`` with the labels of the
      neighbours; gamma = 0 is the mean of their errors.
    * ``value="residual"``: ``e`` is the mean of ``y - p``: gamma = 0, with half the memory.

    A distribution is clipped at 0 and divided by its sum; values are not clipped. Where the store
    knows nothing the prediction is the base's, to the bit. Cells of an example that were never
    known join no mean.

    Supervised tasks: one store; its key is the base's embedding, or the scaled inputs and a 1, at
    length one, so that the similarity s is the cosine; the k nearest have the weights
    ``softmax(s / tau)``.

    Forecasts [2]_: whole residual paths are remembered. ``scope="channel"``: a store per channel,
    its key the channel's own recent window (`keys.CHANNEL`). ``scope="panel"``: one store, keyed
    on the newest values of all (`keys.PANEL`), of paths of all channels. The k nearest have the
    weights ``exp(-2 d_j / d_k)``. ``scope="panel"`` with ``embedding="base"`` keys on the
    embedding instead, as above.

    Costs per entry and memory: those of `ring` or `sketch`, which do not depend on how many
    entries were seen.

    Parameters
    ----------
    store : {"exact", "sketch"}
        How errors are kept: every one of the newest, or sums of them in hashed buckets.
    scope : {"channel", "panel"}, optional
        One memory for each channel, or one for all. Forecasts only. Default: channel; panel where
        the key is the base's embedding.
    embedding : {"auto", "base", "inputs"}
        Where the key comes from: ``base`` wants a base that shows its embedding; ``auto`` takes it
        where there is one (forecasts: always the inputs).
    value : {"label", "residual"}, optional
        What is remembered: labels and the base's outputs, or the base's errors. Default: label for
        classification, residual otherwise; forecasts know no other.
    strength : float, > 0, optional
        How much of the error is put right. Default: 1; .9 for classification, where 1 could say
        that something is impossible since it was not among the neighbours.
    gamma : float, in [0, 1], optional
        With ``value="label"`` only: the share of the published form against the mean of the
        errors. Default: 1.
    capacity : int, optional
        Exact: entries remembered. Default: 500; 4000 for forecasts, 1300 from 50 channels on.
    k : int, optional
        Exact: neighbours, <= capacity. Default: 10; 64 for forecasts by channel, 32 by panel; or
        `capacity`, if less.
    tau : float, > 0, optional
        Exact: temperature of the softmax. Default: .1.
    tables : int, optional
        Sketch: the number of hash tables. Default: 64; 16 for forecasts.
    bits : int, optional
        Sketch: a table has 2^bits buckets. Default: 8; 6 for forecasts.
    decay : float, in (0, 1], optional
        Sketch: fading per remembered entry: .98 remembers about 50. Default: .98; .999 for
        forecasts. A boost fades faster.
    min_entries : float, > 0, optional
        A store with fewer entries than this says nothing. Exact: of those in it. Default: `k`.
        Sketch: of those in the matched bucket of a table, on average. Default: .1.
    key_window : int, in entries, optional
        Forecasts by channel: steps of the key. Default: 24, or the window, if less.
    period : float, in seconds, optional
        Forecasts: the period within which the key has the time. Default: a day.

    References
    ----------
    .. [1] Zhu et al. (2023), ReLoop2: building self-adaptive recommendation models via responsive
       error compensation loop, KDD.
    .. [2] Farmer & Sidorowich (1987), Predicting chaotic time series, Phys. Rev. Lett. 59:
       forecasts by analogues.

    Examples
    --------
    >>> ErrorMemory(scope="panel").names
    ('error-memory-panel',)
    """

    kind: ClassVar[str] = "error_memory"
    matures: ClassVar[Maturity] = "path"
    state: ring.RingMemory | sketch.SketchMemory

    def __init__(  # noqa: PLR0913 - each is a key of its table
        self,
        *,
        store: Literal["exact", "sketch"] = "exact",
        scope: Literal["channel", "panel"] | None = None,
        embedding: Literal["auto", "base", "inputs"] = "auto",
        value: Literal["label", "residual"] | None = None,
        strength: float | None = None,
        gamma: float | None = None,
        capacity: int | None = None,
        k: int | None = None,
        tau: float | None = None,
        tables: int | None = None,
        bits: int | None = None,
        decay: float | None = None,
        min_entries: float | None = None,
        key_window: int | None = None,
        period: float | None = None,
    ) -> None:
        super().__init__()
        _one_of("store", store, ("exact", "sketch"))
        _one_of("scope", scope, (None, "channel", "panel"))
        _one_of("embedding", embedding, ("auto", "base", "inputs"))
        _one_of("value", value, (None, "label", "residual"))
        self.store, self.scope, self.embedding, self.value = store, scope, embedding, value
        self.strength = _number("strength", strength, 0.0, math.inf)
        # 0 is one of its values
        self.gamma = gamma if gamma == 0.0 else _number("gamma", gamma, 0.0, 1.0)
        self.capacity = _count("capacity", capacity, LARGEST)
        self.k = _count("k", k, LARGEST if self.capacity is None else self.capacity)
        self.tau = _number("tau", tau, 0.0, math.inf)
        self.tables = _count("tables", tables, MOST_TABLES)
        self.bits = _count("bits", bits, MOST_BITS)
        self.decay = _number("decay", decay, 0.0, 1.0)
        self.min_entries = _number("min_entries", min_entries, 0.0, math.inf)
        self.key_window = _count("key_window", key_window, LARGEST)
        self.period = _number("period", period, 0.0, math.inf)
        for name in SKETCH if store == "exact" else EXACT:
            if getattr(self, name) is not None:
                raise ConfigError(
                    name, getattr(self, name), f"nothing: the {store} store has no such setting"
                )
        if scope == "channel" and embedding == "base":
            raise ConfigError("scope", scope, "panel: the base's embedding is of all channels")

    @property
    def names(self) -> tuple[str, ...]:
        """``error-memory``; then ``-sketch``, ``-panel``, the value, and the numbers that were
        set: ``-k16``."""
        words = ["error-memory"]
        if self.store == "sketch":
            words.append("sketch")
        words += [word for word in (self.scope, self.value) if word is not None]
        if self.embedding != "auto":
            words.append(self.embedding)
        numbers = ("strength", "gamma", *EXACT, *SKETCH, "min_entries", "key_window", "period")
        # Names of experts stand in checkpoints and metrics: a renamed key does not change them.
        old = {new: old for old, new in RENAMED["learners.error_memory"].items()}
        words += [
            f"{old.get(n, n).replace('_', '-')}{getattr(self, n):g}"
            for n in numbers
            if getattr(self, n) is not None
        ]
        return ("-".join(words),)

    def check_kind(self, kind: TaskKind) -> None:
        """Refuse settings that such a task has no use for."""
        super().check_kind(kind)
        unused: list[str] = []
        if kind != "forecast":
            unused += FORECASTS
        else:
            unused += ["period"] if self.embedding == "base" else ["tau"]
            unused += ["key_window"] if self._panel else []
            if self.value == "label":
                raise ConfigError(
                    "value", self.value, "residual: forecasts remember what the base left over"
                )
        for name in unused:
            if getattr(self, name) is not None:
                raise ConfigError(
                    name,
                    getattr(self, name),
                    f"nothing: of no use to this learner of a {kind} task",
                )
        if self.gamma is not None and not self._remembers_pairs(kind):
            raise ConfigError(
                "gamma",
                self.gamma,
                'nothing, or value = "label": residuals are averaged as they are',
            )

    @property
    def _panel(self) -> bool:
        return self.scope == "panel" or self.embedding == "base"

    def _remembers_pairs(self, kind: TaskKind) -> bool:
        return (self.value or ("label" if kind == "classification" else "residual")) == "label"

    @classmethod
    def variants(cls) -> tuple[ErrorMemory, ...]:
        """Return one of each store, and one that keeps float32 keys."""
        return cls(), cls(capacity=ring.MANY), cls(store="sketch")

    def allocate(self, spec: Spec) -> None:
        """Allocate an empty store."""
        self._embedded = self._key(spec).source == EMBEDDING
        super().allocate(spec)

    def steps_for(self, spec: Spec) -> Steps:
        """Return the steps of the store."""
        del spec
        store = ring if self.store == "exact" else sketch
        return Steps(store.predict, store.learn, forget=store.forget)

    def _key(self, spec: Spec) -> KeySettings:
        forecast = spec.kind == "forecast"
        if self.embedding == "base" and spec.embedding is None:
            raise ConfigError("embedding", self.embedding, NEEDS_EMBEDDING)
        if self.embedding == "base" or (
            self.embedding == "auto" and spec.embedding and not forecast
        ):
            return length_one_key(EMBEDDING)
        if not forecast:
            return length_one_key(INPUTS)
        period, one = self.period or DAY_S, self.store == "sketch"
        if self._panel:
            return panel_key(spec, period, one=one)
        length = min(spec.window, self.key_window or LONGEST_KEY)
        return channel_key(length, period, one=one)

    def _shape(self, spec: Spec) -> StoreShape:
        groups, features = key_size(self._key(spec), spec)
        planes = 2 if self._remembers_pairs(spec.kind) else 1
        return StoreShape(groups, features, planes, spec.rows * spec.columns // groups)

    def _ring_size(self, spec: Spec) -> tuple[int, int]:
        """Return the capacity, and k."""
        capacity, k = (500, 10)
        if spec.kind == "forecast":
            capacity, k = 1300 if spec.columns >= WIDE else 4000, 32 if self._panel else 64
        capacity = self.capacity or capacity
        k = self.k or min(k, capacity)
        if k > capacity:
            raise ConfigError("k", k, f"at most the capacity, {capacity}")
        return capacity, k

    def _sketch_size(self, spec: Spec) -> tuple[int, int]:
        """Return the numbers of tables and of bits."""
        tables, bits = (16, 6) if spec.kind == "forecast" else (64, 8)
        return self.tables or tables, self.bits or bits

    def settings(self, spec: Spec) -> ring.RingSettings | sketch.SketchSettings:
        """Return the hyper-parameters."""
        key = self._key(spec)
        strength = self.strength or (0.9 if spec.kind == "classification" else 1.0)
        gamma = 0.0
        if self._remembers_pairs(spec.kind):
            gamma = 1.0 if self.gamma is None else float(self.gamma)
        if self.store == "sketch":
            decay = self.decay or (0.999 if spec.kind == "forecast" else 0.98)
            floor = self.min_entries or 0.1
            return sketch.SketchSettings(
                key, float(strength), gamma, float(floor), math.log(decay)
            )
        _, k = self._ring_size(spec)
        cosine = key.source in (EMBEDDING, INPUTS)
        return ring.RingSettings(
            key,
            float(strength),
            gamma,
            float(self.min_entries or k),
            cosine,
            float(self.tau or 0.1),
        )

    def start(self, spec: Spec) -> ring.RingMemory | sketch.SketchMemory:
        """Start with an empty store."""
        key = new_key(self._key(spec), spec)
        if self.store == "sketch":
            tables, bits = self._sketch_size(spec)
            memory = sketch.new_sketch(self._shape(spec), tables, bits, spec.generator())
            return sketch.SketchMemory(key, memory)
        capacity, _ = self._ring_size(spec)
        return ring.RingMemory(key, ring.new_ring(self._shape(spec), capacity))

    def room(self, spec: Spec) -> ring.RingRoom | sketch.SketchRoom:
        """Return room for an entry."""
        key, value = key_room(self._key(spec), spec), value_room(self._shape(spec))
        if self.store == "sketch":
            return sketch.SketchRoom(key, value, sketch.new_buckets(*self._sketch_size(spec)))
        return ring.RingRoom(key, value, ring.new_near(self._shape(spec), *self._ring_size(spec)))

    def named_arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield the arrays of the state; directions only where they are not the channels."""
        for name, array in super().named_arrays():
            if name != "key.directions" or array.size:
                yield name, array

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the base and what is remembered of its errors on entries like this one."""
        self._require_embedding(base)
        return super().predict(inputs, base)

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Remember one example; a group of which nothing is known remembers nothing."""
        self._require_embedding(base)
        super().learn(inputs, base, target, mask)

    def _require_embedding(self, base: BaseOutput) -> None:
        """Refuse an embedding of another size, or none, where it is the key."""
        if self._embedded:
            assert self.spec.embedding is not None
            assert base.embedding is not None
            require_shape("base.embedding", base.embedding, (self.spec.embedding,))


def _one_of(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ConfigError(name, value, " or ".join(word for word in allowed if word is not None))


def _count(name: str, value: int | None, most: int) -> int | None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most
    ):
        raise ConfigError(name, value, f"a whole number from 1 to {most}")
    return value


def _number(name: str, value: float | None, low: float, high: float) -> float | None:
    if value is not None and not (low < value <= high and math.isfinite(value)):
        wanted = (
            f"a number in ({low:g}, {high:g}]"
            if math.isfinite(high)
            else f"a finite number > {low:g}"
        )
        raise ConfigError(name, value, wanted)
    return value
