"""What each key of a config means, as the page of the docs and as text for a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import Final

from streamadapt.app.config_examples import EXAMPLES
from streamadapt.app.config_keys import Key, Table, find_tables, tables

__all__ = ["config_index", "config_markdown", "config_text"]

HEAD: Final = """\
# The configuration

A config is one TOML file. `streamadapt init` writes one to start from, `streamadapt check FILE` says what is wrong with
it. This page is made from the code by `streamadapt config --markdown`; `streamadapt config` lists the tables, and
`streamadapt config source`, or `streamadapt config learners.rls`, explains one in the terminal, also the kinds that
another installed package has added.

- **Kinds.** A table with a `kind` takes the keys of its table and those of its kind.
- **Needed** keys have no default. `none` as a default: the key is left out, and what then happens stands beside it.
- **Durations** are texts with a unit: `"250ms"`, `"10s"`, `"5m"`, `"6h"`, `"1d"`.
- **Environment.** `STREAMADAPT__SOURCE__SERVERS=broker:9092` sets `source.servers`: the names of table and key in upper
  case, two underscores between them. A list of tables takes a number: `STREAMADAPT__LEARNERS__0__RATE=0.1`. Values are
  TOML where they can be read as such, else text. The environment has priority over the file.
- **Command line.** `--set source.servers=broker:9092`, `--set learners.0.rate=0.1`: priority over both.
- **Secrets.** A password, token or user name may stand in a file of its own: the same key with `_file` behind it names
  the file, as in `sasl_plain_password_file = "/run/secrets/kafka"`; in the environment
  `STREAMADAPT__SOURCE__SECURITY__SASL_PLAIN_PASSWORD_FILE`. [Security](security.md) has more about it.
- **Old names.** A key that was renamed has its old name behind its meaning. The old name works for one release, with a
  warning, and checkpoints go on whichever of the two a config has.
- **In Python** the same keys are the arguments of the classes: `RLS(forgetting=0.998)` is
  `kind = "rls"`, `forgetting = 0.998`.
"""  # noqa: E501
WIDTH: Final = 88


def config_markdown() -> str:
    """Return the text of ``docs/configuration.md``, which a test compares with the file."""
    found = tables()
    parts = [
        HEAD,
        "## Tables\n",
        "\n".join(_index_rows(found)),
        *map(_section, found),
        "## Every key\n",
    ]
    return "\n".join([*parts, "\n".join(_key_rows(found)), ""])


def config_index() -> str:
    """Return the tables with a line each, for a terminal."""
    shown = [table for table in tables() if not table.kind]
    lines = [
        f"{table.path:<16} {_plain(table.summary.partition('. ')[0].rstrip('.'))}"
        for table in shown
    ]
    return "\n".join(
        [
            *lines,
            "",
            "streamadapt config TABLE explains the keys of one, such as source or learners.rls",
        ]
    )


def config_text(path: str) -> str:
    """Return what the keys of a table mean, for a terminal; of a table with many kinds, which
    kinds there are.

    Raises
    ------
    ConfigError
        If there is no such table.
    """
    found = find_tables(path)
    kinds = [table for table in found if table.kind]
    if len(kinds) <= 3:
        return "\n\n".join(map(_text_of, found))
    about = [f"  {table.path:<24} {_plain(table.summary)}" for table in kinds]
    first = [_text_of(table) for table in found if not table.kind]
    return "\n".join(
        [*first, "", *about, "", f"streamadapt config {kinds[0].path} explains the keys of a kind"]
    )


def _title(table: Table) -> str:
    return (
        f'{table.header} kind = "{table.kind}"'
        if table.kind
        else table.header or "the top of the file"
    )


def _anchor(path: str) -> str:
    """Return how the heading of a table is linked to."""
    return re.sub(r"[^\w -]", "", path.lower()).replace(" ", "-")


def _link(table: Table) -> str:
    return f"[`{table.path}`](#{_anchor(table.path)})"


def _index_rows(found: list[Table]) -> Iterator[str]:
    yield "| table | what for | kinds, and tables in it |\n|---|---|---|"
    for _, group in groupby(found, key=lambda table: table.path.partition(".")[0]):
        first, *more = group
        inside = ", ".join(
            f"[{table.path.partition('.')[2]}](#{_anchor(table.path)})" for table in more
        )
        needed = " (needed)" if first.needed else ""
        yield f"| {_link(first)}{needed} | {_cell(first.summary)} | {inside} |"
    yield ""


def _section(table: Table) -> str:
    level = "##" if "." not in table.path else "###"
    parts = [f"{level} {table.path}\n", f"{_sentence(table)}\n"]
    if table.path in EXAMPLES:
        parts.append(f"```toml\n{EXAMPLES[table.path]}```\n")
    if table.keys:
        rows = "\n".join(map(_row, table.keys))
        parts.append(f"| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n")
    elif table.kind:
        parts.append("It has no keys of its own.\n")
    return "\n".join(parts)


def _sentence(table: Table) -> str:
    title = f"`{_title(table)}`: " if table.header else ""
    needed = " A config must have this table." if table.needed else ""
    return f"{title}{table.summary}{needed}"


def _row(key: Key) -> str:
    default = _cell(_default(key))
    return f"| `{key.name}` | {_cell(key.type)} | {default} | {_cell(key.meaning)} |"


def _default(key: Key) -> str:
    if key.default is None:
        return "**needed**"
    return f"`{key.default}`" if _is_toml(key.default) else key.default


def _is_toml(default: str) -> bool:
    return (
        re.fullmatch(r'".*"|\[.*\]|[\d.e+-]+|true|false|inf|[a-z_]+\.[a-z_]+', default) is not None
    )


def _key_rows(found: list[Table]) -> Iterator[str]:
    """Yield each key with the tables that have it, in the order of the alphabet."""
    yield "| key | in |\n|---|---|"
    places = sorted((key.name, i) for i, table in enumerate(found) for key in table.keys)
    for name, group in groupby(places, key=lambda place: place[0]):
        yield f"| `{name}` | {', '.join(_link(found[i]) for _, i in group)} |"


def _cell(text: str) -> str:
    """Return a text for a table of Markdown, with links to the other pages."""
    return re.sub(r"\bdocs/(\w+)\.md", r"[\1](\1.md)", text.replace("|", "\\|"))


def _text_of(table: Table) -> str:
    lines = textwrap.wrap(f"{_title(table)}: {_plain(table.summary)}", WIDTH)
    for key in table.keys:
        default = "needed" if key.default is None else f"default {key.default}"
        lines.append(f"\n  {key.name}  ({_plain(key.type)}; {default})")
        lines += textwrap.wrap(
            _plain(key.meaning), WIDTH, initial_indent="      ", subsequent_indent="      "
        )
    if table.path in EXAMPLES:
        lines += ["\n  for example:", textwrap.indent(EXAMPLES[table.path].rstrip(), "      ")]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return text.replace("`", "")
