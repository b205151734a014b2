"""Render the generated parts of the documentation.

Sources: the chain and its snapshots, docstrings of revisions, measured locks, the expected
permissions of the tests, and the figures that the benchmarks wrote to docs/figures.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql

from langfuse_schema import tables
from langfuse_schema._checks import checklist
from langfuse_schema._history.chain import History, config_file
from langfuse_schema._postgres.findings import catalogue, finding
from tests.access import permissions
from tools import python_api

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.chain import Measured

DOCS = Path(__file__).parents[1] / "docs"
REFERENCE = DOCS / "reference"
EXAMPLES = Path(__file__).with_name("examples.json")
MEASUREMENTS = DOCS / "explanation" / "measurements.md"


def between_markers(text: str, name: str, content: str) -> str:
    """Put content between the two markers of that name, which must be there."""
    begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"no markers {begin} and {end}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def picture() -> str:
    """The tables and their links as a Mermaid diagram, which GitHub draws."""
    declared = tables.declared_metadata()
    lines = ["```mermaid", "erDiagram"]
    for table in declared.sorted_tables:
        lines.append(f"    {table.name} {{")
        for column in table.columns:
            kind = column.type.compile(dialect=postgresql.dialect()).lower()
            kind = kind.replace("timestamp with time zone", "timestamptz").replace("[]", "_array")
            key = " PK" if column.primary_key else " FK" if column.foreign_keys else ""
            lines.append(f"        {kind} {column.name}{key}")
        lines.append("    }")
    for table in declared.sorted_tables:
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name):
            optional = "|o" if key.parent.nullable else "||"
            label = f"{key.parent.name}: {str(key.ondelete).lower()}"
            lines.append(f'    {key.column.table.name} {optional}--o{{ {table.name} : "{label}"')
    return "\n".join([*lines, "```"])


def revisions_page(measured: Mapping[str, Measured]) -> str:
    """Render the revisions, oldest first, from their docstrings and the measured locks."""
    scripts = list(ScriptDirectory.from_config(Config(config_file())).walk_revisions())
    parts = []
    for script in reversed(scripts):
        up, down = measured[script.revision].upgrade, measured[script.revision].downgrade
        facts = re.findall(
            r"^(\w[\w ]*): (.*?)(?=^\S|\Z)", script.longdoc, re.MULTILINE | re.DOTALL
        )
        parts.append(f"## {script.revision}: {script.doc.rstrip('.')}\n")
        parts += [
            f"- **{name}:** {' '.join(text.split())}"
            for name, text in facts
            if name not in ("Revision ID", "Revises")
        ]
        parts.append("\n| table | lock of the upgrade | lock of the downgrade |\n|---|---|---|")
        parts += [
            f"| `{table}` | {_spelled(up.get(table))} | {_spelled(down.get(table))} |"
            for table in sorted({*up, *down})
        ]
        parts.append("")
    return "\n".join(parts).rstrip()


def _spelled(mode: str | None) -> str:
    if mode is None:
        return "none"
    return re.sub(r"(?<!^)(?=[A-Z])", " ", mode.removesuffix("Lock")).upper()


def figures(name: str) -> dict[str, Any]:
    """Read what a benchmark has written."""
    content: dict[str, Any] = json.loads((DOCS / "figures" / f"{name}.json").read_text("utf-8"))
    return content


def surroundings(content: dict[str, Any]) -> str:
    """Say when, on what machine and with which versions figures were measured."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return f"Measured on {content['date']}: {content['machine']}; {versions}."


def stalls(compare: dict[str, Any]) -> dict[int, tuple[float, float, float]]:
    """The longest write in milliseconds by rows a table: the load alone, the plan's SQL, ours."""
    found: dict[int, dict[str, float]] = {}
    for row in compare["rows"]:
        if row.get("figure") == "stall":
            medians = found.setdefault(row["rows"], {})
            medians[row["against"]] = row["other"]["median"]
            medians["ours"] = row["ours"]["median"]
    order = ("the load alone", "the plan's SQL by psql", "ours")
    return {rows: tuple(medians[who] for who in order) for rows, medians in found.items()}  # type: ignore[misc] # three of them


