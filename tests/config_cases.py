"""A valid config, and changes that break it: old text, new text, the path in the error, a part of
the message."""

from __future__ import annotations

import torch

from streamadapt.models.builtin import Linear

CONFIG = """
[source]
kind = "kafka"
servers = "localhost:9092"
topic = "entries"
label_topic = "labels"
[fields]
id = "id"
time = "time"
values = ["a", "b"]
label = "y"
[task]
kind = "supervised"
window = 3
[base]
kind = "linear"
weights = "{weights}"
[[learners]]
kind = "bias"
rate = 0.1
[[learners]]
kind = "rls"
[[drift]]
detector = "adwin"
[sink]
kind = "kafka"
topic = "predictions"
[checkpoint]
path = "state"
[metrics]
port = 9108
"""


def make_weights(path, kind="regression", window=3, channels=2, responses=1):
    features = window * channels + 1 if kind != "forecast" else window
    scaling = {
        "input_loc": torch.zeros(channels), "input_scale": torch.ones(channels),
        "output_loc": torch.zeros(responses if kind != "forecast" else channels),
        "output_scale": torch.ones(responses if kind != "forecast" else channels),
    }  # fmt: skip
    Linear(
        kind,
        torch.zeros(features, responses),
        window,
        subtract_last=kind == "forecast",
        scaling=scaling,
    ).save(path)
    return path


def text_of(weights):
    return CONFIG.format(weights=weights)


