"""Sources, sinks, clocks and a transactional log in memory, for tests of a pipeline or an
engine."""

from streamadapt.testing.memory import (
    CRASH,
    IdentityCodec,
    ManualClock,
    MemoryDeadLetters,
    MemorySink,
    MemorySource,
    SimulatedCrash,
    encode,
)
from streamadapt.testing.transactions import LogSink, TransactionalLog

__all__ = [
    "CRASH",
    "IdentityCodec",
    "LogSink",
    "ManualClock",
    "MemoryDeadLetters",
    "MemorySink",
    "MemorySource",
    "SimulatedCrash",
    "TransactionalLog",
    "encode",
]
