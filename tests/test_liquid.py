"""Liquid networks against ncps: outputs, states and all gradients, with separate time spans for
each row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ncps.torch
import ncps.wirings
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners.liquid import (
    LTC,
    CfC,
    Recurrent,
    Wiring,
    auto_ncp,
    convert_ncps,
    fit,
    from_ncps,
    fully_connected,
    load_weights,
    ncp,
    random_wiring,
    read_weights,
)

torch.set_num_threads(1)

SIZES = [(5, 6, 3, 9), (4, 4, 4, 4)]
"""Batch, steps, inputs, units: all different, and all equal, where ncps mistakes the batch's times
for the units'."""
DTYPE = torch.float64


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def theirs_of(wiring: str, inputs: int, units: int) -> Any:
    made = {
        "dense": lambda: units,
        "fully": lambda: ncps.wirings.FullyConnected(units, 2, self_connections=False),
        "random": lambda: ncps.wirings.Random(units, 2, sparsity_level=0.4),
        "ncp": lambda: ncps.wirings.NCP(units - 3, 2, 1, 1, 1, 2, 2),
        "autoncp": lambda: ncps.wirings.AutoNCP(units, 1),
    }[wiring]()
    if wiring != "dense":
        made.build(inputs)
    return made


def sequence(batch: int, steps: int, inputs: int, units: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, steps, inputs, dtype=DTYPE, requires_grad=True)
    h = torch.randn(batch, units, dtype=DTYPE, requires_grad=True)
    dt = torch.rand(batch, steps, dtype=DTYPE) * 3.0 + 0.05
    return x, h, dt.requires_grad_()


def compare(
    mine: Recurrent, theirs: Any, x: Tensor, h: Tensor, dt: Tensor, tolerance: float = 1e-9
) -> None:
    """Compare outputs, states and all gradients; ncps gets one row at a time, since it mixes up
    the rows' times."""
    outputs, state = mine(x, h, dt)
    rows = [theirs(x[b : b + 1], h[b : b + 1], dt[b : b + 1]) for b in range(len(x))]
    expected, last = (torch.cat(parts) for parts in zip(*rows, strict=True))
    torch.testing.assert_close(outputs, expected, rtol=0.0, atol=tolerance)
    torch.testing.assert_close(state, last, rtol=0.0, atol=tolerance)
    weight, weight_h = torch.randn_like(outputs), torch.randn_like(state)
    names = [name for name, p in theirs.named_parameters() if p.requires_grad]
    a = torch.autograd.grad(
        (outputs * weight).sum() + (state * weight_h).sum(), [x, h, dt, *mine.parameters()]
    )
    b = torch.autograd.grad(
        (expected * weight).sum() + (last * weight_h).sum(),
        [x, h, dt, *(p for p in theirs.parameters() if p.requires_grad)],
    )
    for mine_, theirs_ in zip(a[:3], b[:3], strict=True):
        torch.testing.assert_close(mine_, theirs_, rtol=tolerance, atol=tolerance)
    # Gradients have the names and the layout of the weights.
    converted = convert_ncps(dict(zip(names, b[3:], strict=True)))
    own = dict(zip([name for name, _ in mine.named_parameters()], a[3:], strict=True))
    assert own.keys() == converted.keys()
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, converted[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("wiring", ["dense", "fully", "random", "ncp", "autoncp"])
@pytest.mark.parametrize("mode", ["default", "pure", "no_gate"])
def test_cfc_equals_ncps(mode: Any, wiring: str, sizes: tuple[int, ...]) -> None:
    inputs, units = sizes[2], sizes[3]
    theirs = ncps.torch.CfC(inputs, theirs_of(wiring, inputs, units), mode=mode).to(DTYPE)
    compare(from_ncps(theirs.state_dict(), mode=mode), theirs, *sequence(*sizes))


@pytest.mark.parametrize("activation", ["lecun_tanh", "silu", "relu", "tanh", "gelu"])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_cfc_backbones_equal_ncps(layers: int, activation: Any) -> None:
    theirs = ncps.torch.CfC(
        3,
        7,
        2,
        activation=activation,
        backbone_units=5,
        backbone_layers=layers,
        backbone_dropout=0.5,
    )
    theirs = theirs.to(DTYPE).eval()
    mine = from_ncps(theirs.state_dict(), activation=activation)
    assert mine.readout is not None
    compare(mine, theirs, *sequence(4, 5, 3, 7))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("wiring", ["dense", "fully", "random", "ncp", "autoncp"])
@pytest.mark.parametrize("constrained", [True, False])
def test_ltc_equals_ncps(constrained: bool, wiring: str, sizes: tuple[int, ...]) -> None:
    inputs, units = sizes[2], sizes[3]
    theirs = ncps.torch.LTC(
        inputs, theirs_of(wiring, inputs, units), implicit_param_constraints=constrained
    )
    compare(
        from_ncps(theirs.state_dict(), constrained=constrained).to(DTYPE),
        theirs.to(DTYPE),
        *sequence(*sizes),
    )


@pytest.mark.parametrize("mappings", [("linear", "affine"), ("affine", "linear"), (None, None)])
def test_ltc_options_equal_ncps(mappings: tuple[Any, Any]) -> None:
    theirs = ncps.torch.LTC(
        3,
        theirs_of("fully", 3, 5),
        input_mapping=mappings[0],
        output_mapping=mappings[1],
        ode_unfolds=3,
        epsilon=1e-2,
    )
    mine = from_ncps(theirs.to(DTYPE).state_dict(), unfolds=3, epsilon=1e-2, outputs=2)
    compare(mine, theirs, *sequence(4, 5, 3, 5))


@pytest.mark.parametrize("make", [ncps.torch.CfC, ncps.torch.LTC])
def test_float32_agrees_to_1e_5(make: Any) -> None:
    theirs = make(8, 64)
    x, h, dt = (t.detach().float().requires_grad_() for t in sequence(2, 8, 8, 64))
    compare(from_ncps(theirs.state_dict()), theirs, x, h, dt, 1e-5)


@pytest.mark.parametrize("make", [ncps.torch.CfC, ncps.torch.LTC])
def test_without_times_a_batch_equals_ncps_batch(make: Any) -> None:
    theirs = make(3, ncps.wirings.AutoNCP(9, 3)).to(DTYPE)
    x, _, _ = sequence(9, 5, 3, 9)
    mine = from_ncps(theirs.state_dict())
    torch.testing.assert_close(mine(x), theirs(x), rtol=0.0, atol=1e-10)
    last, _ = mine(x, sequences=False)
    torch.testing.assert_close(last, mine(x)[0][:, -1])


@pytest.mark.parametrize("make", [ncps.torch.CfC, ncps.torch.LTC])
def test_the_times_of_a_row_affect_that_row_only(make: Any) -> None:
    """If batch equals units, ncps runs and mixes up the rows; here a row's times change that row
    only."""
    theirs = make(3, 4).to(DTYPE)
    mine = from_ncps(theirs.state_dict())
    x, _, dt = sequence(4, 4, 3, 4)
    other = dt.detach().clone()
    other[2] *= 2.0
    mixed = (theirs(x, timespans=dt)[0] - theirs(x, timespans=other)[0]).abs().amax((1, 2)) > 1e-6
    assert mixed.sum() > 1, "the oracle still has its bug"
    changed = (mine(x, dt=dt)[0] - mine(x, dt=other)[0]).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, False]


