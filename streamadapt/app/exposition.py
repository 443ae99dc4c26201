"""The engine's metrics in Prometheus' format: a collector, an HTTP endpoint and the docs page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from threading import Thread
from typing import Any, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from streamadapt.engine.metrics import STAGE_BOUNDS_S, Histogram, Metrics
from streamadapt.engine.metrics_catalogue import CATALOGUE, MetricSpec
from streamadapt.errors import ConfigError

__all__ = ["MetricsCollector", "MetricsServer", "metrics_markdown", "serve"]


class MetricsCollector(Collector):
    """A Prometheus collector that reads a `Metrics` at every scrape, and registers itself.

    Parameters
    ----------
    metrics : Metrics
        The engine's recorder.
    registry : CollectorRegistry
        The registry of this engine; two engines or two tests must not share one.

    Raises
    ------
    ValueError
        If the registry has these metrics already.
    """

    def __init__(self, metrics: Metrics, registry: CollectorRegistry) -> None:
        self._metrics = metrics
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Return the families without samples; the registry checks them for duplicates."""
        return [_family(spec, []) for spec in CATALOGUE]

    def collect(self) -> Iterator[Metric]:
        """Yield every metric that has a sample."""
        samples = self._metrics.samples()
        for spec in CATALOGUE:
            if found := samples[spec.name]:
                yield _family(spec, found)


def _family(
    spec: MetricSpec, samples: Sequence[tuple[tuple[str, ...], float | Histogram]]
) -> Metric:
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
        The port on which the server listens; never 0.
    """

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server = server
        self._thread = thread
        self.port = int(server.server_port)

    def close(self) -> None:
        """Stop the server and free the port. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


Ready = Callable[[], tuple[bool, str]]
"""Returns a state (ready, live) as a bool, and its reason in words."""


def serve(
    registry: CollectorRegistry,
    port: int,
    host: str = "0.0.0.0",
    ready: Ready | None = None,
    live: Ready | None = None,
) -> MetricsServer:
    """Start a server that answers GET and HEAD requests for ``/metrics``, ``/ready`` and ``/live``
    from a daemon thread; other paths are answered with 404.

    Parameters
    ----------
    ready : callable, optional
        Whether the engine works now: status 200 or 503. Without it there is no ``/ready``.
    live : callable, optional
        Whether the engine's loop has not ended: status 200 or 503. Without it there is no
        ``/live``.
    port : int
        0 means a free port; see `MetricsServer.port`.
    host : str
        The address to listen on; by default all interfaces, since a scraper usually runs on
        another machine.

    Raises
    ------
    ConfigError
        If the port or the address cannot be used.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as exc:
        raise ConfigError(
            "metrics.port", f"{host}:{port}", f"an address and a free port to listen on ({exc})"
        ) from exc
    checks = {"/ready": ready, "/live": live}
    server.set_app(
        _application(
            make_wsgi_app(registry), {path: ask for path, ask in checks.items() if ask is not None}
        )
    )
    return MetricsServer(server, thread)


def _application(metrics: Any, checks: Mapping[str, Ready]) -> Any:
    """Return a WSGI application that answers only the paths of `checks` and ``/metrics``."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "").rstrip("/") or "/"
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _text(
                start_response,
                "405 Method Not Allowed",
                "only GET and HEAD",
                [("Allow", "GET, HEAD")],
            )
        if path in checks:
            fine, why = checks[path]()
            word = path.strip("/")
            status = "200 OK" if fine else "503 Service Unavailable"
            return _text(start_response, status, f"{word if fine else f'not {word}'}: {why}")
        if path == "/metrics":
            body: Iterable[bytes] = metrics({**environ, "REQUEST_METHOD": "GET"}, start_response)
            return body
        paths = ", ".join(sorted({"/metrics", *checks}))
        return _text(start_response, "404 Not Found", f"not found; the paths are {paths}")

    def application(
        environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "HEAD":
            return answer(environ, start_response)
        started: list[Any] = []
        size = sum(
            map(len, answer(environ, lambda status, headers: started.extend((status, headers))))
        )
        status, headers = started
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(status, [*headers, ("Content-Length", str(size))])
        return []

    return application


def _text(
    start_response: Callable[..., Any],
    status: str,
    text: str,
    more: Sequence[tuple[str, str]] = (),
) -> list[bytes]:
    body = f"{text}\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        *more,
    ]
    start_response(status, headers)
    return [body]


def metrics_markdown() -> str:
    """Return the text of ``docs/metrics.md``, which a test compares with the file."""
    head = (
        "# Metrics\n\n"
        "Set `[metrics] port` and scrape `/metrics`. A metric whose value is unknown is absent, "
        "not zero. Counters of possible events (reasons, detectors, outcomes) begin at 0, so that "
        "`increase()` sees the first event. No metric label contains the key or id of a record."
        "\n\n"
        "`/live` answers 200 while the engine's loop runs; otherwise restart the process. "
        "`/ready` answers 200 while the engine has compiled its kernels (only the first start of "
        "an installation takes time for that) and restored its state, its brokers answer, no "
        "delivery has waited for more than 5 s, and the loop makes progress. Otherwise both "
        "answer 503 with the reason. Any other path answers 404.\n\n"
        "Mean loss over five minutes, by role: "
        "`rate(streamadapt_matured_loss_total[5m]) / rate(streamadapt_matured_cells_total[5m])`. "
        "Counters of a partition continue after a restart from its checkpoint.\n\n"
        "| name | kind | labels | unit | meaning | what to do |\n"
        "|---|---|---|---|---|---|\n"
    )
    rows = (
        f"| `{row.name}` | {row.kind} | {', '.join(row.labels) or '-'} | {row.unit} | "
        f"{row.help} | {row.action} |\n"
        for row in CATALOGUE
    )
    return head + "".join(rows)
