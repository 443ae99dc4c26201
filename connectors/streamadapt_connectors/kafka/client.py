"""Code that Kafka sources and sinks share: security, a client that can be closed, and the state of
the connection."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from kafka import KafkaConsumer, KafkaProducer
from kafka import errors as kafka_errors
from kafka.future import Future as KafkaFuture
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.protocol.producer import InitProducerIdRequest, ProduceRequest

from streamadapt.config.secrets import remember, scrubbed, without_credentials
from streamadapt.engine.conditions import Condition, Conditions
from streamadapt.errors import ConfigError, ConnectorError
from streamadapt_connectors.kafka.answers import PRODUCE, Answers, answered_or_none
from streamadapt_connectors.kafka.client_log import forward_client_log
from streamadapt_connectors.kafka.greeting import (
    address_reason,
    check_server,
    mechanisms_at,
    password_demand,
)
from streamadapt_connectors.kafka.records import read_any_header_name
from streamadapt_connectors.kafka.security import check_security, refusal_of
from streamadapt_connectors.kafka.words import with_article

__all__ = ["CONNECTION", "Client", "Link", "Reach", "Setup", "check_security"]

CONNECTION: Final = ("servers", "security")
"""The settings of the connection: the servers, and how to connect to them."""

T = TypeVar("T")

log = logging.getLogger("streamadapt.kafka")

FIRST_BACKOFF_S: Final = 0.1
LAST_BACKOFF_S: Final = 10.0
NOT_READY_S: Final = 0.05
BOOTSTRAP_MS: Final = 5000
RECONNECT_MAX_MS: Final = 5000
SETUP_MS: Final = 5000
"""The time for a connection and the first requests on it; kafka-python doubles it each time that
it is too short."""
ADVERTISED: Final = (
    "this is the address that the broker itself names (its advertised.listeners), not one of "
    "servers: make it reachable from this machine, or correct it in the broker's settings"
)


class Link:
    """The state of a connection: logs each change once, and computes how long to wait before the
    next attempt.

    Parameters
    ----------
    conditions : Conditions
        Stores and reports the problems.
    holder : str
        See `Conditions.begin`.
    answered_at : callable () -> float, optional
        Returns when the broker has answered last (monotonic, s).
    """

    def __init__(
        self,
        conditions: Conditions,
        holder: str = "",
        answered_at: Callable[[], float] = time.monotonic,
    ) -> None:
        self._conditions = conditions
        self._answered_at = answered_at
        self._holder = holder
        self._state = "connecting"
        self._why: str | None = None
        self._backoff_s = FIRST_BACKOFF_S
        self._not_before = 0.0

    @property
    def state(self) -> str:
        """``connected`` or ``connecting``."""
        return self._state

    def up(self) -> None:
        """Record that the broker answers; what it had answered before it fell silent does not
        count."""
        again = " again" if self._conditions.answered else ""
        waited = self._conditions.holds(Condition.NO_ANSWER, self._holder)
        self._conditions.end(
            Condition.NO_ANSWER, f"connected{again}", self._holder, self._answered_at()
        )
        if self._conditions.holds(Condition.NO_ANSWER, self._holder):
            return
        self._conditions.end(Condition.TOPIC_MISSING, f"the topic exists{again}", self._holder)
        if not self._conditions.answered and not waited:
            log.info("%s: connected", self._conditions.what)
        self._conditions.answered = True
        self._state, self._why, self._backoff_s, self._not_before = (
            "connected",
            None,
            FIRST_BACKOFF_S,
            0.0,
        )

    def down(self, why: str, condition: Condition = Condition.NO_ANSWER) -> None:
        """Record that the broker does not answer; wait longer each time, with jitter, so that many
        clients do not reconnect at once."""
        why = scrubbed(why)
        text = f"{why}; trying again until it works"
        known = self._conditions.holds(condition)
        silent = condition is Condition.NO_ANSWER
        since = answered_or_none(self._answered_at()) if silent else None
        self._conditions.begin(condition, text, self._holder, since)
        # A different reason may be another wrong setting: log it, too.
        if known and not self._conditions.answered and why != self._why:
            log.warning("%s: %s", self._conditions.what, text)
        self._state, self._why = "connecting", why
        self._not_before = time.monotonic() + self._backoff_s * random.uniform(0.5, 1.0)
        self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)

    def wait_s(self) -> float:
        """Seconds until the next attempt, >= 0."""
        return max(0.0, self._not_before - time.monotonic())

    def sleep(self, deadline: float) -> None:
        """Sleep until the next attempt, but not beyond `deadline` (monotonic, s)."""
        time.sleep(max(0.0, min(self.wait_s(), deadline - time.monotonic())))


class Setup:
    """Runs steps that may block for a long time in a helper thread, while the caller polls for the
    result.

    Parameters
    ----------
    worker : ThreadPoolExecutor
    link : Link
        Determines how long to wait before a step is tried again.
    """

    def __init__(self, worker: ThreadPoolExecutor, link: Link) -> None:
        self._worker = worker
        self._link = link
        self._job: Future[Any] | None = None

    def in_time(self, work: Callable[[], T], deadline: float) -> T | None:
        """Return ``work()`` or raise its error; None if it is not done by `deadline` (monotonic,
        s): then call this again."""
        if self._job is None:
            self._link.sleep(deadline)
            if self._link.wait_s() > 0:
                return None
            self._job = self._worker.submit(work)
        job = self._job
        try:
            result: T = job.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            if not job.done():
                return None
            self._job = None
            raise
        except BaseException:
            self._job = None if job.done() else job
            raise
        self._job = None
        return result

    def finally_do(self, last: Callable[[], None]) -> None:
        """Call `last` when the running step is done; do nothing if no step is running."""
        if self._job is not None:
            self._job.add_done_callback(lambda _: last())


class Client:
    """Builds one kafka-python client and keeps a reference to it, so that a constructor that fails
    leaves no thread and no socket open."""

    def __init__(self) -> None:
        self.net: NetworkSelector | None = None
        self._client: KafkaNetClient | None = None
        self._manager: _Manager | None = None
        self.servers: Sequence[str] = ()
        self.fenced = False
        self.before_sending: Callable[[Collection[int]], None] = lambda partitions: None

    def __call__(self, **configs: Any) -> KafkaNetClient:
        """Build the client; kafka-python calls this from its constructors."""
        self.net = NetworkSelector(**configs)
        self._manager = _Manager(self.net, **configs, socket_connection_setup_timeout_ms=SETUP_MS)
        self._manager.known = self.servers
        self._manager.on_bump = self._take_bump
        # With the value at the time of the call.
        self._manager.before_sending = lambda partitions: self.before_sending(partitions)
        self._client = _NetClient(net=self.net, manager=self._manager, **configs)
        # kafka-python 3.0 does not pass this on: a request for the metadata of a deleted topic
        # would create the topic.
        name = "allow_auto_create_topics"
        self._client.cluster.config[name] = configs.get(name, self._client.cluster.config[name])
        return self._client

    @property
    def cluster(self) -> Any:
        """The cluster metadata of kafka-python (`ClusterMetadata`); None before the client is
        built."""
        client = self._client
        return None if client is None else client.cluster

    @property
    def failure(self) -> BaseException | None:
        """The error of the newest attempt to connect; None if it succeeded."""
        return None if self._manager is None else self._manager.failure

    def explain(self, error: BaseException) -> str:
        """Return a message for people about an error, with the addresses of brokers that cannot be
        reached."""
        failed = [] if self._manager is None else self._manager.failed_brokers()
        if failed and not isinstance(error, kafka_errors.BrokerResponseError):
            return "; ".join(failed)
        return str(error) or type(error).__name__

    def shown(self) -> Collection[str]:
        """Return the topics in the metadata that the broker has sent."""
        return set() if self.cluster is None else self.cluster.topics()

    def check(self) -> None:
        """Raise `ConnectorError` if a broker has refused the client for a reason that waiting
        cannot solve."""
        if self._manager is not None and self._manager.refusal is not None:
            raise ConnectorError(f"kafka {self._manager.servers}: {self._manager.refusal}")

    def answers(self) -> bool:
        """Whether a connection to any broker is open."""
        client = self._client
        return client is not None and any(
            client.connected(broker.node_id) for broker in client.cluster.brokers()
        )

    @property
    def answered_at(self) -> float:
        """When a broker has answered this client last (monotonic, s); ``-inf`` if none has."""
        return float("-inf") if self._manager is None else self._manager.answers.answered_at

    def quiet(self, kind: str) -> str:
        """Return a message for the operator if no broker answers; empty if a broker answers.

        Parameters
        ----------
        kind : str
            The kind of the relevant requests: ``fetch`` or ``produce``.
        """
        manager = self._manager
        if manager is None or manager.silent:
            return ""
        cluster = manager.cluster
        late = manager.answers.overdue(
            kind, lambda node: cluster.broker_metadata(node) is not None
        )
        if late is not None:
            broker = cluster.broker_metadata(late.node)
            where = "a broker" if broker is None else f"broker {broker.host}:{broker.port}"
            waits = (
                ", or waits for another broker that has a replica of the topic"
                if late.kind == PRODUCE
                else ""
            )
            return (
                f"{where} keeps its connection open but has not answered "
                f"{with_article(late.kind)} request for {late.age_s:.0f} s: it is paused, "
                f"frozen or overloaded{waits}; "
                f"look at {'the brokers' if waits else 'that broker'}"
            )
        if self.answers():
            return ""
        failure = self.failure
        why = "" if failure is None else f" ({self.explain(failure)})"
        return f"no broker answers{why}; look at the brokers and the network"

    def refusal(self, topic: str) -> tuple[int, str] | None:
        """Return a partition of a topic that did not store the newest records, and the broker's
        error; None if there is no such partition."""
        return None if self._manager is None else self._manager.answers.refusal(topic)

    @property
    def forgotten(self) -> bool:
        """Whether a broker has reported that it no longer knows the producer's transactional
        id."""
        return self._manager is not None and self._manager.answers.forgotten

    @property
    def stopped_by(self) -> Exception | None:
        """The error that `before_sending` has raised; after it nothing more is sent."""
        return None if self._manager is None else self._manager.stopped_by

    def fall_silent(self) -> None:
        """Send no more requests, even if kafka-python tries to; its sockets close when its thread
        ends."""
        if self._manager is not None:
            self._manager.silent = True

    def _take_bump(self) -> None:
        self.fenced = True
        self.fall_silent()

    def close(self) -> None:
        """Stop the client's thread and close its sockets. Idempotent."""
        if self._client is not None:
            self._client.close()
            self._client = None


