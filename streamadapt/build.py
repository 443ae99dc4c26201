"""Builds the engine that a `Config` describes. Nothing connects before the engine runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Final, cast, get_type_hints

import torch

from streamadapt.compiled import ENABLED
from streamadapt.config.convert import check_keys, convert
from streamadapt.config.durations import duration_ns, duration_s
from streamadapt.config.registry import arguments_of, build, call, choose, kinds, prepare
from streamadapt.config.secrets import scrubbed
from streamadapt.config.tables import Config, LimitKeys
from streamadapt.drift.monitor import DriftMonitor
from streamadapt.engine.dead_letter_ports import DeadLetterReader, StreamWriter
from streamadapt.engine.engine import Engine
from streamadapt.engine.guarantees import check_guarantee, delivery_of
from streamadapt.engine.metrics import Metrics
from streamadapt.engine.ports import DeadLetterSink, Sink
from streamadapt.engine.settings import EngineSettings
from streamadapt.errors import ConfigError, ShapeError
from streamadapt.guard.base import Guard
from streamadapt.guard.two_layer import Hedge, Mean, NoGuard, TwoLayer
from streamadapt.learners import Learner
from streamadapt.learners.defaults import default_learners
from streamadapt.models.contract import Base, FrozenModel, as_base, check_probabilities
from streamadapt.models.device import resolve_device
from streamadapt.models.onnx import OnnxBase
from streamadapt.models.scaling_files import give_scaling
from streamadapt.outputs import check_outputs
from streamadapt.pipeline.intervals import Intervals
from streamadapt.pipeline.kernels import kernel_steps
from streamadapt.pipeline.keyed import KeyedPipeline
from streamadapt.pipeline.panel import Panel
from streamadapt.pipeline.pipeline import Pipeline
from streamadapt.state.folder import folder_of
from streamadapt.tasks import Forecast, Supervised, Task, Unlabelled
from streamadapt.tasks.label_budget import LabelBudget
from streamadapt.wiring import (
    FORM,
    ask,
    dead_letters_table,
    source_class,
    with_connection,
    without_foreign_form,
)

__all__ = [
    "TASK_DURATIONS",
    "check_config",
    "codec_fields",
    "file_form",
    "kinds_of_table",
    "look_at_files",
    "make_codec",
    "make_engine",
    "make_letter_reader",
    "make_pipeline",
    "make_stream_writer",
    "make_task",
    "stuck_after_s",
    "time_limits",
]

_GUARDS: dict[str, type[Guard]] = {cls.kind: cls for cls in (TwoLayer, Hedge, Mean, NoGuard)}
_TASKS: dict[str, type[Task]] = {cls.name: cls for cls in (Forecast, Supervised, Unlabelled)}
TASK_DURATIONS: Final = ("ttl", "correction_window", "negative_after")
"""Keys of ``[task]`` that a config writes as durations; the tasks themselves take nanoseconds."""
_LIMITS: dict[str, Any] = get_type_hints(LimitKeys)


def check_config(config: Config) -> Pipeline | KeyedPipeline:
    """Raise an error if a config is wrong, without connecting or writing anything.

    Returns
    -------
    Pipeline or KeyedPipeline
        A fresh pipeline, the same as for every partition.

    Raises
    ------
    ConfigError
        See `make_pipeline`.
    """
    check_outputs(config)
    pipeline = make_pipeline(config)
    if config.panel is None and isinstance(pipeline.base, FrozenModel | OnnxBase):
        _check_output_shape(config, make_task(config.task), pipeline.base)
    source, _ = _source(config)
    _codec(config, source)
    settings = _settings(config)
    made, _ = (  # what creates or mends a file is left to the run
        None if ask(group, table, "opens_when_made", False) else make()
        for group, (table, make) in zip(("sinks", "dead_letters"), _sinks(config), strict=True)
    )
    if made is None:
        check_guarantee(config.guarantee, kinds("sinks")[config.sink["kind"]].load())
    else:
        delivery_of(config.guarantee, made, settings.checkpoint_every_s)
    return pipeline


def make_pipeline(config: Config) -> Pipeline | KeyedPipeline:
    """Make one fresh pipeline; with a table ``[keys]`` one that makes a pipeline for each key.

    Raises
    ------
    ConfigError
        If a setting is wrong (the error names its path), or the base's files do not fit.
    """
    base = _base(config, make_task(config.task))
    if config.keys is None:
        return _one_pipeline(config, base)
    fresh, shared = _one_pipeline(config, base), {id(base): base}
    # A copy of an unused pipeline equals a new one, and is made thirty times faster than by
    # looking up all kinds again.
    return KeyedPipeline(
        lambda: deepcopy(fresh, dict(shared)),
        config.keys.max_keys,
        max_stored=config.keys.max_stored,
    )


def _base(config: Config, task: Task) -> Base:
    # Otherwise a missing device would be noticed only at the first full window.
    resolve_device(config.device, cells=1)
    base_table = dict(config.base)
    if base_table.get("kind") == "persistence":
        base_table.setdefault("horizon", task.rows)
    scaling = base_table.pop("scaling", None)
    # These two follow from the rest of the config.
    given = (
        {"rows": task.rows, "threads": config.threads}
        if base_table.get("kind") == OnnxBase.kind
        else {}
    )
    base = as_base(build("bases", "base", base_table, **given))
    if scaling is not None:
        give_scaling(base, scaling, task.kind, _width(config))
    return base


def _one_pipeline(config: Config, base: Base) -> Pipeline:
    task = make_task(config.task)
    drift = [
        cast(DriftMonitor, arguments_of(DriftMonitor, f"drift[{i}]", table)())
        for i, table in enumerate(config.drift)
    ]
    guard = cast(Guard, _of_kind(_GUARDS, "guard", config.guard))
    asked = config.labels
    budget = None if asked is None else LabelBudget(asked.rate, asked.floor, config.seed)
    _check_fields(config, task, base)
    return Pipeline(
        task,
        base,
        _learners(config, task),
        guard,
        drift,
        device=config.device,
        seed=config.seed,
        panel=_panel(config),
        budget=budget,
        intervals=_intervals(config),
        **{k: config.limits[k] for k in ("max_ahead", "max_behind") if k in config.limits},
    )


def _intervals(config: Config) -> Intervals | None:
    if config.intervals is None:
        return None
    return cast(Intervals, arguments_of(Intervals, "intervals", config.intervals)())


def _panel(config: Config) -> Panel | None:
    if config.panel is None:
        return None
    table, limits = dict(config.panel), _limits(config.limits)
    if "max_ahead" in config.limits:
        table.setdefault("max_ahead", config.limits["max_ahead"])
    panel = cast(Panel, arguments_of(Panel, "panel", table)())
    ahead_ns = limits.get("max_ahead_ns", EngineSettings.max_ahead_ns)
    # Otherwise late records would cause the refusal of a valid one.
    if ahead_ns < panel.clock.lateness_ns:
        given = config.limits.get("max_ahead", "1d")
        raise ConfigError(
            "limits.max_ahead", given, f"a duration >= panel.lateness, {table['lateness']}"
        )
    return panel


def _learners(config: Config, task: Task) -> list[Learner]:
    if config.learners is None:
        return default_learners(task.kind)
    learners = [
        build("learners", f"learners[{i}]", table) for i, table in enumerate(config.learners)
    ]
    for i, learner in enumerate(learners):
        call(f"learners[{i}]", learner.check_kind, {"kind": task.kind})
    return learners


def make_engine(
    config: Config,
    metrics: Metrics | None = None,
    *,
    sinks: Callable[[], tuple[Sink, DeadLetterSink]] | None = None,
) -> Engine:
    """Make the engine, with its source and sinks, none of them connected.

    Parameters
    ----------
    sinks : callable () -> (Sink, DeadLetterSink), optional
        Makes the sinks for predictions and for dead letters instead of the config's. Called after
        everything else was checked.

    Raises
    ------
    ConfigError
        See `make_pipeline`.
    ConnectorError
        If a sink's file cannot be opened.
    """
    if sinks is None:
        check_outputs(config)
    checked = make_pipeline(config)  # raises errors in the config before anything connects
    source, label_wait_s = _source(config)
    codec = _codec(config, source)
    source.look(codec)
    settings = _settings(config, label_wait_s)
    if sinks is None:
        make_sink, make_letters = (make for _, make in _sinks(config))
        sink, letters = make_sink(), make_letters()
    else:
        sink, letters = sinks()
    engine = Engine(
        source,
        lambda: make_pipeline(config),
        sink,
        codec,
        letters,
        settings=settings,
        metrics=metrics,
    )
    engine.kernels = kernel_steps(checked) if ENABLED else ()
    return engine


def make_task(table: Mapping[str, Any]) -> Task:
    """Make the task of a ``[task]`` table."""
    table = dict(table)
    for name in TASK_DURATIONS:
        if name in table:
            table[name] = duration_ns(f"task.{name}", table[name])
    return cast(Task, _of_kind(_TASKS, "task", table))


def kinds_of_table(table: str) -> dict[str, Callable[..., Any]]:
    """Return the class or function of each ``kind`` in a config's table; empty for a table without
    kinds."""
    if table in ("guard", "task"):
        return dict(_GUARDS if table == "guard" else _TASKS)
    groups = {"source": "sources", "base": "bases", "sink": "sinks"}
    return {name: point.load() for name, point in sorted(kinds(groups.get(table, table)).items())}


def codec_fields(config: Config) -> dict[str, Any]:
    """Return the codec's mapping; missing keys are derived from the task and the source."""
    fields = dict(config.fields)
    fields.setdefault("outputs", config.task.get("outputs", 1))
    if config.task.get("kind") == Supervised.name and "classes" in config.task:
        fields["classes"] = config.task["classes"]
    if source_class(config).has_text_cells(config.source):
        fields.setdefault("text_numbers", True)
    return fields


