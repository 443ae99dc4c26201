"""A base from an ONNX file, run by ONNX Runtime (the extra ``onnx``).

Every framework can export to ONNX.

The file is read here, as a bounded regular file, and passed on as bytes. Its weights may be in a
second file in the same folder, ``MODEL.data``, which is read in the same way. ONNX Runtime itself
opens no file, whatever names the model contains.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamadapt.errors import ConfigError, ShapeError
from streamadapt.files import MAX_WEIGHTS_BYTES, read_regular
from streamadapt.models.contract import Base, BaseOutput, TaskKind, shaped_output

__all__ = ["OnnxBase", "OnnxSession", "TensorInfo", "data_file"]

MOST_MODEL: Final = 1 << 31
"""The largest model file: 2 GiB, the limit of protobuf. Larger weights are in the second file."""

FLOATS: Final = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}
INTEGERS: Final = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}
TAKEN: Final = FLOATS | INTEGERS
"""Element types of the input that a window is converted to."""

NO_FILE: Final = "\0"
"""A name that no weights in a model can have. If the table of files is not empty, ONNX Runtime
opens no file itself."""


class TensorInfo(NamedTuple):
    """An input or output as the model declares it.

    Attributes
    ----------
    name : str
    type : str
        The type in ONNX Runtime's notation: ``tensor(float)``.
    shape : tuple of int or None
        None is a dynamic dimension.
    """

    name: str
    type: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        """Return the text that errors show: ``'input' tensor(float) [?, 6, 2]``."""
        dimensions = ", ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name[:80]!r} {self.type[:80]} [{dimensions}]"


class OnnxSession:
    """A loaded model. It has no state and may be called from several threads, so copies share it.

    Parameters
    ----------
    path : Path
    threads : int, >= 1
        Threads within one operator.

    Attributes
    ----------
    digest : str
        SHA-256 of the files; an unpickled session must find the same files again.

    Raises
    ------
    ConfigError
        If ONNX Runtime is not installed, or a file cannot be read or is no model that it can run.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path, self.threads = path, threads
        runtime = _runtime()
        model, data = _read(path)
        self.digest = hashlib.sha256(hashlib.sha256(model).digest() + (data or b"")).hexdigest()
        options = _options(runtime, path, data, threads)
        try:
            # No fallback: it would try the same again and print to the standard output.
            self._session = runtime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            self.inputs = [_info(node) for node in self._session.get_inputs()]
            self.outputs = [_info(node) for node in self._session.get_outputs()]
        except Exception as exc:  # ONNX Runtime's errors have no class in common
            raise ConfigError("base.path", str(path), f"an ONNX model ({_words(exc)})") from exc

    def run(self, name: str, array: np.ndarray[Any, Any], outputs: list[str]) -> list[Any]:
        """Return the outputs with the names `outputs` for one input.

        Raises
        ------
        ShapeError
            If the model refuses the input.
        """
        try:
            results: list[Any] = self._session.run(outputs, {name: array})
        except Exception as exc:  # as above
            raise ShapeError(
                f"{self.path}: the model failed on {list(array.shape)} ({_words(exc)})"
            ) from exc
        return results

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxSession:
        """Return the session itself: it has no state to copy."""
        return self

    def __reduce__(self) -> tuple[Any, tuple[Path, int, str]]:
        """Pickle the path, not the model."""
        return _reopened, (self.path, self.threads, self.digest)


