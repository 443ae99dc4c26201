"""An Apache Kafka with ACLs and several listeners: TLS, client certificates, passwords, wrong
addresses.

The listener ``open`` requires nothing and has all rights; at the others a user has the rights
given by `Guarded.allow`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)
from own_broker import OwnBroker, free_ports
from secured_broker import Certificates

USERS: Final = {"admin": "admin-secret", "alice": "rabbit-hole"}
PROTOCOLS: Final = {
    "open": "PLAINTEXT",
    "tls": "SSL",
    "mutual": "SSL",
    "elsewhere": "SSL",
    "sasl": "SASL_PLAINTEXT",
    "sasltls": "SASL_SSL",
    "deadend": "PLAINTEXT",
    "noname": "PLAINTEXT",
    "dropped": "PLAINTEXT",
}
"""Listener -> protocol. The last three work, but advertise an address that does not."""


@contextmanager
def silent_port(*, listen: bool) -> Iterator[int]:
    """Yield a port without an answer: refused, or with `listen` dropped, as by a firewall."""
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        port: int = end.getsockname()[1]
        if not listen:
            yield port
            return
        end.listen(0)
        waiting = []
        try:
            for _ in range(4):  # a full queue: further attempts get no answer
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
                waiting.append(one)
            yield port
        finally:
            for one in waiting:
                one.close()


class Guarded:
    """The broker; `servers` has the address of each listener.

    Parameters
    ----------
    folder : Path
    silent : tuple of int
        A port that refuses connections, and one that drops them.
    """

    def __init__(self, folder: Path, silent: tuple[int, int], port: int | None = None) -> None:
        (folder / "other").mkdir(parents=True)
        self.certificates = Certificates(folder)
        self.elsewhere = Certificates(folder / "other", "kafka.example.org")
        free = free_ports(len(PROTOCOLS))
        first = free[0] if port is None else port
        ports = dict(
            zip(
                ["open", *(name for name in PROTOCOLS if name != "open")],
                [first, *free[1:]],
                strict=True,
            )
        )
        self.servers = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        advertised = self.servers | {
            "deadend": f"127.0.0.1:{silent[0]}",
            "dropped": f"127.0.0.1:{silent[1]}",
            "noname": f"kafka-0.kafka.invalid:{ports['noname']}",
        }
        self.advertised = advertised
        self.broker = OwnBroker(folder, self._lines(folder, first, advertised), first)
        self._allow_everything("admin")

    def _lines(self, folder: Path, first: int, advertised: dict[str, str]) -> list[str]:
        here, there = _store(folder, self.certificates), _store(folder / "other", self.elsewhere)
        users = " ".join(f'user_{name}="{password}"' for name, password in USERS.items())
        login = f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        lines = {
            "listeners": ",".join(f"{n.upper()}://{at}" for n, at in self.servers.items())
            + f",CONTROLLER://127.0.0.1:{first + 1}",
            "advertised.listeners": ",".join(
                f"{n.upper()}://{at}" for n, at in advertised.items()
            ),
            "listener.security.protocol.map": ",".join(
                f"{n.upper()}:{p}" for n, p in PROTOCOLS.items()
            )
            + ",CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "OPEN",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(here),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.certificates.ca_file),
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.elsewhere.ssl.keystore.type": "PEM",
            "listener.name.elsewhere.ssl.keystore.location": str(there),
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
            "transaction.max.timeout.ms": "60000",
            "auto.create.topics.enable": "false",
        }
        for name in ("sasl", "sasltls"):
            lines[f"listener.name.{name}.plain.sasl.jaas.config"] = login
            lines[f"listener.name.{name}.scram-sha-256.sasl.jaas.config"] = scram
        return [f"{name}={value}" for name, value in lines.items()]

    def stop(self) -> None:
        self.broker.stop()

    def login(self, user: str = "alice", **more: Any) -> dict[str, Any]:
        """Return the security settings of a user at the listener ``sasl``."""
        return {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": user,
            "sasl_plain_password": USERS[user],
            **more,
        }

    @contextmanager
    def admin(self) -> Iterator[Any]:
        client = KafkaAdminClient(bootstrap_servers=self.servers["open"])
        try:
            yield client
        finally:
            client.close()

    def allow(self, *rights: str, user: str = "alice") -> None:
        """Give rights: ``"Read topic in"``, ``"Write transactional-id a/b/0"``,
        ``"IdempotentWrite cluster"``."""
        with self.admin() as admin:
            done = admin.create_acls([_acl(right, user) for right in rights])
        assert not done["failed"], done

    def deny(self, *rights: str, user: str = "alice") -> None:
        """Deny something, whatever else is allowed."""
        with self.admin() as admin:
            done = admin.create_acls(
                [_acl(right, user, ACLPermissionType.DENY) for right in rights]
            )
        assert not done["failed"], done

    def revoke_all(self, user: str = "alice") -> None:
        """Remove every right, and every denial."""
        anything = ResourcePatternFilter(ResourceType.ANY, None, pattern_type=_any_pattern())
        principal = f"User:{user}"
        with self.admin() as admin:
            admin.delete_acls(
                [ACLFilter(principal, "*", ACLOperation.ANY, ACLPermissionType.ANY, anything)]
            )

    def _allow_everything(self, user: str) -> None:
        self.allow(
            "All topic *", "All group *", "All transactional-id *", "All cluster", user=user
        )


def _any_pattern() -> Any:
    from kafka.admin import ACLResourcePatternType

    return ACLResourcePatternType.ANY


def _acl(right: str, user: str, permission: ACLPermissionType = ACLPermissionType.ALLOW) -> ACL:
    operation, kind, *name = right.split(" ")
    words = {"IdempotentWrite": "IDEMPOTENT_WRITE", "DescribeConfigs": "DESCRIBE_CONFIGS"}
    pattern = ResourcePattern(
        ResourceType[kind.upper().replace("-", "_")], name[0] if name else "kafka-cluster"
    )
    which = ACLOperation[words.get(operation, operation.upper())]
    return ACL(f"User:{user}", "*", which, permission, pattern)


def _store(folder: Path, certificates: Certificates) -> Path:
    """Write a PEM key store for Kafka: the unencrypted key, and its certificates."""
    key = load_pem_private_key(certificates.server.private_key_pem.bytes(), None)
    store = folder / "store.pem"
    chain = [pem.bytes() for pem in certificates.server.cert_chain_pems]
    store.write_bytes(
        b"".join(
            [
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
                *chain,
                certificates.ca.cert_pem.bytes(),
            ]
        )
    )
    return store


@contextmanager
def guarded(folder: Path, port: int | None = None) -> Iterator[Guarded]:
    """Start the broker, and stop it at the end."""
    with silent_port(listen=False) as refused, silent_port(listen=True) as dropped:
        broker = Guarded(folder, (refused, dropped), port)
        try:
            yield broker
        finally:
            broker.stop()
