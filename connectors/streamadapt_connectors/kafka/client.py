"""What Kafka sources and sinks share: security, a client that can be closed, the state of the
connection."""

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
from streamadapt_connectors.kafka.answers import PRODUCE, Answers
from streamadapt_connectors.kafka.client_log import let_client_speak
from streamadapt_connectors.kafka.greeting import (
    address_reason,
    check_server,
    mechanisms_at,
    password_demand,
)
from streamadapt_connectors.kafka.records import read_any_header_name
from streamadapt_connectors.kafka.security import check_security, refusal_of

__all__ = ["CONNECTION", "Client", "Link", "Reach", "Setup", "check_security"]

CONNECTION: Final = ("servers", "security")
"""Settings that say where the servers are, and how to reach them."""

T = TypeVar("T")

log = logging.getLogger("streamadapt.kafka")

FIRST_BACKOFF_S: Final = 0.1
LAST_BACKOFF_S: Final = 10.0
NOT_READY_S: Final = 0.05
BOOTSTRAP_MS: Final = 5000
RECONNECT_MAX_MS: Final = 5000
SETUP_MS: Final = 5000
"""For a connection and what is asked on it first, doubled each time that is too short."""
ADVERTISED: Final = (
    "this is the address that the broker itself names (its advertised.listeners), not one of "
    "servers: make it "
    "reachable from this machine, or correct it in the broker's settings"
)


class Link:
    """Whether the other side answers: says so once per change, and how long to wait before the
    next attempt.

    Parameters
    ----------
    conditions : Conditions
        Keeps what is wrong, and says it.
    holder : str
        See `Conditions.begin`.
    """

    def __init__(self, conditions: Conditions, holder: str = "") -> None:
        self._conditions = conditions
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
        """It answers."""
        again = " again" if self._conditions.answered else ""
        waited = self._conditions.holds(Condition.NO_ANSWER, self._holder)
        self._conditions.end(Condition.NO_ANSWER, f"connected{again}", self._holder)
        self._conditions.end(Condition.TOPIC_MISSING, f"the topic is there{again}", self._holder)
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
        """It does not; wait longer each time, with jitter, so that many clients do not come back
        at once."""
        why = scrubbed(why)
        text = f"{why}; trying again until it works"
        known = self._conditions.holds(condition)
        self._conditions.begin(condition, text, self._holder)
        # Each may be another wrong setting.
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
    """Steps that may block for long, each run in a helper thread over as many polls as it takes.

    Parameters
    ----------
    worker : ThreadPoolExecutor
    link : Link
        Says how long to wait before a step is tried again.
    """

    def __init__(self, worker: ThreadPoolExecutor, link: Link) -> None:
        self._worker = worker
        self._link = link
        self._job: Future[Any] | None = None

    def in_time(self, work: Callable[[], T], deadline: float) -> T | None:
        """Return ``work()`` or raise its error; None if it is not done by `deadline` (monotonic,
        s): ask again."""
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
        """Call `last` once the running step, if there is one, is done."""
        if self._job is not None:
            self._job.add_done_callback(lambda _: last())


