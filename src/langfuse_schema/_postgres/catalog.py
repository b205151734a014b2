"""Read pg_catalog into plain values.

Definitions are PostgreSQL's own printed text (pg_get_constraintdef, pg_get_indexdef,
pg_get_expr). search_path is pinned to pg_catalog, so that every other name is qualified.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema._postgres.objects import (
    Catalog,
    Column,
    Constraint,
    Grant,
    Index,
    Policy,
    Rule,
    Table,
    Trigger,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy import Connection


_TABLES = text(
    """
    SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text,
           pg_get_userbyid(c.relowner) AS owner, c.relrowsecurity, c.relforcerowsecurity,
           c.relispartition
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
    AND (CAST(:names AS text[]) IS NULL OR n.nspname || '.' || c.relname = ANY (:names))
    ORDER BY c.oid"""
)

_RELATIVES = """
        SELECT i.{table}, quote_ident(n.nspname) || '.' || quote_ident(c.relname)
        FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.{relative}
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE i.{table} = ANY (CAST(:tables AS oid[])) ORDER BY i.{table}, {order}"""

# What hangs on tables, by the kind of thing; the first column is the table.
_PARTS = {
    "columns": """
        SELECT a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod) || coalesce(
                   (SELECT ' COLLATE ' || l.oid::regcollation::text FROM pg_collation AS l
                    JOIN pg_type AS t ON t.oid = a.atttypid
                    WHERE l.oid = a.attcollation AND l.oid <> t.typcollation), ''),
               NOT a.attnotnull OR EXISTS (SELECT FROM pg_constraint AS k
                   WHERE k.conrelid = a.attrelid AND k.contype = 'n' AND NOT k.convalidated
                   AND k.conkey = ARRAY[a.attnum]),
               pg_get_expr(d.adbin, d.adrelid), a.attgenerated::text || a.attidentity::text
        FROM pg_attribute AS a
        LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = ANY (CAST(:tables AS oid[])) AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attrelid, a.attnum""",
    # PostgreSQL 18 lists NOT NULL among the constraints; the columns say it already.
    "constraints": """
        SELECT k.conrelid, k.conname,
               regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', ''),
               k.convalidated, NOT EXISTS (SELECT FROM pg_trigger AS t
                   WHERE t.tgconstraint = k.oid AND t.tgisinternal
                   AND t.tgenabled NOT IN ('O', 'A'))
        FROM pg_constraint AS k
        WHERE k.conrelid = ANY (CAST(:tables AS oid[])) AND k.contype IN ('p', 'u', 'f', 'c', 'x')
        ORDER BY k.conrelid, k.conname""",
    "indexes": """
        SELECT i.indrelid, x.relname, pg_get_indexdef(i.indexrelid),
               i.indisvalid AND i.indisready
        FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid
        WHERE i.indrelid = ANY (CAST(:tables AS oid[])) ORDER BY i.indrelid, x.relname""",
    "policies": """
        SELECT p.polrelid, p.polname,
               CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                             WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
               p.polpermissive,
               ARRAY(SELECT CASE r WHEN 0 THEN 'public' ELSE pg_get_userbyid(r)::text END
                     FROM unnest(p.polroles) AS r ORDER BY 1),
               pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)
        FROM pg_policy AS p WHERE p.polrelid = ANY (CAST(:tables AS oid[]))
        ORDER BY p.polrelid, p.polname""",
    "grants": """
        SELECT c.oid, CASE e.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(e.grantee) END,
               e.privilege_type, e.attname, e.sequence, e.is_grantable
        FROM pg_class AS c CROSS JOIN LATERAL (
            SELECT NULL AS attname, NULL AS sequence, t.* FROM aclexplode(coalesce(c.relacl,
                acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner)
                )) AS t
            UNION ALL
            SELECT a.attname::text, NULL, t.* FROM pg_attribute AS a, aclexplode(a.attacl) AS t
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
            SELECT NULL, quote_ident(n.nspname) || '.' || quote_ident(s.relname), t.*
            FROM pg_depend AS d
            JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
            JOIN pg_namespace AS n ON n.oid = s.relnamespace,
            aclexplode(coalesce(s.relacl, acldefault('s', s.relowner))) AS t
            WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
            AND d.refobjid = c.oid AND d.deptype IN ('a', 'i')) AS e
        WHERE c.oid = ANY (CAST(:tables AS oid[]))""",
    # Whether a trigger or a rule is disabled does not show in its definition.
    "triggers": """
        SELECT t.tgrelid, t.tgname, pg_get_triggerdef(t.oid), t.tgenabled::text
        FROM pg_trigger AS t WHERE t.tgrelid = ANY (CAST(:tables AS oid[])) AND NOT t.tgisinternal
        ORDER BY t.tgrelid, t.tgname""",
    "rules": """
        SELECT r.ev_class, r.rulename, pg_get_ruledef(r.oid), r.ev_enabled::text
        FROM pg_rewrite AS r WHERE r.ev_class = ANY (CAST(:tables AS oid[]))
        ORDER BY r.ev_class, r.rulename""",
    "parents": _RELATIVES.format(table="inhrelid", relative="inhparent", order="i.inhseqno"),
    "children": _RELATIVES.format(table="inhparent", relative="inhrelid", order="2"),
}
_DEFINED = ("constraints", "indexes", "triggers", "rules")
"""The parts whose second column is a definition, which is never empty."""

_PART_QUERIES = {part: text(query) for part, query in _PARTS.items()}

SHAPE = ("columns", "constraints", "indexes", "policies", "grants")
"""The parts of a table that revisions create."""

_SCHEMAS = """
    SELECT n.nspname, pg_get_userbyid(n.nspowner) || ': ' || coalesce(
        (SELECT string_agg(e.grantee::regrole::text || ' ' || e.privilege_type, ', '
                           ORDER BY e.grantee::regrole::text, e.privilege_type)
         FROM aclexplode(n.nspacl) AS e), '')
    FROM pg_namespace AS n
    WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