class OnnxBase(Base):
    """An ONNX model ``inputs -> output | (output, embedding)``, on the CPU.

    The model has one input, a tensor of float16, float32, float64, int32 or int64. It gets a
    window, (window, channels) with the oldest entry first, in the first of these shapes that fits
    its declared input:

    - (1, window, channels), the first dimension dynamic or 1
    - (1, window * channels), all channels of the oldest entry first: models of scikit-learn
    - (window, channels)

    Parameters
    ----------
    path : Path
        The model file; weights in another file must be in ``PATH.data``, the name that PyTorch
        gives to that file.
    softmax : bool
        Whether the model returns logits; the base's output is then their softmax.
    output : str, optional
        The name of the output to use. Default: the first output of floats (classifiers of
        scikit-learn return the label, an integer, before the probabilities).
    embedding : str, optional
        The name of the output that is the embedding. Default: the second output of floats, if
        `output` is not given.
    rows : int, >= 1
        The task's rows: if a model returns one row of rows * columns numbers, they are reshaped to
        (rows, columns).
    threads : int, >= 1
        Threads within one operator.

    Raises
    ------
    ConfigError
        For the reasons of `OnnxSession`, or if the model lacks an input or output that a base must
        have.
    """

    kind: ClassVar[str] = "onnx"

    def __init__(
        self,
        path: Path,
        *,
        softmax: bool = False,
        output: str | None = None,
        embedding: str | None = None,
        rows: int = 1,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self.path, self.softmax, self.rows = path, softmax, rows
        self.session = OnnxSession(path, threads)
        self.input = _input(path, self.session.inputs)
        self.outputs = _chosen(path, self.session.outputs, output, embedding)
        self._dtype: Any = TAKEN[self.input.type]

    @property
    def channels(self) -> int | None:
        """The number of channels that the input declares; None if it declares none, or takes the
        window in one row."""
        shape = self.input.shape
        flat = len(shape) < 3 and (len(shape) == 1 or shape[0] in (None, 1))
        return None if flat else shape[-1]

    def input_dtype(self, *, far: bool) -> torch.dtype:
        """Return float64 if the model takes double or integers, else float32."""
        del far
        return torch.float32 if self._dtype in (np.float16, np.float32) else torch.float64

    def check(self, kind: TaskKind, window: int, rows: int, columns: int | None) -> None:
        """Compare the task with the declared input, and with the model's output for zeros."""
        channels = (
            self.channels if self.channels is not None else columns if kind == "forecast" else None
        )
        if channels is None:
            channels = self._channels_of(window)
        if channels is None:
            return
        try:
            zeros = torch.zeros(window, channels, dtype=self.input_dtype(far=False))
            returned = tuple(self(zeros).output.shape)
        except ShapeError as exc:
            raise ConfigError(
                "base.path", str(self.path), f"a model for this task: {exc}"
            ) from exc
        wanted = (rows, channels if kind == "forecast" else columns)
        if returned[0] != wanted[0] or wanted[1] not in (None, returned[1]):
            expected = (
                f"a model that returns {list(wanted)}, as the task has, of a window of "
                f"{[window, channels]}"
            )
            raise ConfigError("base.path", list(returned), expected)

    def _channels_of(self, window: int) -> int | None:
        """Return the number of channels of a window that the model takes in one row."""
        last = self.input.shape[-1]
        return None if last is None or last % window else last // window

    def forward(self, inputs: Tensor) -> BaseOutput:
        """Run the model; several threads may call it at the same time."""
        array = inputs.detach().cpu().numpy()
        given = np.ascontiguousarray(self._converted(array).reshape(self._layout(array.shape)))
        results = self.session.run(self.input.name, given, self.outputs)
        for name, tensor in zip(self.outputs, results, strict=True):
            if not isinstance(tensor, np.ndarray) or tensor.dtype.kind != "f":
                raise ShapeError(f"{self.path}: output {name[:80]!r} is no tensor of floats")
        tensors = [
            torch.from_numpy(np.asarray(t, np.float64 if t.dtype == np.float64 else np.float32))
            for t in results
        ]
        output = shaped_output(tensors[0].to(inputs.device))
        if len(output) == 1 and self.rows > 1 and output.shape[1] % self.rows == 0:
            output = output.reshape(self.rows, -1)
        if self.softmax:
            output = torch.softmax(output, dim=-1)
        return BaseOutput(
            output, tensors[1].float().flatten().to(inputs.device) if len(tensors) > 1 else None
        )

    def _converted(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the numbers in the element type of the model's input; an input of integers takes
        whole numbers only."""
        if self._dtype in (np.int32, np.int64):
            limits = np.iinfo(self._dtype)
            bad = ~((array == np.floor(array)) & (array >= limits.min) & (array <= limits.max))
            if bad.any():
                raise ShapeError(
                    f"{self.path}: input {self.input} takes whole numbers, got {array[bad][0]:g}"
                )
        with np.errstate(over="ignore"):  # a number beyond float16 becomes infinite
            converted: np.ndarray[Any, Any] = array.astype(self._dtype)
        return converted

    def _layout(self, window: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in which a window (window, channels) is given to the model."""
        declared = self.input.shape
        for shape in ((1, *window), (1, math.prod(window)), window, (math.prod(window),)):
            pairs = zip(declared, shape, strict=False)
            if len(shape) == len(declared) and all(size in (None, given) for size, given in pairs):
                return shape
        expected = (
            f"[1, {window[0]}, {window[1]}], [1, {math.prod(window)}] or [{window[0]}, "
            f"{window[1]}]"
        )
        raise ShapeError(
            f"{self.path}: input {self.input} does not fit a window of {list(window)}: it must "
            f"be one of {expected}, "
            "the first dimension dynamic or 1"
        )


def data_file(path: Path) -> Path:
    """Return the path of a model's weights if they are not in the model's own file."""
    return path.with_name(f"{path.name}.data")


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        expected = f"a kind that is installed: pip install 'streamadapt[onnx]' ({exc})"
        raise ConfigError("base.kind", OnnxBase.kind, expected) from exc
    return onnxruntime


def _read(path: Path) -> tuple[bytes, bytes | None]:
    """Return the bytes of a model, and of its second file if there is one."""
    try:
        model, data = read_regular(path, MOST_MODEL), None
    except OSError as exc:
        raise ConfigError("base.path", str(path), f"a readable ONNX file ({exc})") from exc
    second = data_file(path)
    try:
        data = read_regular(second, MAX_WEIGHTS_BYTES)
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise ConfigError(
            "base.path", str(second), f"a readable file of weights beside the model ({exc})"
        ) from exc
    return model, data


def _options(runtime: Any, path: Path, data: bytes | None, threads: int) -> Any:
    """Return settings under which the same inputs give the same bits, and no file is opened."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # problems are raised as errors
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights in another file are taken from this table only: the model file itself is named as
    # the folder of such files, and a file contains no files.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.absolute())
    )
    name, weights = (NO_FILE, b"\0") if data is None else (data_file(path).name, data)
    options.add_external_initializers_from_files_in_memory([name], [weights], [len(weights)])
    return options


def _reopened(path: Path, threads: int, digest: str) -> OnnxSession:
    session = OnnxSession(path, threads)
    if session.digest != digest:
        raise ConfigError(
            "base.path", str(path), "the model that was pickled: the file has changed since"
        )
    return session


def _info(node: Any) -> TensorInfo:
    return TensorInfo(
        node.name, node.type, tuple(n if isinstance(n, int) else None for n in node.shape)
    )


def _words(error: Exception) -> str:
    """Return an error message of ONNX Runtime without its source paths and signatures."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    text = re.sub(r"/onnxruntime_src/\S+(?: [^()]*\([^()]*\)(?: const)?)? ", "", text)
    text = re.sub(r"^.*? was false\. ?(?=\S)", "", text)
    cure = ""
    if "External file" in text or "xternal data" in text:
        cure = "; weights outside the model must be in the file PATH.data beside it"
    return f"{type(error).__name__}: {text[:300]}{cure}"


def _input(path: Path, inputs: list[TensorInfo]) -> TensorInfo:
    if len(inputs) != 1:
        found = ", ".join(map(str, inputs[:8])) or "none"
        raise ConfigError(
            "base.path", str(path), f"a model with one input, the window; it has {found}"
        )
    if inputs[0].type not in TAKEN:
        types = ", ".join(TAKEN)
        raise ConfigError(
            "base.path", str(path), f"a model whose input is one of {types}; it has {inputs[0]}"
        )
    shape = inputs[0].shape
    if not 1 <= len(shape) <= 3 or (len(shape) == 3 and shape[0] not in (None, 1)):
        expected = (
            "[1, window, channels], [1, window * channels] or [window, channels], the 1 "
            "may be dynamic"
        )
        raise ConfigError(
            "base.path", str(path), f"a model whose input is {expected}; it has {inputs[0]}"
        )
    return inputs[0]


def _chosen(
    path: Path, outputs: list[TensorInfo], output: str | None, embedding: str | None
) -> list[str]:
    """Return the names of the output and, if there is one, of the embedding."""
    floats = [info.name for info in outputs if info.type in FLOATS]
    found = ", ".join(map(str, outputs[:8]))
    if not floats:
        cure = (
            "; convert with options={'zipmap': False}"
            if any("map(" in info.type for info in outputs)
            else ""
        )
        raise ConfigError(
            "base.path", str(path), f"a model with an output of floats; it has {found}{cure}"
        )
    for key, name in (("output", output), ("embedding", embedding)):
        if name is not None and name not in floats:
            raise ConfigError(
                f"base.{key}", name, f"the name of an output of floats: {', '.join(floats)}"
            )
    if output is None and embedding is None:
        if len(floats) > 2:
            raise ConfigError(
                "base.output", None, f"the name of an output: the model has {len(floats)}, {found}"
            )
        return floats
    if output is None:
        rest = [name for name in floats if name != embedding]
        if len(rest) != 1:
            raise ConfigError(
                "base.output", None, f"the name of an output beside the embedding; it has {found}"
            )
        output = rest[0]
    return [output] if embedding is None else [output, embedding]
