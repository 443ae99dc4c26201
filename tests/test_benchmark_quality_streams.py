"""The benchmark's streams and tables other than forecasts of panels: Elec2 and link loads, on tiny
inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from benchmarks import data
from benchmarks.scenarios import elec2, linkload
from benchmarks.scenarios.linkload_networks import (
    Change,
    Fitting,
    OnlineNetwork,
    cfc,
    fit_change,
    lstm,
)
from benchmarks.scenarios.linkload_stream import (
    Loads,
    Traffic,
    demands,
    failures,
    generate,
    nobel_eu,
    routing,
)
from streamadapt import Batch, Bias, Pipeline
from streamadapt.learners import Learner, River

pytestmark = pytest.mark.slow

torch.set_num_threads(1)  # small steps: a second thread costs more than it saves

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "elec.csv").exists(), reason="the measured data sets are not here"
)

SMALL = elec2.Setting("small", train=0.5, hidden=(8, 4), epochs=5, batch=20)
SHORT = linkload.Setting(
    "short",
    Traffic(days=4, train_days=2, entries_a_day=48, every=24),
    Fitting(units=4, epochs=1),
    window=4,
    refit_every=12,
    after=6,
    warm_up=10,
)


def quiet(text: str) -> None:
    del text


# -- Elec2


def market(rows: int = 240) -> Batch:
    """Six features, one of them constant in the first half; a label that follows two of them, with
    noise."""
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(rows, 6)).astype(np.float32)
    values[: rows // 2, 3] = 0.25
    labels = (values[:, 1] + values[:, 2] + 0.3 * rng.normal(size=rows) > 1.0).astype(np.float32)
    return Batch(values, np.arange(rows, dtype=np.int64), labels[:, None])


def one_classifier() -> Sequence[Learner]:
    return [River("linear_model.LogisticRegression")]


def test_elec2_figures_are_those_of_the_emitted_probabilities() -> None:
    """AUC, accuracy and log loss by scikit-learn from a second run of the same pipeline."""
    batch = market()
    measured = elec2.measure(SMALL, batch, quiet, one_classifier, seeds=(3,))
    pipeline = elec2.pipeline_for(elec2.fit(SMALL, batch, 3), one_classifier(), seed=3)
    assert batch.labels is not None
    truth = batch.labels[120:, 0]
    predictions = pipeline.observe(elec2.items_of(SMALL, batch))
    assert [int(p.id) for p in predictions] == list(range(120, 240))
    for name in measured.figures:
        p = np.array(
            [(q.served if name == "served" else q.experts[name])[0] for q in predictions],
            np.float64,
        )
        assert measured.figure(name, "auc") == pytest.approx(roc_auc_score(truth, p[:, 1]))
        assert measured.figure(name, "accuracy") == pytest.approx(
            np.mean(p.argmax(axis=1) == truth)
        )
        by_hand = log_loss(truth, p / p.sum(axis=1, keepdims=True))
        assert measured.figure(name, "log_loss") == pytest.approx(by_hand, rel=1e-5)
        assert measured.losses[name].mean() == pytest.approx(by_hand, rel=1e-5)
    assert list(measured.figures) == ["base", "river-LogisticRegression", "served"]
    assert measured.mixed == ("base", "river-LogisticRegression")


def test_elec2_labels_arrive_one_entry_late() -> None:
    """An entry's label changes no prediction before that of the next entry."""
    batch = market()
    assert batch.labels is not None
    labels = batch.labels.copy()
    labels[200:] = 1.0 - labels[200:]
    changed = Batch(batch.values, batch.times, labels)
    base = elec2.fit(SMALL, batch, 0)

    def base_outputs(of: Batch) -> np.ndarray:
        pipeline = elec2.pipeline_for(base, one_classifier())
        served = [p.served[0] for p in pipeline.observe(elec2.items_of(SMALL, of))]
        return np.array(served)

    before, after = base_outputs(batch), base_outputs(changed)
    np.testing.assert_array_equal(before[:81], after[:81])
    assert not np.array_equal(before[81], after[81])


def test_the_base_of_elec2_is_seeded_and_does_not_use_the_test_part() -> None:
    batch = market()
    assert batch.labels is not None
    other = Batch(batch.values.copy(), batch.times, batch.labels.copy())
    other.values[120:] += 7.0
    window = torch.from_numpy(batch.values[:1])
    state = torch.random.get_rng_state()
    first, again, seeded = (
        elec2.fit(SMALL, b, s)(window) for b, s in ((batch, 0), (other, 0), (batch, 1))
    )
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is unchanged"
    torch.testing.assert_close(first.output, again.output, rtol=0.0, atol=0.0)
    assert not torch.equal(first.output, seeded.output)
    assert first.embedding is not None
    assert first.embedding.shape == (SMALL.hidden[1],)
    assert bool((first.embedding >= 0.0).all()), "behind the ReLU of the last hidden layer"


