"""Wirings: the synapses between neurons, and their signs.

A wiring is a pair of signed adjacency matrices. The first neurons are the motor neurons, whose
states are the output. Random wirings use the same random numbers as ncps: the same seed and sizes
give the same matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from streamadapt.errors import ConfigError

__all__ = ["Wiring", "auto_ncp", "fully_connected", "ncp", "random_wiring"]

Signs: TypeAlias = np.ndarray[Any, np.dtype[np.int32]]
Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """The signed adjacency matrices of a network: +1 excites, -1 inhibits, 0 means no synapse.

    Attributes
    ----------
    synapses : ndarray, (units, units), int32
        ``[source, target]``.
    sensory : ndarray, (inputs, units), int32
        ``[input, target]``.
    outputs : int
        The number of motor neurons, which are the first of the units.
    layers : tuple of tuples of int
        The numbers of the neurons in each layer, from the inputs to the outputs; a CfC has one
        cell per layer.
    """

    synapses: Signs
    sensory: Signs
    outputs: int
    layers: tuple[tuple[int, ...], ...]

    @property
    def inputs(self) -> int:
        """The number of inputs."""
        return len(self.sensory)

    @property
    def units(self) -> int:
        """The number of neurons."""
        return len(self.synapses)


def fully_connected(
    inputs: int,
    units: int,
    outputs: int | None = None,
    *,
    seed: int = 1111,
    self_connections: bool = True,
) -> Wiring:
    """Return a wiring in which every neuron feeds every neuron; on average two of three synapses
    excite.

    Parameters
    ----------
    outputs : int, optional
        Default: all units.
    """
    _check(inputs=inputs, units=units)
    outputs = _outputs(outputs, units)
    rng = np.random.default_rng(seed)
    wired = (
        np.ones((units, units), np.bool_) if self_connections else ~np.eye(units, dtype=np.bool_)
    )
    synapses = np.zeros((units, units), np.int32)
    synapses[wired] = rng.choice([-1, 1, 1], size=int(wired.sum()))
    sensory = rng.choice([-1, 1, 1], size=(inputs, units)).astype(np.int32)
    return Wiring(synapses, sensory, outputs, (tuple(range(units)),))


def random_wiring(
    inputs: int, units: int, outputs: int | None = None, *, sparsity: float = 0.0, seed: int = 1111
) -> Wiring:
    """Return a wiring with a share ``1 - sparsity`` of all synapses, drawn without replacement.

    Parameters
    ----------
    outputs : int, optional
        Default: all units.
    sparsity : float, in [0, 1)
    """
    _check(inputs=inputs, units=units)
    outputs = _outputs(outputs, units)
    if not 0.0 <= sparsity < 1.0:
        raise ConfigError("sparsity", sparsity, "a number in [0, 1)")
    rng = np.random.default_rng(seed)
    matrices = []
    # ncps draws the sign of an input's synapse twice and keeps the second.
    for sources, draws in ((units, 1), (inputs, 2)):
        signs = np.zeros((sources, units), np.int32)
        pairs = np.stack(
            np.meshgrid(np.arange(sources), np.arange(units), indexing="ij"), -1
        ).reshape(-1, 2)
        used = rng.choice(pairs, size=round(sources * units * (1.0 - sparsity)), replace=False)
        drawn = rng.choice([-1, 1, 1], size=(len(used), draws))
        signs[used[:, 0], used[:, 1]] = drawn[:, -1]
        matrices.append(signs)
    return Wiring(matrices[0], matrices[1], outputs, (tuple(range(units)),))


def ncp(
    inputs: int,
    inter: int,
    command: int,
    motor: int,
    fans: tuple[int, int, int, int],
    *,
    seed: int = 22222,
) -> Wiring:
    """Return the sparse wiring of a neural circuit policy [1]_: inputs -> inter -> command
    (recurrent) -> motor neurons.

    Parameters
    ----------
    inter, command, motor : int
        The number of neurons in each layer. Motor neurons have the lowest numbers, then command
        neurons, then inter neurons.
    fans : tuple of int
        Four numbers: the inter neurons that an input feeds; the command neurons that an inter
        neuron feeds; all recurrent synapses between command neurons; the command neurons that
        feed a motor neuron. A neuron without a synapse gets the mean number.

    References
    ----------
    .. [1] Lechner et al. (2020), Neural circuit policies enabling auditable autonomy, Nature
       Machine Intelligence 2.
    """
    _check(inputs=inputs, inter=inter, command=command, motor=motor)
    sensory_fanout, inter_fanout, recurrent, motor_fanin = fans
    limits = {"sensory fanout": (sensory_fanout, inter), "inter fanout": (inter_fanout, command)}
    for name, (fan, most) in (limits | {"motor fanin": (motor_fanin, command)}).items():
        if not 1 <= fan <= most:
            raise ConfigError(
                "fans", fans, f"a {name} from 1 to {most}, the number of those neurons"
            )
    rng = np.random.RandomState(seed)  # not default_rng: ncps uses this generator
    units = inter + command + motor
    synapses, sensory = np.zeros((units, units), np.int32), np.zeros((inputs, units), np.int32)
    motors, commands = np.arange(motor), np.arange(motor, motor + command)
    inters = np.arange(motor + command, units)
    _connect(rng, sensory, np.arange(inputs), inters, sensory_fanout)
    _connect(rng, synapses, inters, commands, inter_fanout)
    for _ in range(recurrent):
        source, target = rng.choice(commands), rng.choice(commands)
        synapses[source, target] = rng.choice([-1, 1])
    _connect(rng, synapses.T, motors, commands, motor_fanin)
    layers = tuple(tuple(layer.tolist()) for layer in (inters, commands, motors))
    return Wiring(synapses, sensory, motor, layers)


def auto_ncp(
    inputs: int, units: int, outputs: int, *, sparsity: float = 0.5, seed: int = 22222
) -> Wiring:
    """Return the wiring of `ncp` with sizes and fans that follow from one sparsity: two fifths of
    the neurons that are not motor neurons are command neurons.

    Parameters
    ----------
    outputs : int, < units - 2
        The number of motor neurons.
    sparsity : float, in [0.1, 1)
    """
    _check(inputs=inputs, units=units, outputs=outputs)
    if outputs >= units - 2:
        raise ConfigError("outputs", outputs, f"fewer than units - 2 = {units - 2} motor neurons")
    if not 0.1 <= sparsity < 1.0:
        raise ConfigError("sparsity", sparsity, "a number in [0.1, 1)")
    density = 1.0 - sparsity
    command = max(int(0.4 * (units - outputs)), 1)
    inter = units - outputs - command
    among = max(int(command * density), 1)
    fans = (max(int(inter * density), 1), among, max(int(command * density * 2), 1), among)
    return ncp(inputs, inter, command, outputs, fans, seed=seed)


def _connect(
    rng: np.random.RandomState, signs: Signs, sources: Numbers, targets: Numbers, fan: int
) -> None:
    """Connect each source to `fan` targets, then each target without a synapse to the mean number
    of sources."""
    unconnected = targets.tolist()
    for source in sources:
        for target in rng.choice(targets, size=fan, replace=False):
            if target in unconnected:
                unconnected.remove(target)
            signs[source, target] = rng.choice([-1, 1])
    share = min(max(len(sources) * fan // len(targets), 1), len(sources))
    for target in unconnected:
        for source in rng.choice(sources, size=share, replace=False):
            signs[source, target] = rng.choice([-1, 1])


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(name, size, "a whole number >= 1")


def _outputs(outputs: int | None, units: int) -> int:
    if outputs is None:
        return units
    if not 1 <= outputs <= units:
        raise ConfigError("outputs", outputs, f"1 to {units}, the number of units")
    return outputs
