"""Render the generated parts of the documentation.

The sources are the revisions, their snapshots, and the measured locks. Permissions come from the
tests, and figures from docs/figures, which the benchmarks write.
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
    """Return the text with new content between its two markers of this name.

    Raises:
        ValueError: if a marker is missing.
    """
    begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"no markers {begin} and {end}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def diagram() -> str:
    """Return a Mermaid diagram of the tables and their foreign keys."""
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
    """Return the sections of the revisions, from their docstrings and the measured locks."""
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
            f"| `{table}` | {_lock_in_sql(up.get(table))} | {_lock_in_sql(down.get(table))} |"
            for table in sorted({*up, *down})
        ]
        parts.append("")
    return "\n".join(parts).rstrip()


def _lock_in_sql(mode: str | None) -> str:
    if mode is None:
        return "none"
    return re.sub(r"(?<!^)(?=[A-Z])", " ", mode.removesuffix("Lock")).upper()


def figures(name: str) -> dict[str, Any]:
    """Return the figures of a benchmark, from docs/figures."""
    content: dict[str, Any] = json.loads((DOCS / "figures" / f"{name}.json").read_text("utf-8"))
    return content


def conditions(content: dict[str, Any]) -> str:
    """Return a sentence with the date, the machine and the versions of a measurement."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return f"Measured on {content['date']}: {content['machine']}; {versions}."


def stalls(compare: dict[str, Any]) -> dict[int, tuple[float, float, float]]:
    """Return the longest write in milliseconds, by the number of rows in each table.

    Each value has the medians of the load alone, of the plan's SQL and of langfuse-schema.
    """
    found: dict[int, dict[str, float]] = {}
    for row in compare["rows"]:
        if row.get("figure") == "stall":
            medians = found.setdefault(row["rows"], {})
            medians[row["other_name"]] = row["other"]["median"]
            medians["langfuse-schema"] = row["langfuse_schema"]["median"]
    order = ("the load alone", "the plan's SQL by psql", "langfuse-schema")
    return {rows: tuple(medians[name] for name in order) for rows, medians in found.items()}  # type: ignore[misc] # a tuple of three values


def stall_table(compare: dict[str, Any]) -> str:
    """Return the table of the longest writes during a migration."""
    lines = [
        "| rows in each of the app's tables | longest write, ms: the load alone | while the plan's SQL runs | while `langfuse-schema upgrade head` runs |",
        "|---:|---:|---:|---:|",
    ]
    for rows, milliseconds in stalls(compare).items():
        lines.append(f"| {rows:,} | " + " | ".join(map(shortened, milliseconds)) + " |")
    return "\n".join([*lines, "", conditions(compare) + " Medians of 3 runs."])


def scaling_tables(scaling: dict[str, Any]) -> str:
    """Return the tables of the sizes and the durations, by the number of rows."""
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
    return "\n".join([*lines, "", conditions(scaling)])


def protection(compare: dict[str, Any], scaling: dict[str, Any], text: str) -> str:
    """Return the list of advantages over the plan's SQL, with the figures of the benchmarks."""
    largest, (_, plan, upgrade) = max(stalls(compare).items())
    size = next(size for size in scaling["sizes"] if size["rows"] == _MILLION)
    scores = next(name for name in size["figures"] if name.startswith("all my scores"))
    return text.format(
        rows=largest // _MILLION,
        longest_write=shortened(upgrade),
        plan_longest_write=shortened(plan),
        scores=shortened(size["figures"][scores]["median"]),
        plan_scores=shortened(size["figures"][f"the plan's schema: {scores}"]["median"]),
    )


_ENGLISH = """\
- **Writes continue.** With {rows} M rows in each app table, the [longest write](docs/explanation/measurements.md) takes {longest_write} ms. With the plan's SQL it takes {plan_longest_write} ms.
- **Lock waits are short.** If a step does not get its locks within 500 ms, it is rolled back. The waiting queries run, and the step is retried.
- **Deploys can overlap.** If 20 processes run the upgrade at the same time, one of them applies the revisions. The others wait, find nothing to do, and exit with 0.
- **Queries stay fast.** If the table has 1 M scores, a user with 20 traces reads all their scores in {scores} ms. With the plan's SQL it takes {plan_scores} ms.
- **Access is closed.** Supabase's advisors report 2 errors for the plan's SQL, and 0 errors for these revisions."""

_JAPANESE = """\
- **書き込みが止まりません。** アプリの各テーブルが {rows}00 万行のとき、適用中の書き込みにかかった時間は[最長](docs/explanation/measurements.md) {longest_write} ms でした。計画書の SQL では {plan_longest_write} ms でした。
- **アプリのクエリを長く待たせません。** 500 ms 以内にロックを取得できなければ、その段階を取り消します。待っていたクエリを先に通してから、再試行します。
- **デプロイが重なっても安全です。** 20 プロセスが同時に upgrade を実行しても、適用するのは 1 つだけです。ほかは完了を待ち、終了コード 0 で終わります。
- **RLS を有効にしても読み取りが速いです。** スコアが全体で 100 万件あるとき、トレースが 20 件のユーザーは、自分の全スコアを {scores} ms で読めます。計画書の SQL では {plan_scores} ms です。
- **余分な権限を残しません。** Supabase のアドバイザーが報告するエラーは、計画書の SQL では 2 件、このリビジョンでは 0 件です。"""

_MILLION = 1_000_000


def shortened(value: float) -> str:
    """Return a figure with about two significant digits."""
    digits = max(0, 1 - int(f"{value:e}".partition("e")[2]))
    return f"{value:,.{min(digits, 2)}f}"


def demo(history: History) -> str:
    """Return the main lines of `make demo`, and of a downgrade and an upgrade after it."""
    titles = {script.revision: script.doc for script in history.scripts}
    first, head = history.revisions[0], history.head
    below = history.below(head)
    running = "INFO    [alembic.runtime.migration] Running"
    lines = [
        "```text",
        f"{running} upgrade  -> {first}, {titles[first]}",
        "…",
        f"{head} (head)",
        "…",
        f"{running} downgrade {head} -> {below}, {titles[head]}",
        "…",
        f"{below}",
        "…",
        f"{running} upgrade {below} -> {head}, {titles[head]}",
        "```",
    ]
    return "\n".join(lines)


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
    """Return the content of every page that has generated parts."""
    compare, scaling = figures("compare"), figures("scaling")
    readme, japanese = DOCS.parent / "README.md", DOCS.parent / "README.ja.md"
    history = History.of(Config(config_file()))
    found: dict[Path, str] = {}
    for path, name, content in (
        (readme, "protection", protection(compare, scaling, _ENGLISH)),
        (readme, "demo", demo(history)),
        (japanese, "protection", protection(compare, scaling, _JAPANESE)),
        (japanese, "demo", demo(history)),
        (REFERENCE / "revisions.md", "revisions", revisions_page(measured)),
        (REFERENCE / "permissions.md", "permissions", permissions.render()),
        (DOCS / "how-to" / "supabase-cli.md", "repair", repair(history)),
        (REFERENCE / "errors.md", "errors", errors()),
        (REFERENCE / "schema.md", "picture", diagram()),
        (REFERENCE / "schema.md", "indexes", index_table(history)),
        (REFERENCE / "python-api.md", "api", python_api.render()),
        (MEASUREMENTS, "scaling", scaling_tables(scaling)),
        (MEASUREMENTS, "stall", stall_table(compare)),
    ):
        text = found.get(path) or path.read_text(encoding="utf-8")
        found[path] = between_markers(text, name, content)
    return found