def test_columns_that_are_constant_to_rounding_are_not_divided() -> None:
    values = np.full((999, 2), 0.003467, np.float32)
    values[::2, 0] = np.nextafter(values[0, 0], np.float32(1.0))
    values[:, 1] = np.linspace(0.0, 1.0, 999)
    assert values[:, 0].astype(np.float64).std() > 0.0
    loc, scale = elec2.scaling(values)
    assert scale[0] == 1.0
    assert scale[1] == pytest.approx(values[:, 1].std(), rel=1e-5)
    torch.testing.assert_close(loc, torch.tensor([0.003467, 0.5]))


@needs_data
def test_elec2_is_read_as_published() -> None:
    batch = data.elec2(DATA)
    assert batch.values.shape == (45_312, 6)
    assert batch.channels == (
        "period",
        "nswprice",
        "nswdemand",
        "vicprice",
        "vicdemand",
        "transfer",
    )
    assert batch.labels is not None
    assert batch.labels.mean() == pytest.approx(19_237 / 45_312)
    first = elec2.ELEC2.split(batch)
    truth = batch.labels[first:, 0]
    assert float(np.mean(truth[1:] == truth[:-1])) == pytest.approx(0.8577, abs=1e-4), (
        "no-change, as in METHODS"
    )


# -- link loads


def test_the_topology_is_the_published_one() -> None:
    network = nobel_eu()
    assert (network.graph.number_of_nodes(), len(network.links), len(network.pairs)) == (
        28,
        41,
        378,
    )
    assert network.demands.sum() == 1898.0


def test_routes_are_shortest_paths_without_failed_links() -> None:
    """Lengths are compared with networkx, pair by pair; a failed link carries nothing."""
    network = nobel_eu()
    lengths = np.array([network.graph.edges[link]["length"] for link in network.links])
    for failed in ((), (0, 7)):
        taken = routing(network, failed)
        graph = network.graph.copy()
        graph.remove_edges_from(network.links[i] for i in failed)
        shortest = [
            nx.dijkstra_path_length(graph, a, b, weight="length") for a, b in network.pairs
        ]
        np.testing.assert_allclose(taken @ lengths, shortest)
        assert not taken[:, list(failed)].any()


def test_failures_leave_every_city_reachable() -> None:
    network = nobel_eu()
    drawn = failures(network, 20, 2, np.random.default_rng(0))
    assert len(drawn) == 20
    for failed in drawn:
        assert len(set(failed)) == 2
        graph = network.graph.copy()
        graph.remove_edges_from(network.links[i] for i in failed)
        assert nx.is_connected(graph)


