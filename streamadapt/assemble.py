"""From a `Config` to the engine it describes. Nothing connects before the engine runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamadapt.base import as_base
from streamadapt.config import Config
from streamadapt.defaults import default_learners
from streamadapt.drift import DriftMonitor
from streamadapt.durations import duration_ns, duration_s
from streamadapt.engine import Engine, EngineSettings
from streamadapt.errors import ConfigError
from streamadapt.guard import Guard, Hedge, NoGuard, TwoLayer
from streamadapt.metrics import Metrics
from streamadapt.pipeline import Pipeline
from streamadapt.registry import build, call, check_keys, convert
from streamadapt.tasks import Forecast, Supervised, Task

__all__ = ["make_engine", "make_pipeline", "make_task"]

_GUARDS: dict[str, type[Guard]] = {cls.kind: cls for cls in (TwoLayer, Hedge, NoGuard)}
_TASKS: dict[str, type[Task]] = {cls.name: cls for cls in (Forecast, Supervised)}
_LIMITS = {"record_bytes": int, "depth": int, "max_bad_share": float, "max_buffer": int}


def make_pipeline(config: Config) -> Pipeline:
    """Make one fresh pipeline.

    Raises
    ------
    ConfigError
        If a setting does not fit, naming its path, or the base's files do not.
    """
    task = make_task(config.task)
    base_table = dict(config.base)
    if base_table.get("kind") == "persistence":
        base_table.setdefault("horizon", task.rows)
    base = as_base(build("bases", "base", base_table))
    if config.learners is None:
        learners = default_learners(task.kind)
    else:
        learners = [build("learners", f"learners[{i}]", table) for i, table in enumerate(config.learners)]
    for i, learner in enumerate(learners):
        call(f"learners[{i}]", learner.check_kind, {"kind": task.kind})
    drift = [_fixed(DriftMonitor, f"drift[{i}]", table) for i, table in enumerate(config.drift)]
    guard = _of_kind(_GUARDS, "guard", config.guard)
    return Pipeline(task, base, learners, guard, drift, device=config.device, seed=config.seed)


def make_engine(config: Config, metrics: Metrics | None = None) -> Engine:
    """Make the engine, with its source and sinks, none of them connected.

    Raises
    ------
    ConfigError
        See `make_pipeline`.
    """
    make_pipeline(config)  # what is wrong with it is said before anything connects
    limits = _limits(config.limits)
    source_table = dict(config.source)
    label_wait_s = duration_s("source.label_wait", source_table.pop("label_wait", "2s"))
    source = build("sources", "source", source_table)
    size = {k: limits[k] for k in ("record_bytes", "depth") if k in limits}
    codec_table = {"kind": "json", "fields": _fields(config), "limits": size}
    codec = build("codecs", "", codec_table, streams=list(source.streams))
    sink = build("sinks", "sink", _with_servers(config.sink, source_table))
    letters = build("dead_letters", "dead_letters", _with_servers(_letters_table(config), source_table))
    saved = config.checkpoint
    settings = EngineSettings(
        checkpoint_path=None if saved is None else Path(saved.path),
        checkpoint_every_s=10.0 if saved is None else duration_s("checkpoint.every", saved.every),
        checkpoint_every_entries=None if saved is None else saved.every_entries,
        keep=3 if saved is None else saved.keep,
        label_wait_s=label_wait_s,
        config_digest=config.digest(),
        **{k: limits[k] for k in ("max_bad_share", "max_buffer") if k in limits},
    )
    return Engine(source, lambda: make_pipeline(config), sink, codec, letters, settings=settings, metrics=metrics)


def make_task(table: Mapping[str, Any]) -> Task:
    """Make the task of a ``[task]`` table."""
    table = dict(table)
    if "ttl" in table:
        table["ttl"] = duration_ns("task.ttl", table["ttl"])
    task: Task = _of_kind(_TASKS, "task", table)
    return task


def _of_kind(classes: Mapping[str, Any], path: str, table: Mapping[str, Any]) -> Any:
    kind = str(table.get("kind", ""))
    if kind not in classes:
        raise ConfigError(f"{path}.kind", table.get("kind"), "one of " + ", ".join(sorted(classes)))
    return _fixed(classes[kind], path, {k: v for k, v in table.items() if k != "kind"})


def _fixed(cls: Any, path: str, table: Mapping[str, Any]) -> Any:
    """Make a class of the core from a table."""
    import inspect
    import typing

    parameters = inspect.signature(cls).parameters
    hints = typing.get_type_hints(cls.__init__)
    check_keys(path, table, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in table:
            raise ConfigError(f"{path}.{name}", None, "a value: it is needed")
    return call(path, cls, {k: convert(v, hints[k], f"{path}.{k}") for k, v in table.items()})


def _fields(config: Config) -> dict[str, Any]:
    """The codec's mapping, with what follows from the task and the source where it is not given."""
    fields = dict(config.fields)
    fields.setdefault("outputs", config.task.get("outputs", 1))
    paths = config.source.get("path", ())
    names = [paths] if isinstance(paths, str) else list(paths)
    if config.source.get("kind") == "files" and any(str(name).removesuffix(".gz").endswith(".csv") for name in names):
        fields.setdefault("text_numbers", True)
    return fields


def _limits(table: Mapping[str, Any]) -> dict[str, Any]:
    check_keys("limits", table, _LIMITS)
    return {k: convert(v, _LIMITS[k], f"limits.{k}") for k, v in table.items()}


def _letters_table(config: Config) -> dict[str, Any]:
    """Dead letters go beside the predictions where the config does not say otherwise."""
    if config.dead_letters is not None:
        return dict(config.dead_letters)
    place = "topic" if config.sink.get("kind") == "kafka" else "path"
    beside = config.sink.get(place)
    if config.sink.get("kind") not in ("kafka", "files") or not isinstance(beside, str):
        raise ConfigError("dead_letters", None, "a table [dead_letters]: refused records must go somewhere")
    kept = {k: v for k, v in config.sink.items() if k in ("kind", "servers", "security")}
    return kept | {place: f"{beside}-dead-letters" if place == "topic" else f"{beside}.dead-letters"}


def _with_servers(table: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """A Kafka sink speaks to the source's servers where the config does not say otherwise."""
    table = dict(table)
    if table.get("kind") == source.get("kind") == "kafka":
        for name in ("servers", "security"):
            if name in source:
                table.setdefault(name, source[name])
    return table
