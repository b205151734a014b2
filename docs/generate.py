"""Write the generated parts of the documentation: `python docs/generate.py`.

The picture of the tables comes from the metadata, the page of revisions from their docstrings and
from locks that are measured on a real server. A test does the same and compares.
"""

from __future__ import annotations

import re
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.dialects import postgresql

from langfuse_schema import embedded, migrations, tables

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
    scripts = list(ScriptDirectory.from_config(Config(migrations.config_file())).walk_revisions())
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


def pages(measured: dict[str, tuple[Locks, Locks]]) -> dict[Path, str]:
    """Render every page that has generated parts."""
    readme, japanese = DOCS.parent / "README.md", DOCS.parent / "README.ja.md"
    revisions = DOCS / "revisions.md"
    return {
        path: between_markers(path.read_text(encoding="utf-8"), name, content)
        for path, name, content in (
            (readme, "picture", picture()),
            (japanese, "picture", picture()),
            (revisions, "revisions", revisions_page(measured)),
        )
    }


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