BROKEN = [
    # -- the file as a whole
    ("[source]", "[source", "config", "TOML"),
    ("[source]", "[surce]", "surce", "did you mean 'source'?"),
    ("[sink]", "[sing]", "sing", "did you mean 'sink'?"),
    ('[sink]\nkind = "kafka"\ntopic = "predictions"', "", "sink", "a table [sink]"),
    ("[source]", 'devise = "cpu"\n[source]', "devise", "did you mean 'device'?"),
    ("[source]", 'device = "gpu"\n[source]', "device", "auto, cpu, cuda"),
    ("[source]", "threads = 0\n[source]", "threads", ">= 1"),
    ("[source]", "seed = -1\n[source]", "seed", ">= 0"),
    ("[source]", 'seed = "one"\n[source]', "seed", "a whole number"),
    # -- source
    ('servers = "localhost:9092"', "", "source.servers", "it is needed"),
    ('servers = "localhost:9092"', "servers = 9092", "source.servers", "expected text, got 9092"),
    ('servers = "localhost:9092"', 'servers = "localhost"', "source.servers", "host:port"),
    (
        'servers = "localhost:9092"',
        'server = "localhost:9092"',
        "source.server",
        "did you mean 'servers'?",
    ),
    ('kind = "kafka"\nservers', 'kind = "kafak"\nservers', "source.kind", "did you mean 'kafka'?"),
    ('kind = "kafka"\nservers', "kind = []\nservers", "source.kind", "one of files, kafka"),
    ('topic = "entries"', 'topic = "labels"', "source.label_topic", "another topic"),
    (
        'topic = "entries"',
        'topic = "entries"\nlabel_wait = "10 sec"',
        "source.label_wait",
        "with its unit",
    ),
    (
        'topic = "entries"',
        'topic = "entries"\nlabel_wait = 2',
        "source.label_wait",
        "with its unit",
    ),
    (
        'topic = "entries"',
        'topic = "entries"\nstart = "begin"',
        "source.start",
        "earliest or latest",
    ),
    (
        'topic = "entries"',
        'topic = "entries"\npartitions = [0, "x"]',
        "source.partitions[1]",
        "whole number, got 'x'",
    ),
    (
        'topic = "entries"',
        'topic = "entries"\nmax_poll_records = 0',
        "source.max_poll_records",
        "at least 1",
    ),
    # -- fields
    ('values = ["a", "b"]', "", "fields.values", "it is needed"),
    ('values = ["a", "b"]', 'values = "a"', "fields.values", "a list"),
    ('values = ["a", "b"]', "values = []", "fields.values", "one field path per channel"),
    (
        'values = ["a", "b"]',
        'values = ["a", "b", "c"]',
        "fields.values",
        "2 channels, which the base was fitted on",
    ),
    ('values = ["a", "b"]', 'values = ["a", " "]', "fields.values[1]", "a field's path"),
    ('values = ["a", "b"]', 'values = ["a", "b"]\ndecimal = ";"', "fields.decimal", "'.' or ','"),
    (
        'values = ["a", "b"]',
        'values = ["a", "b"]\ntimezone = "Mars"',
        "fields.timezone",
        "a time zone such as",
    ),
    ('values = ["a", "b"]', 'values = ["a", "b"]\nmissing = [true]', "fields.missing[0]", "text"),
    ('time = "time"', 'time = "time"\ntime_format = "iso"', "fields.time_format", "strptime"),
    ('time = "time"', 'tme = "time"', "fields.tme", "did you mean 'time'?"),
    ('label = "y"', "", "fields.label", "a supervised task learns from labels"),
    ('label = "y"', 'label = "y"\noutputs = 2', "fields.outputs", "1, the task's outputs"),
    ('id = "id"', "", "fields.label_id", "entry's id"),
    # -- task
    ('kind = "supervised"', 'kind = "supervized"', "task.kind", "did you mean 'supervised'?"),
    ("window = 3", "windw = 3", "task.windw", "did you mean 'window'?"),
    ("window = 3", "window = 0", "task.window", "1 to 100000 entries"),
    ("window = 3", "window = 3.5", "task.window", "a whole number, got 3.5"),
    ("window = 3", "window = 3\nttl = 86400", "task.ttl", "with its unit"),
    ("window = 3", 'window = 3\nttl = "0s"', "task.ttl", "a duration > 0"),
    ("window = 3", 'window = 3\nttl = "99999999d"', "task.ttl", "less than 146 years"),
    ("window = 3", "window = 3\nclasses = 1", "task.classes", "2 to 100000 classes"),
    ("window = 3", 'window = 3\nloss = "log"', "task.loss", "log for classification"),
    (
        "window = 3",
        'window = 3\nclasses = 2\nloss = "squared"',
        "task.loss",
        "log for classification",
    ),
    ("window = 3", 'window = 3\nloss = "mse"', "task.loss", "absolute"),
    (
        "window = 3",
        "window = 3\nclasses = 2",
        "base.weights",
        "weights fitted for a classification task",
    ),
    ('kind = "supervised"', 'kind = "forecast"', "task.horizon", "it is needed"),
    # -- base
    ("/base.safe", "/missing.safe", "base.weights", "streamadapt fit CONFIG HISTORY"),
    ("/base.safe", "/torn.safe", "base.weights", "a readable safetensors file"),
    ("/base.safe", "/stranger.safe", "base.weights", "written by streamadapt fit"),
    ("/base.safe", "/halfway.safe", "base.weights", "a whole file as streamadapt fit writes it"),
    ("/base.safe", "/forecast.safe", "base.weights", "weights fitted for a regression task"),
    ("/base.safe", "/window5.safe", "task.window", "5, which the base's weights were fitted for"),
    ("/base.safe", "/three.safe", "fields.values", "3 channels"),
    ("weights =", "weight =", "base.weight", "did you mean 'weights'?"),
    ('kind = "linear"', 'kind = "persistence"', "base.weights", "one of the keys horizon"),
    ('kind = "linear"', 'kind = "module"', "base.factory", "it is needed"),
    (
        'kind = "linear"',
        'kind = "module"\nfactory = "nowhere:make"',
        "base.factory",
        "an importable module:factory",
    ),
    # -- learners
    ('kind = "bias"', 'kind = "bais"', "learners[0].kind", "did you mean 'bias'?"),
    (
        'kind = "bias"',
        'kind = "adcsd"',
        "learners[0].rate",
        "one of the keys loss, lr, optimiser, share_norm",
    ),
    ("rate = 0.1", "rate = 1.5", "learners[0].rate", "(0, 1]"),
    ("rate = 0.1", "rate = [0.1, 0.1]", "learners[0].rate", "different ones"),
    ("rate = 0.1", 'rate = "fast"', "learners[0].rate", "a number or a list"),
    ("rate = 0.1", "rate = nan", "learners[0].rate", "(0, 1]"),
    ('kind = "rls"', 'kind = "bias"\nrate = 0.1', "learners", "names that differ"),
    ('kind = "rls"', 'kind = "rls"\nclip = 0.0', "learners[1].clip", "a number > 0"),
    ('kind = "rls"', 'kind = "adcsd"', "learners[1].kind", "a learner for a regression task"),
    ('kind = "rls"', 'kind = "adcsd"\nloss = "l2"', "learners[1].loss", "one of mae, huber"),
    (
        'kind = "rls"',
        'kind = "river"\nmodel = "nowhere.Model"',
        "learners[1].model",
        "a path below river",
    ),
    (
        'kind = "rls"',
        'kind = "river"\nmodel = "linear_model.Perceptron"',
        "learners[1].model",
        "a river regressor",
    ),
    ('[[learners]]\nkind = "rls"', "[learners.x]", "learners[0].x", "one of the keys rate"),
    # -- drift
    ('detector = "adwin"', 'detector = "adwn"', "drift[0].detector", "one of adwin, page-hinkley"),
    (
        'detector = "adwin"',
        'detector = "adwin"\nsignal = "los"',
        "drift[0].signal",
        "one of loss, error, ",
    ),
    (
        'detector = "adwin"',
        'detector = "adwin"\nparams = { dleta = 1.0 }',
        "drift[0].params",
        "arguments of river",
    ),
    (
        'detector = "adwin"',
        'reaction = "boost"\nfactor = 0.5',
        "drift[0].factor",
        "a finite number >= 1",
    ),
    # -- guard, limits
    (
        "[checkpoint]",
        '[guard]\nkind = "one-layer"\n[checkpoint]',
        "guard.kind",
        "hedge, mean, none, two-layer",
    ),
    (
        "[checkpoint]",
        '[guard]\nkind = "ml-poly"\n[checkpoint]',
        "guard.kind",
        "removed from the package",
    ),
    (
        "[checkpoint]",
        '[guard]\nkind = "median"\n[checkpoint]',
        "guard.kind",
        "benchmarks/plain_guards.py",
    ),
    (
        "[checkpoint]",
        '[guard]\nscope = "row"\n[checkpoint]',
        "guard.kind",
        "one of hedge, mean, none",
    ),
    (
        "[checkpoint]",
        '[guard]\nkind = "hedge"\nscope = "row"\n[checkpoint]',
        "guard.scope",
        "one of global, horizon",
    ),
    ("[checkpoint]", "[limits]\ndepth = 0\n[checkpoint]", "limits.depth", ">= 1"),
    (
        "[checkpoint]",
        "[limits]\nmax_bad_share = 2.0\n[checkpoint]",
        "limits.max_bad_share",
        "(0, 1]",
    ),
    (
        "[checkpoint]",
        "[limits]\nrecord_byte = 1\n[checkpoint]",
        "limits.record_byte",
        "did you mean 'record_bytes'?",
    ),
    (
        "[checkpoint]",
        "[limits]\nstuck_after = 5\n[checkpoint]",
        "limits.stuck_after",
        "a duration with its unit",
    ),
    (
        "[checkpoint]",
        "[limits]\nmax_ahead = 1\n[checkpoint]",
        "limits.max_ahead",
        "a duration with its unit",
    ),
    # -- sink, dead letters, checkpoint, metrics
    ('topic = "predictions"', "", "sink.topic", "it is needed"),
    (
        'topic = "predictions"',
        'topic = "p"\nserver = "a:1"',
        "sink.server",
        "did you mean 'servers'?",
    ),
    ('topic = "predictions"', 'topic = "p"\nservers = "a"', "sink.servers", "host:port"),
    ('topic = "predictions"', 'topic = "p"\nencoder = "json"', "sink.encoder", "one of the keys"),
    (
        "[checkpoint]",
        '[dead_letters]\nkind = "kafka"\n[checkpoint]',
        "dead_letters.topic",
        "it is needed",
    ),
    (
        "[checkpoint]",
        '[dead_letters]\nkind = "void"\n[checkpoint]',
        "dead_letters.kind",
        "one of files, kafka",
    ),
    ('path = "state"', "", "checkpoint.path", "it is needed"),
    ('path = "state"', 'path = "state"\nevery = "10 sec"', "checkpoint.every", '"10s"'),
    ('path = "state"', 'path = "state"\nevery = "0s"', "checkpoint.every", "a duration > 0"),
    ('path = "state"', 'path = "state"\nevry = "1s"', "checkpoint.evry", "did you mean 'every'?"),
    ('path = "state"', 'path = "state"\nevery_entries = 0', "checkpoint.every_entries", ">= 1"),
    ('path = "state"', 'path = "state"\nkeep = 0', "checkpoint.keep", ">= 1"),
    ("port = 9108", "port = 91080", "metrics.port", "<= 65535"),
    ("port = 9108", 'port = "9108"', "metrics.port", "a whole number, got '9108'"),
    ("port = 9108", "", "metrics.port", "it is needed"),
]
