"""The two-layer guard and Hedge as functions on arrays by key: `mix`, and `learn` for one matured
arrival."""

from __future__ import annotations

from typing import Any, NamedTuple

from streamadapt.compiled import compiled, inlined
from streamadapt.guard import boa, fixed_share, ml_poly, stacking
from streamadapt.guard.arrivals import Arrival, Signal, group_losses, group_regrets, take_in
from streamadapt.guard.boa import BoaSettings, BoaState
from streamadapt.guard.fixed_share import FixedShareSettings, FixedShareState
from streamadapt.guard.mixer import mixture
from streamadapt.guard.ml_poly import PolySettings, PolyState
from streamadapt.guard.stacking import StackRoom, StackSettings, StackState, within_experts
from streamadapt.records import Array
from streamadapt.tasks.loss_kernels import LOG, length_of, probabilities_of_truth

__all__ = [
    "HedgeRoom",
    "HedgeState",
    "TwoLayerRoom",
    "TwoLayerSettings",
    "TwoLayerState",
    "hedge_learn",
    "hedge_mix",
    "two_layer_learn",
    "two_layer_mix",
]


class TwoLayerSettings(NamedTuple):
    """The settings of the rules, in the order of their outputs; `second` is layer 2."""

    share: FixedShareSettings
    boa: BoaSettings
    poly: PolySettings
    cell: BoaSettings
    stack: StackSettings
    second: PolySettings


class TwoLayerState(NamedTuple):
    """The base's running error, (keys, rows, columns), and the rules.

    A rule that a guard does without has no groups. `cell` has weights for each cell.
    """

    error: Array
    share: FixedShareState
    boa: BoaState
    poly: PolyState
    cell: BoaState
    stack: StackState
    second: PolyState


class TwoLayerRoom(NamedTuple):
    """Room to work in.

    Attributes
    ----------
    arrival : Arrival
    first, cell, second : Signal
        For the rules of layer 1, for those with weights for each cell, for layer 2.
    stack : StackRoom
    length : ndarray, (rows, columns)
        The scale in the unit of the predictions.
    offered : ndarray, (1 + variants, rows, columns)
        What layer 2 mixes: the base and the mixtures of layer 1.
    judged : ndarray, (1 + variants, rows, judged)
        What is judged of it.
    truths, own_truths : ndarray, (experts or aggregators, rows, 1)
        The probabilities of the true class, of a loss that judges rows.
    """

    arrival: Arrival
    first: Signal
    cell: Signal
    second: Signal
    stack: StackRoom
    length: Array
    offered: Array
    judged: Array
    truths: Array
    own_truths: Array


@inlined
def two_layer_mix(c: Any, p: Any, s: Any, key: int, w: Any, experts: Any, own: Any,
                  shares: Any) -> None:  # fmt: skip
    """Mix the experts in layer 1, and the base and these mixtures in layer 2."""
    n = mix_all(s.share.weights, key, experts, own, 0)
    n = mix_all(s.boa.weights, key, experts, own, n)
    n = mix_all(s.poly.weights, key, experts, own, n)
    n = mix_all(s.cell.weights, key, experts, own, n)
    stack = n
    n = mix_all(s.stack.weights, key, experts, own, n)
    for v in range(stack, n):
        within_experts(experts, own[v])
    offer(experts, own, w.offered)
    upper = s.second.weights[key, 0]
    mixture(upper, w.offered, own[n])
    share_of_base(upper, shares)
    n = add_shares(s.share.weights, key, upper, 1, shares)
    n = add_shares(s.boa.weights, key, upper, n, shares)
    n = add_shares(s.poly.weights, key, upper, n, shares)
    n = add_shares(s.cell.weights, key, upper, n, shares)
    add_shares(s.stack.weights, key, upper, n, shares)


@compiled
def variants(weights: Any) -> Any:
    """Return how many mixtures a rule has; (keys, variants, experts, groups_h, groups_c)."""
    return weights.shape[1] if weights.shape[3] > 0 else 0


@compiled
def mix_all(weights: Any, key: int, experts: Any, own: Any, first: int) -> Any:
    """Write the mixtures of all variants of a rule, from own[first] on; return where they end."""
    count = variants(weights)
    for v in range(count):
        mixture(weights[key, v], experts, own[first + v])
    return first + count


@compiled
def offer(base: Any, own: Any, offered: Any) -> None:
    """Collect what layer 2 mixes: the first of `base`, and all of `own` but the last."""
    size, rows, columns = offered.shape
    for h in range(rows):
        for j in range(columns):
            offered[0, h, j] = base[0, h, j]
    for v in range(1, size):
        for h in range(rows):
            for j in range(columns):
                offered[v, h, j] = own[v - 1, h, j]


