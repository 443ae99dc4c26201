"""``streamadapt dlq`` on Kafka: hostile dead letters, the return to topic, partition and key, and
what a run learns."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import pytest
from cli_helpers import lines, logging_as_before
from dlq_helpers import EVIL, control_characters, fill, go, listed, repaired, streams, write_lines
from kafka import KafkaProducer
from kafka_helpers import consume, produce, until

from streamadapt.app.commands import run_command
from streamadapt.app.demo.broker import create_topics

_logging = pytest.fixture(autouse=True)(logging_as_before)


def with_headers(servers, topic, records):
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", max_request_size=64 << 20)
    try:
        for key, value, headers in records:
            producer.send(topic, key=key, value=value, headers=headers, partition=0).get(
                timeout=60
            )
    finally:
        producer.close()


class OnKafka:
    """A config with all topics on a broker, and runs of it until all records are processed."""

    def __init__(self, folder, servers, topic, partitions=1):
        self.folder, self.servers = folder, servers
        self.x, self.y, self.out = topic(partitions, "x"), topic(partitions, "y"), topic(1, "out")
        self.letters = topic(1, "letters")
        source = (
            f'kind = "kafka"\nservers = "{servers}"\ntopic = "{self.x}"\nlabel_topic = "{self.y}"'
        )
        sink = f'kind = "kafka"\ntopic = "{self.out}"'
        fill(folder, source, sink, f'[dead_letters]\nkind = "kafka"\ntopic = "{self.letters}"\n')

    def run(self, count):
        """Run in a process until the given number of records is in a checkpoint; return the
        summary."""
        command = [sys.executable, "-m", "streamadapt", "run", "config.toml", "--json"]
        process = subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            until(
                lambda: self.reached() >= count,
                lambda: process.poll() is None or pytest.fail("it ended"),
            )
            process.terminate()
            return json.loads(process.communicate(timeout=60)[0])
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def reached(self):
        found = (
            run_command(["checkpoint", "list", "state", "--json"])
            if (self.folder / "state").exists()
            else None
        )
        output = self.capsys.readouterr().out
        if found is None or found.code:
            return 0
        newest = {r["partition"]: r for r in json.loads(output) if "positions" in r}
        return sum(sum(r["positions"].values()) for r in newest.values())


@pytest.mark.kafka
def test_a_repaired_label_goes_back_to_its_topic_and_is_learned(
    tmp_path, monkeypatch, capsys, kafka_servers, topic
):
    """Same topic, partition and key, with headers that identify the replay; a run learns it."""
    monkeypatch.chdir(tmp_path)
    stage = OnKafka(tmp_path, kafka_servers, topic)
    stage.capsys = capsys
    entries, labels = streams()
    produce(kafka_servers, stage.x, [[line.encode() for line in entries]])
    with_headers(
        kafka_servers,
        stage.y,
        [(f"k{i}".encode(), line.encode(), []) for i, line in enumerate(labels)],
    )
    before = stage.run(len(entries) + len(labels))
    assert before["dead_letters"] == {"wrong_type": 4, "not_json": 1}
    assert "5 in kafka topic letters" in go(capsys, "dlq", "list", "config.toml").out
    assert [x["offset"] for x in listed(capsys, "--limit", 2, "--since", "1h")] == [394, 395]
    assert listed(capsys, "--since", "2100-01-01") == []
    fixed = repaired(capsys, tmp_path)
    assert [letter["key"] for letter in lines(fixed)] == ["k393", "k394", "k395"]
    output = go(capsys, "dlq", "replay", "config.toml", fixed, "--yes").out
    assert "3 lines: 3 ready" in output
    assert "sent 3 of 3" in output
    back = consume(kafka_servers, stage.y)[len(labels) :]
    assert [(r.partition, r.key, r.value.decode()) for r in back] == [
        (0, letter["key"].encode(), letter["value"]) for letter in lines(fixed)
    ]
    headers = dict(back[0].headers)
    assert headers["streamadapt-replay-of"] == f"{stage.y}[0]@393".encode()
    assert headers["streamadapt-replayed-at"].startswith(b"20")
    after = stage.run(len(entries) + len(labels) + 3)
    assert after["labels"]["learned"] == before["labels"]["learned"] + 3
    assert after["dead_letters"] == before["dead_letters"]
    assert "fed back before" in go(capsys, "dlq", "replay", "config.toml", fixed, "--yes").out
    assert len(consume(kafka_servers, stage.y)) == len(labels) + 3
    assert [x["topic"] for x in listed(capsys)] == [stage.x, stage.x]
    assert len(listed(capsys, "--all")) == 5


@pytest.fixture
def quiet(tmp_path, monkeypatch, kafka_servers, topic):
    """Topics on a broker without any run."""
    monkeypatch.chdir(tmp_path)
    return OnKafka(tmp_path, kafka_servers, topic, partitions=2)


def letter_headers(topic, partition=1, offset=7, **other):
    headers = {
        "reason": "not_json",
        "stage": "decode",
        "topic": topic,
        "partition": str(partition),
        "offset": str(offset),
    }
    headers |= {"time": "1700000000000000000", "detail": "$: broken", **other}
    return [
        (name, text if isinstance(text, bytes) else text.encode())
        for name, text in headers.items()
    ]


@pytest.mark.kafka
def test_hostile_letters_in_a_topic(quiet, capsys):
    """Binary, a megabyte, foreign ones, wrong headers: all are shown, none sends control codes,
    and none hides another."""
    big = b'"' + b"a" * 1_000_000 + b'"'
    letters = [
        (b"\xff\x00", bytes(range(256)), letter_headers(quiet.y, offset=1)),
        (None, big, letter_headers(quiet.y, offset=2, detail=EVIL, reason="not_json")),
        (b"k", b"not ours", []),
        (b"k", b"x", letter_headers(quiet.y, partition="-1")),
        (b"k", b"x", letter_headers(quiet.y, offset="nine")),
        (b"k", b"x", [("reason", b"\xff\xfe"), *letter_headers(quiet.y, offset=3)[1:]]),
        (b"k", b"x", [("streamadapt-replay", b"sent")]),
        (b"k", b"x", letter_headers(quiet.y, offset=4, truncated="5000000")),
        (b"k", b"", [*letter_headers(quiet.y, offset=5), ("null", b"true")]),
    ]
    with_headers(quiet.servers, quiet.letters, letters)
    out = go(capsys, "dlq", "list", "config.toml").out
    assert control_characters(out) == []
    assert len(out) < 20_000
    for text in (
        "foreign 4",
        "1,000,002 bytes",
        "5,000,000 bytes",
        "\\x1b[2J",
        "2023-11-14 22:13:20",
        f"{quiet.y}[1]@1",
    ):
        assert text in out.replace("│", "").replace("\n", "") or text in out, text
    found = {x["offset"]: x for x in listed(capsys) if x["topic"] == quiet.y}
    assert base64.b64decode(found[1]["value"]) == bytes(range(256))
    assert (found[1]["key_encoding"], found[1]["value_encoding"]) == ("base64", "base64")
    assert found[2]["value"] == big.decode()
    assert found[4]["truncated"] == 5_000_000
    assert found[5]["value"] is None
    assert len(listed(capsys)) == len(letters)
    fixed = write_lines(quiet.folder / "f.jsonl", [found[4]])
    assert (
        "holds the beginning of 5000000 bytes"
        in go(capsys, "dlq", "replay", "config.toml", fixed, code=1).out
    )


@pytest.mark.kafka
def test_partition_key_and_time_are_kept(quiet, capsys):
    """Binary keys too; the timestamp if the event time comes from it; a missing partition is
    reported."""
    with_headers(quiet.servers, quiet.letters, [(b"\xff\x00", b"?", letter_headers(quiet.y))])
    (letter,) = listed(capsys)
    letter["value"] = json.dumps({"id": "e1", "y": 1.0, "time": 5})
    fixed = write_lines(quiet.folder / "f.jsonl", [letter])
    go(capsys, "dlq", "replay", "config.toml", fixed, "--yes")
    text = (
        (quiet.folder / "config.toml")
        .read_text()
        .replace('time = "time"\ntime_format = "unix_s"\n', "")
    )
    (quiet.folder / "config.toml").write_text(text)
    go(capsys, "dlq", "replay", "config.toml", fixed, "--yes", "--again")
    first, second = consume(quiet.servers, quiet.y)
    assert (first.partition, first.key) == (second.partition, second.key) == (1, b"\xff\x00")
    assert second.timestamp == 1_700_000_000_000
    assert first.timestamp != second.timestamp
    write_lines(fixed, [letter | {"partition": 9}])
    output = go(capsys, "dlq", "replay", "config.toml", fixed, "--yes", code=1).err
    assert (
        f"{quiet.y}[9]: cannot be written to, topic {quiet.y} has the partitions 0 to 1" in output
    )
    assert len(consume(quiet.servers, quiet.y)) == 2


@pytest.mark.kafka
def test_reading_joins_no_group_and_ends_at_the_last_record(quiet, capsys):
    """With several partitions and fetches, an empty topic, and a missing one."""
    assert "no dead letters to show" in go(capsys, "dlq", "list", "config.toml").out
    name = f"{quiet.letters}-many"
    create_topics(quiet.servers, {name: 3})
    logs = [[b"x" * 20_000] * n for n in (700, 0, 3)]
    produce(quiet.servers, name, logs)
    many = ["--set", f"dead_letters.topic={name}"]
    assert len(listed(capsys, *many)) == 703
    assert (
        "foreign 703, the newest 30 shown" in go(capsys, "dlq", "list", "config.toml", *many).out
    )
    absent = ["--set", "dead_letters.topic=nowhere"]
    assert "nowhere at 127.0.0.1" in go(capsys, "dlq", "list", "config.toml", *absent).err


def test_a_broker_that_is_away_is_an_error_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill(
        tmp_path,
        'kind = "kafka"\nservers = "127.0.0.1:9"\ntopic = "x"\nlabel_topic = "y"',
        'kind = "kafka"\ntopic = "p"',
    )
    output = go(capsys, "dlq", "list", "config.toml", code=1).err
    assert "streamadapt: kafka topic p-dead-letters at 127.0.0.1:9: " in output
    assert "Traceback" not in output
