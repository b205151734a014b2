"""The effective access of the roles of the Data API, which no fix of a message may extend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.helpers.databases import SUPERUSER

if TYPE_CHECKING:
    import sqlalchemy as sa

    from langfuse_schema._postgres.findings import Finding

# Of objects outside the system schemas: what each role of the Data API has, by itself or not.
_ACCESS = """
    SELECT concat_ws(' ', r.rolname, what) FROM pg_roles AS r, LATERAL (
        SELECT n.nspname || ' USAGE' FROM pg_namespace AS n
        WHERE n.nspname IN ('public', 'auth', 'langfuse_migrations')
        AND has_schema_privilege(r.oid, n.oid, 'USAGE')
        UNION ALL
        SELECT a.attrelid::regclass || '.' || a.attname || ' ' || p
        FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid,
             unnest('{SELECT,INSERT,UPDATE,REFERENCES}'::text[]) AS p
        WHERE c.relnamespace IN ('public'::regnamespace, 'auth'::regnamespace)
        AND c.relkind IN ('r', 'v', 'm') AND a.attnum > 0 AND NOT a.attisdropped
        AND has_column_privilege(r.oid, c.oid, a.attnum, p)
        UNION ALL
        SELECT c.oid::regclass || ' ' || p FROM pg_class AS c,
             unnest('{DELETE,TRUNCATE,TRIGGER}'::text[]) AS p
        WHERE c.relnamespace IN ('public'::regnamespace, 'auth'::regnamespace)
        AND c.relkind IN ('r', 'v', 'm') AND has_table_privilege(r.oid, c.oid, p)
        UNION ALL
        SELECT p.oid::regprocedure || ' EXECUTE' FROM pg_proc AS p
        WHERE p.pronamespace IN ('public'::regnamespace, 'auth'::regnamespace)
        AND has_function_privilege(r.oid, p.oid, 'EXECUTE')
        UNION ALL
        SELECT 'as ' || m.rolname FROM pg_roles AS m WHERE pg_has_role(r.oid, m.oid, 'MEMBER')
        UNION ALL
        SELECT 'SUPERUSER' WHERE r.rolsuper UNION ALL SELECT 'BYPASSRLS' WHERE r.rolbypassrls
    ) AS granted (what)
    WHERE r.rolname IN ('anon', 'authenticated', 'service_role', 'authenticator')
"""


def effective_access(superuser: sa.Connection) -> set[str]:
    """The effective privileges, memberships and attributes of the roles of the Data API."""
    return set(superuser.exec_driver_sql(_ACCESS).scalars())


def user_of(finding: Finding) -> str:
    """The role that runs a fix: the one that saw the finding, unless the advice names another."""
    return SUPERUSER if "As " in str(finding.advice) else "postgres"