class Client:
    """One kafka-python client, kept at hand so that a constructor that fails leaves no thread and
    no socket behind."""

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
        # As it is then.
        self._manager.before_sending = lambda partitions: self.before_sending(partitions)
        self._client = _NetClient(net=self.net, manager=self._manager, **configs)
        # kafka-python 3.0 does not hand this on: a topic that was deleted would be created by
        # asking for it.
        name = "allow_auto_create_topics"
        self._client.cluster.config[name] = configs.get(name, self._client.cluster.config[name])
        return self._client

    @property
    def cluster(self) -> Any:
        """What kafka-python knows of the cluster (its `ClusterMetadata`); None before the client
        is built."""
        client = self._client
        return None if client is None else client.cluster

    @property
    def failure(self) -> BaseException | None:
        """Why the newest connection could not be made; None if it could."""
        return None if self._manager is None else self._manager.failure

    def explain(self, error: BaseException) -> str:
        """Return in a person's words why something failed: with the addresses of brokers that
        cannot be reached."""
        failed = [] if self._manager is None else self._manager.failed_brokers()
        if failed and not isinstance(error, kafka_errors.BrokerResponseError):
            return "; ".join(failed)
        return str(error) or type(error).__name__

    def shown(self) -> Collection[str]:
        """Return the topics that the broker has told of."""
        return set() if self.cluster is None else self.cluster.topics()

    def check(self) -> None:
        """Raise `ConnectorError` if a broker has refused us, which waiting cannot mend."""
        if self._manager is not None and self._manager.refusal is not None:
            raise ConnectorError(f"kafka {self._manager.servers}: {self._manager.refusal}")

    def answers(self) -> bool:
        """Whether a connection to any broker is open."""
        client = self._client
        return client is not None and any(
            client.connected(broker.node_id) for broker in client.cluster.brokers()
        )

    def quiet(self, kind: str) -> str:
        """Return that no broker answers, in words for an operator; empty if one does.

        Parameters
        ----------
        kind : str
            Of the requests that matter: ``fetch`` or ``produce``.
        """
        manager = self._manager
        if manager is None or manager.silent:
            return ""
        late = manager.answers.overdue(kind)
        if late is not None:
            broker = manager.cluster.broker_metadata(late.node)
            where = "a broker" if broker is None else f"broker {broker.host}:{broker.port}"
            waits = (
                ", or waits for another broker that has a replica of the topic"
                if late.kind == PRODUCE
                else ""
            )
            return (
                f"{where} keeps its connection open but has not answered a {late.kind} request "
                f"for {late.age_s:.0f} s: it is paused, frozen or overloaded{waits}; "
                f"look at {'the brokers' if waits else 'that broker'}"
            )
        if self.answers():
            return ""
        failure = self.failure
        why = "" if failure is None else f" ({self.explain(failure)})"
        return f"no broker answers{why}; look at the brokers and the network"

    def refusal(self, topic: str) -> tuple[int, str] | None:
        """Return a partition of a topic that did not store what was sent last, and the broker's
        error."""
        return None if self._manager is None else self._manager.answers.refusal(topic)

    @property
    def forgotten(self) -> bool:
        """Whether a broker has said that it does not know the producer's transactional id any
        more."""
        return self._manager is not None and self._manager.answers.forgotten

    @property
    def stopped_by(self) -> Exception | None:
        """What `before_sending` has raised, after which nothing more is sent."""
        return None if self._manager is None else self._manager.stopped_by

    def fall_silent(self) -> None:
        """Send no request any more, whatever kafka-python still wants to; its sockets close with
        its thread."""
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
    """Says that a node is not ready where kafka-python 3.0 raises: its sender then drops the
    request that was due."""

    def await_ready(self, node_id: Any, timeout_ms: float = 30000) -> bool:
        """Return whether requests can be sent to a node, after at most so long."""
        try:
            ready: bool = super().await_ready(node_id, timeout_ms=timeout_ms)
        except (kafka_errors.KafkaConnectionError, kafka_errors.NodeNotReadyError):
            time.sleep(NOT_READY_S)  # kafka-python asks again at once
            return False
        return ready


