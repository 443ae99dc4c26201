"""A listener that requires TLS, a password, or both, and passes admitted connections on to the
embedded broker.

It is a stand-in. The embedded broker accepts the options for TLS but does not support it, and with
its option for authentication it admits no client, since only an admitted client can create users.
So this file does handshakes and refusals (with OpenSSL's TLS); everything after them is the
broker's own.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from streamadapt.app.demo.broker import EmbeddedBroker

SASL_HANDSHAKE, API_VERSIONS, SASL_AUTHENTICATE = 17, 18, 36
REFUSED = 58  # SASL_AUTHENTICATION_FAILED
NOT_OFFERED = 33  # UNSUPPORTED_SASL_MECHANISM
ITERATIONS = 4096


class Certificates:
    """A CA, a certificate of the broker, one of a client with its encrypted key, and an unknown
    CA."""

    password = "key-password"

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.ca, stranger = trustme.CA(), trustme.CA()
        self.server = self.ca.issue_cert(host)
        self.ca_file, self.stranger_file = folder / "ca.pem", folder / "stranger.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        stranger.cert_pem.write_to_path(str(self.stranger_file))
        self.cert_file, self.key_file = self._client(folder, "client", self.ca)
        self.stranger_cert_file, self.stranger_key_file = self._client(
            folder, "stranger-client", stranger
        )

    def _client(self, folder: Path, name: str, ca: trustme.CA) -> tuple[Path, Path]:
        issued = ca.issue_cert("streamadapt@example.org")
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(str(cert))
        private = load_pem_private_key(issued.private_key_pem.bytes(), None)
        encryption = BestAvailableEncryption(self.password.encode())
        key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return cert, key

    def context(self, *, ask_client: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.configure_cert(context)
        if ask_client:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        return context


@dataclass
class Door:
    """The requirements for a client, and the outcome of each connection."""

    tls: ssl.SSLContext | None = None
    users: dict[str, str] | None = None
    mechanisms: tuple[str, ...] = ("PLAIN", "SCRAM-SHA-256")
    refusal_text: str = "Authentication failed"
    admitted: int = 0
    refused: int = 0


class Secured:
    """The listener; the broker must advertise `port`. One thread per client."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.target_port = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._cuts = 0
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(30)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)

    def cut(self) -> None:
        """Close every connection; new ones are admitted by the door's current settings."""
        self._cuts += 1

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(near,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, raw: socket.socket) -> None:
        raw.settimeout(10.0)
        near = raw
        with contextlib.suppress(OSError, EOFError), contextlib.ExitStack() as stack:
            stack.callback(lambda: near.close())
            if self.door.tls is not None:
                near = self.door.tls.wrap_socket(
                    raw, server_side=True, do_handshake_on_connect=False
                )
                try:
                    near.do_handshake()
                except OSError:
                    self.door.refused += 1
                    _read_out(near)
                    raise
            far = stack.enter_context(
                socket.create_connection(("127.0.0.1", self.target_port), timeout=10.0)
            )
            if self.door.users is not None and not self._admit(near, far):
                self.door.refused += 1
                self._wait_for_end(near)
                return
            self.door.admitted += 1
            self._pass_on(near, far)

    def _wait_for_end(self, near: socket.socket) -> None:
        """Leave the client time to read the reason, as Kafka does
        (connection.failed.authentication.delay.ms)."""
        near.settimeout(0.5)
        with contextlib.suppress(OSError):
            while near.recv(1 << 16):
                pass

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        other, cuts = {near: far, far: near}, self._cuts
        while not self._closing.is_set() and self._cuts == cuts:
            for end in select.select(list(other), [], [], 0.1)[0]:
                data = end.recv(1 << 16)
                if not data:
                    return
                # decrypted, so select no longer reports it
                while isinstance(end, ssl.SSLSocket) and end.pending():
                    data += end.recv(1 << 16)
                other[end].sendall(data)

    def _admit(self, near: socket.socket, far: socket.socket) -> bool:
        """Talk to a client until it is admitted; the broker itself answers the request for its
        versions."""
        login: Login | None = None
        while True:
            request = frame_of(near)
            api, version, number, size = struct.unpack(">hhih", request[:10])
            body = request[10 + max(size, 0) :]
            head = struct.pack(">i", number)
            if api == API_VERSIONS:
                far.sendall(framed(request))
                near.sendall(framed(frame_of(far)))
            elif api == SASL_HANDSHAKE:
                mechanism = body[2:].decode()
                offered = self.door.mechanisms
                login = Login(mechanism, self.door.users or {}) if mechanism in offered else None
                names = b"".join(struct.pack(">h", len(name)) + name.encode() for name in offered)
                code = 0 if login else NOT_OFFERED
                near.sendall(framed(head + struct.pack(">hi", code, len(offered)) + names))
            elif api == SASL_AUTHENTICATE and login is not None:
                answer = login.answer(token_of(body, version))
                near.sendall(framed(head + authenticated(answer, self.door.refusal_text, version)))
                if answer is None or login.done:
                    return answer is not None
            else:
                return False  # as a broker does with a client that does not authenticate