def _of_kind(classes: Mapping[str, Any], path: str, table: Mapping[str, Any]) -> object:
    settings = {k: v for k, v in table.items() if k != "kind"}
    made: object = arguments_of(choose(classes, path, table), path, settings, table["kind"])()
    return made


def _source(config: Config) -> tuple[Any, float]:
    """Return the source, and how long an entry waits for its label stream, in seconds."""
    table = dict(config.source)
    label_wait_s = duration_s("source.label_wait", table.pop("label_wait", "2s"))
    return build("sources", "source", without_foreign_form("sources", table)), label_wait_s


def file_form(config: Config) -> dict[str, Any]:
    """Return the keys of ``[source]`` that describe the form of files; `replay` and `fit` use them
    too."""
    return {name: config.source[name] for name in FORM if name in config.source}


def look_at_files(config: Config) -> list[dict[str, Any]]:
    """Inspect the beginning of the config's input files; see `Source.look`.

    Raises
    ------
    ConfigError
        If a file cannot be read, or lacks columns that the fields name.
    """
    source, _ = _source(config)
    found: list[dict[str, Any]] = source.look(_codec(config, source))
    source.close()
    for one in found:
        if "problem" in one:
            raise ConfigError(
                "source.path", one["path"], f"a file that can be read ({one['problem']})"
            )
    return found


