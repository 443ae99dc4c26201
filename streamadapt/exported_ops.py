"""What an exported graph may call, and with what: the list behind `streamadapt.exported`.

``torch.ops.aten`` as a whole is no safe list: it has ``from_file`` and ``save``, which open files by name. Listed are
functions of tensors and numbers that write to nothing and throw no dice; each name stands for its overloads, of which
those that write to an argument are refused by their schema.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

import torch

from streamadapt.exported_archive import TYPES, UnreadableError

__all__ = ["DEVICE", "Ref", "argument", "check_flags", "operator_of"]

ATEN: Final = frozenset(
    """
    abs acos adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d add addcdiv addcmul addmm alias all amax amin
    any arange argmax argmin argsort asin atan atan2 avg_pool1d avg_pool2d baddbmm batch_norm bitwise_and bitwise_not
    bitwise_or bitwise_xor bmm broadcast_tensors cat cdist ceil celu chunk clamp clamp_max clamp_min clone
    constant_pad_nd contiguous conv1d conv2d conv_transpose1d convolution copysign cos cosh cosine_similarity cross
    cummax cummin cumprod cumsum detach diag_embed diagonal diff div dot dropout einsum elu embedding eq erf
    erfc exp expand expand_as expm1 eye fill flatten flip floor floor_divide fmod frac full full_like gather ge gelu glu
    group_norm gru gt hann_window hardsigmoid hardswish hardtanh im2col index index_add index_select instance_norm
    isfinite isinf isnan kthvalue layer_norm le leaky_relu lerp lift_fresh_copy linalg_vector_norm linear linspace log
    log10 log1p log2 log_sigmoid log_softmax logaddexp logical_and logical_not logical_or logical_xor logsumexp lstm lt
    masked_fill matmul max max_pool1d max_pool2d maximum mean median meshgrid min minimum mish mm movedim mul mv
    nan_to_num narrow native_group_norm native_layer_norm ne neg norm ones ones_like pad permute pixel_shuffle pow
    prelu prod reciprocal reflection_pad1d relu relu6 remainder repeat repeat_interleave replication_pad1d reshape
    rms_norm roll round rsqrt rsub scaled_dot_product_attention scalar_tensor scatter scatter_add select select_scatter
    selu sigmoid sign silu sin sinh slice slice_scatter softmax softplus sort split split_with_sizes sqrt square squeeze
    stack std std_mean sub sum swapaxes t tan tanh tile to topk transpose tril triu unbind unflatten unfold unsqueeze
    upsample_linear1d upsample_nearest1d var var_mean view view_as where zeros zeros_like _log_softmax
    _native_batch_norm_legit_no_training _safe_softmax _softmax _to_copy _unsafe_view
    """.split()  # noqa: SIM905 - to be read
)
FUNCTIONS: Final = {"detach_": "detach"}
"""In place by name only: what to call instead."""
DRY: Final = {
    "batch_norm": "training", "instance_norm": "use_input_stats", "dropout": "train", "lstm": "train", "gru": "train",
}  # fmt: skip
"""Flags that must be off: with them the model would write to itself, or throw dice."""
SIZES: Final[dict[str, Callable[..., Any]]] = {
    f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg")
}
WORDS: Final = {"approximate", "equation", "indexing", "mode", "padding", "reduce", "rounding_mode"}
"""What an operator may be told in a word."""
TARGET: Final = re.compile(r"torch\.ops\.aten\.(\w{1,60})\.(\w{1,60})", re.ASCII)
WORD: Final = re.compile(r"[A-Za-z_]{1,20}|[a-zA-Z.,\->]{1,60}")
FORMATS: Final = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
SPECIAL: Final = {"Infinity": float("inf"), "-Infinity": float("-inf")}
CURE: Final = "save export(model.eval(), inputs).run_decompositions(), a graph without side effects"


class Later(Enum):
    """What is known when the graph runs."""

    DEVICE = 1


DEVICE: Final = Later.DEVICE
"""Stands for the device that the model is on, whichever it was exported on."""


class Ref(str):
    """The name of a value that an earlier step has made."""

    __slots__ = ()


def operator_of(target: Any) -> Callable[..., Any]:
    """Return what a node calls.

    Raises
    ------
    UnreadableError
        If it is not on the list.
    """
    if not isinstance(target, str):
        raise UnreadableError("a call of something without a name")
    if target in SIZES:
        return SIZES[target]
    match = TARGET.fullmatch(target)
    if match is None:
        raise UnreadableError(f"a call of {target[:100]!r}: only plain operators of tensors are called ({CURE})")
    name = FUNCTIONS.get(match[1], match[1])
    if name == "sym_size" and match[2] == "int":
        return lambda self, dim: int(self.shape[dim])
    if name not in ATEN:
        raise UnreadableError(f"a call of {target[:100]!r}, which is not on the list of what may be called ({CURE})")
    packet = getattr(torch.ops.aten, name)
    if match[2] not in packet.overloads():
        raise UnreadableError(f"a call of {target[:100]!r}, which this torch does not know")
    found: torch._ops.OpOverload = getattr(packet, match[2])
    if found._schema.is_mutable:
        raise UnreadableError(f"a call of {target[:100]!r}, which writes to its argument ({CURE})")
    words = {entry.name for entry in found._schema.arguments if "str" in str(entry.type)}
    made = {str(entry.type) for entry in found._schema.returns}
    if not words <= WORDS or not made <= {"Tensor", "List[Tensor]"}:  # TorchScript's, of text and of lists
        raise UnreadableError(f"a call of {target[:100]!r}, which is no operator of tensors")
    return found


def check_flags(target: str, arguments: dict[str, Any]) -> None:
    """Refuse what a model in training mode calls; `arguments` by the schema's names."""
    flag = DRY.get(target.split(".")[3]) if target.startswith("torch.") else None
    if flag is not None and arguments.get(flag) is not False:
        raise UnreadableError(f"a call of {target!r} with {flag} on: call model.eval() before torch.export.export")
    if arguments.get("dropout_p", 0.0) != 0.0:
        raise UnreadableError(f"a call of {target!r} with dropout: call model.eval() before torch.export.export")


