"""Render differences as the SQL that repairs them.

Statements run one by one, and a new table is created and closed in a transaction. Indexes are built
CONCURRENTLY, so that no write waits for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from langfuse_schema._postgres import ddl
from langfuse_schema._postgres.compare import Difference, grants_of, missing_grants
from langfuse_schema._postgres.objects import Column, Constraint, Index, Policy, Table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


def repair_sql(difference: Difference, roles: Collection[str] = ()) -> tuple[str, ...]:
    """Return the statements that repair a difference, and close a new table to the roles."""
    if difference.actual is None:
        statements = _create_table(difference.table, roles)
    else:
        statements = _RENDERERS[difference.aspect](difference, difference.actual)
    return tuple(f"{statement};" for statement in statements)


def _create_table(table: Table, roles: Collection[str]) -> Iterator[str]:
    create, *indexes = ddl.create_table(table)
    # Default privileges can open the new table until its transaction ends.
    yield from ("BEGIN", create, *ddl.close_table(table, roles), "COMMIT")
    yield from indexes
    yield from (ddl.create_policy(table, policy) for policy in table.policies)
    yield from ddl.grants(table, [grant for grant in table.grants if grant.role in roles])


def _rename(difference: Difference, table: Table) -> Iterator[str]:
    """Free the name of a table, and the names of its indexes."""
    yield ddl.alter(table, f"RENAME TO {ddl.quoted(table.name + '_before')}")
    for index in table.indexes:
        if difference.table.index(index.name):
            name = ddl.quoted(table.schema, index.name)
            yield f"ALTER INDEX {name} RENAME TO {ddl.quoted(index.name + '_before')}"


def _set_logged(_: Difference, table: Table) -> Iterator[str]:
    yield ddl.alter(table, "SET LOGGED")


def _set_row_security(difference: Difference, table: Table) -> Iterator[str]:
    if not table.row_security and difference.table.row_security:
        yield ddl.alter(table, "ENABLE ROW LEVEL SECURITY")
    if table.force_row_security:
        yield ddl.alter(table, "NO FORCE ROW LEVEL SECURITY")


def _set_owner(difference: Difference, table: Table) -> Iterator[str]:
    """Change the owner, as a superuser or a member of both roles."""
    yield ddl.alter(table, f"OWNER TO {ddl.quoted(str(difference.expected))}")
    # The explicit grants of the former owner ended when it became the owner.
    lost = [grant for grant in difference.table.grants if grant.role == table.owner]
    yield from ddl.grants(table, lost)


def _leave_parent(difference: Difference, table: Table) -> Iterator[str]:
    if table.is_partition:
        yield f"ALTER TABLE {difference.found} DETACH PARTITION {ddl.table_name(table)}"
    else:
        yield ddl.alter(table, f"NO INHERIT {difference.found}")


def _drop_child(difference: Difference, table: Table) -> Iterator[str]:
    yield f"ALTER TABLE {difference.found} NO INHERIT {ddl.table_name(table)}"


def _change_column(difference: Difference, table: Table) -> Iterator[str]:
    expected, found = difference.expected, difference.found
    if isinstance(found, Column) and isinstance(expected, Column):
        unalterable = found.generated == "v" or expected.generated != ""
        if not unalterable:
            yield from _alter_column(table, expected, found)
            return
    if isinstance(found, Column):
        yield ddl.alter(table, f"DROP COLUMN {ddl.quoted(found.name)}")
    if isinstance(expected, Column):
        # With rows, SET NOT NULL succeeds once the column has values.
        later = not expected.nullable and expected.default is None and not expected.generated
        added = replace(expected, nullable=True) if later else expected
        yield ddl.alter(table, f"ADD COLUMN {ddl.column(added)}")
        if later:
            yield ddl.alter(table, f"ALTER COLUMN {ddl.quoted(expected.name)} SET NOT NULL")
        of_column = [grant for grant in difference.table.grants if grant.column == expected.name]
        yield from ddl.grants(table, of_column)


def _alter_column(table: Table, expected: Column, found: Column) -> Iterator[str]:
    column = f"ALTER COLUMN {ddl.quoted(expected.name)}"
    if found.generated:
        kind = "IDENTITY" if found.generated in ddl.IDENTITY else "EXPRESSION"
        yield ddl.alter(table, f"{column} DROP {kind}")
        found = replace(found, default=None)
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


def _change_constraint(difference: Difference, table: Table) -> Iterator[str]:
    expected, found = difference.expected, difference.found
    if isinstance(found, Constraint) and replace(found, validated=True) == expected:
        yield ddl.alter(table, f"VALIDATE CONSTRAINT {ddl.quoted(found.name)}")
        return
    changes = []
    if isinstance(found, Constraint):
        changes.append(f"DROP CONSTRAINT {ddl.quoted(found.name)}")
    if isinstance(expected, Constraint):
        changes.append(f"ADD {ddl.constraint(expected)}")
    yield ddl.alter(table, *changes)


def _change_index(difference: Difference, table: Table) -> Iterator[str]:
    expected, found = difference.expected, difference.found
    if not isinstance(expected, Index):
        assert isinstance(found, Index)
        yield f"DROP INDEX CONCURRENTLY {ddl.quoted(table.schema, found.name)}"
        return
    index = ddl.quoted(table.schema, expected.name)
    if isinstance(found, Index):
        if found.definition == expected.definition:
            yield f"REINDEX INDEX CONCURRENTLY {index}"
            return
        yield f"DROP INDEX CONCURRENTLY {index}"
    yield expected.definition.replace("INDEX", "INDEX CONCURRENTLY", 1)


def _change_policy(difference: Difference, table: Table) -> Iterator[str]:
    if isinstance(difference.found, Policy):
        yield from _drop(difference, table)
    if isinstance(difference.expected, Policy):
        yield ddl.create_policy(table, difference.expected)


def _drop(difference: Difference, table: Table) -> Iterator[str]:
    """Drop a policy, a trigger or a rule."""
    name = ddl.quoted(getattr(difference.found, "name", ""))
    yield f"DROP {difference.aspect.upper()} {name} ON {ddl.table_name(table)}"


def _change_grants(difference: Difference, table: Table) -> Iterator[str]:
    expected, found = grants_of(difference)
    surplus = found - expected
    options = {grant for grant in surplus if replace(grant, grantable=False) in expected}
    revoked = surplus - options
    yield from ddl.revokes(table, options, only_option=True)
    yield from ddl.revokes(table, revoked, only_option=False)
    # Revoking a privilege on the table revokes it on the columns too.
    on_table = {(grant.role, grant.privilege) for grant in revoked if grant.column is None}
    on_columns = (grant for grant in difference.table.grants if grant.column)
    again = {grant for grant in on_columns if (grant.role, grant.privilege) in on_table}
    yield from ddl.grants(table, again | missing_grants(difference))


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