def _read_out(near: ssl.SSLSocket) -> None:
    """Read the rest, so that closing sends no reset, which would overtake the alert."""
    raw = socket.socket(fileno=near.detach())
    with raw, contextlib.suppress(OSError):
        raw.settimeout(1.0)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(1 << 16):
            pass


def frame_of(end: socket.socket) -> bytes:
    return exactly(end, struct.unpack(">i", exactly(end, 4))[0])


def exactly(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = end.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def framed(content: bytes) -> bytes:
    return struct.pack(">i", len(content)) + content


def token_of(body: bytes, version: int) -> bytes:
    if version < 2:
        return body[4:]
    body = body[1:]  # no tags in the header
    size, shift = 0, 0
    for at, byte in enumerate(body):
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return body[at + 1 : at + size]
    raise ValueError("a length without an end")


def authenticated(answer: bytes | None, refusal_text: str, version: int) -> bytes:
    code, error_text, token = (
        (REFUSED, refusal_text.encode(), b"") if answer is None else (0, None, answer)
    )
    if version < 2:
        message = (
            struct.pack(">h", -1)
            if error_text is None
            else struct.pack(">h", len(error_text)) + error_text
        )
        lifetime = b"" if version == 0 else struct.pack(">q", 0)
        return struct.pack(">h", code) + message + struct.pack(">i", len(token)) + token + lifetime
    message = compact(error_text)
    return (
        b"\0" + struct.pack(">h", code) + message + compact(token) + struct.pack(">q", 0) + b"\0"
    )


def compact(value: bytes | None) -> bytes:
    if value is None:
        return b"\0"
    size, out = len(value) + 1, bytearray()
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size]) + value


class Login:
    """PLAIN (RFC 4616) or SCRAM-SHA-256 (RFC 5802, 7677), the server's side."""

    def __init__(self, mechanism: str, users: dict[str, str]) -> None:
        self.mechanism, self.users, self.done = mechanism, users, False
        self._first = self._auth = b""
        self._user = ""

    def answer(self, token: bytes) -> bytes | None:
        """Return the answer to the client; None if it is refused."""
        if self.mechanism == "PLAIN":
            _, user, password = token.decode().split("\0")
            self.done = True
            return b"" if self.users.get(user) == password else None
        return self._final(token) if self._first else self._challenge(token)

    def _challenge(self, token: bytes) -> bytes:
        bare = token.removeprefix(b"n,,")
        fields = dict(part.split("=", 1) for part in bare.decode().split(","))
        self._user, self._salt = fields["n"], secrets.token_bytes(16)
        salt = base64.b64encode(self._salt).decode()
        self._first = f"r={fields['r']}{secrets.token_hex(8)},s={salt},i={ITERATIONS}".encode()
        self._auth = bare + b"," + self._first
        return self._first

    def _final(self, token: bytes) -> bytes | None:
        self.done = True
        without_proof, _, proof = token.partition(b",p=")
        signed = self._auth + b"," + without_proof
        password = self.users.get(self._user, secrets.token_hex(8)).encode()
        salted = hashlib.pbkdf2_hmac("sha256", password, self._salt, ITERATIONS)
        stored = hashlib.sha256(mac(salted, b"Client Key")).digest()
        signature = mac(stored, signed)
        key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), signature, strict=True))
        if hashlib.sha256(key).digest() != stored:
            return None
        return b"v=" + base64.b64encode(mac(mac(salted, b"Server Key"), signed))


def mac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).digest()


@contextmanager
def secured(door: Door) -> Iterator[tuple[str, Secured]]:
    """Start the listener and the broker; yield the listener's ``host:port`` and itself."""
    listener = Secured(door)
    try:
        with EmbeddedBroker(advertised_port=listener.port) as broker:
            listener.target_port = broker.port
            yield f"127.0.0.1:{listener.port}", listener
    finally:
        listener.close()
