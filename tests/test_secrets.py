"""Secrets also come from files or the environment, and are never shown, whatever error occurs."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cli_helpers import CONFIG, FILES, logging_as_before, prepare, rows
from config_cases import BROKEN, make_weights, text_of
from kafka_helpers import consume, opened, produce, until
from secured_broker import Door, secured
from streamadapt_connectors.kafka import KafkaDeadLetters, KafkaSink, KafkaSource
from variants import variants

from streamadapt.app.commands import run_command
from streamadapt.app.demo.broker import free_port
from streamadapt.app.logs import report_dead_threads, setup_logging
from streamadapt.app.watchdog import _stacks
from streamadapt.build import make_engine
from streamadapt.config.secret_files import MAX_SECRET_BYTES
from streamadapt.config.secrets import HIDDEN, remember, scrubbed, without_credentials
from streamadapt.config.tables import parse_config
from streamadapt.errors import ConfigError

_logging = pytest.fixture(autouse=True)(logging_as_before)

CANARY = "kanarie-'\"ü\\-vogel"
"""A secret with every character that some text format escapes."""
PASSWORD = "STREAMADAPT__SOURCE__SECURITY__SASL_PLAIN_PASSWORD"
SECURITY = (
    'security_protocol = "SASL_PLAINTEXT"\nsasl_mechanism = "{}"\nsasl_plain_username = "alice"\n'
)


def assert_hidden(*texts: str | bytes) -> None:
    for text in texts:
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        assert "kanarie" not in text
        assert "vogel" not in text


@pytest.fixture
def weights(tmp_path):
    for name, kind, window, channels in (
        ("base", "regression", 3, 2), ("forecast", "forecast", 3, 1),
        ("window5", "regression", 5, 2), ("three", "regression", 3, 3),
    ):  # fmt: skip
        make_weights(tmp_path / f"{name}.safetensors", kind, window, channels)
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    return tmp_path / "base.safetensors"


def with_password(weights, line, where="entries"):
    """Return a config with a line in the table ``security`` of the source or the sink."""
    security = (
        "{ " + ", ".join([*SECURITY.format("PLAIN").splitlines(), *filter(None, [line])]) + " }"
    )
    own = "" if where == "entries" else 'servers = "other:1"\n'
    return text_of(weights).replace(
        f'topic = "{where}"', f'topic = "{where}"\n{own}security = {security}'
    )


def password_of(config):
    return config.source["security"]["sasl_plain_password"]


# -- from a file


@pytest.mark.parametrize("content", [CANARY, CANARY + "\n", CANARY + "\r\n"])
def test_a_secret_may_be_in_a_file(weights, tmp_path, content):
    """The file is named in the config or by a variable; only the line break at its end is
    removed."""
    (tmp_path / "secret").write_bytes(content.encode())
    file = tmp_path / "secret"
    named = with_password(weights, f'sasl_plain_password_file = "{file}"')
    assert password_of(parse_config(named)) == CANARY
    assert "sasl_plain_password_file" not in parse_config(named).source["security"]
    assert (
        password_of(parse_config(with_password(weights, ""), {PASSWORD + "_FILE": str(file)}))
        == CANARY
    )
    spaces = " two words \n"
    (tmp_path / "secret").write_text(spaces + "\n")
    assert password_of(parse_config(named)) == spaces


def test_only_secrets_and_user_names_can_come_from_a_file(weights, tmp_path):
    """In every table; a setting whose own name ends in _file is not affected."""
    (tmp_path / "secret").write_text("content")
    file = f'"{tmp_path}/secret"'
    text = with_password(weights, f"sasl_plain_password_file = {file}").replace(
        'sasl_plain_username = "alice"', f"sasl_plain_username_file = {file}"
    )
    text = text.replace(
        'kind = "bias"', f'kind = "bias"\napi_key_file = {file}\ntokenizer_file = {file}'
    )
    config = parse_config(text)
    assert config.source["security"]["sasl_plain_username"] == "content"
    assert config.learners[0]["api_key"] == "content"
    assert config.learners[0]["tokenizer_file"] == f"{tmp_path}/secret"


def test_the_later_layer_wins_in_either_form(weights, tmp_path):
    """Flag over environment over file; both forms in one layer are an error."""
    (tmp_path / "secret").write_text("filed")
    file = str(tmp_path / "secret")
    literal = with_password(weights, 'sasl_plain_password = "written"')
    filed = with_password(weights, f'sasl_plain_password_file = "{file}"')
    flag = "source.security.sasl_plain_password"
    assert password_of(parse_config(literal, {PASSWORD + "_FILE": file})) == "filed"
    assert password_of(parse_config(filed, {PASSWORD: "given"})) == "given"
    assert (
        password_of(parse_config(literal, {PASSWORD: "given"}, [f"{flag}_file={file}"])) == "filed"
    )
    for both in (
        lambda: parse_config(
            with_password(
                weights, f'sasl_plain_password = "a", sasl_plain_password_file = "{file}"'
            )
        ),
        lambda: parse_config(literal, {PASSWORD: "given", PASSWORD + "_FILE": file}),
    ):
        with pytest.raises(ConfigError, match="not both") as wrong:
            both()
        assert wrong.value.path == flag


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "a regular file"),
        (lambda path: os.mkfifo(path), "a regular file"),  # reading it would block
        (lambda path: path.write_text(""), "this one is empty"),
        (lambda path: path.write_text("\n"), "this one is empty"),
        (
            lambda path: path.write_text("kanarie" * MAX_SECRET_BYTES),
            f"at most {MAX_SECRET_BYTES} bytes",
        ),
        (lambda path: path.write_bytes(b"kanarie \xff vogel"), "in UTF-8"),
    ],
)
def test_a_file_that_holds_no_secret_is_an_error_with_both_paths(
    weights, tmp_path, make, expected, capsys, monkeypatch
):
    """It names the key, the file and the variable, never the content."""
    make(tmp_path / "secret")
    (tmp_path / "config.toml").write_text(with_password(weights, ""))
    monkeypatch.setenv(PASSWORD + "_FILE", str(tmp_path / "secret"))
    assert run_command(["check", str(tmp_path / "config.toml")]).code == 2
    message = capsys.readouterr().err
    assert "source.security.sasl_plain_password_file: " in message
    assert expected in message
    assert f"'{tmp_path}/secret'" in message
    assert f"(set by {PASSWORD}_FILE)" in message
    assert_hidden(message)


def test_the_error_says_why_a_mistyped_path_is_not_shown(weights):
    with pytest.raises(
        ConfigError, match="the path is hidden in case it is the secret itself: look at the config"
    ):
        parse_config(with_password(weights, 'sasl_plain_password_file = "/nowhere/at/all"'))


def test_a_file_without_read_permission_is_an_error(weights, tmp_path):
    """Skipped for root, who may read every file."""
    (tmp_path / "secret").write_text(CANARY)
    (tmp_path / "secret").chmod(0)
    if os.access(tmp_path / "secret", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ConfigError, match="Permission denied"):
        parse_config(with_password(weights, f'sasl_plain_password_file = "{tmp_path}/secret"'))


@pytest.mark.parametrize("value", ['"kanarie-vogel"', "7", '""', "[]", '"kanarie\\u0000vogel"'])
def test_a_secret_given_as_its_path_is_not_shown(weights, value):
    """A user confuses the two settings."""
    with pytest.raises(ConfigError) as wrong:
        parse_config(with_password(weights, f"sasl_plain_password_file = {value}"))
    assert wrong.value.path == "source.security.sasl_plain_password_file"
    assert_hidden(str(wrong.value))


# -- `check` reports where a secret is


def test_check_warns_about_a_secret_in_the_config(weights, tmp_path, capsys, monkeypatch):
    """It names the setting's path and says what to do, with exit code 0; secrets from elsewhere
    give no warning."""
    path = tmp_path / "config.toml"
    path.write_text(with_password(weights, f"sasl_plain_password = '''{CANARY}'''"))
    flag = "source.security.sasl_plain_password"
    assert run_command(["check", str(path)]).code == 0
    output = capsys.readouterr()
    assert (
        f"warning: {flag}: this secret is written in {path}; better put it in a file that "
        f"{flag}_file" in output.err
    )
    assert PASSWORD + "_FILE" in output.err
    assert run_command(["check", str(path), "--json"]).code == 0
    (warning,) = json.loads((as_json := capsys.readouterr()).out)["warnings"]
    assert warning.startswith(flag)
    assert run_command(["check", str(path), "--set", f"{flag}={CANARY}x"]).code == 0
    flagged = capsys.readouterr()
    assert "is written on the command line" in flagged.err
    assert_hidden(*output, *as_json, *flagged)
    monkeypatch.setenv(PASSWORD, "another")
    assert run_command(["check", str(path)]).code == 0
    assert "warning" not in capsys.readouterr().err
    monkeypatch.delenv(PASSWORD)
    (tmp_path / "secret").write_text(CANARY)
    text = with_password(weights, f'sasl_plain_password_file = "{tmp_path}/secret"')
    path.write_text(text)
    assert run_command(["check", str(path), "--json"]).code == 0
    assert "warnings" not in json.loads(capsys.readouterr().out)


# -- the canary


@pytest.mark.parametrize("where", variants(["entries", "predictions"]))
def test_no_wrong_config_shows_a_secret(weights, tmp_path, where, capsys):
    """Every error that a config with a secret can have, in source and sink."""
    right = with_password(weights, f"sasl_plain_password = '''{CANARY}'''", where)
    path = tmp_path / "config.toml"
    seen = 0
    for old, new, *_ in BROKEN:
        path.write_text(right.replace(old, new, 1))
        for command in (["check", str(path)], ["check", str(path), "--json"]):
            code = run_command(command).code
            seen += code == 2
            output = capsys.readouterr()
            assert output.out + output.err
            assert_hidden(*output)
    assert seen > len(BROKEN)


IN_TOML = f"'''{CANARY}'''"


@pytest.mark.parametrize(
    "line",
    [
        f"sasl_plain_password = [{IN_TOML}]",
        f"sasl_plain_password = {{ x = {IN_TOML} }}",
        f"sasl_plain_pasword = {IN_TOML}",
        f"ssl_password = {IN_TOML}",
        f"ssl_context = {IN_TOML}",
        f"sasl_oauth_token_provider = {IN_TOML}",
        f"sasl_plain_password = {IN_TOML}, ssl_cafile = {IN_TOML}",
        f"sasl_plain_password = {IN_TOML}, sasl_plain_password = 1",
        f"sasl_plain_password = {IN_TOML}, security_protocol = 1",
        f"sasl_plain_password = {IN_TOML}\n",
        "sasl_plain_password = kanarie-vogel",
    ],
)
def test_no_invalid_security_table_shows_a_secret(weights, tmp_path, line, capsys):
    """Not as a value of the wrong type, in the wrong place, given twice, or in invalid TOML."""
    path = tmp_path / "config.toml"
    path.write_text(with_password(weights, line))
    for command in (
        ["check", str(path)],
        ["check", str(path), "--json"],
        ["run", str(path), "--log-json"],
    ):
        assert run_command(command).code == 2
        assert_hidden(*capsys.readouterr())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("source.servers", "alice:kanarie-vogel@localhost:9092"),
        ("source.servers", "sasl://alice:kanarie/vogel@localhost"),
        ("sink.servers", "localhost:9092,alice:kanarie-vogel@localhost:9092"),
        ("base.weights", "s3://alice:kanarie/vogel+@bucket/base.safetensors"),
        ("base.weights", "https://host/base?X-Amz-Signature=kanarie-vogel"),
        ("checkpoint.path", "s3://alice:kanarie-vogel@bucket/\0"),
        ("source.security", "kanarie-vogel"),
        ("sorce.password", "kanarie-vogel"),
    ],
)
def test_no_secret_within_a_text_is_shown(weights, tmp_path, setting, value, capsys, monkeypatch):
    """Such as the password of a URL, set by flag or variable."""
    path = tmp_path / "config.toml"
    path.write_text(text_of(weights))
    for command in (["check", str(path)], ["check", str(path), "--json"]):
        run_command([*command, "--set", f"{setting}={value}"])
        assert_hidden(*capsys.readouterr())
    if "\0" not in value:
        monkeypatch.setenv("STREAMADAPT__" + setting.upper().replace(".", "__"), value)
        run_command(["check", str(path)])
        assert_hidden(*capsys.readouterr())


@pytest.mark.parametrize("action", [["list"], ["inspect"], ["rollback", "--yes"]])
def test_no_url_of_checkpoints_shows_its_password(action, capsys):
    """The URL is given on the command line."""
    sequence = ["1"] if action[0] == "rollback" else []
    run_command(["checkpoint", *action, "nowhere://alice:kanarie-vogel@bucket/state", *sequence])
    output = capsys.readouterr()
    assert output.out + output.err
    assert_hidden(*output)


LEAKY = """
import threading, torch

