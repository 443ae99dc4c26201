"""The engine's metrics as Prometheus reads them: a collector, an HTTP endpoint and the page in the docs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from threading import Thread
from typing import Any, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from streamadapt.errors import ConfigError
from streamadapt.metrics import CATALOGUE, STAGE_BOUNDS_S, Histogram, Metrics, MetricSpec

__all__ = ["MetricsCollector", "MetricsServer", "metrics_markdown", "serve"]


class MetricsCollector(Collector):
    """Reads a `Metrics` at every scrape. Register it where it shall be seen: ``MetricsCollector(metrics, registry)``.

    Parameters
    ----------
    metrics : Metrics
        The engine's recorder.
    registry : CollectorRegistry
        Passed in, so that two engines or two tests never share one.

    Raises
    ------
    ValueError
        If the registry has these metrics already.
    """

    def __init__(self, metrics: Metrics, registry: CollectorRegistry) -> None:
        self._metrics = metrics
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Return the families without samples: what the registry checks for duplicates."""
        return [_family(spec, []) for spec in CATALOGUE]

    def collect(self) -> Iterator[Metric]:
        """Yield every metric that has a sample."""
        samples = self._metrics.samples()
        for spec in CATALOGUE:
            if found := samples[spec.name]:
                yield _family(spec, found)


def _family(spec: MetricSpec, samples: Sequence[tuple[tuple[str, ...], float | Histogram]]) -> Metric:
    family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
    if spec.kind == "histogram":
        family = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
    elif spec.kind == "counter":
        family = CounterMetricFamily(spec.name, spec.help, labels=spec.labels)
    else:
        family = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
    for labels, value in samples:
        if isinstance(value, Histogram):
            bounds = [*map(floatToGoString, STAGE_BOUNDS_S), "+Inf"]
            buckets = list(zip(bounds, map(float, accumulate(value.counts)), strict=True))
            family.add_metric(labels, buckets, value.sum_s)  # type: ignore[arg-type]
        else:
            family.add_metric(labels, value)  # type: ignore[arg-type, call-arg]
    return family


class MetricsServer:
    """A running ``/metrics`` endpoint; also a context manager.

    Attributes
    ----------
    port : int
        Where it listens; the real one where 0 was asked for.
    """

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server = server
        self._thread = thread
        self.port = int(server.server_port)

    def close(self) -> None:
        """Stop answering and free the port. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


Ready = Callable[[], tuple[bool, str]]


def serve(registry: CollectorRegistry, port: int, host: str = "0.0.0.0", ready: Ready | None = None) -> MetricsServer:
    """Answer ``GET /metrics`` and ``GET /ready`` from a daemon thread of its own.

    Parameters
    ----------
    ready : callable, optional
        Returns whether the engine does its work, and a word on it: status 200 or 503. Without it there is no /ready.
    port : int
        0 takes a free one; see `MetricsServer.port`.
    host : str
        The address to listen on; the default is every interface, as a scraper usually runs elsewhere.

    Raises
    ------
    ConfigError
        If the port or the address cannot be used.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as exc:
        raise ConfigError("metrics.port", f"{host}:{port}", f"an address and a free port to listen on ({exc})") from exc
    if ready is not None:
        server.set_app(_with_ready(make_wsgi_app(registry), ready))
    return MetricsServer(server, thread)


def _with_ready(metrics: Any, ready: Ready) -> Any:
    """Return a WSGI application that answers /ready itself."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != "/ready":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        fine, why = ready()
        status = "200 OK" if fine else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{'ready' if fine else 'not ready'}: {why}\n".encode()]

    return application


def metrics_markdown() -> str:
    """Return the text of ``docs/metrics.md``, which a test compares with the file."""
    head = (
        "# Metrics\n\n"
        "Set `[metrics] port` and scrape `/metrics`. A metric that is not known is absent, not zero. "
        "No label ever holds a record's key or id.\n\n"
        "Mean loss over five minutes, by role: "
        "`rate(streamadapt_matured_loss_total[5m]) / rate(streamadapt_matured_cells_total[5m])`. "
        "Counters of a partition continue after a restart from its checkpoint.\n\n"
        "| name | kind | labels | unit | meaning | what to do |\n"
        "|---|---|---|---|---|---|\n"
    )
    rows = (
        f"| `{row.name}` | {row.kind} | {', '.join(row.labels) or '-'} | {row.unit} | {row.help} | {row.action} |\n"
        for row in CATALOGUE
    )
    return head + "".join(rows)