def _codec(config: Config, source: Any) -> Any:
    limits = _limits(config.limits)
    size = {k: limits[k] for k in ("record_bytes", "depth", "width", "id_bytes") if k in limits}
    table = {"kind": "json", "fields": codec_fields(config), "limits": size}
    return build("codecs", "", table, streams=list(source.streams))


def make_codec(config: Config) -> tuple[Any, tuple[str, ...]]:
    """Make the codec, and return it with the names of the source's streams: the entries', then the
    labels'."""
    source, _ = _source(config)
    streams = tuple(source.streams)
    codec = _codec(config, source)
    source.close()
    return codec, streams


def make_letter_reader(config: Config) -> DeadLetterReader:
    """Make the reader of the config's dead letters; not connected."""
    table = with_connection("dead_letter_readers", dead_letters_table(config), config.source)
    reader: DeadLetterReader = build("dead_letter_readers", "dead_letters", table)
    return reader


def make_stream_writer(config: Config) -> StreamWriter:
    """Make the writer that appends records to the source's streams; not connected."""
    table = {k: v for k, v in config.source.items() if k != "label_wait"}
    table = without_foreign_form("stream_writers", table)
    writer: StreamWriter = build("stream_writers", "source", table)
    return writer


def _settings(config: Config, label_wait_s: float = 0.0) -> EngineSettings:
    limits = _limits(config.limits)
    saved = config.checkpoint
    every_s = 10.0 if saved is None else duration_s("checkpoint.every", saved.every)
    if saved is not None and not every_s > 0.0:
        raise ConfigError("checkpoint.every", saved.every, "a duration > 0")
    return EngineSettings(
        checkpoint_path=None if saved is None else folder_of(saved.path),
        checkpoint_every_s=every_s,
        checkpoint_every_entries=None if saved is None else saved.every_entries,
        keep=3 if saved is None else saved.keep,
        label_wait_s=label_wait_s,
        config_digest=config.digest(),
        guarantee=config.guarantee,
        keys_path=None
        if config.keys is None or config.keys.path is None
        else folder_of(config.keys.path, "keys.path"),
        **{
            k: limits[k]
            for k in ("max_ahead_ns", "max_behind_ns", "max_bad_share", "max_buffer")
            if k in limits
        },
    )


