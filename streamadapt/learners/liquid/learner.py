"""Liquid networks as learners: their recurrent state continues from entry to entry, in event
time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor

from streamadapt.config.renamed import accepts_old_names
from streamadapt.errors import ConfigError
from streamadapt.learners.base import Learner, Maturity, masked_mean, require_shape
from streamadapt.learners.liquid.cfc import Activation, CfC, Mode
from streamadapt.learners.liquid.ltc import LTC
from streamadapt.learners.liquid.ncps_weights import load_weights, read_weights
from streamadapt.learners.liquid.recurrent import Recurrent
from streamadapt.learners.liquid.wirings import Wiring, auto_ncp, fully_connected, random_wiring
from streamadapt.learners.optimizer import Optimiser
from streamadapt.models.contract import BaseOutput, Spec

__all__ = ["Liquid", "Network"]

MIN_GAP, MAX_GAP = 1e-3, 1e4
"""Gaps between entries are clipped to this range, in time units: two entries may have the same
time."""
INPUT_LIMIT = 1e3
"""Scaled inputs are clipped at this size: one outlier's gradient would dominate all others."""
FLOOR = 1e-6
"""The smallest probability of a class in the base's output, so that it can be corrected; the log
loss has the same floor."""
NEVER = -(2**63)


@dataclass(frozen=True, slots=True)
class Network:
    """The settings of a liquid network, besides its cell and number of units.

    Attributes
    ----------
    mode, activation, backbone : of a CfC
        See `streamadapt.learners.liquid.CfC`; a sparse wiring has no backbone. Default backbone:
        one layer of twice the units.
    unfolds : int, of an LTC
        The number of Euler steps per step.
    wiring : {"dense", "random", "autoncp"}
        Which synapses there are: all, random ones, or those of a neural circuit policy.
    motors : int, optional
        For "autoncp": the number of motor neurons, on which the readout works; default: a quarter
        of the units.
    sparsity : float
        For "random" and "autoncp": the share of synapses that are left out.
    wiring_seed : int
        The seed of the wiring; it is independent of the config's seed, so that weights from a file
        fit.
    """

    mode: Mode = "default"
    activation: Activation = "lecun_tanh"
    backbone: Sequence[int] | None = None
    unfolds: int = 6
    wiring: Literal["dense", "random", "autoncp"] = "dense"
    motors: int | None = None
    sparsity: float = 0.5
    wiring_seed: int = 22222

    def build(
        self, cell: str, inputs: int, units: int, outputs: int, generator: torch.Generator
    ) -> Recurrent:
        """Create the network with a readout of `outputs` numbers; raise `ConfigError` if the
        settings contradict each other."""
        if self.wiring not in ("dense", "random", "autoncp"):
            raise ConfigError("network.wiring", self.wiring, "dense, random or autoncp")
        if cell == "ltc" and self.mode != "default":
            raise ConfigError(
                "network.mode", self.mode, "no such key for an LTC: only a CfC has modes"
            )
        if self.backbone is not None and (cell == "ltc" or self.wiring != "dense"):
            raise ConfigError(
                "network.backbone",
                self.backbone,
                "no such key here: only a CfC with dense wiring has a backbone",
            )
        if self.wiring == "autoncp":
            motors = max(units // 4, 1) if self.motors is None else self.motors
            wired = auto_ncp(inputs, units, motors, sparsity=self.sparsity, seed=self.wiring_seed)
        elif self.wiring == "random":
            wired = random_wiring(inputs, units, sparsity=self.sparsity, seed=self.wiring_seed)
        else:
            wired = fully_connected(inputs, units)
        if cell == "ltc":
            return LTC(
                inputs, wired, projection=outputs, unfolds=self.unfolds, generator=generator
            )
        of: int | Wiring = units if self.wiring == "dense" else wired
        backbone = (2 * units,) if self.backbone is None else tuple(self.backbone)
        return CfC(
            inputs, of, projection=outputs, mode=self.mode, activation=self.activation,
            backbone=backbone, generator=generator,
        )  # fmt: skip


class _Ahead(NamedTuple):
    """The state after an entry that `predict` computed, and the values from which it was
    computed."""

    inputs: Tensor
    times: Tensor | None
    parameter: Tensor
    versions: tuple[int, int]
    state: Tensor


@accepts_old_names("learners.liquid")
class Liquid(Learner):
    """A liquid network (CfC [1]_ or LTC [2]_) whose state continues from entry to entry, in event
    time.

    At every entry the state h advances by one step. The step gets the newest row x of the window,
    in scaled units, and the time dt since the previous entry, in units of `time_unit` (at the
    first entry the network runs over the whole window)::

        h <- cell(x, h, dt)
        prediction = base + scale * readout(h)         (forecasts, regression)
        prediction = softmax(log base + readout(h))    (classification)

    With ``residual=False`` the base is not used: ``loc + scale * readout(h)``,
    ``softmax(readout(h))``. The base's output is not an input: a matured example has the base's
    output only for its own entry, but the unrolled steps would need it for each entry.

    ``update="step"``: each matured example causes one step of truncated backpropagation through
    time. It starts from the (detached) state before the last `unroll` entries of the example's
    window, runs over these entries, and ends at the readout of the newest one; then Adam makes one
    step on the error. Past states are stored in a ring buffer and found by event time. They are
    the real states of the running network, even if its memory is long; a start from zeros would
    train the network on states that it never has. If the ring buffer does not go back far enough
    (at the start of a stream, or if a label comes more than `max_label_delay` entries late), the
    start is zeros. The readout is zero at first: the first prediction equals the base's to the bit
    (for classes with a probability of at least `FLOOR`).

    ``update="none"``: the weights of a file never change; only the state changes. No labels are
    needed.

    Costs per entry of a CfC with n units, c channels and backbone b: O(b (c + n) + n b + n rows
    columns) to predict, and 3 `unroll` times as much to learn. State in floats: three times the
    number of parameters, and n (`max_label_delay` + `unroll`) for the ring buffer.

    Parameters
    ----------
    cell : {"cfc", "ltc"}
        The kind of network: closed-form continuous-time, or liquid time-constant.
    units : int, >= 1
        Neurons of the recurrent layer.
    update : {"step", "none"}
        Whether labels change the weights.
    weights : path, optional
        A safetensors file with the initial weights, including the readout. The tensors have the
        names of ncps (``rnn_cell.*``, ``fc.*``) or of `streamadapt.learners.liquid`. Needed for
        "none". The weights must have been trained with the scaling of the base's inputs and
        outputs (`Spec`), and with gaps in the same `time_unit`.
    residual : bool
        Whether the network corrects the base, instead of predicting by itself.
    lr : float, > 0
        Adam's learning rate. Default: 1e-3 for a CfC; 3e-3 for an LTC, whose states change less.
    loss : {"mae", "mse"}
        The loss of a step, in scaled units; for classes it is always the cross entropy.
    unroll : int, >= 1
        The number of entries through which the gradient is propagated; at most the window.
    clip : float, > 0
        Gradients with a larger norm are scaled down to this norm.
    max_label_delay : int, >= 0
        The largest delay of a label, in entries, for which the state of its time is kept
        (supervised tasks).
    time_unit : float, > 0, seconds, optional
        Default: the mean gap between the entries of the first window (if the window is one entry,
        the first gap), which then never changes.
    network : Network, optional

    References
    ----------
    .. [1] Hasani et al. (2022), Closed-form continuous-time neural networks, Nature Machine
       Intelligence 4.
    .. [2] Hasani et al. (2021), Liquid time-constant networks, AAAI 35.

    Examples
    --------
    >>> Liquid("ltc", units=16).names
    ('liquid-ltc-16',)
    """

    kind: ClassVar[str] = "liquid"
    matures: ClassVar[Maturity] = "path"
    state: Tensor
    clock: Tensor
    past: Tensor
    past_times: Tensor

    def __init__(  # noqa: PLR0913 - each is a key of its table
        self,
        cell: Literal["cfc", "ltc"] = "cfc",
        units: int = 32,
        *,
        update: Literal["step", "none"] = "step",
        weights: Path | None = None,
        residual: bool = True,
        lr: float | None = None,
        loss: Literal["mae", "mse"] = "mae",
        unroll: int = 4,
        clip: float = 1.0,
        max_label_delay: int = 256,
        time_unit: float | None = None,
        network: Network | None = None,
    ) -> None:
        super().__init__()
        self.default_lr = 1e-3 if cell == "cfc" else 3e-3
        self.cell, self.units, self.update, self.residual = cell, units, update, residual
        self.lr = self.default_lr if lr is None else lr
        self.loss, self.unroll, self.clip = loss, unroll, clip
        self.max_label_delay = max_label_delay
        self.time_unit = time_unit
        self._check_settings()
        if update == "none" and weights is None:
            raise ConfigError(
                "weights", None, 'a safetensors file: update = "none" never learns any'
            )
        self.network = network or Network()
        # Refuse contradictory settings now.
        self.network.build(cell, 1, units, 1, torch.Generator())
        self._file = None if weights is None else Path(weights)
        self._weights = None if self._file is None else read_weights(self._file)

    def _check_settings(self) -> None:
        """Raise `ConfigError` for the first setting that has no meaning."""
        for name, value, known in (
            ("cell", self.cell, ("cfc", "ltc")),
            ("update", self.update, ("step", "none")),
            ("loss", self.loss, ("mae", "mse")),
        ):
            if value not in known:
                raise ConfigError(name, value, " or ".join(known))
        for name, size, least in (
            ("units", self.units, 1),
            ("unroll", self.unroll, 1),
            ("max_label_delay", self.max_label_delay, 0),
        ):
            if size < least:
                raise ConfigError(name, size, f"a whole number >= {least}")
        for name, number in (
            ("lr", self.lr),
            ("clip", self.clip),
            ("time_unit", 1.0 if self.time_unit is None else self.time_unit),
        ):
            if not 0.0 < number < math.inf:
                raise ConfigError(name, number, "a finite number > 0")

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        """False if the weights are frozen."""
        return self.update == "step"

    @property
    def names(self) -> tuple[str, ...]:
        """``liquid-cfc`` or ``liquid-ltc``, and the settings that differ from the default:
        ``liquid-cfc-pure-64-direct-frozen``."""
        parts = [self.kind, self.cell]
        parts += [self.network.mode] * (self.network.mode != "default") + [
            self.network.wiring
        ] * self._sparse
        parts += [str(self.units)] * (self.units != 32) + [f"{self.lr:g}"] * (
            self.lr != self.default_lr
        )
        parts += (
            [f"unroll{self.unroll}"] * (self.unroll != 4)
            + ["direct"] * (not self.residual)
            + ["frozen"] * (self.update == "none")
        )
        return ("-".join(parts),)

    @property
    def _sparse(self) -> bool:
        return self.network.wiring != "dense"

    def allocate(self, spec: Spec) -> None:
        """Draw the weights, or load them from the file; the state starts at zero."""
        generator = spec.generator()
        net = self.network.build(
            self.cell, spec.channels, self.units, spec.rows * spec.columns, generator
        )
        assert net.readout is not None
        if self._weights is not None:
            load_weights(net, self._weights, file=self._file)
        else:
            with torch.no_grad():
                net.readout.weight.zero_()
                net.readout.bias.zero_()
        self.net = net.to(spec.device).requires_grad_(self.update == "step")
        self.steps_back = min(self.unroll, spec.window)
        lag = spec.rows if spec.kind == "forecast" else self.max_label_delay
        size = 1 + self.steps_back + lag if self.update == "step" else 0
        self.register_buffer(
            "state", torch.zeros(1, net.state_size, dtype=torch.float32, device=spec.device)
        )
        # The event time of the newest entry, ns; the number of entries; the time unit, ns, 0 while
        # it is unknown.
        unit = 0 if self.time_unit is None else max(round(self.time_unit * 1e9), 1)
        self.register_buffer(
            "clock", torch.tensor([0, 0, unit], dtype=torch.int64, device=spec.device)
        )
        self.register_buffer(
            "past", torch.zeros(size, net.state_size, dtype=torch.float32, device=spec.device)
        )
        self.register_buffer(
            "past_times", torch.full((size,), NEVER, dtype=torch.int64, device=spec.device)
        )
        if self.update == "step":
            self.optimiser = Optimiser(list(self.net.parameters()), "adam", self.lr, {})
        self._ahead: _Ahead | None = None

    # -- time

    def _unit(self, times: list[int], clock: list[int]) -> int:
        """Return the time unit in ns, if necessary estimated now; 0 while no time has passed."""
        last, count, unit = clock
        if unit or not times:
            return unit
        if len(times) > 1:
            return (times[-1] - times[0]) // (len(times) - 1)
        return max(times[0] - last, 0) if count else 0

    def _gaps(self, times: list[int], before: int | None, unit: int) -> Tensor:
        """Return for each entry the time since the previous one, (1, steps), in time units; 1 if
        it is unknown."""
        gaps = []
        for time in times:
            known = before is not None and unit > 0
            gaps.append(
                min(max((time - before) / unit, MIN_GAP), MAX_GAP)
                if known and before is not None
                else 1.0
            )
            before = time
        return torch.tensor([gaps], dtype=torch.float32, device=self.spec.device)

    # -- the network

    def _scaled(self, rows: Tensor) -> Tensor:
        """Scale rows of inputs: (steps, channels), original units -> (1, steps, channels)."""
        scaled = (rows - self.spec.input_loc) / self.spec.input_scale
        return scaled.clamp(-INPUT_LIMIT, INPUT_LIMIT).unsqueeze(0)

    def _advance(self, inputs: Tensor, base: BaseOutput) -> tuple[Tensor, Tensor]:
        """Return the readout for the newest entry, (1, rows * columns), and the state after
        it."""
        require_shape("inputs", inputs, (self.spec.window, self.spec.channels))
        clock: list[int] = self.clock.tolist()
        last, count, _ = clock
        times: list[int] = [] if base.times is None else base.times.tolist()
        unit = self._unit(times, clock)
        rows = inputs[-1:] if count else inputs
        newest = times[-len(rows) :] if times else [0] * len(rows)
        gaps = self._gaps(newest, last if count else None, unit if times else 0)
        with torch.no_grad():
            readout, state = self.net(self._scaled(rows), self.state, gaps, sequences=False)
        return readout, state

    def _output(self, readout: Tensor, base: Tensor) -> Tensor:
        """Return the prediction, (rows, columns), original units, from the readout,
        (1, rows * columns)."""
        spec = self.spec
        readout = readout.view(spec.rows, spec.columns)
        if spec.kind == "classification":
            if not self.residual:
                return torch.softmax(readout, -1)
            p = base.clamp_min(FLOOR)
            moved = p * torch.exp(readout - readout.amax(-1, keepdim=True))
            # Divided by the sum of the base's probabilities: if the readout is zero, the result
            # equals the base to the bit.
            return moved / (moved.sum(-1, keepdim=True) / p.sum(-1, keepdim=True))
        start = base if self.residual else spec.output_loc
        return torch.addcmul(start, readout, spec.output_scale)

    def predict(self, inputs: Tensor, base: BaseOutput) -> Tensor:
        """Return the network's prediction after this entry, without changing its state."""
        require_shape("base.output", base.output, (self.spec.rows, self.spec.columns))
        readout, state = self._advance(inputs, base)
        parameter, versions = self._versions()
        self._ahead = _Ahead(inputs, base.times, parameter, versions, state)
        return self._output(readout, base.output)

    def _versions(self) -> tuple[Tensor, tuple[int, int]]:
        """Return a parameter and two versions: they change when parameters are replaced or a state
        is loaded."""
        assert self.net.readout is not None
        parameter = self.net.readout.weight
        return parameter, (parameter._version, self.state._version)

    def adapt(self, inputs: Tensor, base: BaseOutput) -> None:
        """Advance the state by this entry, and store it in the ring buffer."""
        ahead, self._ahead = self._ahead, None
        parameter, versions = self._versions()
        fits = ahead is not None and ahead.inputs is inputs and ahead.times is base.times
        if (
            ahead is not None
            and fits
            and ahead.parameter is parameter
            and ahead.versions == versions
        ):
            state = ahead.state
        else:
            state = self._advance(inputs, base)[1]
        clock: list[int] = self.clock.tolist()
        times: list[int] = [] if base.times is None else base.times.tolist()
        newest = times[-1] if times else clock[0]
        with torch.no_grad():
            self.state.copy_(state)
            if len(self.past):
                at = clock[1] % len(self.past)
                self.past[at].copy_(state[0])
                self.past_times[at] = newest
            self.clock.copy_(
                torch.tensor([newest, clock[1] + 1, self._unit(times, clock)], dtype=torch.int64)
            )

    # -- learning

    def _start(self, newest: int | None, count: int) -> tuple[Tensor, int | None]:
        """Find the state before the unrolled entries of an example, and its time; zeros and None
        if it is not stored."""
        size, unknown = len(self.past), (torch.zeros_like(self.state), None)
        if newest is None:
            return unknown
        index = int((self.past_times == newest).int().argmax())
        age = (count - 1 - index) % size + self.steps_back  # of the wanted state, in entries
        at = (count - 1 - age) % size
        if age >= min(size, count) or int(self.past_times[index]) != newest:
            return unknown
        return self.past[at : at + 1].clone(), int(self.past_times[at])

    def learn(self, inputs: Tensor, base: BaseOutput, target: Tensor, mask: Tensor) -> None:
        """Make one step of truncated backpropagation through time."""
        require_shape("target", target, (self.spec.rows, self.spec.columns))
        if self.update == "none" or not bool(mask.any()):
            return
        k = self.steps_back
        times: list[int] = [] if base.times is None else base.times[-k - 1 :].tolist()
        _, count, unit = self.clock.tolist()
        state, before = self._start(times[-1] if times else None, count)
        if len(times) > k:
            before = times[0]
        gaps = self._gaps(times[-k:] if times else [0] * k, before, unit if times else 0)
        with torch.enable_grad():
            readout, _ = self.net(self._scaled(inputs[-k:]), state, gaps, sequences=False)
            loss = self._loss(readout, base.output, target, mask)
            loss = loss if self.weight == 1.0 else loss * self.weight
        self._ahead = None  # it was computed with the old parameters
        self.optimiser.step(loss, self.boost, clip=self.clip)
        with torch.no_grad():
            self.net.constrain_()

    def _loss(self, readout: Tensor, base: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        spec = self.spec
        readout = readout.view(spec.rows, spec.columns)
        if spec.kind == "classification":
            logits = readout + base.clamp_min(FLOOR).log() if self.residual else readout
            return (
                masked_mean(-torch.where(mask, target, 0.0) * F.log_softmax(logits, -1), mask)
                * spec.columns
            )
        residual = (target - (base if self.residual else spec.output_loc)) / spec.output_scale
        error = readout - torch.where(mask, residual, 0.0)
        return masked_mean(error.abs() if self.loss == "mae" else error.square(), mask)
