"""Render the objects of `objects` as SQL statements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from langfuse_schema._postgres.objects import Column, Constraint, Grant, Policy, Table

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped

IDENTITY = {"a": "ALWAYS", "d": "BY DEFAULT"}
"""pg_attribute.attidentity."""

GENERATED = {"s": "STORED", "v": "VIRTUAL"}
"""pg_attribute.attgenerated."""


def quoted(*parts: str) -> str:
    """Return a qualified name, quoted where SQL requires it."""
    quote = _DIALECT.identifier_preparer.quote
    return ".".join(quote(part) for part in parts)


def table_name(table: Table) -> str:
    """Return the qualified name of a table."""
    return quoted(table.schema, table.name)


def role_name(role: str) -> str:
    """Return the name of a role; PUBLIC is a keyword."""
    return role if role == "PUBLIC" else quoted(role)


def alter(table: Table, *changes: str) -> str:
    """Return one ALTER TABLE statement."""
    return f"ALTER TABLE {table_name(table)} {', '.join(changes)}"


def create_table(table: Table) -> Iterator[str]:
    """Yield the statements that create a table with its constraints and indexes."""
    parts = [*map(column, table.columns), *map(constraint, table.constraints)]
    yield f"CREATE TABLE {table_name(table)} (" + ", ".join(parts) + ")"
    of_constraints = {constraint.name for constraint in table.constraints}
    yield from (index.definition for index in table.indexes if index.name not in of_constraints)


def close_table(table: Table, roles: Iterable[str]) -> Iterator[str]:
    """Yield the statements that revoke all privileges and enable row level security."""
    from_roles = ", ".join(map(role_name, sorted(roles)))
    yield f"REVOKE ALL ON TABLE {table_name(table)} FROM {from_roles}"
    for sequence in sequences(table):
        yield f"REVOKE ALL ON SEQUENCE {sequence} FROM {from_roles}"
    if table.row_security:
        yield alter(table, "ENABLE ROW LEVEL SECURITY")


def sequences(table: Table) -> list[str]:
    """Return the sequences of a table's identity columns, under PostgreSQL's names."""
    return [
        quoted(table.schema, f"{table.name}_{item.name}_seq")
        for item in table.columns
        if item.generated in IDENTITY
    ]


def column(item: Column) -> str:
    """Return the definition of a column, as in CREATE TABLE."""
    constraint = "" if item.nullable else " NOT NULL"
    if item.generated in IDENTITY:
        constraint += f" GENERATED {IDENTITY[item.generated]} AS IDENTITY"
    elif item.generated in GENERATED:
        constraint += f" GENERATED ALWAYS AS ({item.default}) {GENERATED[item.generated]}"
    elif item.default:
        constraint += f" DEFAULT {item.default}"
    return f"{quoted(item.name)} {item.type}{constraint}"


def constraint(item: Constraint) -> str:
    """Return the definition of a constraint, as in CREATE TABLE."""
    return f"CONSTRAINT {quoted(item.name)} {item.definition}"


def create_policy(table: Table, policy: Policy) -> str:
    """Return the statement that creates a policy."""
    kind = "PERMISSIVE" if policy.permissive else "RESTRICTIVE"
    using = f" USING {_on_one_line(policy.using)}" if policy.using else ""
    check = f" WITH CHECK {_on_one_line(policy.check)}" if policy.check else ""
    roles = ", ".join(role if role == "public" else quoted(role) for role in policy.roles)
    return (
        f"CREATE POLICY {quoted(policy.name)} ON {table_name(table)} AS {kind}"
        f" FOR {policy.command} TO {roles}{using}{check}"
    )


def _on_one_line(expression: str) -> str:
    # In parentheses: PostgreSQL prints a constant or a function call without any.
    return "(" + " ".join(line.strip() for line in expression.splitlines()) + ")"


def grants(table: Table, given: Collection[Grant]) -> Iterator[str]:
    """Yield one GRANT statement for each role and object."""
    objects = {(grant.sequence or "", grant.role, grant.grantable) for grant in given}
    for sequence, role, grantable in sorted(objects):
        privileges = sorted(
            privilege(grant)
            for grant in given
            if (grant.sequence or "", grant.role, grant.grantable) == (sequence, role, grantable)
        )
        target = f"SEQUENCE {sequence}" if sequence else f"TABLE {table_name(table)}"
        option = " WITH GRANT OPTION" if grantable else ""
        yield f"GRANT {', '.join(privileges)} ON {target} TO {role_name(role)}{option}"


def privilege(grant: Grant) -> str:
    """Return a privilege with its column, as in GRANT."""
    return grant.privilege + (f" ({quoted(grant.column)})" if grant.column else "")