WIRINGS: list[tuple[Callable[[int], Wiring], Callable[[], Any]]] = [
    (lambda i: fully_connected(i, 12), lambda: ncps.wirings.FullyConnected(12)),
    (
        lambda i: fully_connected(i, 7, 3, seed=5, self_connections=False),
        lambda: ncps.wirings.FullyConnected(7, 3, 5, self_connections=False),
    ),
    (lambda i: random_wiring(i, 8, 2, sparsity=0.3), lambda: ncps.wirings.Random(8, 2, 0.3)),
    (
        lambda i: random_wiring(i, 5, sparsity=0.0, seed=3),
        lambda: ncps.wirings.Random(5, random_seed=3),
    ),
    (lambda i: ncp(i, 10, 8, 6, (4, 5, 4, 6)), lambda: ncps.wirings.NCP(10, 8, 6, 4, 5, 4, 6)),
    (
        lambda i: ncp(i, 20, 6, 9, (1, 1, 3, 1), seed=1),
        lambda: ncps.wirings.NCP(20, 6, 9, 1, 1, 3, 1, seed=1),
    ),
    (lambda i: auto_ncp(i, 28, 4), lambda: ncps.wirings.AutoNCP(28, 4)),
    (
        lambda i: auto_ncp(i, 64, 16, sparsity=0.9, seed=2),
        lambda: ncps.wirings.AutoNCP(64, 16, 0.9, 2),
    ),
]


@pytest.mark.parametrize("inputs", [1, 4, 30])
@pytest.mark.parametrize("which", range(len(WIRINGS)))
def test_wirings_equal_ncps(which: int, inputs: int) -> None:
    mine, theirs = WIRINGS[which][0](inputs), WIRINGS[which][1]()
    theirs.build(inputs)
    assert np.array_equal(mine.synapses, theirs.adjacency_matrix)
    assert np.array_equal(mine.sensory, theirs.sensory_adjacency_matrix)
    assert (mine.inputs, mine.units, mine.outputs) == (inputs, theirs.units, theirs.output_dim)
    assert [list(layer) for layer in mine.layers] == [
        theirs.get_neurons_of_layer(i) for i in range(theirs.num_layers)
    ]


