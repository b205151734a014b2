"""Relations and types that have the name of a new table or index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from langfuse_schema._history.snapshots import names
from langfuse_schema._postgres import messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from langfuse_schema._history.chain import Position
    from langfuse_schema._postgres.findings import Finding

_NAMED = text(
    """
    SELECT c.relname, c.relkind::text AS kind, t.relname AS table_name,
           CASE WHEN NOT pg_has_role(c.relowner, 'USAGE') THEN pg_get_userbyid(c.relowner) END
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
    LEFT JOIN pg_class AS t ON t.oid = i.indrelid
    WHERE n.nspname = 'public' AND c.relname = ANY (:names)
    UNION ALL
    SELECT t.typname, 'type', NULL,
           CASE WHEN NOT pg_has_role(t.typowner, 'USAGE') THEN pg_get_userbyid(t.typowner) END
    FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
    WHERE n.nspname = 'public' AND t.typrelid = 0 AND t.typname = ANY (:tables)
    """
)


def check(connection: Connection, upgrade: Position, unrecorded: bool) -> Iterator[Finding]:
    """Find relations and types with the name of a new table or index.

    With `unrecorded`, `unrecorded_tables` reports the existing tables.
    """
    known = names(upgrade.before)
    needed = {name: table for name, table in names(upgrade.after).items() if name not in known}
    tables = [name for name, table in needed.items() if table == f"public.{name}"]
    rows = connection.execute(_NAMED, {"names": list(needed), "tables": tables}).all()
    for name, relation_kind, table, other_owner in rows:
        if relation_kind in ("type", "c"):
            what, described = "TYPE", "a type"
        elif table is None and not (unrecorded and name in tables):
            what, described = "TABLE", f"a {messages.RELATION_KINDS.get(relation_kind, 'relation')}"
        elif table is not None and f"public.{table}" != needed[name]:
            what, described = "INDEX", f"an index of public.{table}"
        else:
            continue
        renamed = [(what, name)]
        # The indexes of another table with the name of a new one conflict too.
        renamed += [("INDEX", index) for index, _, of_table, _ in rows if of_table == name]
        fix = [f"ALTER {keyword} public.{one} RENAME TO {one}_before;" for keyword, one in renamed]
        advice = f"As {other_owner}, or as a superuser, run:" if other_owner else "Rename it:"
        yield messages.name_taken(f"public.{name}", described, needed[name], fix, advice)