def stall_table(compare: dict[str, Any]) -> str:
    """What writers feel of a migration."""
    lines = [
        "| rows in each of the app's tables | longest write, ms: the load alone | while the plan's SQL runs | while `langfuse-schema upgrade head` runs |",
        "|---:|---:|---:|---:|",
    ]
    for rows, milliseconds in stalls(compare).items():
        lines.append(f"| {rows:,} | " + " | ".join(map(shortened, milliseconds)) + " |")
    return "\n".join([*lines, "", surroundings(compare) + " Medians of 3 runs."])


def scaling_tables(scaling: dict[str, Any]) -> str:
    """How tables and statements grow."""
    sizes = scaling["sizes"]
    heads = " | ".join(f"{size['rows']:,}" for size in sizes)
    rule = "|---|" + "---:|" * len(sizes)
    lines = [f"| median in milliseconds, rows: | {heads} |", rule]
    for name in sizes[0]["figures"]:
        medians = [shortened(size["figures"][name]["median"]) for size in sizes]
        lines.append(f"| {name} | {' | '.join(medians)} |")
    lines += ["", f"| bytes of a row, rows: | {heads} |", rule]
    for table in sizes[0]["bytes_per_row"]:
        for part in ("heap", "indexes"):
            found = [f"{size['bytes_per_row'][table][part]:.0f}" for size in sizes]
            lines.append(f"| `{table}`, {part} | {' | '.join(found)} |")
    return "\n".join([*lines, "", surroundings(scaling)])


def protection(compare: dict[str, Any], scaling: dict[str, Any]) -> str:
    """What somebody gets who runs the revisions instead of the plan's SQL, with figures."""
    largest, (_, plan, ours) = max(stalls(compare).items())
    size = next(size for size in scaling["sizes"] if size["rows"] == _MILLION)
    scores = next(name for name in size["figures"] if name.startswith("all my scores"))
    slow = size["figures"][f"the plan's schema: {scores}"]["median"]
    fast = size["figures"][scores]["median"]
    most = scaling["sizes"][-1]
    fast_among_most = most["figures"][scores]["median"]
    return f"""\
| the plan's SQL, run as it stands | `langfuse-schema upgrade head` |
|---|---|
| writers wait while indexes are built: {shortened(plan)} ms at {largest // _MILLION} M rows a table | {shortened(ours)} ms: built CONCURRENTLY, and anew if a build was killed |
| one long transaction, and everybody queues behind the ALTER that waits for it | steps back after 500 ms, lets everybody through, tries again, says who is in the way |
| of pods that deploy at the same time most fail | one migrates, the others wait and exit with 0 |
| killed halfway: somebody finds out what is there and what is not | run the same command again; tried at every statement and COMMIT |
| reading one's own scores costs everybody's: {shortened(slow)} ms among 1 M | {shortened(fast)} ms, and {shortened(fast_among_most)} ms among {most["rows"] // _MILLION} M |
| the public key reads and deletes two of the tables, or, in projects since 2026, the server's own key reads none | who may do what is stated, and the same in both |
| eight items to tick by hand | `langfuse-schema verify`, with an exit code |"""


_MILLION = 1_000_000


def shortened(value: float) -> str:
    """A figure with as many digits as mean something."""
    digits = max(0, 1 - int(f"{value:e}".partition("e")[2]))
    return f"{value:,.{min(digits, 2)}f}"


