"""The SQL that makes a database what it should be, one difference at a time.

Rendered from the values of `catalog`. Statements end with a semicolon and stand on lines of
their own, so that a remedy can be pasted into psql; what can be done without keeping others
waiting is done that way (CONCURRENTLY), hence one by one and not in a transaction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy.dialects import postgresql

from langfuse_schema import catalog

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped

_GENERATED_STORED = "s"
_IDENTITY = ("a", "d")


def name(*parts: str) -> str:
    """Write a name as SQL wants it, quoted where it has to be.

    Arguments:
        parts: schema and name, or a name alone.
    """
    quote = _DIALECT.identifier_preparer.quote
    return ".".join(quote(part) for part in parts)


def _table(table: catalog.Table) -> str:
    return name(table.schema, table.name)


def _statements(lines: Iterable[str]) -> str:
    return "\n".join(f"{line};" for line in lines)


def _alter(table: catalog.Table, *changes: str) -> str:
    return f"ALTER TABLE {_table(table)} {', '.join(changes)}"


def create_table(table: catalog.Table, strangers: Collection[str]) -> str:
    """Make a table with all that hangs on it.

    Arguments:
        table: with columns, constraints, indexes, policies and grants.
        strangers: PUBLIC and the roles that default privileges may have let in.
    """
    parts = [*map(_column, table.columns), *map(_constraint, table.constraints)]
    lines = [f"CREATE TABLE {_table(table)} (" + ", ".join(parts) + ")"]
    built_by_constraints = {constraint.name for constraint in table.constraints}
    lines += [index.definition for index in table.indexes if index.name not in built_by_constraints]
    lines.append(f"REVOKE ALL ON TABLE {_table(table)} FROM {', '.join(sorted(strangers))}")
    if table.row_security:
        lines.append(_alter(table, "ENABLE ROW LEVEL SECURITY"))
    lines += [_create_policy(table, policy) for policy in table.policies]
    lines += _grants(table, table.grants)
    return _statements(lines)


def rename_table(table: catalog.Table) -> str:
    """Move something out of the way that is no table."""
    return f"ALTER TABLE {_table(table)} RENAME TO {name(table.name + '_before')};"


def set_logged(table: catalog.Table) -> str:
    """Make an unlogged table survive a crash."""
    return _statements([_alter(table, "SET LOGGED")])


def set_owner(table: catalog.Table, owner: str, expected: Collection[catalog.Grant]) -> str:
    """Give a table to another role; as a superuser, or as a member of both roles.

    Arguments:
        table: as it is.
        owner: whose it should be.
        expected: all grants; what the owner of today was granted before ended with it.
    """
    lost = [grant for grant in expected if grant.role == table.owner]
    return _statements([_alter(table, f"OWNER TO {name(owner)}"), *_grants(table, lost)])


def leave_parent(table: catalog.Table, parent: str) -> str:
    """Take a table out of an inheritance, or out of a partitioned table."""
    if table.is_partition:
        return f"ALTER TABLE {parent} DETACH PARTITION {_table(table)};"
    return _statements([_alter(table, f"NO INHERIT {parent}")])


def drop_child(table: catalog.Table, child: str) -> str:
    """Keep the rows of another table out of ours."""
    return f"ALTER TABLE {child} NO INHERIT {_table(table)};"


def set_row_security(table: catalog.Table, expected: catalog.Table) -> str:
    """Enable or disable row level security, and take FORCE away.

    Arguments:
        table: as it is.
        expected: as it should be.
    """
    lines = []
    if table.row_security != expected.row_security:
        how = "ENABLE" if expected.row_security else "DISABLE"
        lines.append(_alter(table, f"{how} ROW LEVEL SECURITY"))
    if table.force_row_security:
        lines.append(_alter(table, "NO FORCE ROW LEVEL SECURITY"))
    return _statements(lines)


def _column(column: catalog.Column) -> str:
    default = f" DEFAULT {column.default}" if column.default else ""
    return f"{name(column.name)} {column.type}{'' if column.nullable else ' NOT NULL'}{default}"


def _constraint(constraint: catalog.Constraint) -> str:
    return f"CONSTRAINT {name(constraint.name)} {constraint.definition}"


def change(
    table: catalog.Table,
    expected: catalog.Named | None,
    found: catalog.Named | None,
) -> str:
    """Turn one named thing of a table into another.

    Arguments:
        table: where it hangs.
        expected: what should be there; None if nothing should.
        found: what is there; None if nothing is.
    """
    item = expected or found
    if isinstance(item, catalog.Column):
        lines = _change_column(table, expected, found)
    elif isinstance(item, catalog.Constraint):
        lines = _change_constraint(table, expected, found)
    elif isinstance(item, catalog.Index):
        lines = _change_index(table, expected, found)
    elif isinstance(item, catalog.Policy):
        lines = _change_policy(table, expected, found)
    else:
        assert found is not None
        kind = type(found).__name__.upper()
        lines = iter([f"DROP {kind} {name(found.name)} ON {_table(table)}"])
    return _statements(lines)


def _change_column(
    table: catalog.Table, expected: catalog.Named | None, found: catalog.Named | None
) -> Iterator[str]:
    if isinstance(found, catalog.Column) and isinstance(expected, catalog.Column):
        yield from _alter_column(table, expected, found)
        return
    if found is not None:
        yield _alter(table, f"DROP COLUMN {name(found.name)}")
    if isinstance(expected, catalog.Column):
        yield _alter(table, f"ADD COLUMN {_column(expected)}")


def _alter_column(
    table: catalog.Table, expected: catalog.Column, found: catalog.Column
) -> Iterator[str]:
    column = f"ALTER COLUMN {name(expected.name)}"
    if found.generated:
        if found.generated in _IDENTITY:
            yield _alter(table, f"{column} DROP IDENTITY")
        elif found.generated == _GENERATED_STORED:
            yield _alter(table, f"{column} DROP EXPRESSION")
        else:
            yield from _change_column(table, None, found)
            yield from _change_column(table, expected, None)
            return
        found = replace(found, generated="", default=None)
    if found.type != expected.type:
        if found.default is not None:
            # A default need not be convertible, even where the values are.
            yield _alter(table, f"{column} DROP DEFAULT")
            found = replace(found, default=None)
        cast = f"USING {name(expected.name)}::{expected.type}"
        yield _alter(table, f"{column} TYPE {expected.type} {cast}")
    if found.default != expected.default:
        default = f"SET DEFAULT {expected.default}" if expected.default else "DROP DEFAULT"
        yield _alter(table, f"{column} {default}")
    if found.nullable != expected.nullable:
        yield _alter(table, f"{column} {'DROP' if expected.nullable else 'SET'} NOT NULL")


def _change_constraint(
    table: catalog.Table, expected: catalog.Named | None, found: catalog.Named | None
) -> Iterator[str]:
    changes = []
    if isinstance(found, catalog.Constraint) and replace(found, validated=True) == expected:
        yield _alter(table, f"VALIDATE CONSTRAINT {name(found.name)}")
        return
    if found is not None:
        changes.append(f"DROP CONSTRAINT {name(found.name)}")
    if isinstance(expected, catalog.Constraint):
        changes.append(f"ADD {_constraint(expected)}")
    yield _alter(table, *changes)


def _change_index(
    table: catalog.Table, expected: catalog.Named | None, found: catalog.Named | None
) -> Iterator[str]:
    assert isinstance(expected, catalog.Index)
    index = name(table.schema, expected.name)
    if isinstance(found, catalog.Index):
        if found.definition == expected.definition:
            yield f"REINDEX INDEX CONCURRENTLY {index}"
            return
        yield f"DROP INDEX CONCURRENTLY {index}"
    yield expected.definition.replace("INDEX", "INDEX CONCURRENTLY", 1)


def _change_policy(
    table: catalog.Table, expected: catalog.Named | None, found: catalog.Named | None
) -> Iterator[str]:
    if found is not None:
        yield f"DROP POLICY {name(found.name)} ON {_table(table)}"
    if isinstance(expected, catalog.Policy):
        yield _create_policy(table, expected)


def _create_policy(table: catalog.Table, policy: catalog.Policy) -> str:
    kind = "PERMISSIVE" if policy.permissive else "RESTRICTIVE"
    using = f" USING {_on_one_line(policy.using)}" if policy.using else ""
    check = f" WITH CHECK {_on_one_line(policy.check)}" if policy.check else ""
    roles = ", ".join(policy.roles)
    return (
        f"CREATE POLICY {name(policy.name)} ON {_table(table)} AS {kind}"
        f" FOR {policy.command} TO {roles}{using}{check}"
    )


def _on_one_line(expression: str) -> str:
    return " ".join(line.strip() for line in expression.splitlines())


def change_grants(
    table: catalog.Table,
    missing: Collection[catalog.Grant],
    unexpected: Collection[catalog.Grant],
    expected: Collection[catalog.Grant],
) -> str:
    """Give and take privileges.

    Arguments:
        table: on which.
        missing: what to grant.
        unexpected: what to revoke; one that is expected loses its grant option only.
        expected: all that should be there: revoking a privilege on a table revokes it on the
            columns too, where it is granted again.
    """
    lines = []
    again = set(missing)
    for grant in sorted(unexpected, key=str):
        kept = replace(grant, grantable=False)
        option = "GRANT OPTION FOR " if kept in expected else ""
        columns = f" ({name(grant.column)})" if grant.column else ""
        lines.append(
            f"REVOKE {option}{grant.privilege}{columns} ON TABLE {_table(table)}"
            f" FROM {_role(grant.role)}" + (" CASCADE" if grant.grantable else "")
        )
        if grant.column is None and not option:
            again |= {
                other
                for other in expected
                if other.column and (other.role, other.privilege) == (grant.role, grant.privilege)
            }
    return _statements([*lines, *_grants(table, again)])


def _grants(table: catalog.Table, grants: Collection[catalog.Grant]) -> Iterator[str]:
    for role in sorted({grant.role for grant in grants}):
        given = sorted(
            grant.privilege + (f" ({name(grant.column)})" if grant.column else "")
            for grant in grants
            if grant.role == role
        )
        yield f"GRANT {', '.join(given)} ON TABLE {_table(table)} TO {_role(role)}"


def _role(role: str) -> str:
    return role if role == "PUBLIC" else name(role)
