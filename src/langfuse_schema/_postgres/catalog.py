"""Read pg_catalog into plain values.

Definitions are the text that PostgreSQL prints (pg_get_constraintdef, pg_get_indexdef,
pg_get_expr). search_path is pinned to pg_catalog, so that every other name is qualified, and
quote_all_identifiers to off.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema._postgres import objects

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection, TextClause


_TABLES = """
    SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
           pg_get_userbyid(c.relowner) AS owner, c.relpersistence::text AS persistence,
           c.relrowsecurity AS row_security, c.relforcerowsecurity AS force_row_security,
           c.relispartition AS is_partition
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
    AND (CAST(:names AS text[]) IS NULL OR n.nspname || '.' || c.relname = ANY (:names))
    ORDER BY c.oid"""

_RELATIVES = """
        SELECT i.{table}, quote_ident(n.nspname) || '.' || quote_ident(c.relname)
        FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.{relative}
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE i.{table} IN (SELECT oid FROM tables) ORDER BY i.{table}, {order}"""

# One query for each kind of part. Its first column is the oid of the table.
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
        WHERE a.attrelid IN (SELECT oid FROM tables) AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attrelid, a.attnum""",
    # PostgreSQL 18 lists NOT NULL among the constraints too. Here it belongs to the columns.
    # A foreign key to a partitioned table has a copy for each partition, on the same table.
    "constraints": """
        SELECT k.conrelid, k.conname,
               regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', ''),
               k.convalidated, NOT EXISTS (SELECT FROM pg_trigger AS t
                   WHERE t.tgconstraint = k.oid AND t.tgisinternal
                   AND t.tgenabled NOT IN ('O', 'A'))
        FROM pg_constraint AS k
        WHERE k.conrelid IN (SELECT oid FROM tables) AND k.contype IN ('p', 'u', 'f', 'c', 'x')
        AND NOT EXISTS (SELECT FROM pg_constraint AS whole WHERE whole.oid = k.conparentid
                        AND whole.conrelid = k.conrelid)
        ORDER BY k.conrelid, k.conname""",
    "indexes": """
        SELECT i.indrelid, x.relname, pg_get_indexdef(i.indexrelid),
               i.indisvalid AND i.indisready
        FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid
        WHERE i.indrelid IN (SELECT oid FROM tables) ORDER BY i.indrelid, x.relname""",
    "policies": """
        SELECT p.polrelid, p.polname,
               CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                             WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
               p.polpermissive,
               ARRAY(SELECT CASE r WHEN 0 THEN 'public' ELSE pg_get_userbyid(r)::text END
                     FROM unnest(p.polroles) AS r ORDER BY 1),
               pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)
        FROM pg_policy AS p WHERE p.polrelid IN (SELECT oid FROM tables)
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
        WHERE c.oid IN (SELECT oid FROM tables)""",
    # The definition of a trigger or a rule does not contain its state.
    "triggers": """
        SELECT t.tgrelid, t.tgname, pg_get_triggerdef(t.oid), t.tgenabled::text
        FROM pg_trigger AS t WHERE t.tgrelid IN (SELECT oid FROM tables) AND NOT t.tgisinternal
        ORDER BY t.tgrelid, t.tgname""",
    "rules": """
        SELECT r.ev_class, r.rulename, pg_get_ruledef(r.oid), r.ev_enabled::text
        FROM pg_rewrite AS r WHERE r.ev_class IN (SELECT oid FROM tables)
        ORDER BY r.ev_class, r.rulename""",
    "parents": _RELATIVES.format(table="inhrelid", relative="inhparent", order="i.inhseqno"),
    "children": _RELATIVES.format(table="inhparent", relative="inhrelid", order="2"),
}
_TYPES: dict[str, type[Any]] = {
    "columns": objects.Column,
    "constraints": objects.Constraint,
    "indexes": objects.Index,
    "policies": objects.Policy,
    "grants": objects.Grant,
    "triggers": objects.TriggerOrRule,
    "rules": objects.TriggerOrRule,
    "parents": str,
    "children": str,
}

SHAPE = ("columns", "constraints", "indexes", "policies", "grants")
"""The parts of a table that revisions create."""

PINNED = {"search_path": "pg_catalog", "quote_all_identifiers": "off"}
"""Settings on which the text of definitions depends."""

_PIN = text(
    "SELECT "
    + ", ".join(f"pg_catalog.current_setting('{name}')" for name in PINNED)
    + "".join(f", pg_catalog.set_config('{n}', '{value}', true)" for n, value in PINNED.items())
)
_UNPIN = text(
    "SELECT " + ", ".join(f"pg_catalog.set_config('{name}', :{name}, true)" for name in PINNED)
)


def _query(parts: Collection[str]) -> TextClause:
    """Return the query of tables with these parts, as JSON. Each query costs a round trip."""
    columns = ["(SELECT json_agg(t) FROM tables AS t)"]
    for part in parts:
        kind = _TYPES[part]
        number = 2 if kind is str else len(fields(kind)) + 1
        names = ", ".join(f"v{position}" for position in range(number))
        columns.append(
            f"(SELECT json_agg(json_build_array({names})) FROM ({_PARTS[part]}) AS part ({names}))"
        )
    return text(
        f"WITH tables AS MATERIALIZED ({_TABLES})"
        f" SELECT {', '.join(f'CAST({column} AS text)' for column in columns)}"
    )


def read(
    connection: Connection,
    names: Collection[str] | None = None,
    parts: Collection[str] = tuple(_PARTS),
    *,
    pinned: bool = False,
) -> dict[str, objects.Table]:
    """Read tables, views and sequences.

    Takes ACCESS SHARE on them until the end of the transaction, and waits for it for at most
    lock_timeout. Needs no privilege but CONNECT.

    Arguments:
        connection: to PostgreSQL 14 or later.
        names: `schema.table`; all outside the system schemas if None.
        parts: the parts to read, such as `SHAPE`; the others stay empty.
        pinned: whether the transaction has the settings `PINNED` already.

    Returns:
        The tables by `schema.table`, in the order of their creation.
    """
    before = () if pinned else connection.execute(_PIN).one()[: len(PINNED)]
    parameters = {"names": None if names is None else list(names)}
    values = connection.execute(_query(parts), parameters).one()
    if before:
        connection.execute(_UNPIN, dict(zip(PINNED, before, strict=True)))
    rows, *items = [json.loads(value or "[]") for value in values]
    found = {part: _by_table(_TYPES[part], of) for part, of in zip(parts, items, strict=True)}
    result = {}
    for row in rows:
        table = row.pop("oid")
        of_table: dict[str, Any] = {part: tuple(found[part][table]) for part in found}
        grants = frozenset(of_table.pop("grants", ()))
        result[f"{row['schema']}.{row['name']}"] = objects.Table(**row, **of_table, grants=grants)
    return result


def _by_table(kind: type[Any], rows: list[list[Any]]) -> dict[str, list[Any]]:
    """Return the parts of one kind by the oid of the table."""
    found: dict[str, list[Any]] = defaultdict(list)
    for table, *values in rows:
        # PostgreSQL prints definitions as of now, not as of the snapshot of a transaction. The
        # definition, the second value, is None if the object was dropped since.
        dropped = None in values[:2]
        if not dropped:
            hashable = (tuple(value) if isinstance(value, list) else value for value in values)
            found[table].append(kind(*hashable))
    return found