class Leaky(torch.nn.Module):
    def __init__(self, token):
        super().__init__()
        self.token = token

    def forward(self, inputs):
        raise LookupError({"token": self.token}, self.token.encode(), self.token)

def make(token):
    return Leaky(token)

def refuse(token):
    raise LookupError({"token": token}, token)
"""


@pytest.mark.parametrize("factory", ["make", "refuse"])
@pytest.mark.parametrize("form", [[], ["--log-json"]])
def test_no_unexpected_error_shows_a_secret(tmp_path, monkeypatch, factory, form):
    """An error of the user's own model, whose arguments contain the secret: with its traceback, as
    text and as JSON."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    (tmp_path / "leaky.py").write_text(LEAKY)
    (tmp_path / "secret").write_text(CANARY)
    text = CONFIG.format(source=FILES[0], sink=FILES[1])
    old = 'kind = "linear"\nweights = "base.safetensors"'
    (tmp_path / "config.toml").write_text(
        text.replace(
            old,
            f'kind = "module"\nfactory = "leaky:{factory}"\nparams = {{ token_file = "./secret" '
            f"}}",
        )
    )
    command = [
        sys.executable,
        "-m",
        "streamadapt",
        "run",
        "config.toml",
        "--log-level",
        "debug",
        *form,
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=120)
    # 3: nothing was predicted
    assert done.returncode == (3 if factory == "make" else 2), done.stderr
    assert b"LookupError" in done.stderr
    if factory == "make":
        assert b"Traceback" in done.stderr
        assert b"leaky.py" in done.stderr
    assert HIDDEN.encode() in done.stderr
    assert_hidden(done.stdout, done.stderr)