def demo(history: History) -> str:
    """Return the output of `make demo`."""
    upgrades = [
        "INFO    [alembic.runtime.migration] Running upgrade"
        f" {history.below(script.revision) or ''} -> {script.revision}, {script.doc}"
        for script in history.scripts
    ]
    names = sorted(history.schema(history.head))
    width = max(len(name) for name in names) - len("public.")
    rows = [f" public | {name.partition('.')[2]:{width}} | table | postgres" for name in names]
    lines = [
        "```text",
        ".venv/bin/alembic -x embedded=true upgrade head",
        "INFO    [langfuse_schema] the embedded database in …/langfuse-schema/.langfuse-schema (-x embedded=true)",
        "INFO    [alembic.runtime.migration] Context impl PostgresqlImpl.",
        "INFO    [alembic.runtime.migration] Will assume transactional DDL.",
        *upgrades,
        f"INFO    [langfuse_schema] Upgraded from base to {history.head} ({len(upgrades)} revisions, 0.1 s).",
        ".venv/bin/alembic -x embedded=true current",
        "…",
        f"{history.head} (head)",
        ".venv/bin/langfuse-schema dev psql -c '\\dt public.*'",
        "Files: …/langfuse-schema/.langfuse-schema. To delete them: cd …/langfuse-schema && .venv/bin/langfuse-schema dev --remove",
        "List of relations".center(width + 29).rstrip(),
        f" Schema | {'Name':^{width}} | Type  |  Owner",
        f"--------+-{'-' * width}-+-------+----------",
        *rows,
        f"({len(rows)} rows)",
        "```",
    ]
    return "\n".join(lines)


def verified(history: History) -> str:
    """Return the first and the last lines of `verify` at head."""
    tables = history.schema(history.head)
    lines = checklist.Checklist(tables, tables, [], history.head, True).lines()
    return "\n".join(["```text", *map(checklist.shown, lines[:2]), "…", "0 differences", "```"])


def repair(history: History) -> str:
    """Return the command that records all revisions in the history of the Supabase CLI."""
    ids = " ".join(history.revisions)
    command = f'supabase migration repair --status applied {ids} --remote="$DATABASE_URL" --yes'
    return f"```bash\n{command}\n```"


def index_table(history: History) -> str:
    """Return the table of the indexes at head."""
    lines = ["| table | index | definition |", "|---|---|---|"]
    for table in history.schema(history.head).values():
        for index in table.indexes:
            definition = index.definition.partition(" USING ")[2].removeprefix("btree ")
            lines.append(f"| `{table.name}` | `{index.name}` | `{definition}` |")
    return "\n".join(lines)


def errors() -> str:
    """Return a section for each code, with its explanation and an example.

    The examples have values of real messages. A value without an example is its name in capitals.
    """
    sections = []
    examples = json.loads(EXAMPLES.read_text("utf-8"))
    for code, section in catalogue().items():
        fields = {name for _, name, _, _ in Formatter().parse("\n".join(section.values())) if name}
        given = examples.get(code, {"object": "OBJECT", "values": {}})
        values = {name: name.upper() for name in fields - {"place"}} | given["values"]
        example = finding(code, given["object"], **values)
        exits = section.get("exit", "1")
        ends = (
            "A warning does not stop a command."
            if example.severity == "warning"
            else (f"The command exits with {exits}.")
        )
        sections.append(f"## {code}\n\n{section['about']} {ends}\n\n```text\n{example}\n```")
    return "\n\n".join(sections)


def pages(measured: Mapping[str, Measured]) -> dict[Path, str]:
    """Render every page that has generated parts."""
    compare, scaling = figures("compare"), figures("scaling")
    readme, japanese = DOCS.parent / "README.md", DOCS.parent / "README.ja.md"
    history = History.of(Config(config_file()))
    found: dict[Path, str] = {}
    for path, name, content in (
        (readme, "protection", protection(compare, scaling)),
        (readme, "demo", demo(history)),
        (readme, "verify", verified(history)),
        (readme, "picture", picture()),
        (japanese, "picture", picture()),
        (REFERENCE / "revisions.md", "revisions", revisions_page(measured)),
        (REFERENCE / "permissions.md", "permissions", permissions.render()),
        (DOCS / "how-to" / "supabase-cli.md", "repair", repair(history)),
        (REFERENCE / "errors.md", "errors", errors()),
        (REFERENCE / "schema.md", "picture", picture()),
        (REFERENCE / "schema.md", "indexes", index_table(history)),
        (REFERENCE / "python-api.md", "api", python_api.render()),
        (MEASUREMENTS, "scaling", scaling_tables(scaling)),
        (MEASUREMENTS, "stall", stall_table(compare)),
    ):
        text = found.get(path) or path.read_text(encoding="utf-8")
        found[path] = between_markers(text, name, content)
    return found