class _NetClient(KafkaNetClient):  # type: ignore[misc]
    """Reports that a node is not ready, where kafka-python 3.0 would raise: then its sender would
    drop the pending request."""

    def await_ready(self, node_id: Any, timeout_ms: float = 30000) -> bool:
        """Return whether requests can be sent to a node; wait for it at most `timeout_ms`."""
        try:
            ready: bool = super().await_ready(node_id, timeout_ms=timeout_ms)
        except (kafka_errors.KafkaConnectionError, kafka_errors.NodeNotReadyError):
            time.sleep(NOT_READY_S)  # kafka-python calls this again at once
            return False
        return ready


class _Manager(KafkaConnectionManager):  # type: ignore[misc]
    """Stores the errors of connections, which kafka-python only logs, and stops after the first
    error that waiting cannot solve.

    It sends nothing after it has become silent. If a broker reports an old epoch, kafka-python
    requests the next epoch (KIP-360), which would fence the present owner of the transaction.
    Here, the producer itself counts as fenced instead.
    """

    on_bump: Callable[[], None] = staticmethod(lambda: None)
    before_sending: Callable[[Collection[int]], None] = staticmethod(lambda partitions: None)
    """Called with the partitions of each produce request; an error that it raises ends the
    producer."""
    stopped_by: Exception | None = None
    silent = False
    known: Sequence[str] = ()
    """The servers in the config."""

    def __init__(self, net: NetworkSelector, **configs: Any) -> None:
        super().__init__(net, **configs)
        self.servers = ",".join(configs["bootstrap_servers"])
        self.answers = Answers()
        self.failure: BaseException | None = None
        self.refusal: str | None = None
        self._unreachable: dict[Any, str] = {}
        self._reached: set[Any] = set()

    def get_connection(self, node_id: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the connection to a node; a new connection is watched."""
        if self.refusal is not None:  # the only error after which kafka-python does not retry
            raise kafka_errors.SaslAuthenticationFailedError(self.refusal)
        known = self._conns.get(node_id)
        connection = super().get_connection(node_id, *args, **kwargs)
        if connection is not known:
            connection.init_future.add_callback(lambda _: self._made(node_id))
            connection.init_future.add_errback(lambda error: self._failed(node_id, error))
        return connection

    def send(
        self, request: Any, node_id: Any = None, request_timeout_ms: float | None = None
    ) -> Any:
        """Send a request, unless the client is silent."""
        if (
            isinstance(request, InitProducerIdRequest)
            and request.transactional_id
            and request.producer_id >= 0
        ):
            self.on_bump()
        if isinstance(request, ProduceRequest) and not self.silent:
            self._check_before(request)
        if self.silent:
            return KafkaFuture().failure(
                kafka_errors.ProducerFencedError("this producer sends no more requests")
            )
        node_id = node_id if node_id is not None else self.least_loaded_node()
        future = super().send(request, node_id=node_id, request_timeout_ms=request_timeout_ms)
        self.answers.sent(request, node_id, future)
        return future

    def _check_before(self, request: Any) -> None:
        try:
            self.before_sending(
                {part.index for topic in request.topic_data for part in topic.partition_data}
            )
        except Exception as error:  # it will be raised again in the engine's thread
            self.stopped_by = error
            self.silent = True

    def _made(self, node_id: Any) -> None:
        self.failure = None
        self.answers.greeted(node_id)
        self._unreachable.pop(node_id, None)
        self._reached.add(node_id)

    def _failed(self, node_id: Any, error: BaseException) -> None:
        self.failure = error
        why = refusal_of(error)
        self.refusal = None if why is None else scrubbed(why)
        node = self.cluster.broker_metadata(node_id)
        if node is None or self.cluster.is_bootstrap(node_id) or self.closed:
            return
        address = f"{node.host}:{node.port}"
        hint = "" if address in self.known or node_id in self._reached else f"; {ADVERTISED}"
        number = str(node_id).rpartition("-")[2]  # the id of a coordinator has a prefix
        self._unreachable[node_id] = (
            f"broker {number} at {address} cannot be reached: {address_reason(error)}{hint}"
        )

    def failed_brokers(self) -> list[str]:
        """Return a message for each broker to which the newest connection failed, with its address
        and the reason."""
        return [
            why
            for node, why in list(self._unreachable.items())
            if self.cluster.broker_metadata(node) is not None
        ]


class Reach:
    """Connects to a cluster.

    Parameters
    ----------
    servers : str
        ``host:port``, several with commas.
    security : mapping or None
        See `check_security`.
    """

    def __init__(self, servers: str, security: Mapping[str, Any] | None) -> None:
        self.servers = [part.strip() for part in servers.split(",") if part.strip()]
        for server in self.servers or [""]:
            host, _, port = server.rpartition(":")
            if not host or not port.isdigit():
                raise ConfigError(
                    "servers", without_credentials(servers), "host:port, several with commas"
                )
            if "@" in host:
                expected = "host:port; user names and passwords belong in security"
                raise ConfigError("servers", without_credentials(servers), expected)
        remember("security", security)
        self._security = check_security(security)
        self._answering: str | None = None
        self._logged: set[str] = set()

    def __repr__(self) -> str:
        return f"Reach({','.join(self.servers)!r})"

    def consumer(self, client: Client, **configs: Any) -> KafkaConsumer:
        """Return a connected consumer or raise; takes at most about seven seconds."""
        read_any_header_name()
        return self._build(KafkaConsumer, client, configs)

    def producer(self, client: Client, **configs: Any) -> KafkaProducer:
        """Return a connected producer or raise; takes at most about seven seconds."""
        return self._build(KafkaProducer, client, configs)

    def common(self) -> dict[str, Any]:
        """Return the settings of every kafka-python client."""
        return {
            "bootstrap_servers": self.servers if self._answering is None else [self._answering],
            "bootstrap_timeout_ms": BOOTSTRAP_MS,
            "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
            **self._security,
        }

    def probe(self) -> None:
        """Raise unless one of the servers answers as a Kafka broker; remember this server.

        This is much cheaper than a client, and takes a limited time: kafka-python waits forever
        for a server that is silent in a TLS handshake. The client then starts with the server that
        has answered: kafka-python would try any of them, and might spend all of its time on a
        wrong server.

        Raises
        ------
        ConnectionError
            If no server answers now.
        ConnectorError
            If waiting cannot help: every server is of another kind than `security` requires, or is
            not trusted.
        """
        first = self._answering
        refusals, errors = [], []
        for server in sorted(self.servers, key=lambda server: server != first):
            try:
                check_server(server, self._security)
            except ConnectorError as error:
                refusals.append(error)
            except OSError as error:
                errors.append(error)
            else:
                self._log_refused(refusals)
                self._answering = server
                return
        self._answering = None
        if errors:
            raise ConnectionError("; ".join(map(str, [*errors, *refusals])))
        raise ConnectorError("; ".join(map(str, refusals))) from refusals[0]

    def _log_refused(self, refusals: Sequence[ConnectorError]) -> None:
        """Log once the problem of each server that cannot be used, if another server answers."""
        for text in map(str, refusals):
            if text not in self._logged:
                self._logged.add(text)
                log.warning("%s; another one of servers answers, and is used", text)

    def _build(self, kind: Callable[..., Any], client: Client, configs: Mapping[str, Any]) -> Any:
        self.probe()
        forward_client_log()
        client.servers = self.servers
        try:
            return kind(kafka_client=client, metrics_enabled=False, **self.common(), **configs)
        except (ValueError, TypeError, AssertionError) as error:
            client.close()
            why = scrubbed(str(error))
            raise ConnectorError(
                f"kafka {','.join(self.servers)}: wrong client settings: {why}"
            ) from error
        except kafka_errors.KafkaError as error:
            client.close()
            if isinstance(client.failure, kafka_errors.UnsupportedSaslMechanismError):
                raise self._other_mechanism() from error
            client.check()
            raise ConnectionError(self._why(client.failure or error)) from error
        except BaseException:
            client.close()
            raise

    def _other_mechanism(self) -> ConnectorError:
        server = self._answering or self.servers[0]
        offered = mechanisms_at(server, self._security) or "no other that it reports"
        asked = self._security.get("sasl_mechanism")
        text = (
            f"the broker does not support this security.sasl_mechanism ({asked}); it supports "
            f"{offered}"
        )
        return ConnectorError(f"kafka {server}: {text}")

    def _why(self, failure: BaseException) -> str:
        """Return a helpful message about a failed connection, since the client's own message may
        be empty.

        Raises
        ------
        ConnectorError
            If the broker asks for a password, and `security` has none.
        """
        server = self._answering or self.servers[0]
        if demand := password_demand(server, self._security):
            raise ConnectorError(f"kafka {server}: {demand}")
        text = f"{server} answers, but accepts no requests: {failure or type(failure).__name__}"
        protocol = self._security.get("security_protocol", "PLAINTEXT")
        if protocol.endswith("SSL") and not self._security.get("ssl_certfile"):
            text += "; if it asks for a client certificate, set security.ssl_certfile"
        if protocol.startswith("SASL"):
            text += "; some brokers only close the connection if the password is wrong"
        return text