class _Manager(KafkaConnectionManager):  # type: ignore[misc]
    """Keeps why connections fail, which kafka-python only logs, and gives up at the first that can
    never be made.

    Sends nothing once it is silent. kafka-python answers a broker that calls its epoch old with a
    request for the next one (KIP-360), which would take the transaction from whoever has it now: a
    transactional producer is fenced then.
    """

    on_bump: Callable[[], None] = staticmethod(lambda: None)
    before_sending: Callable[[Collection[int]], None] = staticmethod(lambda partitions: None)
    """Called with the partitions of what is produced; what it raises ends the producer."""
    stopped_by: Exception | None = None
    silent = False
    known: Sequence[str] = ()
    """The servers that the user has named."""

    def __init__(self, net: NetworkSelector, **configs: Any) -> None:
        super().__init__(net, **configs)
        self.servers = ",".join(configs["bootstrap_servers"])
        self.answers = Answers()
        self.failure: BaseException | None = None
        self.refusal: str | None = None
        self._unreachable: dict[Any, str] = {}
        self._reached: set[Any] = set()

    def get_connection(self, node_id: Any, *args: Any, **kwargs: Any) -> Any:
        """Return it; a new one is watched."""
        if self.refusal is not None:  # the one error after which kafka-python does not try again
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
        """Send a request, unless it must not be."""
        if (
            isinstance(request, InitProducerIdRequest)
            and request.transactional_id
            and request.producer_id >= 0
        ):
            self.on_bump()
        if isinstance(request, ProduceRequest) and not self.silent:
            self._ask_before(request)
        if self.silent:
            return KafkaFuture().failure(
                kafka_errors.ProducerFencedError("this producer says nothing more")
            )
        node_id = node_id if node_id is not None else self.least_loaded_node()
        future = super().send(request, node_id=node_id, request_timeout_ms=request_timeout_ms)
        self.answers.sent(request, node_id, future)
        return future

    def _ask_before(self, request: Any) -> None:
        try:
            self.before_sending(
                {part.index for topic in request.topic_data for part in topic.partition_data}
            )
        except Exception as error:  # of the engine, to be raised in its own thread
            self.stopped_by = error
            self.silent = True

    def _made(self, node_id: Any) -> None:
        self.failure = None
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
        number = str(node_id).rpartition("-")[2]  # of a group's coordinator, too
        self._unreachable[node_id] = (
            f"broker {number} at {address} cannot be reached: {address_reason(error)}{hint}"
        )

    def failed_brokers(self) -> list[str]:
        """Return the addresses of brokers to which the newest connection could not be made, and
        why."""
        return [
            why
            for node, why in list(self._unreachable.items())
            if self.cluster.broker_metadata(node) is not None
        ]


class Reach:
    """How to reach a cluster.

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
                expected = "host:port; user names and passwords stand in security"
                raise ConfigError("servers", without_credentials(servers), expected)
        remember("security", security)
        self._security = check_security(security)
        self._answering: str | None = None
        self._told: set[str] = set()

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
        """Settings that every kafka-python client takes."""
        return {
            "bootstrap_servers": self.servers if self._answering is None else [self._answering],
            "bootstrap_timeout_ms": BOOTSTRAP_MS,
            "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
            **self._security,
        }

    def probe(self) -> None:
        """Raise unless one of the servers answers as a Kafka broker; remember which.

        Far cheaper than a client, and bounded: kafka-python waits for ever for one who is silent
        in a TLS handshake. The client then begins with the server that answered: kafka-python
        takes any of them, and may spend all of its time on a wrong one.

        Raises
        ------
        ConnectionError
            If none answers now.
        ConnectorError
            If none ever will: every one is of another kind than `security` says, or not to be
            trusted.
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
                self._tell_refused(refusals)
                self._answering = server
                return
        self._answering = None
        if errors:
            raise ConnectionError("; ".join(map(str, [*errors, *refusals])))
        raise ConnectorError("; ".join(map(str, refusals))) from refusals[0]

    def _tell_refused(self, refusals: Sequence[ConnectorError]) -> None:
        """Log once what is wrong with some of the servers, where another one answers."""
        for text in map(str, refusals):
            if text not in self._told:
                self._told.add(text)
                log.warning("%s; another one of servers answers, and is used", text)

    def _build(self, kind: Callable[..., Any], client: Client, configs: Mapping[str, Any]) -> Any:
        self.probe()
        let_client_speak()
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
        offered = mechanisms_at(server, self._security) or "no other that it names"
        asked = self._security.get("sasl_mechanism")
        text = (
            f"the broker does not take this security.sasl_mechanism ({asked}); it takes {offered}"
        )
        return ConnectorError(f"kafka {server}: {text}")

    def _why(self, failure: BaseException) -> str:
        """Say why there is no connection, in words that help where the client's own are none.

        Raises
        ------
        ConnectorError
            If the broker asks for a password, and there is none.
        """
        server = self._answering or self.servers[0]
        if demand := password_demand(server, self._security):
            raise ConnectorError(f"kafka {server}: {demand}")
        said = f"{server} answers, but takes no requests: {failure or type(failure).__name__}"
        protocol = self._security.get("security_protocol", "PLAINTEXT")
        if protocol.endswith("SSL") and not self._security.get("ssl_certfile"):
            said += "; if it asks for a client certificate, set security.ssl_certfile"
        if protocol.startswith("SASL"):
            said += "; some brokers only close the connection where the password is wrong"
        return said