def argument(arg: Any) -> Any:
    """Return an argument as a value; `Ref` and `DEVICE` in the place of what is known only later.

    Raises
    ------
    UnreadableError
        If it is a graph, an object, an operator, or anything else that is no tensor, number, word or type.
    """
    if not isinstance(arg, dict) or len(arg) != 1:
        raise UnreadableError(f"an argument {str(arg)[:80]}")
    ((kind, value),) = arg.items()
    if kind in _PLAIN:
        return _plain(kind, value)
    if kind in _LISTS and isinstance(value, list):
        return [_plain(_LISTS[kind], item) for item in value]
    if kind in ("as_sym_ints", "as_optional_tensors") and isinstance(value, list):
        return [argument(_named(item)) for item in value]
    if kind in ("as_sym_int", "as_optional_tensor"):
        return argument(_named(value))
    raise UnreadableError(f"an argument of the kind {str(kind)[:40]!r}, which is not read")


def _named(value: Any) -> Any:
    """Turn ``{"as_name": "s0"}`` into the reference that it is."""
    if isinstance(value, dict) and set(value) == {"as_name"}:
        return {"as_tensor": {"name": value["as_name"]}}
    return value


def _plain(kind: str, value: Any) -> Any:
    made = _PLAIN[kind](value)
    if made is _WRONG:
        raise UnreadableError(f"{kind} {str(value)[:80]}")
    return made


_WRONG: Final = object()


def _reference(value: Any) -> Any:
    return Ref(value["name"]) if isinstance(value, dict) and isinstance(value.get("name"), str) else _WRONG


def _number(value: Any) -> Any:
    if type(value) in (int, float):
        return float(value)
    return SPECIAL.get(value, _WRONG) if isinstance(value, str) else _WRONG


_PLAIN: Final[dict[str, Callable[[Any], Any]]] = {
    "as_none": lambda value: None,
    "as_tensor": _reference,
    "as_int": lambda value: value if type(value) is int and abs(value) < 1 << 63 else _WRONG,
    "as_float": _number,
    "as_bool": lambda value: value if type(value) is bool else _WRONG,
    "as_string": lambda value: value if isinstance(value, str) and WORD.fullmatch(value) else _WRONG,
    "as_scalar_type": lambda value: TYPES.get(value, _WRONG) if type(value) is int else _WRONG,
    "as_memory_format": lambda value: FORMATS.get(value, _WRONG) if type(value) is int else _WRONG,
    "as_layout": lambda value: torch.strided if value == 7 else _WRONG,
    "as_device": lambda value: DEVICE,
}
_LISTS: Final = {
    "as_tensors": "as_tensor", "as_ints": "as_int", "as_floats": "as_float", "as_bools": "as_bool",
}  # fmt: skip
