"""Render the objects of `objects` as SQL statements."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from langfuse_schema._postgres.objects import Column, Constraint, Grant, Policy, Table

# With named parameters, a percent sign in a name is not doubled.
_PREPARER = postgresql.dialect(paramstyle="named").identifier_preparer  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped
_PREPARER.reserved_words = _PREPARER.reserved_words | {
    "collation", "concurrently", "lateral", "system_user", "tablesample",
}  # fmt: skip

# By pg_attribute.attidentity, and by pg_attribute.attgenerated.
IDENTITY = {"a": "ALWAYS", "d": "BY DEFAULT"}
_GENERATED = {"s": "STORED", "v": "VIRTUAL"}


def quoted(*parts: str) -> str:
    """Return a qualified name, quoted where SQL requires it."""
    return ".".join(_PREPARER.quote(part) for part in parts)


def table_name(table: Table) -> str:
    """Return the qualified name of a table."""
    return quoted(table.schema, table.name)


def _role_name(role: str) -> str:
    # PUBLIC is a keyword.
    return role if role == "PUBLIC" else quoted(role)


def alter(table: Table, *changes: str) -> str:
    """Return one ALTER TABLE statement."""
    return f"ALTER TABLE {table_name(table)} {', '.join(changes)}"


def create_table(table: Table) -> Iterator[str]:
    """Yield the statements that create a table with its constraints and indexes."""
    parts = [*map(column, table.columns), *map(constraint, table.constraints)]
    yield f"CREATE TABLE {table_name(table)} ({', '.join(parts)})"
    of_constraints = {item.name for item in table.constraints}
    yield from (index.definition for index in table.indexes if index.name not in of_constraints)


def close_table(table: Table, roles: Iterable[str]) -> Iterator[str]:
    """Yield the statements that revoke all privileges and enable row level security."""
    from_roles = ", ".join(map(_role_name, sorted(roles)))
    yield f"REVOKE ALL ON TABLE {table_name(table)} FROM {from_roles}"
    for item in table.columns:
        if item.generated in IDENTITY:
            # The name that PostgreSQL gives to the sequence of an identity column.
            sequence = quoted(table.schema, f"{table.name}_{item.name}_seq")
            yield f"REVOKE ALL ON SEQUENCE {sequence} FROM {from_roles}"
    if table.row_security:
        yield alter(table, "ENABLE ROW LEVEL SECURITY")


def column(item: Column) -> str:
    """Return the definition of a column, as in CREATE TABLE."""
    constraint = "" if item.nullable else " NOT NULL"
    if item.generated in IDENTITY:
        constraint += f" GENERATED {IDENTITY[item.generated]} AS IDENTITY"
    elif item.generated in _GENERATED:
        constraint += f" GENERATED ALWAYS AS ({item.default}) {_GENERATED[item.generated]}"
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
    return (
        f"CREATE POLICY {quoted(policy.name)} ON {table_name(table)} AS {kind}"
        f" FOR {policy.command} TO {', '.join(map(_role_name, policy.roles))}{using}{check}"
    )


def _on_one_line(expression: str) -> str:
    # In parentheses: PostgreSQL prints a constant or a function call without any.
    return "(" + " ".join(line.strip() for line in expression.splitlines()) + ")"


def grants(table: Table, given: Iterable[Grant]) -> Iterator[str]:
    """Yield one GRANT statement for each role and object."""
    for (sequence, role, grantable), names in sorted(_by_role(given).items()):
        option = " WITH GRANT OPTION" if grantable else ""
        target = _target(table, sequence)
        yield f"GRANT {names} ON {target} TO {_role_name(role)}{option}"


def revokes(table: Table, taken: Iterable[Grant], *, only_option: bool) -> Iterator[str]:
    """Yield one REVOKE statement for each role and object, of privileges or their grant options."""
    option = "GRANT OPTION FOR " if only_option else ""
    for (sequence, role, grantable), names in sorted(_by_role(taken).items()):
        cascade = " CASCADE" if grantable else ""
        target = _target(table, sequence)
        yield f"REVOKE {option}{names} ON {target} FROM {_role_name(role)}{cascade}"


def _by_role(grants: Iterable[Grant]) -> dict[tuple[str, str, bool], str]:
    """Return the privileges, joined, by sequence, role and grant option."""
    privileges = defaultdict(list)
    for grant in grants:
        key = (grant.sequence or "", grant.role, grant.grantable)
        privileges[key].append(_privilege(grant))
    return {key: ", ".join(sorted(names)) for key, names in privileges.items()}


def _privilege(grant: Grant) -> str:
    return grant.privilege + (f" ({quoted(grant.column)})" if grant.column else "")


def _target(table: Table, sequence: str | None) -> str:
    return f"SEQUENCE {sequence}" if sequence else f"TABLE {table_name(table)}"