@compiled
def share_of_base(upper: Any, shares: Any) -> None:
    """Write each expert's share of what is served, the mean over all cells, as far as it is layer
    2's own: that of the base, the first."""
    rows = upper.shape[1]
    for k in range(shares.shape[0]):
        shares[k] = 0.0
    for h in range(rows):
        shares[0] += upper[0, h, 0] / rows


@compiled
def add_shares(weights: Any, key: int, upper: Any, first: int, shares: Any) -> Any:
    """Add what the variants of a rule give each expert; layer 2 (`upper`) weighs them from `first`
    on. Return where they end."""
    _, _, experts, groups_h, groups_c = weights.shape
    rows = max(groups_h, upper.shape[1])
    for v in range(variants(weights)):
        for h in range(rows):
            i = h if groups_h > 1 else 0
            part = upper[first + v, h if upper.shape[1] > 1 else 0, 0] / (rows * groups_c)
            for k in range(experts):
                for j in range(groups_c):
                    shares[k] += part * weights[key, v, k, i, j]
    return first + variants(weights)


@inlined
def two_layer_learn(c: Any, p: Any, s: Any, key: int, w: Any, y: Any) -> None:
    """Let all rules learn from one matured arrival."""
    a, loss, experts, own = w.arrival, c.loss, y.experts, y.own
    if not take_in(c, s.error[key], a, y):
        return
    if loss.form == LOG:
        experts, own = w.truths, w.own_truths
        probabilities_of_truth(y.experts, a.target, experts)
        probabilities_of_truth(y.own, a.target, own)
    n = variants(s.share.weights)
    group_losses(loss, a, experts, w.first)
    for v in range(n):
        fixed_share.learn(p.share, s.share, key, v, w.first)
    for v in range(variants(s.boa.weights)):
        group_regrets(loss, a, experts, own[n], w.first)
        boa.learn(p.boa, s.boa, key, v, w.first)
        n += 1
    for v in range(variants(s.poly.weights)):
        group_regrets(loss, a, experts, own[n], w.first)
        ml_poly.learn(p.poly, s.poly, key, v, w.first)
        n += 1
    for v in range(variants(s.cell.weights)):
        group_regrets(loss, a, experts, own[n], w.cell)
        boa.learn(p.cell, s.cell, key, v, w.cell)
        n += 1
    for _ in range(variants(s.stack.weights)):
        lengths_of(loss, a.scale, w.length)
        stacking.learn(p.stack, s.stack, key, w.stack, experts, a.target, w.length, a.known)
        n += 1
    offer(experts, own, w.judged)
    group_regrets(loss, a, w.judged, own[n], w.second)
    ml_poly.learn(p.second, s.second, key, 0, w.second)


@compiled
def lengths_of(loss: Any, scale: Any, length: Any) -> None:
    """Convert the scale of the losses to the unit of the predictions, both (rows, columns)."""
    rows, columns = scale.shape
    for h in range(rows):
        for j in range(columns):
            length[h, j] = length_of(loss, scale[h, j])


class HedgeState(NamedTuple):
    """The base's running error, (keys, rows, columns), and the rule."""

    error: Array
    share: FixedShareState


class HedgeRoom(NamedTuple):
    """Room to work in, see `TwoLayerRoom`."""

    arrival: Arrival
    signal: Signal
    truths: Array


@compiled
def hedge_mix(c: Any, p: Any, s: Any, key: int, w: Any, experts: Any, own: Any,
              shares: Any) -> None:  # fmt: skip
    """Mix the experts with the current weights."""
    weights = s.share.weights[key, 0]
    size, groups_h, groups_c = weights.shape
    mixture(weights, experts, own[0])
    for k in range(size):
        shares[k] = 0.0
        for i in range(groups_h):
            for j in range(groups_c):
                shares[k] += weights[k, i, j] / (groups_h * groups_c)


@compiled
def hedge_learn(c: Any, p: Any, s: Any, key: int, w: Any, y: Any) -> None:
    """Let the rule learn from one matured arrival."""
    a = w.arrival
    if not take_in(c, s.error[key], a, y):
        return
    if c.loss.form == LOG:
        probabilities_of_truth(y.experts, a.target, w.truths)
        group_losses(c.loss, a, w.truths, w.signal)
    else:
        group_losses(c.loss, a, y.experts, w.signal)
    fixed_share.learn(p, s.share, key, 0, w.signal)
