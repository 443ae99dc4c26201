"""``streamadapt fit``: the built-in linear base from a history file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamadapt.assemble import make_task
from streamadapt.config import load_config
from streamadapt.errors import ConfigError
from streamadapt.fit import fit_forecast, fit_supervised
from streamadapt.registry import convert
from streamadapt.tasks import Forecast, Supervised

__all__ = ["fit_base"]


def fit_base(
    config_path: Path, history: Path, out: Path | None, *, ridge: float, subtract_last: bool, shared_scale: bool
) -> dict[str, Any]:
    """Fit and save; return what was used and where it went."""
    from streamadapt_connectors.codecs import FieldMap
    from streamadapt_connectors.files import read_history

    config = load_config(config_path)
    task = make_task(config.task)
    if config.base.get("kind") != "linear":
        raise ConfigError("base.kind", config.base.get("kind"), "linear: that is the base that is fitted here")
    weights = out or Path(str(config.base.get("weights", "base.safetensors")))
    loaded = read_history(history, convert(config.fields, FieldMap, "fields"))
    if isinstance(task, Forecast):
        base = fit_forecast(
            loaded.batch,
            task.window_length,
            task.rows,
            ridge=ridge,
            subtract_last=subtract_last,
            shared_scale=shared_scale,
        )
    elif isinstance(task, Supervised) and task.kind == "regression":
        base = fit_supervised(loaded.batch, task.window_length, ridge=ridge)
    else:
        raise ConfigError(
            "task.classes", config.task.get("classes"), "regression or a forecast: what linear can be fitted to"
        )
    base.save(weights)
    return {"rows": len(loaded.batch), "skipped": sum(loaded.rejected.values()), "weights": str(weights)}
