"""Checks with a small request which kind of server answers at an address, before kafka-python
connects.

kafka-python reports a port with another protocol, or a frozen broker, only as a lost connection or
a timeout.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from streamadapt.errors import ConfigError, ConnectorError
from streamadapt_connectors.kafka.security import refusal_of, tls_context

__all__ = ["address_reason", "check_server", "mechanisms_at", "password_demand"]

CONNECT_S: Final = 2.0
"""The timeout of a TCP connection, and of a TLS handshake."""
ANSWER_S: Final = 5.0
SECOND_ANSWER_S: Final = 1.0
MAX_BYTES: Final = 1 << 16
API_VERSIONS: Final = 18
SASL_HANDSHAKE: Final = 17
METADATA: Final = 3
NO_SASL_HERE: Final = 34
CLOSED: Final = ("socket disconnected", "Connection reset")
"""Parts of kafka-python's messages about a closed connection."""
TLS_ALERT: Final = b"\x15\x03"

IS_TLS: Final = (
    "this port speaks TLS, and security.security_protocol is {now!r}: set it to 'SSL', or to "
    "'SASL_SSL' with a user name and a password, or name the broker's port without TLS in servers"
)
IS_PLAIN: Final = (
    "this port speaks Kafka without TLS, and security.security_protocol is {now!r}: name the "
    "broker's TLS port in servers, or, if no encryption is needed, set it to {plain!r}"
)
IS_WEB: Final = "a web server answers at this port, not a Kafka broker: correct servers"
IS_OTHER: Final = "what answers at this port is not a Kafka broker: correct servers"
IS_CONTROLLER: Final = (
    "this is the port of a Kafka controller, not of a broker: name the brokers' ports in servers"
)
IS_SILENT: Final = (
    f"it accepts connections, and does not answer within {ANSWER_S:g} s: the broker is frozen "
    "or overloaded, or it is not a Kafka broker"
)
IS_CLOSED: Final = (
    "it closes the connection without an answer: a broker that is starting or has too many "
    "connections, or not a Kafka broker"
)
NO_TLS_ANSWER: Final = (
    f"it accepts connections, and does not answer to a TLS handshake within {CONNECT_S:g} s: "
    "the broker is frozen or overloaded, or not a Kafka broker; does it speak TLS?"
)


class UnansweredError(ConnectionError):
    """Raised if nothing answers at an address now; its text is complete."""


def check_server(server: str, security: Mapping[str, Any]) -> None:
    """Raise unless a Kafka broker answers at an address with the protocol in `security`.

    This sends a request for the broker's versions, which every broker answers before it asks for a
    password.

    Parameters
    ----------
    server : str
        ``host:port``.
    security : mapping
        See `check_security`.

    Raises
    ------
    ConnectorError
        If another kind of server answers, which waiting cannot solve.
    ConnectionError
        If nothing answers now.
    """
    protocol = security.get("security_protocol", "PLAINTEXT")
    try:
        with _connected(server) as raw, _secured(raw, server, security) as end:
            answer = _ask(end, API_VERSIONS, ANSWER_S)
    except UnansweredError:
        raise
    except ssl.SSLError as error:
        _judge_tls_failure(server, protocol, error)
    except TimeoutError:
        web = _exchange(server, b"GET / HTTP/1.0\r\n\r\n") if "SSL" not in protocol else b""
        if web.startswith(b"HTTP/"):
            raise ConnectorError(f"kafka {server}: {IS_WEB}") from None
        raise ConnectionError(f"{server}: {IS_SILENT}") from None
    except ConnectionError as error:
        if "SSL" in protocol:
            _judge_tls_failure(server, protocol, error)
        raise
    else:
        _judge_answer(server, security, answer)


def address_reason(error: BaseException | str) -> str:
    """Return a message about a failed connection, from an error of the system or of
    kafka-python."""
    message = str(error)
    if isinstance(error, socket.gaierror) or "DNS" in message:
        return "the host name cannot be resolved"
    if isinstance(error, ConnectionRefusedError) or "ECONNREFUSED" in message:
        return "nothing listens there (connection refused)"
    if isinstance(error, TimeoutError) or "timed out" in message.lower():
        return (
            f"no answer within {CONNECT_S:g} s: the host is down, or a firewall drops the "
            f"connection"
        )
    if isinstance(error, ConnectionResetError) or any(words in message for words in CLOSED):
        return (
            "it closes the connection: the broker is starting or stopping, or a firewall or proxy "
            "closes it"
        )
    return message or type(error).__name__


def password_demand(server: str, security: Mapping[str, Any]) -> str | None:
    """Return what to do if a broker asks for a password and `security` has none; None if the
    broker does not ask for a password."""
    protocol = security.get("security_protocol", "PLAINTEXT")
    mechanisms = "" if protocol.startswith("SASL") else mechanisms_at(server, security)
    if not mechanisms:
        return None
    needed = "SASL_SSL" if protocol == "SSL" else "SASL_PLAINTEXT"
    return (
        f"this port asks for a user name and a password, and security.security_protocol is "
        f"{protocol!r}: set it to {needed!r}, with security.sasl_mechanism ({mechanisms}), "
        f"sasl_plain_username and sasl_plain_password"
    )


def mechanisms_at(server: str, security: Mapping[str, Any]) -> str:
    """Return the SASL mechanisms that a broker offers at an address, separated by commas; empty if
    it offers none."""
    answer = b""
    with suppress(OSError), _connected(server) as raw, _secured(raw, server, security) as end:
        answer = _ask(end, SASL_HANDSHAKE, SECOND_ANSWER_S, struct.pack(">h5s", 5, b"PLAIN"))
    body = answer[8:]  # after the size and the correlation id
    if len(body) < 6 or struct.unpack(">i", answer[4:8])[0] != SASL_HANDSHAKE:
        return ""
    code, count = struct.unpack(">hi", body[:6])
    return "" if code == NO_SASL_HERE else ", ".join(_strings(body[6:], count))


