"""Link loads of a European backbone with failing links: generated from a published topology, with
a seed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import numpy.typing as npt

from streamadapt import Batch

__all__ = ["Loads", "Network", "Traffic", "demands", "failures", "generate", "nobel_eu", "routing"]

Array = npt.NDArray[np.float64]
ENTRY_NS = 300_000_000_000
START = int(np.datetime64("2024-01-01", "ns").astype(np.int64))


class Network(NamedTuple):
    """A topology.

    Attributes
    ----------
    graph : networkx.Graph
        Nodes are numbers; edges have a ``length`` (km).
    links : list of (int, int)
        In the published order.
    pairs : list of (int, int)
        The communicating nodes; both directions together.
    demands : ndarray, (pairs,)
        Published mean demands.
    """

    graph: Any
    links: list[tuple[int, int]]
    pairs: list[tuple[int, int]]
    demands: Array


@dataclass(frozen=True, slots=True)
class Traffic:
    """Changes of the demands and failures of the links.

    Attributes
    ----------
    days, train_days : int
        All days, and those before the first failure.
    daily, half_daily : float
        Amplitudes of the two sines of a pair's demand, in units of its mean; each pair's own is
        this, multiplied by a number drawn uniformly from [.5, 1.5].
    jitter : float
        Standard deviation of the pairs' phases, in periods.
    noise : float
        Standard deviation of each entry's demand, in units of the demand.
    every : int, in entries
        Entries from one failure to the next.
    failing : int
        Number of links that fail together; the previously failed ones are repaired at that moment.
    """

    days: int = 14
    train_days: int = 7
    entries_a_day: int = 288
    daily: float = 0.5
    half_daily: float = 0.2
    jitter: float = 0.05
    noise: float = 0.05
    every: int = 144
    failing: int = 2


class Loads(NamedTuple):
    """The generated loads.

    Attributes
    ----------
    batch : Batch
        Loads as z-scores of the training days, (entries, links).
    train : int
        Entries before the first failure.
    events : tuple of int
        The first entry of each failure.
    """

    batch: Batch
    train: int
    events: tuple[int, ...]


def nobel_eu() -> Network:
    """Return SNDlib's nobel-eu: 28 cities, 41 links, 378 pairs (it ships in the package
    topohub)."""
    # topohub.get reads the same file, but leaves it open.
    packed = files("topohub").joinpath("data", "sndlib", "nobel-eu.json")
    read = json.loads(packed.read_text(encoding="utf-8"))
    graph = nx.Graph()
    graph.add_nodes_from(node["id"] for node in read["nodes"])
    links = [(edge["source"], edge["target"]) for edge in read["edges"]]
    for (a, b), edge in zip(links, read["edges"], strict=True):
        graph.add_edge(a, b, length=edge["dist"])
    published = {
        (int(a), int(b)): float(d)
        for a, to in read["graph"]["demands"].items()
        for b, d in to.items()
    }
    return Network(graph, links, list(published), np.array(list(published.values())))


def routing(network: Network, failed: tuple[int, ...] = ()) -> Array:
    """Return (pairs, links), 1 where a pair's shortest path in km uses a link; no path uses
    `failed` links."""
    graph = network.graph.copy()
    graph.remove_edges_from(network.links[i] for i in failed)
    column = {frozenset(link): i for i, link in enumerate(network.links)}
    paths = dict(nx.all_pairs_dijkstra_path(graph, weight="length"))
    taken = np.zeros((len(network.pairs), len(network.links)))
    for row, (a, b) in enumerate(network.pairs):
        path = paths[a][b]
        for step in pairwise(path):
            taken[row, column[frozenset(step)]] = 1.0
    return taken


def failures(
    network: Network, count: int, failing: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Draw `count` sets of links that fail together and leave every city reachable."""
    drawn: list[tuple[int, ...]] = []
    while len(drawn) < count:
        chosen = tuple(
            sorted(int(i) for i in rng.choice(len(network.links), failing, replace=False))
        )
        left = network.graph.copy()
        left.remove_edges_from(network.links[i] for i in chosen)
        if nx.is_connected(left):
            drawn.append(chosen)
    return drawn


def demands(network: Network, traffic: Traffic, rng: np.random.Generator) -> Array:
    """Return (entries, pairs): daily sine, half-daily sine, and noise; never negative."""
    pairs = len(network.pairs)
    days = np.arange(traffic.days * traffic.entries_a_day)[:, None] / traffic.entries_a_day
    level = np.ones((len(days), pairs))
    for cycles, amplitude in ((1, traffic.daily), (2, traffic.half_daily)):
        own = amplitude * rng.uniform(0.5, 1.5, pairs)
        level += own * np.sin(
            2.0 * np.pi * (cycles * days + rng.normal(0.0, traffic.jitter, pairs))
        )
    level *= 1.0 + traffic.noise * rng.normal(size=level.shape)
    return np.maximum(level, 0.0) * network.demands


def generate(network: Network, traffic: Traffic, seed: int) -> Loads:
    """Generate the loads; the same seed gives the same loads."""
    rng = np.random.default_rng(seed)
    asked = demands(network, traffic, rng)
    train = traffic.train_days * traffic.entries_a_day
    events = tuple(range(train, len(asked), traffic.every))
    loads = asked @ routing(network)
    for at, failed in zip(
        events, failures(network, len(events), traffic.failing, rng), strict=True
    ):
        loads[at : at + traffic.every] = asked[at : at + traffic.every] @ routing(network, failed)
    scaled = (loads - loads[:train].mean(axis=0)) / loads[:train].std(axis=0)
    times = START + ENTRY_NS * np.arange(len(scaled), dtype=np.int64)
    names = tuple(f"{a}-{b}" for a, b in network.links)
    return Loads(Batch(scaled.astype(np.float32), times, channels=names), train, events)
