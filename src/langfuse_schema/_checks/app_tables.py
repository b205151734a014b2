"""Requirements of the existing tables that an upgrade changes, above all of those of the app."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema._postgres import ddl, messages
from langfuse_schema._postgres.findings import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from langfuse_schema._history.chain import Position
    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.findings import Finding
    from langfuse_schema._postgres.objects import Column, Table

MOST_COLUMNS = 1600
"""The columns of a table, dropped ones included.

https://www.postgresql.org/docs/current/limits.html
"""

# One query, because each one costs a round trip. ADD COLUMN changes all inheriting tables too.
_STATES = text(
    """
    WITH RECURSIVE family AS (
        SELECT c.oid AS root, c.oid FROM pg_class AS c JOIN pg_namespace AS n
        ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = ANY (:names)
        UNION
        SELECT f.root, i.inhrelid FROM family AS f JOIN pg_inherits AS i ON i.inhparent = f.oid
    )
    SELECT rn.nspname || '.' || r.relname AS root, f.oid <> f.root AS is_child,
           quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,
           pg_get_userbyid(c.relowner) AS owner, pg_has_role(c.relowner, 'USAGE') AS owned,
           c.relnatts AS number, nullif(c.reloftype, 0)::regtype::text AS type,
           (SELECT quote_ident(wn.nspname) || '.' || quote_ident(w.relname) FROM pg_inherits AS i
            JOIN pg_class AS w ON w.oid = i.inhparent JOIN pg_namespace AS wn
            ON wn.oid = w.relnamespace WHERE i.inhrelid = c.oid AND c.relispartition) AS whole,
           (SELECT coalesce(json_object_agg(a.attname, format_type(a.atttypid, a.atttypmod)),
                            '{}')::text FROM pg_attribute AS a
            WHERE a.attrelid = c.oid AND a.attname = ANY (:columns) AND NOT a.attisdropped
           ) AS columns
    FROM family AS f JOIN pg_class AS c ON c.oid = f.oid JOIN pg_namespace AS n
    ON n.oid = c.relnamespace JOIN pg_class AS r ON r.oid = f.root
    JOIN pg_namespace AS rn ON rn.oid = r.relnamespace ORDER BY f.root, f.oid <> f.root, 3
    """
)


def check(connection: Connection, found: Tables, upgrade: Position, role: str) -> Iterator[Finding]:
    """Check that the tables exist, and that the role can alter them and their children."""
    changed = upgrade.changed
    names = [table.qualified_name for table in changed]
    columns = sorted({column.name for table in changed for column in table.columns})
    parameters = {"names": names, "columns": columns}
    rows = connection.execute(_STATES, parameters).mappings().all() if names else []
    states: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for row in rows:
        states[row["root"]].append({**row, "columns": json.loads(row["columns"])})
    for table in changed:
        name = table.qualified_name
        actual = found.get(name)
        if table.partial and (actual is None or actual.kind != "r"):
            yield _missing_or_other(name, actual)
            continue
        known = upgrade.known(table)
        new = [column for column in table.columns if column not in known.columns]
        for state in states[name]:
            yield from _alterable(table, new, state, role)


def _missing_or_other(name: str, actual: Table | None) -> Finding:
    if actual is None:
        return finding("app-table-missing", name)
    kind = messages.RELATION_KINDS.get(actual.kind, actual.kind)
    advice = "Connect to the app's database."
    return finding("app-table-differs", name, found=f"a {kind}", advice=advice)


def _alterable(
    table: Table, new: list[Column], state: dict[str, Any], role: str
) -> Iterator[Finding]:
    """Check that columns can be added to a table, or to one that inherits from it."""
    name = state["name"] if state["is_child"] else table.qualified_name
    # Of an inheriting table, only the columns are changed.
    if not state["owned"] and (new or not state["is_child"]):
        yield _not_owned(table, name, state, role)
    added = [column for column in new if column.name not in state["columns"]]
    if added and state["type"]:
        yield finding(
            "app-table-differs",
            name,
            found=f"a table of the type {state['type']}",
            advice="Make it an ordinary table. Run:",
            fix=(f"ALTER TABLE {name} NOT OF;",),
        )
    if added and state["whole"] and not state["is_child"]:
        advice = f"The column cannot be added to it alone. Detach it from {state['whole']} first."
        found = f"a partition of {state['whole']}"
        yield finding("app-table-differs", name, found=found, advice=advice)
    if state["number"] + len(added) > MOST_COLUMNS:
        found = f"a table with {state['number']} columns, dropped ones included"
        advice = "Create the table again without its dropped columns, and copy its rows."
        yield finding("app-table-differs", name, found=found, advice=advice)
    for column in new if state["is_child"] else ():
        actual = state["columns"].get(column.name)
        if actual not in (None, column.type):
            renamed = f"{ddl.quoted(column.name)} TO {ddl.quoted(column.name + '_before')}"
            yield finding(
                "name-taken",
                f"{name}.{column.name}",
                found=actual,
                needed=f"a new column, which it inherits from {table.qualified_name}",
                advice="Rename it:",
                fix=(f"ALTER TABLE {name} RENAME COLUMN {renamed};",),
            )


def _not_owned(table: Table, name: str, state: dict[str, Any], role: str) -> Finding:
    owners = {"owner": state["owner"], "role": role}
    if state["is_child"]:
        advice = f"It inherits from {table.qualified_name}. As a superuser, run:"
        fix = (f"ALTER TABLE {name} OWNER TO {ddl.quoted(role)};",)
        return finding("app-table-not-owned", name, **owners, advice=advice, fix=fix)
    code = "app-table-not-owned" if table.partial else "table-not-owned"
    return finding(code, name, **owners, advice=f"Connect as {state['owner']}.")
