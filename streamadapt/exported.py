"""A base from a ``.pt2`` file, as `torch.export.save` writes it: the graph is walked here, operator by operator.

Read are archives of schema version 8 (torch 2.9 to 2.13), of a program with one input of floats, (1, window, channels)
or (window, channels), where the 1 may be a dynamic batch, and one output or (output, embedding). Nothing in the file is
given to torch's own loader, which is not made for files of strangers: see `streamadapt.exported_archive`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor, nn

from streamadapt.base import FrozenModel
from streamadapt.errors import ConfigError, ShapeError
from streamadapt.exported_archive import TYPES, Archive, UnreadableError, read_archive, whole
from streamadapt.exported_ops import DEVICE, Ref, argument, check_flags, operator_of
from streamadapt.learners.base import TaskKind

__all__ = ["Exported", "Program", "load_export"]

MOST_STEPS: Final = 100_000
MOST_NUMBERS: Final = 1 << 28
"""The most numbers that one step may make."""
NODE: Final = {"target", "inputs", "outputs", "metadata", "is_hop_single_tensor_return", "name"}
HELD: Final = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


class Step(NamedTuple):
    """One call of a graph, and the names of what it returns (None: not wanted)."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[str | list[str] | None, ...]


class Program(nn.Module):
    """An exported graph that runs as it was exported; it has no submodules, and never writes to its tensors.

    Parameters
    ----------
    archive : Archive

    Attributes
    ----------
    shape : tuple of int
        Of the input.

    Raises
    ------
    UnreadableError
        If the graph holds anything that is not on the lists of `streamadapt.exported_ops`.
    """

    def __init__(self, archive: Archive) -> None:
        super().__init__()
        module = archive.program["graph_module"]
        graph, signature = module["graph"], module["signature"]
        self._held: dict[str, str] = {}  # the graph's name -> the buffer's
        inputs = []
        for spec in signature["input_specs"]:
            ((kind, said),) = spec.items()
            if kind == "user_input":
                inputs.append(argument(said["arg"]))
            elif kind in HELD:
                self._hold(str(said["arg"]["name"]), archive.tensors[said[HELD[kind]]])
            else:
                raise UnreadableError(f"an input of the kind {kind[:40]!r}; export a model of tensors alone")
        if len(inputs) != 1 or not isinstance(inputs[0], Ref):
            raise UnreadableError(f"{len(inputs)} inputs; the model must take one tensor, the window")
        self._input = inputs[0]
        self.shape = _shape(graph["tensor_values"][self._input])
        self._outputs = [_output(spec) for spec in signature["output_specs"]]
        if len(self._outputs) not in (1, 2):
            raise UnreadableError(f"{len(self._outputs)} outputs; the model must return output or (output, embedding)")
        if len(graph["nodes"]) > MOST_STEPS:
            raise UnreadableError(f"{len(graph['nodes'])} steps")
        self._steps = [_step(node) for node in graph["nodes"]]

    def _hold(self, name: str, tensor: Tensor) -> None:
        self._held[name] = f"held_{len(self._held)}"
        self.register_buffer(self._held[name], tensor)

    def forward(self, inputs: Tensor) -> Any:
        """Return what the model returned: a tensor or a pair of them."""
        if tuple(inputs.shape) != self.shape:
            raise ShapeError(f"the exported base takes {self.shape}, got {tuple(inputs.shape)}")
        values: dict[str, Any] = {name: self._buffers[held] for name, held in self._held.items()}
        return self._walk(values | {self._input: inputs}, inputs.device)

    def prove(self) -> tuple[Tensor, ...]:
        """Run once without numbers, to see how large they get, then once on zeros, to see that nothing is written to.

        Returns
        -------
        tuple of Tensor
            What the model says to zeros.

        Raises
        ------
        UnreadableError
            If it does not run, makes tensors that are too large, or writes to its input or weights.
        """
        held = {name: self._buffers[where] for name, where in self._held.items()}
        ghosts = {n: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for n, t in held.items()}  # type: ignore[union-attr]
        zeros = torch.zeros(self.shape, dtype=torch.float32)
        before = [t._version for t in (*held.values(), zeros)]  # type: ignore[union-attr]
        try:
            with torch.no_grad():
                self._walk(ghosts | {self._input: zeros.to("meta")}, torch.device("meta"), MOST_NUMBERS)
                said = self(zeros)
        except UnreadableError:
            raise
        except Exception as exc:  # operators raise as they like
            raise UnreadableError(f"a graph that does not run: {type(exc).__name__}: {str(exc)[:200]}") from exc
        if [t._version for t in (*held.values(), zeros)] != before:  # type: ignore[union-attr]
            raise UnreadableError("a graph that writes to its input or weights: call model.eval() before exporting")
        return said if isinstance(said, tuple) else (said,)

    def _walk(self, values: dict[str, Any], device: torch.device, most: int | None = None) -> Any:
        for call, args, kwargs, outputs in self._steps:
            said = call(*_filled(args, values, device), **_filled(kwargs, values, device))
            if most is not None and (size := _size(said)) > most:
                raise UnreadableError(f"a step that makes {size} numbers, of which at most {most} are made")
            for name, value in zip(outputs, said if len(outputs) > 1 else (said,), strict=True):
                if isinstance(name, list):
                    values.update(zip(name, value, strict=True))
                elif name is not None:
                    values[name] = value
        found = tuple(values[name] for name in self._outputs)
        return found if len(found) > 1 else found[0]


