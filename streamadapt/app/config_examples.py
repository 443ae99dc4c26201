"""Contains an example of each table and each kind of a config; a test reads and builds every
example."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["EXAMPLES"]

_TEXT: Final = """
# == top
guarantee = "effectively-once"
seed = 1
# == source.files
[source]
kind = "files"
path = ["2024.csv", "2025.csv"]
label_path = "labels.csv"
delimiter = ";"
# == source.kafka
[source]
kind = "kafka"
servers = "broker-1:9092,broker-2:9092"
topic = "entries"
label_topic = "labels"
group = "forecasts"
# == source.security
[source.security]
security_protocol = "SASL_SSL"
sasl_mechanism = "SCRAM-SHA-512"
sasl_plain_username = "streamadapt"
sasl_plain_password_file = "password.txt"
# == fields
[fields]
time = "measured_at"
time_format = "unix_ms"
values = ["temperature", "payload.pressure"]
id = "id"
label = "target"
missing = ["n.a.", -999]
# == task.forecast
[task]
kind = "forecast"
window = 12
horizon = 3
# == task.supervised
[task]
kind = "supervised"
window = 6
ttl = "2d"
# == task.unlabelled
[task]
kind = "unlabelled"
window = 1
classes = ["cat", "dog"]
# == base.linear
[base]
kind = "linear"
weights = "base.safetensors"
# == base.module
[base]
kind = "module"
factory = "my_models:make"
weights = "weights.safetensors"
params = { width = 4 }
# == base.onnx
[base]
kind = "onnx"
path = "model.onnx"
# == base.persistence
[base]
kind = "persistence"
# == sink.files
[sink]
kind = "files"
path = "predictions.jsonl"
experts = true
# == sink.kafka
[sink]
kind = "kafka"
servers = "broker-1:9092"
topic = "predictions"
compression = "zstd"
# == dead_letters.files
[dead_letters]
kind = "files"
path = "refused.jsonl"
# == dead_letters.kafka
[dead_letters]
kind = "kafka"
servers = "broker-1:9092"
topic = "refused"
# == learners.adcsd
[[learners]]
kind = "adcsd"
share_norm = true
# == learners.bias
[[learners]]
kind = "bias"
rate = [0.1, 0.02]
# == learners.calibration
[[learners]]
kind = "calibration"
forgetting = 0.98
# == learners.dictionary
[[learners]]
kind = "dictionary"
threshold = 0.3
learner = { kind = "bias" }
# == learners.eata
[[learners]]
kind = "eata"
batch = 64
d = 0.4
# == learners.error_memory
[[learners]]
kind = "error_memory"
capacity = 500
k = 10
# == learners.gain
[[learners]]
kind = "gain"
rate = 0.05
# == learners.holt
[[learners]]
kind = "holt"
level = 0.5
trend = 0.05
# == learners.liquid
[[learners]]
kind = "liquid"
cell = "cfc"
units = 32
# == learners.logistic
[[learners]]
kind = "logistic"
rate = [1.0, 0.1]
# == learners.per_entry
[[learners]]
kind = "per_entry"
source = "source.safetensors"
# == learners.persistence
[[learners]]
kind = "persistence"
# == learners.refit
[[learners]]
kind = "refit"
every = 72
hidden = [64, 64]
# == learners.river
[[learners]]
kind = "river"
model = "linear_model.LinearRegression"
params = { l2 = 0.01 }
# == learners.rls
[[learners]]
kind = "rls"
forgetting = [0.9995, 0.998]
# == learners.seasonal
[[learners]]
kind = "seasonal"
period = "1d"
slots = 96
# == learners.slot_bias
[[learners]]
kind = "slot_bias"
period = "1d"
slots = 24
# == learners.tent
[[learners]]
kind = "tent"
batch = 64
# == drift
[[drift]]
detector = "adwin"
signal = "loss"
reaction = "boost"
params = { delta = 0.001 }
# == labels
[labels]
rate = 0.1
# == guard.two-layer
[guard]
kind = "two-layer"
scope = "horizon"
# == guard.hedge
[guard]
kind = "hedge"
eta = 0.3
share = 0.1
# == guard.none
[guard]
kind = "none"
expert = 1
# == guard.mean
[guard]
kind = "mean"
# == intervals
[intervals]
coverage = 0.9
# == checkpoint
[checkpoint]
path = "state"
every = "30s"
# == metrics
[metrics]
port = 9108
# == limits
[limits]
record_bytes = 65536
max_behind = "1m"
# == keys
[keys]
max_keys = 5000
# == panel
[panel]
max_sensors = 100
step = "5m"
lateness = "10m"
"""

EXAMPLES: Final[Mapping[str, str]] = dict(
    re.findall(r"^# == (\S+)\n((?:(?!# == ).*\n)*)", _TEXT, re.MULTILINE)
)
"""Path of the table, such as ``learners.rls`` -> TOML text that ends with a line break."""