def _limits(table: Mapping[str, Any]) -> dict[str, Any]:
    check_keys("limits", table, _LIMITS)
    limits = {k: convert(v, _LIMITS[k], f"limits.{k}") for k, v in table.items()}
    for name in ("record_bytes", "depth", "width", "id_bytes", "max_buffer"):
        if not limits.get(name, 1) >= 1:
            raise ConfigError(f"limits.{name}", limits[name], "a whole number >= 1")
    if not 0.0 < limits.get("max_bad_share", 1.0) <= 1.0:
        raise ConfigError("limits.max_bad_share", limits["max_bad_share"], "a number in (0, 1]")
    limits["stuck_after_s"] = duration_s("limits.stuck_after", limits.pop("stuck_after", "60s"))
    if not limits["stuck_after_s"] > 0.0:
        raise ConfigError("limits.stuck_after", table["stuck_after"], "a duration > 0")
    for name in ("max_ahead", "max_behind"):
        if name in limits:
            limits[f"{name}_ns"] = duration_ns(f"limits.{name}", limits.pop(name))
    return limits


def time_limits(config: Config) -> tuple[int, int]:
    """Return how far behind and how far ahead of the newest time a record may be dated, ns."""
    limits = _limits(config.limits)
    behind_ns: int = limits.get("max_behind_ns", EngineSettings.max_behind_ns)
    ahead_ns: int = limits.get("max_ahead_ns", EngineSettings.max_ahead_ns)
    return behind_ns, ahead_ns


def stuck_after_s(config: Config) -> float:
    """Return the time in seconds without a heartbeat after which the engine's loop is stuck."""
    after_s: float = _limits(config.limits)["stuck_after_s"]
    return after_s