class Exported(FrozenModel):
    """An exported program as a base; made by `load_export`.

    Learners that adapt a copy of the base's module (tent, eata, per_entry) refuse it: it has no layers to drive.
    """

    kind: ClassVar[str] = "export"

    def __init__(self, program: Program, *, softmax: bool = False) -> None:
        said = program.prove()
        self._shape = program.shape[-2:]
        super().__init__(program, batched=len(program.shape) == 3, softmax=softmax)
        self._said = tuple(self(torch.zeros(self._shape, dtype=torch.float32)).output.shape)
        if any(not t.is_floating_point() for t in said):
            raise UnreadableError("outputs that are no floating-point numbers")

    @property
    def channels(self) -> int | None:
        """As many as it was exported with."""
        return self._shape[1]

    def check(self, kind: TaskKind, window: int, rows: int, columns: int | None) -> None:
        """Compare with the shapes that it was exported with."""
        if window != self._shape[0]:
            raise ConfigError("task.window", window, f"{self._shape[0]}, which the base was exported with")
        wanted = (rows, self._shape[1] if kind == "forecast" else columns)
        if wanted[0] != self._said[0] or wanted[1] not in (None, self._said[1]):
            raise ConfigError("base.path", list(self._said), f"a program that returns {list(wanted)}, as the task has")


def load_export(path: Path, *, softmax: bool = False) -> Exported:
    """Read a ``.pt2`` file of schema version 8 (torch 2.9 to 2.13); nothing in it is unpickled, evaluated or imported.

    Make one by ``torch.export.save(torch.export.export(model.eval(), (torch.zeros(1, window, channels),)), path)``.

    Parameters
    ----------
    path : Path
        The ``.pt2`` file.
    softmax : bool
        Whether the model returns logits, of which the output is the softmax.

    Raises
    ------
    ConfigError
        If it is no such file, or holds anything that is not on the lists; see `streamadapt.exported_ops`.
    """
    try:
        return Exported(Program(read_archive(path)), softmax=softmax)
    except UnreadableError as exc:
        raise ConfigError(
            "base.path", str(path), f"an exported program (.pt2) that may be loaded: found {exc}"
        ) from exc
    except ShapeError as exc:
        raise ConfigError("base.path", str(path), f"an exported program of a base: {exc}") from exc
    except OSError as exc:
        raise ConfigError("base.path", str(path), f"a readable file ({exc})") from exc
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        reason = f"{type(exc).__name__}: {str(exc)[:200]}"
        raise ConfigError("base.path", str(path), f"a whole exported program ({reason})") from exc


def _shape(meta: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the input's shape; a leading batch that is dynamic is 1, which is what it is called with."""
    sizes = list(meta["sizes"])
    if TYPES.get(meta["dtype"]) is not torch.float32:
        raise UnreadableError("an input that is not float32")
    if len(sizes) == 3 and isinstance(sizes[0], dict) and "as_expr" in sizes[0]:
        sizes[0] = 1
    if any(isinstance(size, dict) and "as_expr" in size for size in sizes):
        raise UnreadableError("a window or channels of any size; export with those of the task, only the batch dynamic")
    shape = tuple(whole(size, 1) for size in sizes)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1) or math.prod(shape) > MOST_NUMBERS:
        raise UnreadableError(f"an input of {shape}; it must be (1, window, channels) or (window, channels)")
    return shape


def _output(spec: Mapping[str, Any]) -> Ref:
    ((kind, said),) = spec.items()
    found = argument(said["arg"]) if kind == "user_output" else None
    if not isinstance(found, Ref):
        raise UnreadableError(
            f"an output of the kind {kind[:40]!r}: call model.eval() before exporting; return tensors"
        )
    return found


def _step(node: Mapping[str, Any]) -> Step:
    if not NODE.issuperset(node):
        raise UnreadableError(f"a node with {sorted(set(node) - NODE)}")
    call = operator_of(node["target"])
    named = [(given["name"], argument(given["arg"]), given["kind"]) for given in node["inputs"]]
    schema = getattr(call, "_schema", None)
    if schema is not None:
        known = {entry.name for entry in schema.arguments}
        defaults = {entry.name: entry.default_value for entry in schema.arguments if entry.has_default_value()}
        if not known.issuperset(name for name, _, _ in named):
            raise UnreadableError(f"a call of {node['target']!r} with {[name for name, _, _ in named]}")
        check_flags(node["target"], defaults | {name: value for name, value, _ in named})
    args = tuple(value for _, value, kind in named if kind == 1)
    kwargs = {name: value for name, value, kind in named if kind == 2}
    if len(args) + len(kwargs) < len(named) or any(kind != 1 for _, _, kind in named[: len(args)]):
        raise UnreadableError(f"a call of {node['target']!r} with arguments in no order")
    return Step(call, args, kwargs, tuple(_name(output) for output in node["outputs"]))


def _name(output: Any) -> str | list[str] | None:
    found = argument(output)
    if isinstance(found, list):
        return [str(name) for name in found]
    return found if isinstance(found, Ref) else None


def _filled(given: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    """Put values in the place of references."""
    if isinstance(given, Ref):
        return values[given]
    if isinstance(given, list | tuple):
        return type(given)(_filled(item, values, device) for item in given)
    if isinstance(given, dict):
        return {name: _filled(item, values, device) for name, item in given.items()}
    return device if given is DEVICE else given


def _size(said: Any) -> int:
    if isinstance(said, Tensor):
        return said.numel()
    return sum(map(_size, said)) if isinstance(said, list | tuple) else 0