def test_loads_are_the_routed_demands_as_z_scores() -> None:
    """Seeded; before the first failure with the plain routing, after each failure with another
    one."""
    network, traffic = nobel_eu(), SHORT.traffic
    loads = generate(network, traffic, 5)
    assert (loads.train, loads.events) == (96, (96, 120, 144, 168))
    assert loads.batch.values.shape == (192, 41)
    rng = np.random.default_rng(5)
    asked = demands(network, traffic, rng)
    assert (asked >= 0.0).all()
    plain = asked @ routing(network)
    loc, scale = plain[:96].mean(axis=0), plain[:96].std(axis=0)
    np.testing.assert_allclose(loads.batch.values[:96], ((plain - loc) / scale)[:96], atol=1e-4)
    last = failures(network, 4, 2, rng)[3]
    expected = (asked[168:] @ routing(network, last) - loc) / scale
    np.testing.assert_allclose(loads.batch.values[168:], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(generate(network, traffic, 5).batch.values, loads.batch.values)
    assert not np.array_equal(generate(network, traffic, 6).batch.values, loads.batch.values)


def test_the_last_value_has_about_the_reference_figures() -> None:
    """RMSE over the last week and over the first two hours after a failure, mean of three
    seeds."""
    network, setting, figures = nobel_eu(), linkload.LINKLOAD, []
    for seed in range(3):
        loads = generate(network, setting.traffic, seed)
        issued = np.array(linkload.judged(setting, loads))
        squared = np.square(np.diff(loads.batch.values.astype(np.float64), axis=0)[issued]).mean(
            axis=1
        )
        after = linkload.after_failures(setting, loads)
        assert after.sum() == 14 * 24
        figures.append((np.sqrt(squared.mean()), np.sqrt(squared[after].mean())))
    np.testing.assert_allclose(np.mean(figures, axis=0), [0.264, 0.644], rtol=0.05)


def plain(setting: linkload.Setting, own: Change, rival: Change) -> list[Learner]:
    return [Bias(0.5), OnlineNetwork("lstm-per-entry", rival)]


def test_linkload_figures_equal_a_computation_by_hand() -> None:
    measured = linkload.measure(SHORT, quiet, plain, seeds=(1,))
    loads = generate(nobel_eu(), SHORT.traffic, 1)
    values = loads.batch.values.astype(np.float64)
    network = linkload.fit(SHORT, loads, 1)
    bias, errors = np.zeros(41), []
    # The first forecast is issued 10 entries before the first judged one.
    for t in range(96 - 1 - 10, 191):
        with torch.no_grad():
            forecast = (
                network(torch.from_numpy(loads.batch.values[t - 3 : t + 1])[None])[0, 0]
                .double()
                .numpy()
            )
        if t >= 95:
            errors.append(np.stack([forecast - values[t + 1], forecast + bias - values[t + 1]]))
        bias += 0.5 * (values[t + 1] - forecast - bias)
    squared = np.square(errors).mean(axis=2)
    after = np.arange(96) % 24 < 6
    for i, name in enumerate(("base", "bias-0.5")):
        assert measured.figure(name) == pytest.approx(np.sqrt(squared[:, i].mean()), rel=1e-4)
        by_hand = np.sqrt(squared[after, i].mean())
        assert measured.figure(name, "rmse_after_failure") == pytest.approx(by_hand, rel=1e-4)
        by_hand = np.sqrt(squared[after & (np.arange(96) % 24 > 0), i].mean())
        assert measured.figure(name, "rmse_once_failed") == pytest.approx(by_hand, rel=1e-4)
    assert measured.marks == (0, 24, 48, 72)
    assert list(measured.figures) == ["base", "bias-0.5", "lstm-per-entry", "served"]
    assert list(measured.as_json()["served"]) == ["rmse", "rmse_after_failure", "rmse_once_failed"]


def test_later_noise_changes_no_earlier_forecast() -> None:
    """Forecasts issued before entry 150 stay the same when the rest of the stream is noise."""
    loads = generate(nobel_eu(), SHORT.traffic, 0)
    values = loads.batch.values.copy()
    values[150:] = np.random.default_rng(1).normal(size=values[150:].shape)
    changed = Loads(Batch(values, loads.batch.times), loads.train, loads.events)
    own, rival = linkload.fit(SHORT, loads, 0), linkload.fit(SHORT, loads, 0, lstm)

    def forecasts(of: Loads) -> list[np.ndarray]:
        pipeline: Pipeline = linkload.pipeline_for(
            SHORT, linkload.frozen(own, 41), plain(SHORT, own, rival)
        )
        return [p.served for p in pipeline.observe(linkload.stream_of(SHORT, of))]

    before, after = forecasts(loads), forecasts(changed)
    first = 96 - 1 - 10  # the first forecast's issue time
    np.testing.assert_array_equal(before[: 150 - first], after[: 150 - first])
    assert not np.array_equal(before[150 - first], after[150 - first])


@pytest.mark.parametrize("make", [cfc, lstm])
def test_networks_are_seeded_and_learn_the_change(make: object) -> None:
    """A rotating vector: the change is linear in the last value; after fitting, the error is far
    below that of the last value."""
    assert callable(make)
    angle = torch.arange(150) * 0.2
    values = torch.stack([angle.sin(), angle.cos()], dim=1)
    fitting = Fitting(units=8, epochs=12, batch=8)
    network = fit_change(make(2, fitting, 0), values, 3, fitting, 0)
    again = fit_change(make(2, fitting, 0), values, 3, fitting, 0)
    windows = values.unfold(0, 3, 1).transpose(1, 2)[:-1]
    with torch.no_grad():
        output = network(windows)[:, 0]
        assert torch.equal(output, again(windows)[:, 0])
    error, last = (
        (output - values[3:]).square().mean(),
        (windows[:, -1] - values[3:]).square().mean(),
    )
    assert float(error) < 0.2 * float(last)


def test_a_network_that_learns_per_entry_starts_as_it_was_fitted() -> None:
    """Its first forecast equals the fitted network's, the fitted network never changes, and its
    error falls."""
    loads = generate(nobel_eu(), SHORT.traffic, 0)
    rival = linkload.fit(SHORT, loads, 0, lstm)
    kept = [p.clone() for p in rival.parameters()]
    learner = OnlineNetwork("lstm-per-entry", rival, lr=0.01)
    pipeline = linkload.pipeline_for(
        SHORT, linkload.frozen(linkload.fit(SHORT, loads, 0), 41), [learner]
    )
    predictions = pipeline.observe(linkload.stream_of(SHORT, loads))
    window = torch.from_numpy(loads.batch.values[96 - 1 - 10 - 3 : 96 - 10])
    with torch.no_grad():
        np.testing.assert_allclose(
            predictions[0].experts["lstm-per-entry"], rival(window[None])[0].numpy(), rtol=1e-5
        )
        last = torch.from_numpy(loads.batch.values[-SHORT.window :])
        assert not np.allclose(
            predictions[-1].experts["lstm-per-entry"], rival(last[None])[0].numpy()
        )
    for before, after in zip(kept, rival.parameters(), strict=True):
        assert torch.equal(before, after)


def test_warming_up_needs_training_entries() -> None:
    loads = generate(nobel_eu(), SHORT.traffic, 0)
    with pytest.raises(ValueError, match="93 entries to warm up, 92 there are"):
        linkload.stream_of(replace(SHORT, warm_up=93), loads)