def test_no_thread_that_dies_shows_a_secret(capsys, monkeypatch):
    """Its traceback is logged like everything else."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    setup_logging("info", as_json=True)
    report_dead_threads()
    remember("password", CANARY)

    def die():
        raise LookupError(CANARY)

    thread = threading.Thread(target=die, name="mine")
    thread.start()
    thread.join()
    output = capsys.readouterr().err
    line = json.loads(output)
    assert line["message"].startswith("thread mine died")
    assert "LookupError" in line["exception"]
    assert_hidden(output)


def test_no_repr_shows_a_secret(weights):
    """The repr of the config, of the objects made from it, and the stacks of all threads while
    they are made."""
    config = parse_config(with_password(weights, f"sasl_plain_password = '''{CANARY}'''"))
    assert password_of(config) == CANARY
    engine = make_engine(config)
    settings = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "u",
    }
    security = settings | {"sasl_plain_password": CANARY}
    own = [
        kind("h:1", "t", security=security) for kind in (KafkaSource, KafkaSink, KafkaDeadLetters)
    ]
    parts = [engine.source, engine.sink, engine.dead_letters, *own]
    assert_hidden(
        repr(config), str(config), repr(vars(engine)), repr(engine.source._reach), _stacks()
    )
    assert_hidden(*map(repr, parts), *map(str, map(vars, parts)))
    digest = config.digest()
    assert_hidden(str(digest), json.dumps(digest.settings))


@pytest.mark.kafka
def test_no_client_library_shows_a_secret(capsys, monkeypatch):
    """The client's debug log has every request, also the one with the password, if it is turned on
    from the start."""
    setup_logging("debug", as_json=False)
    client_log = logging.getLogger("kafka")
    # An earlier connection of this process lets only warnings through.
    monkeypatch.setattr(client_log, "handlers", [])
    monkeypatch.setattr(client_log, "propagate", True)
    level = client_log.level
    security = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "alice",
    }
    try:
        client_log.setLevel("DEBUG")
        with secured(Door(users={"alice": CANARY})) as (servers, _):
            produce(servers, "t", [[b"1"]], **security, sasl_plain_password=CANARY)
            remembered = KafkaSource(
                servers, "t", security=security | {"sasl_plain_password": CANARY}
            )
            with opened(remembered):
                capsys.readouterr()
                got = []
                until(lambda: got, lambda: got.extend(remembered.poll(0.5)))
    finally:
        client_log.setLevel(level)
    output = capsys.readouterr().err
    assert "SaslAuthenticateRequest" in output
    assert_hidden(output)


def test_short_secrets_and_other_texts_are_left_alone():
    """Only remembered secrets are removed, in all their spellings; a secret of three letters would
    match everywhere."""
    remember(
        "",
        {
            "security": {"sasl_plain_password": "abc"},
            "topic": "speeds-topic",
            "password": "quite-long",
        },
    )
    assert scrubbed("abc speeds-topic quite-long") == f"abc speeds-topic {HIDDEN}"
    assert without_credentials("localhost:9092,[::1]:9092 s3://bucket/a@b 12:30") == (
        "localhost:9092,[::1]:9092 s3://bucket/a@b 12:30"
    )


def ask(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        return error.read()


class Job:
    """``streamadapt run`` on a broker that requires a password, which is in a file."""

    def __init__(self, folder: Path, servers: str, mechanism: str, form: list[str]) -> None:
        self.port = free_port()
        source = (
            f'kind = "kafka"\nservers = "{servers}"\ntopic = "entries"\nlabel_topic = "labels"'
        )
        tables = (
            f"[source.security]\n{SECURITY.format(mechanism)}[metrics]\nport = "
            f"{self.port}\nhost = '127.0.0.1'\n"
        )
        text = CONFIG.format(source=source, sink='kind = "kafka"\ntopic = "predictions"') + tables
        (folder / "config.toml").write_text(text)
        (folder / "secret").write_text(CANARY + "\n")
        self.folder = folder
        environment = os.environ | {PASSWORD + "_FILE": "./secret"}
        with (folder / "log").open("wb") as log, (folder / "out").open("wb") as out:
            command = [
                sys.executable,
                "-m",
                "streamadapt",
                "run",
                "config.toml",
                "--log-level",
                "debug",
                *form,
            ]
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=log
            )

    def all_output(self) -> bytes:
        return (self.folder / "log").read_bytes() + (self.folder / "out").read_bytes()


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--log-json"]])
def test_a_refused_run_reports_it_and_shows_no_secret(tmp_path, monkeypatch, form):
    """A wrong password ends the run, also if the broker repeats it."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    with secured(Door(users={"alice": "another"}, refusal_text=f"alice, {CANARY}")) as (
        servers,
        _,
    ):
        job = Job(tmp_path, servers, "PLAIN", form)
        assert job.process.wait(60) == 1, job.all_output()
    assert b"refuses security.sasl_plain_username with this password" in job.all_output()
    assert_hidden(job.all_output())


