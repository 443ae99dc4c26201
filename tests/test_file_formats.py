"""Files in the forms that people have, through the command line: each works, or ends with one
error that says what to change."""

from __future__ import annotations

import gzip
import json

import pytest
from cli_helpers import lines, logging_as_before
from safetensors.numpy import load_file

from streamadapt.app.commands import run_command

CONFIG = """
[source]
kind = "files"
path = "in.csv"
[fields]
values = ["a", "b"]
time = "t"
[task]
kind = "forecast"
window = 3
horizon = 1
[base]
kind = "{base}"
{weights}
[[learners]]
kind = "bias"
rate = 0.1
[sink]
kind = "files"
path = "out.jsonl"
"""
N = 30

_logging = pytest.fixture(autouse=True)(logging_as_before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(CONFIG.format(base="persistence", weights=""))
    (tmp_path / "lin.toml").write_text(
        CONFIG.format(base="linear", weights='weights = "w.safetensors"')
    )
    return tmp_path


def table(n=N):
    return [(f"2025-03-01T00:{i:02d}:00", f"{i % 5}.5", f"{20 + i % 7}.25") for i in range(n)]


def csv_text(form="{},{},{}\n", header="t,a,b\n", comma=False):
    rows = (tuple(c.replace(".", ",") for c in row) if comma else row for row in table())
    return header + "".join(form.format(*row) for row in rows)


def facts(out):
    """Return the results of a replay, without the names of its files."""
    found = json.loads(out)
    del found["lag"]
    return found


def go(capsys, *arguments):
    capsys.readouterr()
    code = run_command([str(a) for a in arguments]).code
    output = capsys.readouterr()
    return code, output.out, output.err


def settings(*given):
    return [part for setting in given for part in ("--set", setting)]


WORK = {
    "blanks after commas": (csv_text("{}, {}, {}\n", "t, a, b\n"), ()),
    "blanks and quotes": (csv_text('"{}", "{}", "{}"\n', '"t", "a", "b"\n'), ()),
    "blanks everywhere": (csv_text(" {} , {} , {} \n", " t , a , b \n"), ()),
    "a comma at the end of each line": (csv_text("{},{},{},\n"), ()),
    "also of the header's": (csv_text("{},{},{},\n", "t,a,b,\n"), ()),
    "a column without a name": (csv_text("7,{},{},{}\n", ",t,a,b\n"), ()),
    "UTF-16": (csv_text().encode("utf-16"), ()),
    "UTF-16 of the other order": (b"\xfe\xff" + csv_text().encode("utf-16-be"), ()),
    "UTF-16 in gzip": (gzip.compress(csv_text().encode("utf-16")), ()),
    "UTF-16 without a mark": (csv_text().encode("utf-16-le"), ("source.encoding=utf-16-le",)),
    "UTF-8 with a mark": (csv_text().encode("utf-8-sig"), ()),
    "line ends of Windows": (csv_text().replace("\n", "\r\n"), ()),
    "blank lines": ("\n \n" + csv_text("{},{},{}\n\n"), ()),
    "semicolons": (csv_text("{};{};{}\n", "t;a;b\n"), ("source.delimiter=;",)),
    "semicolons and decimal commas": (
        csv_text("{};{};{}\n", "t;a;b\n", comma=True),
        ("source.delimiter=;", "fields.decimal=,"),
    ),
    "tabs": (csv_text("{}\t{}\t{}\n", "t\ta\tb\n"), ('source.delimiter="\\t"',)),
    "tabs by the command line": (csv_text("{}\t{}\t{}\n", "t\ta\tb\n"), (r"source.delimiter=\t",)),
    "comments": (
        "# made today\n#\n"
        + csv_text().replace("2025-03-01T00:09", "# in between\n2025-03-01T00:09"),
        ("source.comment=#",),
    ),
    "no header": (csv_text(header=""), ('source.columns=["t", "a", "b"]',)),
    "other names": (csv_text(header="T,A,B\n"), ('fields.values=["A", "B"]', "fields.time=T")),
    "times of Windows-1252": (
        csv_text(header="t,a °,b\n").encode("cp1252"),
        ("source.encoding=cp1252", 'fields.values=["a °", "b"]'),
    ),
}


@pytest.mark.parametrize("kind", WORK)
def test_other_file_formats_give_the_results_of_the_plain_file(folder, capsys, kind):
    """With replay, run and fit: the same losses and weights, and nothing refused."""
    content, given = WORK[kind]
    (folder / "plain.csv").write_text(csv_text())
    plain = facts(go(capsys, "replay", "c.toml", "plain.csv", "--json")[1])
    assert go(capsys, "fit", "lin.toml", "plain.csv", "--out", "plain.safetensors")[0] == 0
    name = "in.csv.gz" if "gzip" in kind else "in.csv"
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    more = settings(*given, f"source.path={name}")
    code, out, err = go(capsys, "replay", "c.toml", name, "--json", *more)
    assert code == 0, err
    assert facts(out) == plain
    assert plain["dead_letters"] == {}
    assert go(capsys, "fit", "lin.toml", name, *more)[0] == 0
    fitted = [load_file(folder / f"{which}.safetensors") for which in ("w", "plain")]
    assert [{k: v.tobytes() for k, v in found.items()} for found in fitted] == [
        {k: v.tobytes() for k, v in fitted[1].items()}
    ] * 2
    assert go(capsys, "run", "c.toml", *more)[0] == 0
    assert len(lines(folder / "out.jsonl")) == N - 2


ERRORS = {
    "semicolons": (
        csv_text("{};{};{}\n", "t;a;b\n"),
        ["source.delimiter", "';'", "t;a;b", "'a', 'b', 't'"],
    ),
    "tabs": (csv_text("{}\t{}\t{}\n", "t\ta\tb\n"), ["source.delimiter", r"'\t'"]),
    "a comment": ("# exported 2025\n" + csv_text(), ["source.comment", "# exported 2025"]),
    "no header": (csv_text(header=""), ["source.columns", "2025-03-01T00:00:00"]),
    "other case": (csv_text(header="T,A,B\n"), ["'a' is called 'A'", "['T', 'A', 'B']"]),
    "one name is another": (
        csv_text(header="t,aa,b\n"),
        ["no 'a'", "did you mean 'aa'", "['t', 'aa', 'b']"],
    ),
    "UTF-16 without a mark": (csv_text().encode("utf-16-le"), ["source.encoding"]),
    "a column twice": (csv_text("{},{},{},1\n", "t,a,b,a \n"), ["'a' occurs twice"]),
    "an unused column twice": (csv_text("{},{},{},1,2\n", "t,a,b,c,c\n"), ["'c' occurs twice"]),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_file_that_does_not_match_is_one_error_before_anything_is_read(folder, capsys, kind):
    """With check, run, replay and fit: the error names the columns found and expected, and what to
    change; nothing is written."""
    content, words = ERRORS[kind]
    (folder / "in.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(path.name for path in folder.iterdir())
    for command in (
        ["check", "c.toml"],
        ["replay", "c.toml", "in.csv"],
        ["fit", "lin.toml", "in.csv"],
    ):
        code, _, err = go(capsys, *command)
        assert code != 0, command
        assert all(word in err for word in words), err
        assert err.count("streamadapt:") == 1
        assert "in.csv" in err
    assert sorted(path.name for path in folder.iterdir()) == before
    code, _, err = go(capsys, "run", "c.toml")
    assert code != 0
    assert all(word in err for word in words), err
    assert not (folder / "out.jsonl").exists() or not (folder / "out.jsonl").read_text()


def test_an_error_names_the_other_decimal_sign(folder, capsys):
    (folder / "in.csv").write_text(csv_text("{};{};{}\n", "t;a;b\n", comma=True))
    for command in (
        ["check", "c.toml"],
        ["replay", "c.toml", "in.csv"],
        ["fit", "lin.toml", "in.csv"],
    ):
        code, _, err = go(capsys, *command, *settings("source.delimiter=;"))
        assert code == 2
        assert (
            "fields.decimal: expected ',': the column 'a' of in.csv has numbers such as '0,5'"
            in err
        )


def test_a_point_is_not_a_decimal_sign_if_the_comma_is(folder, capsys):
    """ "1.234" means more than a thousand there: it is refused, and not read as a little more than
    1."""
    text = csv_text("{};{};{}\n", "t;a;b\n", comma=True).replace("3,5", "1.234", 1)
    (folder / "in.csv").write_text(text)
    more = settings("source.delimiter=;", "fields.decimal=,")
    assert json.loads(go(capsys, "replay", "c.toml", "in.csv", "--json", *more)[1])[
        "dead_letters"
    ] == {"wrong_type": 1}


def test_a_row_with_more_cells_is_refused_with_its_cells(folder, capsys):
    (folder / "in.csv").write_text(csv_text() + "2025-03-01T01:00:00,1,5,2,5\n")
    assert go(capsys, "run", "c.toml")[0] == 0
    (letter,) = lines(folder / "out.jsonl.dead-letters")
    assert (letter["reason"], letter["offset"]) == ("wrong_width", N)
    assert "2 more cells than the file has columns" in letter["detail"]


def test_dead_letters_of_csv_rows_name_the_column(folder, capsys):
    (folder / "in.csv").write_text(csv_text().replace("3.5", "soon", 1))
    assert go(capsys, "run", "c.toml")[0] == 0
    (letter,) = lines(folder / "out.jsonl.dead-letters")
    assert letter["detail"] == "column 'a': expected number, got str 'soon'"


MISSING = [
    "",
    "NA",
    "N/A",
    "n/a",
    "NaN",
    "nan",
    "-nan",
    "NULL",
    "null",
    "None",
    "<NA>",
    "#N/A",
    "#N/A N/A",
    "#NA",
    "-1.#IND",
    "1.#QNAN",
    "-NaN",
    "-1.#QNAN",
    "1.#IND",
    "-",
    "?",
    " - ",
]


def replayed(folder, capsys, cells, *given):
    rows = [(t, cell, b) for (t, _, b), cell in zip(table(len(cells)), cells, strict=True)]
    (folder / "in.csv").write_text("t,a,b\n" + "".join(",".join(row) + "\n" for row in rows))
    return json.loads(go(capsys, "replay", "c.toml", "in.csv", "--json", *settings(*given))[1])


def test_common_words_for_missing_values_are_recognised(folder, capsys):
    empty = replayed(folder, capsys, ["1.5", "2.5", *[""] * len(MISSING), "3.5"])
    found = replayed(folder, capsys, ["1.5", "2.5", *MISSING, "3.5"])
    assert found == empty
    assert found["dead_letters"] == {}
    assert go(capsys, "fit", "lin.toml", "in.csv")[1].startswith(
        f"fitted on {len(MISSING) + 3} rows (0 refused)"
    )


def test_configured_words_and_numbers_are_missing_values(folder, capsys):
    cells = ["1.5", "2.5", "n.a.", "-999", "-999.0", "7777", "N/A", "3.5", "-99"]
    empty = replayed(folder, capsys, ["1.5", "2.5", "", "", "", "", "", "3.5", "-99"])
    found = replayed(folder, capsys, cells, 'fields.missing=["N.A.", -999, "7777"]')
    assert found == empty
    assert replayed(folder, capsys, cells)["dead_letters"] == {"wrong_type": 1}
    code, _, err = go(capsys, "check", "c.toml", *settings("fields.missing=[true]"))
    assert code == 2
    assert "fields.missing[0]" in err


def test_missing_values_in_json(folder, capsys):
    rows = [{"t": t, "a": float(a), "b": float(b)} for t, a, b in table()]
    for i, word in ((5, "n.a."), (9, -999), (12, -999.0)):
        rows[i]["a"] = word
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(
        go(
            capsys,
            "replay",
            "c.toml",
            "in.jsonl",
            "--json",
            *settings('fields.missing=["n.a.", -999]'),
        )[1]
    )
    for i in (5, 9, 12):
        rows[i]["a"] = None
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert found == json.loads(go(capsys, "replay", "c.toml", "in.jsonl", "--json")[1])


NAMES = [
    "Temp..C.",
    "Rel..humidity..",
    "Inst. No.",
    "x[0]",
    ".",
    "a.b",
    "rate (%)",
    "..",
    "a ",
    "Ünïcode.",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_a_literal_name_of_every_field(folder, capsys, name):
    """As the name of the value, time, key, id, label, and of the label's id and time in a file of
    its own."""
    text = CONFIG.format(base="linear", weights='weights = "w.safetensors"').replace(
        "forecast", "supervised"
    )
    text = text.replace("horizon = 1\n", "").replace("window = 3", "window = 1")
    (folder / "s.toml").write_text(text)
    others = {"values": "v", "time": "t", "key": "k", "id": "i", "label": "y"}
    plain = [f"{i},{t},k,{a},{b}" for i, (t, a, b) in enumerate(table())]
    (folder / "plain.csv").write_text("i,t,k,v,y\n" + "\n".join(plain) + "\n")
    base = settings('fields.values=["v"]', "fields.id=i", "fields.label=y", "fields.key=k")
    assert go(capsys, "fit", "s.toml", "plain.csv", *base)[0] == 0
    wanted = facts(go(capsys, "replay", "s.toml", "plain.csv", "--json", *base)[1])
    for field, column in others.items():
        header = ",".join(name if c == column else c for c in ("i", "t", "k", "v", "y"))
        (folder / "in.csv").write_text(header + "\n" + "\n".join(plain) + "\n")
        value = json.dumps([name] if field == "values" else name)
        code, out, err = go(
            capsys,
            "replay",
            "s.toml",
            "in.csv",
            "--json",
            *base,
            *settings(f"fields.{field}={value}"),
        )
        assert code == 0, err
        assert facts(out) == wanted, field
    (folder / "x.csv").write_text(
        "i,t,v\n" + "".join(f"{i},{t},{a}\n" for i, (t, a, _) in enumerate(table()))
    )
    for field in ("label_id", "label_time", "label"):
        wrote = {"label_id": "i", "label_time": "u", "label": "y"} | {field: name}
        header = f"{wrote['label_id']},{wrote['label_time']},{wrote['label']}\n"
        rows = "".join(f"{i},{t[:-1]}1,{b}\n" for i, (t, _, b) in enumerate(table()))
        (folder / "y.csv").write_text(header + rows)
        more = settings(
            'fields.values=["v"]',
            "fields.id=i",
            *(f"fields.{k}={json.dumps(v)}" for k, v in wrote.items()),
        )
        code, out, err = go(
            capsys, "replay", "s.toml", "x.csv", "--labels", "y.csv", "--json", *more
        )
        assert code == 0, err
        assert json.loads(out)["labels"] == {"learned": N}, field


def jsonl(text=None):
    return "".join((text or '{{"t": "{}", "a": {}, "b": {}}}\n').format(*row) for row in table())


@pytest.mark.parametrize(
    "content",
    [
        jsonl().encode("utf-8-sig"),
        jsonl('\ufeff{{"t": "{}", "a": {}, "b": {}}}\n').encode(),
        jsonl().replace("\n", "\r\n").encode("utf-16"),
        b"\xfe\xff" + jsonl().encode("utf-16-be"),
        b"\xef\xbb\xbf\n" + jsonl().encode(),
    ],
    ids=[
        "a file",
        "every record",
        "UTF-16",
        "UTF-16 of the other order",
        "a first line of its own",
    ],
)
def test_a_byte_order_mark_is_not_part_of_a_record(folder, capsys, content):
    (folder / "plain.jsonl").write_text(jsonl())
    (folder / "in.jsonl").write_bytes(content)
    found = [
        facts(go(capsys, "replay", "c.toml", f"{n}.jsonl", "--json")[1]) for n in ("plain", "in")
    ]
    assert found[0] == found[1]
    assert found[1]["entries"] == N


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_config_may_begin_with_a_byte_order_mark(folder, capsys, encoding):
    (folder / "in.csv").write_text(csv_text())
    (folder / "bom.toml").write_bytes((folder / "c.toml").read_text().encode(encoding))
    assert go(capsys, "check", "bom.toml")[0] == 0


def test_a_byte_order_mark_is_not_part_of_a_secret(tmp_path):
    from streamadapt.config.secret_files import read_secret_files

    (tmp_path / "secret").write_bytes("pässword\r\n".encode("utf-8-sig"))
    table = {"source": {"sasl_plain_password_file": str(tmp_path / "secret")}}
    read_secret_files(table)
    assert table == {"source": {"sasl_plain_password": "pässword"}}


TWICE = {
    "a value": '{"t": "2025-03-01T01:00:00", "a": 1, "b": 2, "a": 3}',
    "with the same value": '{"t": "2025-03-01T01:00:00", "a": 1, "b": 2, "a": 1}',
    "escaped": '{"t": "2025-03-01T01:00:00", "a": 1, "b": 2, "\\u0061": 3}',
    "what is not read": '{"t": "2025-03-01T01:00:00", "a": 1, "b": 2, "c": 3, "c": 4}',
    "the time": '{"t": "2025-03-01T01:00:00", "a": 1, "b": 2, "t": "2025-03-01T02:00:00"}',
    "beside NaN": '{"t": "2025-03-01T01:00:00", "a": NaN, "b": 2, "b": 3}',
}


@pytest.mark.parametrize("kind", TWICE)
def test_a_duplicate_json_key_is_refused(folder, capsys, kind):
    (folder / "in.jsonl").write_text(jsonl() + TWICE[kind] + "\n")
    assert go(capsys, "run", "c.toml", *settings("source.path=in.jsonl"))[0] == 0
    (letter,) = lines(folder / "out.jsonl.dead-letters")
    assert letter["reason"] == "duplicate_key"
    assert "occurs twice" in letter["detail"]
    assert letter["value"] == TWICE[kind]


def test_duplicate_keys_count_in_objects_on_the_path_only(folder, capsys):
    good = (
        '{{"t": "{}", "p": {{"a": {}, "b": {}}}, "note": {{"x": 1, "x": ":"}}, "n": ["a:b", '
        '{{"c": ":"}}]}}\n'
    )
    bad = '{"t": "2025-03-01T01:00:00", "p": {"a": 1, "b": 2, "a": 3}}\n'
    (folder / "in.jsonl").write_text(jsonl(good) + bad)
    more = settings('fields.values=["p.a", "p.b"]')
    found = json.loads(go(capsys, "replay", "c.toml", "in.jsonl", "--json", *more)[1])
    assert (found["entries"], found["dead_letters"]) == (N, {"duplicate_key": 1})


def test_check_lists_the_columns_found_and_changes_nothing(folder, capsys):
    (folder / "in.csv").write_text(csv_text().replace("3.5", "soon"))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    code, out, err = go(capsys, "check", "c.toml")
    assert code == 0
    assert "in.csv: columns t, a, b" in out
    assert (
        "in.csv: 4 of the first 20 records would be refused, for example in.csv[0]@3: "
        "wrong_type: column 'a'" in err
    )
    (found,) = json.loads(go(capsys, "check", "c.toml", "--json")[1])["files"]
    assert (found["path"], found["columns"], found["records"], found["refused"]) == (
        "in.csv",
        ["t", "a", "b"],
        20,
        4,
    )
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "in.jsonl").write_text(jsonl())
    assert (
        "in.jsonl: columns t, a, b"
        in go(capsys, "check", "c.toml", *settings("source.path=in.jsonl"))[1]
    )


def test_check_warns_if_no_label_would_arrive(folder, capsys):
    text = CONFIG.format(base="linear", weights='weights = "w.safetensors"').replace(
        "forecast", "supervised"
    )
    (folder / "s.toml").write_text(
        text.replace("horizon = 1\n", "").replace("window = 3", "window = 1")
    )
    (folder / "in.csv").write_text(csv_text())
    more = settings('fields.values=["a"]', "fields.label=b")
    assert go(capsys, "fit", "s.toml", "in.csv", *more)[0] == 0
    assert "no label" not in go(capsys, "check", "s.toml", *more)[2]
    code, _, err = go(capsys, "check", "s.toml", *more, *settings("fields.label=y"))
    assert code == 0
    assert "in.csv: it has no column 'y': its entries would have no labels" in err


@pytest.mark.parametrize("key", ["path", "label_path"])
def test_check_reports_a_missing_file(folder, capsys, key):
    (folder / "in.csv").write_text(csv_text())
    text = CONFIG.format(base="linear", weights='weights = "w.safetensors"').replace(
        "forecast", "supervised"
    )
    (folder / "s.toml").write_text(
        text.replace("horizon = 1\n", "").replace("window = 3", "window = 1")
    )
    more = settings("fields.label=b", 'fields.values=["a"]', "fields.id=t")
    assert go(capsys, "fit", "s.toml", "in.csv", *more)[0] == 0
    code, out, _ = go(
        capsys, "check", "s.toml", "--json", *more, *settings(f"source.{key}=gone.csv")
    )
    assert code == 2
    error = json.loads(out)["error"]
    assert "gone.csv" in error["value"]
    assert "not found" in error["expected"]


def test_settings_of_files_are_allowed_beside_a_topic(folder, capsys):
    """They apply to the files of replay and fit."""
    source = 'kind = "kafka"\nservers = "127.0.0.1:9"\ntopic = "x"\ndelimiter = ";"'
    text = (folder / "c.toml").read_text().replace('kind = "files"\npath = "in.csv"', source)
    (folder / "k.toml").write_text(text)
    (folder / "in.csv").write_text(csv_text("{};{};{}\n", "t;a;b\n"))
    assert go(capsys, "check", "k.toml")[0] == 0
    code, out, _ = go(capsys, "replay", "k.toml", "in.csv", "--json")
    assert code == 0
    assert json.loads(out)["entries"] == N


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("source.delimiter=;;", "source.delimiter"),
        ('source.columns=["a", "a"]', "source.columns"),
        ("source.encoding=klingon", "source.encoding"),
        ("fields.decimal=;", "fields.decimal"),
        ("fields.timezone=Berlin", "fields.timezone"),
        ("fields.classes=2", "fields.classes"),
    ],
)
def test_impossible_settings_are_named(folder, capsys, setting, path):
    (folder / "in.csv").write_text(csv_text())
    code, _, err = go(capsys, "check", "c.toml", *settings(setting))
    assert code == 2
    assert f"{path}: expected" in err


def test_keys_without_a_key_are_refused_for_files(folder, capsys):
    (folder / "in.csv").write_text(csv_text())
    (folder / "c.toml").write_text((folder / "c.toml").read_text() + "[keys]\nmax_keys = 3\n")
    for command in (["check", "c.toml"], ["run", "c.toml"], ["replay", "c.toml", "in.csv"]):
        code, _, err = go(capsys, *command)
        assert code == 2
        assert "fields.key: expected a field's path: with [keys]" in err


def test_a_history_without_a_good_row_is_refused_with_the_reason(folder, capsys):
    (folder / "in.csv").write_text(csv_text().replace(".5", " mm"))
    code, _, err = go(capsys, "fit", "lin.toml", "in.csv")
    assert code == 1
    assert (
        "30 wrong_type, for example in.csv, record 0: column 'a': expected number, got str '0 mm'"
        in err
    )
