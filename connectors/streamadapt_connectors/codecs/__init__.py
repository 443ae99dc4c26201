"""From the bytes of a record to entries and labels, and from predictions to bytes."""

from __future__ import annotations

from streamadapt_connectors.codecs.json_codec import FieldMap, JsonCodec, Limits, encode_prediction

__all__ = ["FieldMap", "JsonCodec", "Limits", "encode_prediction"]
