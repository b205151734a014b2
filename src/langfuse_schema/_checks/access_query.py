"""The query of the effective access of the API roles: one, because each one costs a round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langfuse_schema.tables import API_ROLES

if TYPE_CHECKING:
    from collections.abc import Collection

USER_ROLES = ("anon", "authenticated")
"""The API roles that row level security limits."""

EXISTING_ROLES = "ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname = ANY (:roles) ORDER BY 1)"
"""The roles of the parameter `roles` that exist, as an SQL expression of type text[]."""

# A role that is a member of one of these can read and write all files of the server.
_FILE_ROLES = "pg_read_server_files", "pg_write_server_files", "pg_execute_server_program"

_PRIVILEGES = "SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"

QUERY = """(
    WITH RECURSIVE api AS MATERIALIZED (
        SELECT oid, rolname::text AS name, rolsuper, rolbypassrls FROM pg_roles
        WHERE rolname = ANY (CAST(:roles AS text[]))
    ), langfuse AS MATERIALIZED (
        SELECT c.oid, c.relname, c.relowner, c.relacl FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname || '.' || c.relname = ANY (CAST(:access_tables AS text[]))
    ), owners AS MATERIALIZED (
        SELECT relowner AS oid FROM langfuse UNION
        SELECT oid FROM pg_roles WHERE rolname = current_user AND NOT EXISTS (SELECT FROM langfuse)
    ), unlimited AS MATERIALIZED (
        SELECT r.oid FROM pg_roles AS r WHERE r.rolsuper OR r.rolbypassrls
        OR EXISTS (SELECT FROM langfuse AS t WHERE pg_has_role(r.oid, t.relowner, 'USAGE'))
    ), direct AS (
        SELECT t.oid AS read, c.oid, c.relowner, c.relnamespace, c.relkind,
               EXISTS (SELECT FROM pg_options_to_table(c.reloptions) WHERE CASE option_name
                       WHEN 'security_invoker' THEN option_value::boolean END) AS invoker
        FROM pg_class AS t JOIN pg_depend AS d ON d.refobjid = t.oid
        AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_rewrite'::regclass
        JOIN pg_rewrite AS w ON w.oid = d.objid
        JOIN pg_class AS c ON c.oid = w.ev_class AND c.relkind IN ('v', 'm') AND c.oid <> t.oid
    ), views AS (
        SELECT d.oid, d.relowner, d.relnamespace, d.relkind, d.invoker,
               NOT d.invoker AND d.relowner IN (SELECT oid FROM unlimited) AS bypasses,
               d.relkind = 'v' AS itself
        FROM direct AS d JOIN langfuse AS t ON t.oid = d.read
        UNION
        SELECT d.oid, d.relowner, d.relnamespace, d.relkind, d.invoker AND v.invoker,
               v.bypasses OR v.invoker AND NOT d.invoker
               AND d.relowner IN (SELECT oid FROM unlimited), d.relkind = 'v' AND NOT v.bypasses
        FROM views AS v JOIN direct AS d ON d.read = v.oid
    ), uid AS MATERIALIZED (
        SELECT p.oid, p.proowner, p.provolatile FROM pg_proc AS p
        JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE n.nspname = 'auth' AND p.proname = 'uid' AND p.pronargs = 0 AND NOT p.proretset
    ), ways AS (
        SELECT CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END AS kind,
               quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, v.relowner AS owner,
               bool_and(v.itself) AS itself,
               ARRAY(SELECT a.name FROM api AS a WHERE a.name = ANY (:user_roles)
                     AND has_schema_privilege(a.oid, n.oid, 'USAGE')
                     AND (has_any_column_privilege(a.oid, v.oid, 'SELECT,INSERT,UPDATE')
                          OR has_table_privilege(a.oid, v.oid, 'DELETE')) ORDER BY 1) AS roles
        FROM views AS v JOIN pg_namespace AS n ON n.oid = v.relnamespace
        JOIN pg_class AS c ON c.oid = v.oid WHERE v.bypasses
        GROUP BY v.oid, v.relkind, v.relowner, n.oid, n.nspname, c.relname
        UNION ALL
        SELECT 'function', quote_ident(n.nspname) || '.' || quote_ident(p.proname) || '('
               || pg_get_function_identity_arguments(p.oid) || ')', p.proowner, false,
               ARRAY(SELECT a.name FROM api AS a WHERE a.name = ANY (:user_roles)
                     AND has_schema_privilege(a.oid, n.oid, 'USAGE')
                     AND has_function_privilege(a.oid, p.oid, 'EXECUTE') ORDER BY 1)
        FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE p.prosecdef AND p.proowner IN (SELECT oid FROM unlimited)
        AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
        AND EXISTS (SELECT FROM langfuse AS t WHERE p.prosrc ~* ('\\m' || t.relname || '\\M')
                    OR EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid
                               AND d.classid = 'pg_proc'::regclass AND d.refobjid = t.oid))
    ), more AS MATERIALIZED (
        -- The roles that have more rights on a Langfuse table than an API role by itself.
        SELECT a.oid AS member, x.oid FROM api AS a, pg_roles AS x
        WHERE a.name = ANY (:user_roles) AND NOT a.rolsuper AND x.oid <> a.oid
        AND (x.oid IN (SELECT oid FROM unlimited) OR x.rolname = ANY (:file_roles)
             OR x.oid IN (SELECT oid FROM owners)
             OR EXISTS (SELECT FROM langfuse AS t, unnest(CAST(:privileges AS text[])) AS p
                 WHERE (has_table_privilege(x.oid, t.oid, p) OR p IN ('SELECT', 'INSERT', 'UPDATE')
                        AND has_any_column_privilege(x.oid, t.oid, p))
                 AND NOT EXISTS (SELECT FROM aclexplode(t.relacl) AS e
                     WHERE e.grantee IN (0, a.oid) AND e.privilege_type = p)
                 AND NOT EXISTS (SELECT FROM pg_attribute AS c, aclexplode(c.attacl) AS e
                     WHERE c.attrelid = t.oid AND e.grantee IN (0, a.oid)
                     AND e.privilege_type = p AND NOT has_table_privilege(x.oid, t.oid, p))))
    )
    SELECT json_build_object(
        'version', current_setting('server_version_num')::int / 10000,
        'roles', (SELECT json_object_agg(api.name, json_build_object(
            'superuser', rolsuper, 'bypasses', rolbypassrls,
            'administered', pg_has_role(api.oid, 'MEMBER WITH ADMIN OPTION'),
            'enters', (SELECT has_schema_privilege(api.oid, oid, 'USAGE') FROM pg_namespace
                       WHERE nspname = 'public'),
            'calls', (SELECT has_function_privilege(api.oid, uid.oid, 'EXECUTE') FROM uid)
            )) FROM api),
        'memberships', (SELECT json_agg(json_build_object(
            'role', a.name, 'granted', g.rolname, 'grantor', pg_get_userbyid(m.grantor),
            'as_grantor', pg_has_role(m.grantor, 'USAGE'), 'administered',
            pg_has_role(g.oid, 'MEMBER WITH ADMIN OPTION') AND NOT g.rolsuper))
            FROM api AS a JOIN pg_auth_members AS m ON m.member = a.oid
            JOIN pg_roles AS g ON g.oid = m.roleid
            WHERE EXISTS (SELECT FROM more AS x WHERE x.member = a.oid
                          AND pg_has_role(g.oid, x.oid, 'MEMBER'))),
        'ways', (SELECT json_agg(json_build_object('kind', kind, 'name', name,
                     'owner', pg_get_userbyid(owner), 'roles', roles, 'itself', itself,
                     'owned', pg_has_role(owner, 'USAGE')) ORDER BY kind, name)
                 FROM ways WHERE roles <> '{}'),
        'superuser', me.rolsuper, 'creates_roles', me.rolcreaterole,
        'bypasses', me.rolbypassrls, 'role', me.rolname,
        'public', (SELECT json_build_object('owner', pg_get_userbyid(nspowner),
                       'owned', pg_has_role(nspowner, 'USAGE'))
                   FROM pg_namespace WHERE nspname = 'public'),
        'uid', (SELECT json_build_object('owner', pg_get_userbyid(proowner), 'volatility',
                    provolatile, 'owned', pg_has_role(proowner, 'USAGE'), 'callable',
                    EXISTS (SELECT FROM api WHERE name = ANY (:user_roles)
                            AND name <> 'anon' AND pg_has_role(oid, 'MEMBER'))
                    AND EXISTS (SELECT FROM pg_language WHERE lanname = 'plpgsql'
                                AND has_language_privilege(oid, 'USAGE')))
                FROM uid)
        )::text FROM pg_roles AS me WHERE me.rolname = current_user) AS access"""
"""A column of a query, because each query costs a round trip. It needs `parameters`."""


def parameters(tables: Collection[str]) -> dict[str, object]:
    """Return the parameters of `QUERY`, for these tables."""
    return {
        "roles": list(API_ROLES),
        "user_roles": list(USER_ROLES),
        "file_roles": list(_FILE_ROLES),
        "privileges": list(_PRIVILEGES),
        "access_tables": list(tables),
    }
