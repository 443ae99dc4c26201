"""Kafka: a source of records, a sink for predictions, a sink for dead letters."""

from streamadapt_connectors.kafka_sink import KafkaDeadLetters, KafkaSink
from streamadapt_connectors.kafka_source import KafkaSource

__all__ = ["KafkaDeadLetters", "KafkaSink", "KafkaSource"]