@pytest.mark.parametrize("make", [ncps.torch.CfC, ncps.torch.LTC])
def test_our_wiring_loads_ncps_weights(make: Any) -> None:
    theirs = make(3, ncps.wirings.AutoNCP(12, 4)).to(DTYPE)
    wiring = auto_ncp(3, 12, 4)
    mine = (CfC(3, wiring) if make is ncps.torch.CfC else LTC(3, wiring)).to(DTYPE)
    masks = {name: t.clone() for name, t in mine.state_dict().items() if "mask" in name}
    load_weights(mine, theirs.state_dict())
    assert masks
    assert all(torch.equal(mask, mine.state_dict()[name]) for name, mask in masks.items())
    compare(mine, theirs, *sequence(2, 3, 3, 12))


@pytest.mark.parametrize("mode", ["default", "pure"])
def test_a_network_can_be_saved_and_read(mode: Any, tmp_path: Path) -> None:
    saved = CfC(3, auto_ncp(3, 9, 2), mode=mode)
    save_file(saved.state_dict(), tmp_path / "net.safetensors")
    read = CfC(3, auto_ncp(3, 9, 2, seed=1), mode=mode)
    load_weights(read, read_weights(tmp_path / "net.safetensors"))
    x = torch.randn(2, 4, 3)
    assert torch.equal(saved(x)[0], read(x)[0]), "the wiring is saved with the weights"


def networks() -> list[Recurrent]:
    g = torch.Generator().manual_seed(3)
    made: list[Recurrent] = [
        CfC(3, 6, projection=2, mode=mode, generator=g) for mode in ("default", "pure", "no_gate")
    ]
    return [*made, CfC(3, auto_ncp(3, 9, 2), generator=g), LTC(3, 5, projection=2, generator=g)]


@pytest.mark.parametrize("which", range(5))
def test_functional_call_reads_every_parameter(which: int) -> None:
    network = networks()[which]
    x, dt = torch.randn(2, 4, 3), torch.rand(2, 4)
    h = torch.randn(2, network.state_size)
    before = network(x, h, dt)[0]
    for name, parameter in network.named_parameters():
        swapped = torch.func.functional_call(network, {name: parameter + 0.3}, (x, h, dt))[0]
        assert not torch.equal(swapped, before), f"{name} is not read"
    assert torch.equal(network(x, h, dt)[0], before)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 6), which=st.integers(0, 4), seed=st.integers(0, 99))
def test_a_sequence_in_two_pieces_equals_the_whole_sequence(
    cut: int, which: int, seed: int
) -> None:
    network, g = networks()[which], torch.Generator().manual_seed(seed)
    x, dt = torch.randn(3, 7, 3, generator=g), torch.rand(3, 7, generator=g)
    whole, end = network(x, dt=dt)
    first, state = network(x[:, :cut], dt=dt[:, :cut])
    second, last = network(x[:, cut:], state, dt[:, cut:])
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, end)


def test_zero_time_keeps_the_state_of_an_ltc() -> None:
    network = LTC(3, 5, generator=torch.Generator().manual_seed(0))
    h = torch.randn(2, 5)
    torch.testing.assert_close(network(torch.randn(2, 1, 3), h, torch.zeros(2, 1))[1], h)
    assert torch.isfinite(network(torch.randn(2, 1, 3), h, torch.full((2, 1), 1e9))[1]).all(), (
        "an infinite time span works, too"
    )


def test_random_numbers_come_only_from_the_generator() -> None:
    before = torch.get_rng_state()
    first, second = networks(), networks()
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_negative_conductances_are_clipped() -> None:
    network = LTC(3, 5, constrained=False)
    with torch.no_grad():
        network.w.fill_(-1.0)
        network.mu.fill_(-1.0)
    network.constrain_()
    assert network.w.max() == 0.0
    assert network.mu.max() == -1.0, "mu may be negative"


@pytest.mark.parametrize(
    ("inputs", "state", "dt", "message"),
    [
        ((4, 2, 2), None, None, r"inputs must be \(batch, steps, 3\), got \(4, 2, 2\)"),
        ((4, 3), None, None, "inputs must be"),
        ((4, 2, 3), (4, 5), None, r"state must be \(4, 6\)"),
        ((4, 2, 3), None, (4,), r"dt must be \(4, 2\)"),
        ((4, 2, 3), None, (2, 4), "dt must be"),
    ],
)
def test_wrong_shapes_are_refused(inputs: Any, state: Any, dt: Any, message: str) -> None:
    network = CfC(3, 6)
    with pytest.raises(ShapeError, match=message):
        network(
            torch.zeros(inputs),
            *(None if shape is None else torch.ones(shape) for shape in (state, dt)),
        )


