"""``streamadapt fit``: fits the built-in linear base, or another base's scaling, on a history
file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamadapt.app.outcome import MAX_REFUSED_SHARE, hint_of
from streamadapt.app.terminal import safe
from streamadapt.build import codec_fields, file_form, make_task
from streamadapt.config.convert import convert
from streamadapt.config.tables import Config, load_config
from streamadapt.errors import BadShareError, ConfigError
from streamadapt.models.builtin import Linear
from streamadapt.models.fit import fit_forecast, fit_supervised
from streamadapt.models.scaling_files import Scaling
from streamadapt.outputs import Replacement, check_output, inputs_of, letters_of
from streamadapt.records import Batch
from streamadapt.tasks import Forecast, Supervised, Task

if TYPE_CHECKING:
    from streamadapt_connectors.files.source import History

__all__ = ["fit_base", "refused_lines"]

_LOG = logging.getLogger("streamadapt")


def fit_base(  # noqa: PLR0913 - each is an option of the command
    config_path: Path,
    history: Path,
    out: Path | None,
    *,
    labels: Path | None = None,
    ridge: float,
    subtract_last: bool,
    shared_scale: bool,
    force: bool = False,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Fit the base, or its scaling, and save it.

    Parameters
    ----------
    force : bool
        Fit even if most of the history was refused.

    Returns
    -------
    dict
        ``rows`` and ``skipped``: the number of rows that were used and refused; ``weights``: the
        file that was written; ``refused``: reason -> ``count``, ``example`` and ``setting``;
        ``problem``: one line if most of the history was refused, else None.

    Raises
    ------
    BadShareError
        If most of the history was refused, and `force` is false: nothing is written.
    ConfigError
        If config, history and the linear base do not fit each other, or the weights cannot be
        written.
    ConnectorError
        If the history cannot be read.
    """
    config = load_config(config_path, settings=settings, warn=_LOG.warning)
    task = make_task(config.task)
    _check_can_fit(config, task)
    if not 0.0 <= ridge < float("inf"):
        raise ConfigError("--ridge", ridge, "a finite number >= 0")
    weights = out or _file_of_config(config)
    target = _checked_target(config, config_path, weights, history, labels)
    loaded = _read_history(config, history, labels)
    refused = _refused(loaded)
    problem = _problem(loaded)
    if problem is not None and not force:
        nothing_written = f"{problem}; nothing was written (--force fits all the same)"
        raise BadShareError("\n".join([nothing_written, *refused_lines(refused)]))
    try:
        base: Linear | Scaling = Scaling(loaded.batch, task.kind)
        if _is_linear(config):
            base = _fit(
                task, loaded.batch, ridge, subtract_last=subtract_last, shared_scale=shared_scale
            )
    except RuntimeError as error:  # torch's own for a singular matrix
        raise ConfigError(
            "--ridge", ridge, f"a larger one: the history does not settle every weight ({error})"
        ) from error
    _save(base, target)
    return {
        "rows": len(loaded.batch),
        "skipped": loaded.rejected.total(),
        "weights": str(weights),
        "refused": refused,
        "problem": problem,
    }


def _is_linear(config: Config) -> bool:
    """Whether the whole base is fitted; of every other base only the scaling is."""
    return config.base.get("kind") == "linear"


def _check_can_fit(config: Config, task: Task) -> None:
    """Raise `ConfigError` if the config has no file for the result, or a table that a history
    cannot follow."""
    if not _is_linear(config) and not isinstance(config.base.get("scaling"), str):
        expected = (
            "the file to write the scaling to (a base of the kind linear is fitted as a whole)"
        )
        raise ConfigError("base.scaling", config.base.get("scaling"), expected)
    if config.panel is not None:
        raise ConfigError(
            "panel",
            dict(config.panel),
            "no such table here: a history has all sensors in every row",
        )
    if config.keys is not None and (isinstance(task, Forecast) or task.window_length > 1):
        raise ConfigError(
            "keys",
            config.keys,
            "no such table here: a window over the rows of a history would mix keys",
        )


def _file_of_config(config: Config) -> Path:
    """Return the file that the config names for the result."""
    key = "weights" if _is_linear(config) else "scaling"
    return Path(str(config.base.get(key, "base.safetensors")))


def _checked_target(
    config: Config, config_path: Path, weights: Path, history: Path, labels: Path | None
) -> Path:
    """Return the path to write to; raise `ConfigError` if the command reads that file."""
    written = "base.weights" if _is_linear(config) else "base.scaling"
    inputs = inputs_of(config, config_path) | letters_of(config) | {"the history": history}
    if labels is not None:
        inputs["--labels"] = labels
    inputs.pop(written, None)
    return check_output(written, weights, inputs)


def _read_history(config: Config, history: Path, labels: Path | None) -> History:
    from streamadapt_connectors.codecs.json_codec import FieldMap
    from streamadapt_connectors.files.reading import FileFormat
    from streamadapt_connectors.files.source import read_history

    form = convert(file_form(config), FileFormat, "source")
    fields = convert(codec_fields(config), FieldMap, "fields")
    return read_history(history, fields, label_path=labels, form=form)


def _refused(loaded: History) -> dict[str, dict[str, Any]]:
    return {
        reason: {"count": count, "example": loaded.examples[reason], "setting": hint_of(reason)}
        for reason, count in loaded.rejected.most_common()
    }


def _problem(loaded: History) -> str | None:
    """Return a message if most of the entries, or most of the labels in a file of their own, were
    refused; else None."""
    bad_labels = loaded.rejected_labels
    bad_entries = loaded.rejected.total() - bad_labels
    parts = [
        f"{bad / of:.0%} of the {kind} were refused ({bad:,} of {of:,})"
        for kind, bad, of in (
            ("rows", bad_entries, loaded.entries),
            ("labels", bad_labels, loaded.rows - loaded.entries),
        )
        if bad > MAX_REFUSED_SHARE * of
    ]
    return "; ".join(parts) or None


def refused_lines(refused: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each reason: the count, an example, and the setting that would fix it."""
    return [
        f"  {reason} ({one['count']:,}): {safe(one['example'])}. {one['setting']}"
        for reason, one in refused.items()
    ]


def _fit(
    task: Task, batch: Batch, ridge: float, *, subtract_last: bool, shared_scale: bool
) -> Linear:
    if isinstance(task, Forecast):
        return fit_forecast(
            batch,
            task.window_length,
            task.rows,
            ridge=ridge,
            subtract_last=subtract_last,
            shared_scale=shared_scale,
        )
    if isinstance(task, Supervised) and task.kind == "regression":
        return fit_supervised(batch, task.window_length, ridge=ridge)
    raise ConfigError(
        "task.classes",
        getattr(task, "classes", None),
        "no such key: streamadapt fit can fit a linear base only to numbers, not to classes",
    )


def _save(base: Linear | Scaling, path: Path) -> None:
    """Write the fitted base to a file: completely, or not at all."""
    try:
        with Replacement(path) as replacement:
            base.save(replacement.path)
            replacement.put()
    except Exception as error:  # safetensors raises its own errors for those of the system
        raise ConfigError(
            "base.weights", str(path), f"a file that can be written ({error})"
        ) from error
