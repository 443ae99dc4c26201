"""``streamadapt fit``: the built-in linear base from a history file; of another base, its scaling."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamadapt.assemble import codec_fields, file_form, make_task
from streamadapt.base import Linear
from streamadapt.config import load_config
from streamadapt.convert import convert
from streamadapt.entry import Batch
from streamadapt.errors import ConfigError
from streamadapt.fit import fit_forecast, fit_supervised
from streamadapt.scaling_files import Scaling
from streamadapt.tasks import Forecast, Supervised, Task

__all__ = ["fit_base"]


def fit_base(
    config_path: Path,
    history: Path,
    out: Path | None,
    *,
    labels: Path | None = None,
    ridge: float,
    subtract_last: bool,
    shared_scale: bool,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Fit and save; return what was used and where it went.

    Raises
    ------
    ConfigError
        If config, history and the linear base do not fit each other, or the weights cannot be written.
    ConnectorError
        If the history cannot be read.
    """
    from streamadapt_connectors.codecs import FieldMap
    from streamadapt_connectors.file_reading import FileFormat
    from streamadapt_connectors.files import read_history

    config = load_config(config_path, settings=settings)
    task = make_task(config.task)
    linear = config.base.get("kind") == "linear"
    if not linear and not isinstance(config.base.get("scaling"), str):
        expected = "the file to write the scaling to (a base of the kind linear is fitted as a whole)"
        raise ConfigError("base.scaling", config.base.get("scaling"), expected)
    if config.panel is not None:
        raise ConfigError("panel", dict(config.panel), "no such table here: a history has all sensors in every row")
    if config.keys is not None and (isinstance(task, Forecast) or task.window_length > 1):
        raise ConfigError("keys", config.keys, "no such table here: a window over the rows of a history would mix keys")
    if not 0.0 <= ridge < float("inf"):
        raise ConfigError("--ridge", ridge, "a finite number >= 0")
    weights = out or Path(str(config.base.get("weights" if linear else "scaling", "base.safetensors")))
    form = convert(file_form(config), FileFormat, "source")
    fields = convert(codec_fields(config), FieldMap, "fields")
    loaded = read_history(history, fields, label_path=labels, form=form)
    try:
        base: Linear | Scaling = Scaling(loaded.batch, task.kind)
        if linear:
            base = _fit(task, loaded.batch, ridge, subtract_last=subtract_last, shared_scale=shared_scale)
    except RuntimeError as error:  # torch's own for a singular matrix
        raise ConfigError(
            "--ridge", ridge, f"a larger one: the history does not settle every weight ({error})"
        ) from error
    _save(base, weights)
    return {"rows": len(loaded.batch), "skipped": sum(loaded.rejected.values()), "weights": str(weights)}


def _fit(task: Task, batch: Batch, ridge: float, *, subtract_last: bool, shared_scale: bool) -> Linear:
    if isinstance(task, Forecast):
        return fit_forecast(
            batch, task.window_length, task.rows, ridge=ridge, subtract_last=subtract_last, shared_scale=shared_scale
        )
    if isinstance(task, Supervised) and task.kind == "regression":
        return fit_supervised(batch, task.window_length, ridge=ridge)
    raise ConfigError("task.classes", getattr(task, "classes", None), "none: linear is fitted to numbers")


def _save(base: Linear | Scaling, path: Path) -> None:
    """Write a whole file or none."""
    part = path.with_name(path.name + ".part")
    try:
        base.save(part)
        os.replace(part, path)
    except Exception as error:  # safetensors has errors of its own for what the system refuses
        raise ConfigError("base.weights", str(path), f"a file that can be written ({error})") from error
