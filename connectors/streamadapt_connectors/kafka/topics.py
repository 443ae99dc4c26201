"""Reads the present metadata of topics: whether they exist, whether they were recreated, and their
numbers of partitions."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from kafka import errors as kafka_errors

from streamadapt.config.durations import duration_ns
from streamadapt.errors import ConfigError
from streamadapt_connectors.kafka.client import Client

__all__ = ["Topics", "metadata_age_of"]

GONE_S: Final = 2.0
"""A broker that has just started may not know every topic for a moment."""
FRESH_S: Final = 1.0
MIN_AGE_MS: Final = 100


def metadata_age_of(age: str) -> dict[str, int]:
    """Return kafka-python's setting for the largest age of its metadata."""
    age_ms = duration_ns("source.metadata_max_age", age) // 1_000_000
    if not age_ms >= MIN_AGE_MS:
        raise ConfigError("source.metadata_max_age", age, f"a duration >= {MIN_AGE_MS} ms")
    return {"metadata_max_age_ms": age_ms}


class Topics:
    """A client's metadata of some topics. Reading it costs no request; `refresh` asks the broker.

    Parameters
    ----------
    client : Client
    names : sequence of str
    """

    def __init__(self, client: Client, names: Sequence[str]) -> None:
        self._client = client
        self._names = tuple(names)
        self._missing_since: dict[str, float] = {}
        self._fresh_at = float("-inf")

    def identity(self, topic: str) -> str | None:
        """Return the topic's id, which differs after the topic was recreated; None if the brokers
        have no topic ids."""
        cluster = self._client.cluster
        topic_id = None if cluster is None else cluster.topic_id(topic)
        return None if topic_id is None or not topic_id.int else str(topic_id)

    def counts(self) -> dict[str, int]:
        """Return the number of partitions of each topic; 0 for a topic that does not exist."""
        cluster = self._client.cluster
        if cluster is None:
            return dict.fromkeys(self._names, 0)
        return {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in self._names}

    def denied(self) -> list[str]:
        """Return the topics that the broker does not show because the user has no right to
        them."""
        cluster = self._client.cluster
        return [] if cluster is None else sorted(cluster.unauthorized_topics & set(self._names))

    def gone(self) -> list[str]:
        """Return the topics that have not existed for `GONE_S`."""
        now = time.monotonic()
        for topic, count in self.counts().items():
            if count or topic in self.denied():
                self._missing_since.pop(topic, None)
            else:
                self._missing_since.setdefault(topic, now)
        return [
            topic for topic, since in list(self._missing_since.items()) if now - since >= GONE_S
        ]

    @property
    def fresh(self) -> bool:
        """Whether the broker was asked within the last `FRESH_S` seconds."""
        return time.monotonic() - self._fresh_at < FRESH_S

    def refresh(self, timeout_s: float) -> bool:
        """Ask the broker and wait for its answer; False if none came in time."""
        cluster = self._client.cluster
        if cluster is None:
            return False
        deadline = time.monotonic() + timeout_s
        asked_at = time.monotonic()
        if cluster.metadata_refresh_in_progress and not _answered(cluster, deadline):
            return False  # the answer to an earlier request may be older than this call
        if not _answered(cluster, deadline):
            return False
        self._fresh_at = asked_at
        return True


def _answered(cluster: Any, deadline: float) -> bool:
    """Request the metadata, and wait for it; that a topic does not exist is an answer, too."""
    done, failures = threading.Event(), list[BaseException]()

    def failed(error: BaseException) -> None:
        failures.append(error)
        done.set()

    future = cluster.request_update()
    future.add_callback(lambda _: done.set())
    future.add_errback(failed)
    if not done.wait(max(0.0, deadline - time.monotonic())):
        return False
    return all(isinstance(error, kafka_errors.BrokerResponseError) for error in failures)
