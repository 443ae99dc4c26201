"""Decodes the bytes of records to entries and labels, and encodes predictions as bytes."""

from __future__ import annotations

from streamadapt_connectors.codecs.json_codec import FieldMap, JsonCodec, Limits, encode_prediction

__all__ = ["FieldMap", "JsonCodec", "Limits", "encode_prediction"]