"""

_FUNCTIONS = """
    SELECT p.oid::regprocedure::text, pg_get_userbyid(p.proowner) || ': '
           || coalesce(p.proacl::text, '') || ' ' || pg_get_functiondef(p.oid)
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND p.prokind <> 'a'
    AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')
"""


def read(
    connection: Connection,
    names: Collection[str] | None = None,
    parts: Collection[str] = tuple(_PARTS),
) -> Catalog:
    """Read the catalog of the connection's database.

    Takes ACCESS SHARE on the tables it reads for as long as the caller's transaction lasts, so
    it waits behind a migration as long as the caller's lock_timeout lets it. Needs no privilege
    beyond CONNECT.

    Arguments:
        connection: a connection to any PostgreSQL from 14 on.
        names: read only these tables, `schema.table`; None reads all tables, schemas and
            functions outside the system schemas.
        parts: what to read of each table, such as `SHAPE`; the rest stays empty.

    Returns:
        The catalog, equal for databases that are equal, whatever their object ids.
    """
    with _pinned_search_path(connection):
        parameters = {"names": None if names is None else list(names)}
        rows = connection.execute(_TABLES, parameters).all()
        found = {part: _grouped(connection, part, rows) for part in parts}
        tables = [_table(row, found) for row in rows]
        return Catalog(
            tables={table.qualified_name: table for table in tables},
            schemas={} if names is not None else _pairs(connection, _SCHEMAS),
            functions={} if names is not None else _pairs(connection, _FUNCTIONS),
        )


_PIN = text(
    "SELECT pg_catalog.current_setting('search_path'),"
    " pg_catalog.set_config('search_path', 'pg_catalog', true)"
)
_UNPIN = text("SELECT pg_catalog.set_config('search_path', :path, true)")


@contextmanager
def _pinned_search_path(connection: Connection) -> Iterator[None]:
    before = connection.execute(_PIN).scalar()
    yield
    connection.execute(_UNPIN, {"path": before})


def _grouped(
    connection: Connection, part: str, tables: Sequence[Any]
) -> dict[int, list[tuple[Any, ...]]]:
    """Read one part of all tables, by the table."""
    found: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    if tables:
        parameters = {"tables": [row.oid for row in tables]}
        for table, *values in connection.execute(_PART_QUERIES[part], parameters):
            # PostgreSQL prints definitions as of now, not as of the snapshot of a transaction.
            dropped_meanwhile = part in _DEFINED and values[1] is None
            if not dropped_meanwhile:
                found[table].append(tuple(values))
    return found


def _table(row: Any, parts: dict[str, dict[int, list[tuple[Any, ...]]]]) -> Table:  # noqa: ANN401 - a row of a textual query has no static type
    def of(part: str) -> list[tuple[Any, ...]]:
        return parts[part].get(row.oid, []) if part in parts else []

    return Table(
        schema=row.nspname,
        name=row.relname,
        kind=row.relkind,
        owner=row.owner,
        persistence=row.relpersistence,
        row_security=row.relrowsecurity,
        force_row_security=row.relforcerowsecurity,
        is_partition=row.relispartition,
        parents=tuple(name for (name,) in of("parents")),
        children=tuple(name for (name,) in of("children")),
        columns=tuple(Column(*values) for values in of("columns")),
        constraints=tuple(Constraint(*values) for values in of("constraints")),
        indexes=tuple(Index(*values) for values in of("indexes")),
        policies=tuple(
            Policy(name, command, permissive, tuple(roles), using, check)
            for name, command, permissive, roles, using, check in of("policies")
        ),
        grants=frozenset(Grant(*values) for values in of("grants")),
        triggers=tuple(Trigger(*values) for values in of("triggers")),
        rules=tuple(Rule(*values) for values in of("rules")),
    )


def _pairs(connection: Connection, query: str) -> dict[str, str]:
    return {row[0]: row[1] for row in connection.execute(text(query))}