def next_offset(manifest: Path) -> int:
    try:
        positions = json.loads(manifest.read_text())["positions"]
    except FileNotFoundError:  # an older checkpoint, just removed
        return 0
    return max((offset for stream, _, offset in positions if stream == "entries"), default=0)


@pytest.mark.kafka
@pytest.mark.slow
def test_an_admitted_run_leaves_no_secret_anywhere(tmp_path, monkeypatch, capsys):
    """Not in its logs, metrics, readiness, checkpoints, output, dead letters, nor in the output of
    the commands that inspect them."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    table = rows(60)
    entries = [json.dumps({"id": i, "time": t, "x": x}).encode() for i, t, x, _ in table]
    labels = [json.dumps({"id": i, "time": t + 3000, "y": y}).encode() for i, t, _, y in table]
    with secured(Door(users={"alice": CANARY})) as (servers, _):
        security = {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "alice",
        }
        security["sasl_plain_password"] = CANARY
        produce(servers, "entries", [[*entries, b"dirty"]], **security)
        produce(servers, "labels", [labels], **security)
        job = Job(tmp_path, servers, "SCRAM-SHA-256", [])
        pages: list[bytes] = []

        def written() -> bool:
            assert job.process.poll() is None, job.all_output()
            return any(
                next_offset(path) > 60 for path in (tmp_path / "state").rglob("manifest.json")
            )

        until(written, lambda: time.sleep(0.1))
        until(
            lambda: b"ready: source is connected" in b"".join(pages),
            lambda: pages.append(ask(job.port, "ready")),
        )
        pages.append(ask(job.port, "metrics"))
        assert b"streamadapt_" in pages[-1]
        job.process.send_signal(signal.SIGTERM)
        assert job.process.wait(60) == 0, job.all_output()
        records = consume(servers, "predictions", **security) + consume(
            servers, "predictions-dead-letters", **security
        )
    assert len(records) > 50
    assert any(r.value == b"dirty" for r in records)
    assert_hidden(job.all_output(), *pages, *(str((r.key, r.value, r.headers)) for r in records))
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert any(path.name == "manifest.json" for path in files)
    assert_hidden(*(path.read_bytes() for path in files))
    for command in (
        ["list", "state"],
        ["list", "state", "--json"],
        ["inspect", "state/entries-0"],
    ):
        assert run_command(["checkpoint", *command]).code == 0
        assert_hidden(*capsys.readouterr())
