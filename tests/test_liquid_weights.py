"""The liquid learner with weights from a file: frozen with a live state, or trained further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ncps.torch
import pytest
import torch
from core_helpers import built
from liquid_helpers import CPU, SECOND, SMALL, base_output_at, scaled_spec, stream
from safetensors.torch import save_file

from streamadapt.errors import ConfigError
from streamadapt.learners import Liquid
from streamadapt.learners.liquid import CfC
from streamadapt.testing.checks.cases import CASES, drive
from streamadapt.testing.checks.learners import check_learner


def ncps_file(path: Path, make: Any, outputs: int, **more: Any) -> tuple[Any, Path]:
    theirs = make(2, 5, **more)
    state = {k: v.contiguous() for k, v in theirs.state_dict().items()}
    if make is ncps.torch.LTC:
        head = torch.nn.Linear(5, outputs)
        state |= {"readout.weight": head.weight.detach(), "readout.bias": head.bias.detach()}
        theirs = (theirs, head)
    save_file(state, path / "net.safetensors")
    return theirs, path / "net.safetensors"


@pytest.mark.parametrize("cell", ["cfc", "ltc"])
@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_frozen_weights_equal_ncps_with_a_live_state(kind: str, cell: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cfc = {"proj_size": 2, "backbone_units": 6} if cell == "cfc" else {}
    theirs, path = ncps_file(
        tmp_path, ncps.torch.CfC if cell == "cfc" else ncps.torch.LTC, 2, **cfc
    )
    spec = scaled_spec(kind, window=1)
    network = SMALL if cell == "cfc" else None
    learner = built(
        Liquid(
            cell, 5, update="none", weights=path, residual=False, time_unit=0.5, network=network
        ),
        spec,
    )
    assert learner.names == (f"liquid-{cell}-5-direct-frozen",)
    assert not learner.needs_labels
    run, head = theirs if cell == "ltc" else (theirs, torch.nn.Identity())
    h, last, before = torch.zeros(1, 5), None, [p.clone() for p in learner.parameters()]
    for inputs, times in stream(25, 1, 2):
        dt = 1.0 if last is None else (int(times[-1]) - last) / (0.5 * SECOND)
        x = (inputs - spec.input_loc) / spec.input_scale
        with torch.no_grad():
            out, h = run(x[None], h, torch.tensor([[dt]]))
            expected = head(out)[0]
        last = int(times[-1])
        base_output = base_output_at(times, torch.full((1, 2), 0.5))
        if kind == "regression":
            expected = expected * spec.output_scale + spec.output_loc
        else:
            expected = torch.softmax(expected, -1)
        torch.testing.assert_close(
            learner.predict(inputs, base_output), expected, rtol=1e-5, atol=1e-5
        )
        learner.adapt(inputs, base_output)
        learner.learn(inputs, base_output, torch.zeros(1, 2), torch.ones(1, 2) > 0)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters(), strict=True))


def test_frozen_learners_pass_the_checks(tmp_path: Path) -> None:
    case = CASES[2]
    net = CfC(
        case.channels,
        5,
        projection=case.columns,
        backbone=(6,),
        generator=torch.Generator().manual_seed(0),
    )
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    make = lambda: Liquid(  # noqa: E731
        "cfc", 5, update="none", weights=tmp_path / "net.safetensors", network=SMALL
    )
    slow = {"check_state_is_bounded": "slow", "check_late_steps_cost_no_more": "slow"}
    check_learner(make, skip=slow)
    assert built(make(), case.spec(CPU)).names == ("liquid-cfc-5-frozen",)


def test_weights_can_be_trained_further(tmp_path: Path) -> None:
    case = CASES[2]
    net = CfC(
        case.channels,
        5,
        projection=case.columns,
        backbone=(6,),
        generator=torch.Generator().manual_seed(0),
    )
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    learner = built(
        Liquid("cfc", 5, weights=tmp_path / "net.safetensors", network=SMALL), case.spec(CPU)
    )
    torch.testing.assert_close(learner.net.state_dict(), net.state_dict())
    drive(learner, case.steps(40, "path", CPU))
    assert not torch.equal(learner.net.readout.weight, net.readout.weight)


def test_bad_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(ConfigError, match="weights: expected a readable safetensors file"):
        Liquid(weights=path)
    with pytest.raises(ConfigError, match='weights: expected a safetensors file: update = "none"'):
        Liquid(update="none")
    state = CfC(2, 5, projection=2, backbone=(6,)).state_dict()
    save_file(state, path)
    with pytest.raises(ConfigError, match=r"readout\.weight must be \(4, 5\), not \(2, 5\)"):
        built(Liquid("cfc", 5, weights=path, network=SMALL), scaled_spec(columns=4))
    with pytest.raises(ConfigError, match=r"layers\.0\.head\.weight is unknown"):
        built(Liquid("ltc", 5, weights=path), scaled_spec())
    save_file(state | {"readout.bias": torch.tensor([1.0, torch.inf])}, path)
    with pytest.raises(ConfigError, match=r"finite numbers, but readout\.bias holds others"):
        Liquid("cfc", 5, weights=path, network=SMALL)