def test_weights_that_do_not_match_are_refused_by_name() -> None:
    theirs = ncps.torch.CfC(3, 6)
    state = theirs.state_dict()
    with pytest.raises(
        ConfigError, match=r"layers.0.head.weight must be \(20, 128\), not \(24, 128\)"
    ):
        load_weights(CfC(3, 5), state)
    with pytest.raises(ConfigError, match=r"readout.weight .* is missing"):
        load_weights(CfC(3, 6, projection=1), state)
    with pytest.raises(ConfigError, match="gleak is unknown"):
        load_weights(CfC(3, 6), state | {"rnn_cell.gleak": torch.ones(3)})
    with pytest.raises(ConfigError, match=r"but ff2\.weight is missing"):
        load_weights(CfC(3, 6), {k: v for k, v in state.items() if "ff2.w" not in k})
    broken = state | {"rnn_cell.ff1.bias": torch.full((6,), torch.nan)}
    with pytest.raises(
        ConfigError, match=r"finite numbers, but layers\.0\.head\.bias holds others"
    ):
        from_ncps(broken)


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        (ncps.torch.CfC(3, 6, mixed_memory=True).state_dict(), {}, "mixed_memory"),
        (ncps.torch.CfC(3, 6).state_dict(), {"unfolds": 3}, "unfolds: expected no such option"),
        (
            ncps.torch.CfC(3, 6).state_dict(),
            {"mode": "fast"},
            "mode: expected one of default, pure, no_gate",
        ),
        (ncps.torch.LTC(3, 6).state_dict(), {"unfolds": 0}, "unfolds"),
        ({"weight": torch.zeros(2)}, {}, "an ncps CfC or LTC"),
        ({"rnn_cell.gleak": torch.zeros(2)}, {}, "a whole state dict"),
    ],
)
def test_other_states_than_ncps_states_are_refused(state: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_ncps(state, **options)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: CfC(0, 3),
        lambda: CfC(3, 0),
        lambda: CfC(3, 3, activation="step"),  # type: ignore[arg-type]
        lambda: CfC(2, auto_ncp(3, 9, 2)),
        lambda: LTC(2, auto_ncp(3, 9, 2)),
        lambda: LTC(3, 3, mappings=("cubic", "affine")),  # type: ignore[arg-type]
        lambda: auto_ncp(3, 9, 7),
        lambda: auto_ncp(3, 9, 2, sparsity=0.0),
        lambda: ncp(3, 4, 3, 2, (5, 1, 1, 1)),
        lambda: random_wiring(3, 4, sparsity=1.0),
        lambda: fully_connected(3, 4, 5),
        lambda: fully_connected(0, 4),
    ],
)
def test_bad_settings(bad: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        bad()


def history(n: int = 600) -> tuple[Tensor, Tensor, Tensor]:
    """A wave sampled at uneven times, to be predicted half a unit ahead: impossible without the
    times."""
    g = torch.Generator().manual_seed(0)
    dt = 0.1 + 0.8 * torch.rand(n, generator=g)
    t = dt.cumsum(0)
    return torch.sin(t)[:, None], torch.sin(t + 0.5)[:, None], dt


def test_fit_is_deterministic_with_a_seed() -> None:
    x, y, dt = history()
    y = y.clone()
    y[::7] = torch.nan  # unknown targets
    found = []
    for _ in range(2):
        network = CfC(
            1, 16, projection=1, backbone=(16,), generator=torch.Generator().manual_seed(1)
        )
        means = fit(network, x, y, dt, epochs=8, chunk=8, streams=8, lr=1e-2, seed=2)
        found.append((means, [p.clone() for p in network.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert means[-1] < 0.1 * means[0] < 0.1


def test_fit_refuses_mismatched_data() -> None:
    x, y, dt = history(60)
    network = CfC(1, 4, projection=1)
    with pytest.raises(ShapeError, match="60"):
        fit(network, x, y, dt[1:])
    with pytest.raises(ConfigError, match="streams"):
        fit(network, x, y, dt, streams=4)
    with pytest.raises(ConfigError, match="mae, mse or cross-entropy"):
        fit(network, x, y, chunk=4, streams=4, loss="l0")  # type: ignore[arg-type]
    classes = torch.eye(2)[(x[:, 0] > 0).long()]
    means = fit(
        CfC(1, 4, projection=2), x, classes, chunk=4, streams=4, epochs=3, loss="cross-entropy"
    )
    assert means[-1] < means[0]
