"""The effective access of all roles, which no fix of a message may extend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlalchemy as sa

# A role has a privilege directly, by membership or through PUBLIC. Superusers and the
# predefined roles are left out, except for the attribute and the memberships.
_ACCESS = """
    WITH schemas AS MATERIALIZED (
        SELECT oid, nspname FROM pg_namespace
        WHERE nspname IN ('public', 'auth', 'langfuse_migrations')
    ), roles AS MATERIALIZED (
        SELECT oid, rolname FROM pg_roles WHERE NOT rolsuper AND rolname !~ '^pg_'
    ), relations AS MATERIALIZED (
        SELECT c.oid, n.nspname || '.' || c.relname AS name, c.relrowsecurity FROM pg_class AS c
        JOIN schemas AS n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm')
    )
    SELECT concat_ws(' ', r.rolname, n.nspname, p) FROM roles AS r, schemas AS n,
        unnest('{USAGE,CREATE}'::text[]) AS p WHERE has_schema_privilege(r.oid, n.oid, p)
    UNION ALL
    SELECT concat_ws(' ', r.rolname, c.name || '.' || a.attname, p)
    FROM roles AS r, relations AS c JOIN pg_attribute AS a ON a.attrelid = c.oid,
         unnest('{SELECT,INSERT,UPDATE,REFERENCES}'::text[]) AS p
    WHERE a.attnum > 0 AND NOT a.attisdropped AND has_column_privilege(r.oid, c.oid, a.attnum, p)
    UNION ALL
    SELECT concat_ws(' ', r.rolname, c.name, p) FROM roles AS r, relations AS c,
        unnest('{DELETE,TRUNCATE,TRIGGER}'::text[]) AS p WHERE has_table_privilege(r.oid, c.oid, p)
    UNION ALL
    SELECT concat_ws(' ', r.rolname, f.oid::regprocedure::text, 'EXECUTE')
    FROM roles AS r, pg_proc AS f
    WHERE f.pronamespace IN (SELECT oid FROM schemas)
    AND has_function_privilege(r.oid, f.oid, 'EXECUTE')
    UNION ALL
    SELECT concat_ws(' ', 'all rows of', name) FROM relations WHERE NOT relrowsecurity
    UNION ALL
    SELECT concat_ws(' ', c.name, p.polname, p.polcmd, p.polpermissive, p.polroles,
                     pg_get_expr(p.polqual, c.oid), pg_get_expr(p.polwithcheck, c.oid))
    FROM pg_policy AS p JOIN relations AS c ON c.oid = p.polrelid
    UNION ALL
    SELECT concat_ws(' ', r.rolname, 'as', m.rolname) FROM roles AS r, pg_roles AS m
    WHERE pg_has_role(r.oid, m.oid, 'MEMBER')
    UNION ALL
    SELECT concat_ws(' ', rolname, 'SUPERUSER') FROM pg_roles WHERE rolsuper
    UNION ALL
    SELECT concat_ws(' ', rolname, 'BYPASSRLS') FROM pg_roles WHERE rolbypassrls
"""


def effective_access(superuser: sa.Connection) -> set[str]:
    """Return the effective privileges, memberships and attributes of roles, and row policies."""
    return set(superuser.exec_driver_sql(_ACCESS).scalars())