def _check_fields(config: Config, task: Task, base: Base) -> None:
    """Raise if fields, task and base do not fit each other, so that every record would be refused
    or nothing learned."""
    fields = config.fields
    if config.panel is not None:
        _check_panel_fields(config)
        return
    if config.keys is not None and "key" not in fields and not source_class(config).has_keys:
        raise ConfigError(
            "fields.key", None, "a field's path: with [keys] it says whose a record is"
        )
    if "classes" in fields:
        raise ConfigError(
            "fields.classes", fields["classes"], "no such key here: task.classes has them"
        )
    if base.channels is not None and _width(config) not in (None, base.channels):
        raise ConfigError(
            "fields.values",
            fields.get("values"),
            f"{base.channels} channels, which the base was fitted on",
        )
    if isinstance(task, Supervised):
        _check_label_field(fields, task)
    else:
        _check_no_labels(config.source)


def _check_label_field(fields: Mapping[str, Any], task: Supervised) -> None:
    """Raise unless entries have a label with the outputs of the task."""
    if fields.get("outputs", task.outputs) != task.outputs:
        raise ConfigError(
            "fields.outputs", fields["outputs"], f"{task.outputs}, the task's outputs"
        )
    if "label" not in fields:
        raise ConfigError(
            "fields.label", None, "a field's path: a supervised task learns from labels"
        )


def _check_no_labels(source: Mapping[str, Any]) -> None:
    """Raise if the source reads labels, for a task that learns from none."""
    for name in ("label_topic", "label_path"):
        if name in source:
            raise ConfigError(
                f"source.{name}", source[name], "none: this task learns from no labels"
            )


def _width(config: Config) -> int | None:
    """Return the number of channels of an entry; None if only the entries show it."""
    values = config.fields.get("values")
    width: int | None = (
        len(values)
        if isinstance(values, list) and len(values) > 1
        else config.fields.get("channels")
    )
    return width


def _check_output_shape(config: Config, task: Task, base: FrozenModel | OnnxBase) -> None:
    """Raise if the user's own model does not return the task's shape for a window of zeros."""
    channels = base.channels or _width(config)
    if channels is None:
        return
    wanted = [task.rows, task.columns(channels)]
    try:
        output = base.to("cpu")(
            torch.zeros(task.window_length, channels, dtype=torch.float32)
        ).output
        found: object = list(output.shape)
    except (ConfigError, ShapeError) as error:
        if isinstance(error, ConfigError):
            raise
        found = str(error)
    except Exception as error:  # the model's own error: its message is shown
        if isinstance(base, FrozenModel) and not isinstance(base.model, torch.nn.Module):
            return  # it may be on another device
        found = f"{type(error).__name__}: {scrubbed(str(error))[:200]}"
    if found != wanted:
        expected = (
            f"a model that makes {wanted}, as the task has, of a window of "
            f"{[task.window_length, channels]}"
        )
        raise ConfigError(
            "base.factory" if isinstance(base, FrozenModel) else "base.path", found, expected
        )
    if task.kind == "classification":
        check_probabilities(output)


def _check_panel_fields(config: Config) -> None:
    fields = config.fields
    values = fields.get("values")
    if isinstance(values, list) and len(values) != 1:
        raise ConfigError(
            "fields.values", values, "one path: with [panel] a record has one value, of one sensor"
        )
    if fields.get("channels", 1) != 1:
        raise ConfigError(
            "fields.channels",
            fields["channels"],
            "1: with [panel] a record has one value, of one sensor",
        )
    if "key" not in fields and not source_class(config).has_keys:
        raise ConfigError(
            "fields.key", None, "a field's path: with [panel] it says which sensor a record is of"
        )


def _sinks(config: Config) -> list[tuple[Mapping[str, Any], Callable[[], Any]]]:
    """Return the table and the constructor of the sink for predictions, then for dead letters."""
    sink = with_connection("sinks", config.sink, config.source)
    make_sink = prepare("sinks", "sink", sink)
    letters = with_connection("dead_letters", dead_letters_table(config), config.source)
    return [(sink, make_sink), (letters, prepare("dead_letters", "dead_letters", letters))]
