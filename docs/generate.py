"""Write the generated parts of the documentation: `python docs/generate.py`.

The picture of the tables comes from the metadata, the page of revisions from their docstrings and
from locks that are measured on a real server, figures from the files that the benchmarks have
written into docs/figures. A test does the same and compares.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.dialects import postgresql

from langfuse_schema import embedded, environment, migrations, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import URL

DOCS = Path(__file__).parent

# Weakest first, as in the table of conflicts of PostgreSQL's documentation.
_MODES = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
_FELT = _MODES[3:]
"""Those that somebody may wait for: ordinary reads and writes take the weaker ones."""

_HELD = """
SELECT n.nspname || '.' || c.relname, l.mode FROM pg_locks AS l
JOIN pg_class AS c ON c.oid = l.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE l.pid = %s AND l.granted AND c.relkind = 'r'
  AND n.nspname IN ('public', 'auth')
"""

Locks = dict[str, str]
"""The strongest lock by `schema.table`."""


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


def measure(url: URL) -> dict[str, tuple[Locks, Locks]]:
    """Measure the locks that each revision takes, upwards and downwards.

    Arguments:
        url: a database that was never migrated; it is left without any revision.
    """
    measured = {}
    for revision in migrations.revisions():
        up = _locks_of(url, lambda engine, to=revision: migrations.upgrade(engine, to))
        down = _locks_of(url, lambda engine: migrations.downgrade(engine, "-1"))
        migrations.upgrade(url, revision)
        measured[revision] = (up, down)
    migrations.downgrade(url, "base")
    return measured


def _locks_of(url: URL, step: Callable[[sa.Engine], None]) -> Locks:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    look = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    strongest: Locks = {}
    lock = threading.Lock()

    def note(rows: list[tuple[str, str]]) -> None:
        with lock:
            for table, mode in rows:
                if table in before and mode in _FELT:
                    known = strongest.get(table, _MODES[0])
                    strongest[table] = max(known, mode, key=_MODES.index)

    def before_commit(connection: sa.Connection) -> None:
        with connection.connection.cursor() as cursor:
            cursor.execute(_HELD.replace("%s", "pg_backend_pid()"))
            note(cursor.fetchall())

    with look.connect() as observer, _somebodys_snapshot(url) as let_go:
        before = set(
            observer.exec_driver_sql(
                "SELECT schemaname || '.' || tablename FROM pg_tables"
            ).scalars()
        )
        event.listen(engine, "commit", before_commit)
        run = threading.Thread(target=step, args=(engine,))
        run.start()
        while run.is_alive():
            # Whoever builds CONCURRENTLY waits for the snapshot, and can be looked at.
            building = observer.exec_driver_sql(
                "SELECT pid FROM pg_stat_progress_create_index"
                " WHERE phase = 'waiting for old snapshots'"
            ).scalar()
            if building:
                note([tuple(row) for row in observer.exec_driver_sql(_HELD, (building,))])
                let_go()
            run.join(0.005)
    return dict(sorted(strongest.items()))


@contextmanager
def _somebodys_snapshot(url: URL) -> Iterator[Callable[[], None]]:
    """Hold snapshots as a report does, two of them, until the function is called for each."""
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="REPEATABLE READ")
    with engine.connect() as connection:

        def take() -> None:
            connection.exec_driver_sql("SELECT 1 FROM pg_class LIMIT 1")

        def let_go() -> None:
            connection.rollback()
            take()

        take()
        yield let_go


def revisions_page(measured: dict[str, tuple[Locks, Locks]]) -> str:
    """Render the revisions, oldest first, from their docstrings and the measured locks."""
    scripts = list(ScriptDirectory.from_config(Config(environment.config_file())).walk_revisions())
    parts = []
    for script in reversed(scripts):
        up, down = measured[script.revision]
        facts = re.findall(
            r"^(\w[\w ]*): (.*?)(?=^\S|\Z)", script.longdoc, re.MULTILINE | re.DOTALL
        )
        parts.append(f"## {script.revision}: {script.doc.rstrip('.')}\n")
        parts += [
            f"- **{name}:** {' '.join(text.split())}"
            for name, text in facts
            if name not in ("Revision ID", "Revises")
        ]
        parts.append("\n| measured on | upgrade | downgrade |\n|---|---|---|")
        parts += [
            f"| `{table}` | {_spelled(up.get(table))} | {_spelled(down.get(table))} |"
            for table in sorted({*up, *down})
        ]
        parts.append("")
    return "\n".join(parts).rstrip()


def _spelled(mode: str | None) -> str:
    if mode is None:
        return "nothing that others feel"
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


def pages(measured: dict[str, tuple[Locks, Locks]]) -> dict[Path, str]:
    """Render every page that has generated parts."""
    compare, scaling = figures("compare"), figures("scaling")
    readme, japanese = DOCS.parent / "README.md", DOCS.parent / "README.ja.md"
    found: dict[Path, str] = {}
    for path, name, content in (
        (readme, "protection", protection(compare, scaling)),
        (readme, "picture", picture()),
        (japanese, "picture", picture()),
        (DOCS / "revisions.md", "revisions", revisions_page(measured)),
        (DOCS / "scaling.md", "scaling", scaling_tables(scaling)),
        (DOCS / "scaling.md", "stall", stall_table(compare)),
    ):
        text = found.get(path) or path.read_text(encoding="utf-8")
        found[path] = between_markers(text, name, content)
    return found


def main() -> None:
    """Write the pages."""
    with (
        tempfile.TemporaryDirectory(prefix="langfuse-schema-") as folder,
        embedded.open_default(Path(folder)) as server,
    ):
        for path, text in pages(measure(server.url())).items():
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
