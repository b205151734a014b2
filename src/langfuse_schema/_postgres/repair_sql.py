"""Render differences as the SQL that repairs them.

Each statement stands on a line of its own. Statements run one by one, not in a transaction:
indexes are built CONCURRENTLY, so that no write waits for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from langfuse_schema._postgres import ddl
from langfuse_schema._postgres.compare import Difference, grants_of, missing_grants
from langfuse_schema._postgres.objects import Column, Constraint, Index, Policy, Table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from langfuse_schema._postgres.objects import Grant


def repair_sql(difference: Difference, roles: Collection[str]) -> str:
    """Return the statements that repair a difference, one on each line.

    Arguments:
        difference: from `compare`.
        roles: the roles to which a new table must be closed, PUBLIC included.
    """
    render = _RENDERERS.get(difference.aspect)
    statements = render(difference) if render else _create_table(difference, roles)
    return "\n".join(f"{statement};" for statement in statements)


def _create_table(difference: Difference, roles: Collection[str]) -> Iterator[str]:
    table = difference.table
    yield from ddl.create_table(table)
    yield from ddl.close_table(table, roles)
    yield from (ddl.create_policy(table, policy) for policy in table.policies)
    yield from ddl.grants(table, [grant for grant in table.grants if grant.role in roles])


def _rename(difference: Difference) -> Iterator[str]:
    table = _actual(difference)
    yield ddl.alter(table, f"RENAME TO {ddl.quoted(table.name + '_before')}")


def _set_logged(difference: Difference) -> Iterator[str]:
    yield ddl.alter(_actual(difference), "SET LOGGED")


def _set_row_security(difference: Difference) -> Iterator[str]:
    expected, found = difference.table, _actual(difference)
    if found.row_security != expected.row_security:
        how = "ENABLE" if expected.row_security else "DISABLE"
        yield ddl.alter(found, f"{how} ROW LEVEL SECURITY")
    if found.force_row_security:
        yield ddl.alter(found, "NO FORCE ROW LEVEL SECURITY")


def _set_owner(difference: Difference) -> Iterator[str]:
    """Change the owner, as a superuser or a member of both roles."""
    table = _actual(difference)
    yield ddl.alter(table, f"OWNER TO {ddl.quoted(str(difference.expected))}")
    # The explicit grants of the former owner ended when it became the owner.
    lost = [grant for grant in difference.table.grants if grant.role == table.owner]
    yield from ddl.grants(table, lost)


def _leave_parent(difference: Difference) -> Iterator[str]:
    table = _actual(difference)
    if table.is_partition:
        yield f"ALTER TABLE {difference.found} DETACH PARTITION {ddl.table_name(table)}"
    else:
        yield ddl.alter(table, f"NO INHERIT {difference.found}")


def _drop_child(difference: Difference) -> Iterator[str]:
    name = ddl.table_name(_actual(difference))
    yield f"ALTER TABLE {difference.found} NO INHERIT {name}"


def _change_column(difference: Difference) -> Iterator[str]:
    expected, found, table = difference.expected, difference.found, _actual(difference)
    if isinstance(found, Column) and isinstance(expected, Column):
        unalterable = found.generated == "v" or expected.generated != ""
        if not unalterable:
            yield from _alter_column(table, expected, found)
            return
    if isinstance(found, Column):
        yield ddl.alter(table, f"DROP COLUMN {ddl.quoted(found.name)}")
    if isinstance(expected, Column):
        yield ddl.alter(table, f"ADD COLUMN {ddl.column(expected)}")
        of_column = [grant for grant in difference.table.grants if grant.column == expected.name]
        yield from ddl.grants(table, of_column)


def _alter_column(table: Table, expected: Column, found: Column) -> Iterator[str]:
    column = f"ALTER COLUMN {ddl.quoted(expected.name)}"
    if found.generated:
        what = "IDENTITY" if found.generated in ddl.IDENTITY else "EXPRESSION"
        yield ddl.alter(table, f"{column} DROP {what}")
        found = replace(found, generated="", default=None)
    if found.type != expected.type:
        if found.default is not None:
            # The values can be convertible while the default is not.
            yield ddl.alter(table, f"{column} DROP DEFAULT")
            found = replace(found, default=None)
        cast = f"USING {ddl.quoted(expected.name)}::{expected.type}"
        yield ddl.alter(table, f"{column} TYPE {expected.type} {cast}")
    if found.default != expected.default:
        default = f"SET DEFAULT {expected.default}" if expected.default else "DROP DEFAULT"
        yield ddl.alter(table, f"{column} {default}")
    if found.nullable != expected.nullable:
        yield ddl.alter(table, f"{column} {'DROP' if expected.nullable else 'SET'} NOT NULL")


def _change_constraint(difference: Difference) -> Iterator[str]:
    expected, found, table = difference.expected, difference.found, _actual(difference)
    if isinstance(found, Constraint) and replace(found, validated=True) == expected:
        yield ddl.alter(table, f"VALIDATE CONSTRAINT {ddl.quoted(found.name)}")
        return
    changes = []
    if isinstance(found, Constraint):
        changes.append(f"DROP CONSTRAINT {ddl.quoted(found.name)}")
    if isinstance(expected, Constraint):
        changes.append(f"ADD {ddl.constraint(expected)}")
    yield ddl.alter(table, *changes)


def _change_index(difference: Difference) -> Iterator[str]:
    expected, found = difference.expected, difference.found
    assert isinstance(expected, Index)
    index = ddl.quoted(difference.table.schema, expected.name)
    if isinstance(found, Index):
        if found.definition == expected.definition:
            yield f"REINDEX INDEX CONCURRENTLY {index}"
            return
        yield f"DROP INDEX CONCURRENTLY {index}"
    yield expected.definition.replace("INDEX", "INDEX CONCURRENTLY", 1)


def _change_policy(difference: Difference) -> Iterator[str]:
    table = _actual(difference)
    if isinstance(difference.found, Policy):
        yield f"DROP POLICY {ddl.quoted(difference.found.name)} ON {ddl.table_name(table)}"
    if isinstance(difference.expected, Policy):
        yield ddl.create_policy(table, difference.expected)


def _drop(difference: Difference) -> Iterator[str]:
    """Drop a trigger or a rule."""
    found = difference.found
    assert found is not None
    name = getattr(found, "name", "")
    table = ddl.table_name(_actual(difference))
    yield f"DROP {difference.aspect.upper()} {ddl.quoted(name)} ON {table}"


def _change_grants(difference: Difference) -> Iterator[str]:
    table = _actual(difference)
    expected, found = grants_of(difference)
    again: set[Grant] = set(missing_grants(difference))
    for grant in sorted(found - expected, key=str):
        only_option = replace(grant, grantable=False) in expected
        yield _revoke(table, grant, only_option=only_option)
        if grant.column is None and not only_option:
            # Revoking a privilege on the table revokes it on the columns too.
            again |= _on_columns(difference.table.grants, grant)
    yield from ddl.grants(table, again)


def _revoke(table: Table, grant: Grant, *, only_option: bool) -> str:
    option = "GRANT OPTION FOR " if only_option else ""
    target = f"SEQUENCE {grant.sequence}" if grant.sequence else f"TABLE {ddl.table_name(table)}"
    cascade = " CASCADE" if grant.grantable else ""
    role = ddl.role_name(grant.role)
    return f"REVOKE {option}{ddl.privilege(grant)} ON {target} FROM {role}{cascade}"


def _on_columns(expected: Iterable[Grant], revoked: Grant) -> set[Grant]:
    return {
        grant
        for grant in expected
        if grant.column and (grant.role, grant.privilege) == (revoked.role, revoked.privilege)
    }


def _actual(difference: Difference) -> Table:
    assert difference.actual is not None
    return difference.actual


_RENDERERS = {
    "kind": _rename,
    "persistence": _set_logged,
    "row-level-security": _set_row_security,
    "owner": _set_owner,
    "parent": _leave_parent,
    "child": _drop_child,
    "column": _change_column,
    "constraint": _change_constraint,
    "index": _change_index,
    "policy": _change_policy,
    "trigger": _drop,
    "rule": _drop,
    "grant": _change_grants,
}
"""The renderer of each aspect; a missing table also needs the roles."""
