"""Files: finite sources, sinks for predictions and dead letters, and history for fitting."""

from __future__ import annotations

from streamadapt_connectors.files.dead_letters import FilesStreamWriter, JsonlDeadLetterReader
from streamadapt_connectors.files.reading import is_csv
from streamadapt_connectors.files.sinks import JsonlDeadLetters, JsonlSink
from streamadapt_connectors.files.source import FilesSource, History, read_history

__all__ = [
    "FilesSource",
    "FilesStreamWriter",
    "History",
    "JsonlDeadLetterReader",
    "JsonlDeadLetters",
    "JsonlSink",
    "is_csv",
    "read_history",
]
