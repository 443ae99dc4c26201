"""Kafka: a source of records, a sink for predictions, a sink and a reader for dead letters."""

from streamadapt_connectors.kafka.dead_letters import KafkaDeadLetterReader, KafkaStreamWriter
from streamadapt_connectors.kafka.sink import KafkaDeadLetters, KafkaSink
from streamadapt_connectors.kafka.source import KafkaSource

__all__ = [
    "KafkaDeadLetterReader",
    "KafkaDeadLetters",
    "KafkaSink",
    "KafkaSource",
    "KafkaStreamWriter",
]