def _judge_answer(server: str, security: Mapping[str, Any], answer: bytes) -> None:
    protocol = security.get("security_protocol", "PLAINTEXT")
    if not answer:
        if "SSL" not in protocol and _speaks_tls(server):
            _is_tls(server, protocol)
        asks = "SSL" in protocol and not security.get("ssl_certfile")
        more = "; if it asks for a client certificate, set security.ssl_certfile" if asks else ""
        raise ConnectionError(f"{server}: {IS_CLOSED}{more}")
    if answer.startswith(TLS_ALERT):
        _is_tls(server, protocol)
    keys = _api_keys(answer)
    if keys is None:
        web = answer.startswith(b"HTTP/")
        raise ConnectorError(f"kafka {server}: {IS_WEB if web else IS_OTHER}")
    if keys and METADATA not in keys:
        raise ConnectorError(f"kafka {server}: {IS_CONTROLLER}")


def _is_tls(server: str, protocol: str) -> None:
    raise ConnectorError(f"kafka {server}: {IS_TLS.format(now=protocol)}")


def _judge_tls_failure(server: str, protocol: str, error: OSError) -> None:
    """Raise the error for a failed TLS handshake, after a check whether the port speaks Kafka
    without TLS."""
    if refusal := refusal_of(error):
        if "does not speak TLS" in refusal and _exchange(
            server, b"GET / HTTP/1.0\r\n\r\n"
        ).startswith(b"HTTP/"):
            refusal = IS_WEB
        raise ConnectorError(f"kafka {server}: {refusal}") from error
    if _api_keys(_exchange(server, _request(API_VERSIONS, b""))) is not None:
        plain = "SASL_PLAINTEXT" if protocol.startswith("SASL") else "PLAINTEXT"
        raise ConnectorError(
            f"kafka {server}: {IS_PLAIN.format(now=protocol, plain=plain)}"
        ) from error
    raise ConnectionError(f"{server}: the TLS handshake failed: {error}") from error


@contextmanager
def _connected(server: str) -> Iterator[socket.socket]:
    host, _, port = server.rpartition(":")
    try:
        end = socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S)
    except OSError as error:
        raise UnansweredError(f"{server}: {address_reason(error)}") from error
    with end:
        yield end


@contextmanager
def _secured(
    end: socket.socket, server: str, security: Mapping[str, Any]
) -> Iterator[socket.socket]:
    """Yield the connection, after a TLS handshake if `security` requires TLS."""
    if not security.get("security_protocol", "").endswith("SSL"):
        yield end
        return
    try:
        context = tls_context(security)
    except ConfigError as error:
        # The files were valid at the start: perhaps they are being replaced.
        raise UnansweredError(f"{server}: {error}") from error
    host = server.rpartition(":")[0].strip("[]").rstrip(".")
    try:
        wrapped = context.wrap_socket(end, server_hostname=host)
    except TimeoutError:
        raise UnansweredError(f"{server}: {NO_TLS_ANSWER}") from None
    with wrapped:
        yield wrapped


def _request(key: int, body: bytes) -> bytes:
    """Return a request of version 0; its correlation id is the API key."""
    client = b"streamadapt"
    header = struct.pack(">hhih", key, 0, key, len(client)) + client
    return struct.pack(">i", len(header) + len(body)) + header + body


def _ask(end: socket.socket, key: int, timeout_s: float, body: bytes = b"") -> bytes:
    """Return the answer to a request, with its size and correlation id; empty if the connection
    was closed."""
    end.settimeout(timeout_s)
    try:
        end.sendall(_request(key, body))
        answer = end.recv(MAX_BYTES)
        while len(answer) >= 4 and answer[:4] != b"HTTP" and _lacks(answer):
            more = end.recv(MAX_BYTES)
            if not more:
                return answer
            answer += more
    except (ConnectionResetError, BrokenPipeError):
        return b""
    return answer


def _lacks(answer: bytes) -> bool:
    size: int = struct.unpack(">i", answer[:4])[0]
    return 0 < size <= MAX_BYTES and len(answer) < size + 4


def _api_keys(answer: bytes) -> set[int] | None:
    """Return the API keys in a broker's answer to the request for its versions; None if this is
    not such an answer."""
    if len(answer) < 14 or struct.unpack(">i", answer[4:8])[0] != API_VERSIONS:
        return None
    count = struct.unpack(">i", answer[10:14])[0]
    rows = answer[14 : 14 + 6 * max(0, count)]
    return {struct.unpack(">h", rows[i : i + 2])[0] for i in range(0, len(rows) - 5, 6)}


def _strings(data: bytes, count: int) -> Iterator[str]:
    for _ in range(count):
        if len(data) < 2:
            return
        size = struct.unpack(">h", data[:2])[0]
        yield data[2 : 2 + size].decode("utf-8", "replace")
        data = data[2 + size :]


def _exchange(server: str, request: bytes) -> bytes:
    """Send bytes without encryption and return the first bytes of the answer; empty if there is no
    answer."""
    with suppress(OSError), _connected(server) as end:
        end.settimeout(SECOND_ANSWER_S)
        end.sendall(request)
        return end.recv(MAX_BYTES)
    return b""


def _speaks_tls(server: str) -> bool:
    """Return whether the other side answers to a TLS handshake; nothing is sent after it, and the
    certificate is not checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with _connected(server) as end, context.wrap_socket(end):
            return True
    except ssl.SSLError as error:
        return "ALERT" in str(error.reason)
    except OSError:
        return False
