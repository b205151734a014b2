"""The objects of a database as plain values: equal values are equal objects.

Definitions are the text that PostgreSQL prints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_REFERENCED = re.compile(r"^FOREIGN KEY \(.*?\) REFERENCES (\S+?)\(")


@dataclass(frozen=True)
class Column:
    """A column. `generated` is '', or the letter of pg_attribute: a, d (identity), s or v."""

    name: str
    type: str
    nullable: bool = True
    default: str | None = None
    generated: str = ""

    @property
    def uses_sequence(self) -> bool:
        """Whether it is an identity column, or takes its default from a sequence."""
        return self.generated in ("a", "d") or "nextval(" in (self.default or "")


@dataclass(frozen=True)
class Constraint:
    """A primary key, unique, foreign key, check or exclusion constraint.

    `enforced` is False if the triggers that enforce a foreign key are disabled.
    """

    name: str
    definition: str
    validated: bool = True
    enforced: bool = True

    @property
    def references(self) -> str | None:
        """The table that a foreign key refers to, as `schema.table`."""
        matched = _REFERENCED.match(self.definition)
        return matched[1] if matched else None


@dataclass(frozen=True)
class Index:
    """An index, including those of primary keys and unique constraints."""

    name: str
    definition: str
    valid: bool = True

    @property
    def unique(self) -> bool:
        """Whether it refuses equal rows."""
        return self.definition.startswith("CREATE UNIQUE ")


@dataclass(frozen=True)
class Policy:
    """A row level security policy."""

    name: str
    command: str
    permissive: bool = True
    roles: tuple[str, ...] = ("public",)
    using: str | None = None
    check: str | None = None


@dataclass(frozen=True)
class Grant:
    """One privilege of one role on a table, on a column, or on a sequence of the table.

    PUBLIC is the role `PUBLIC`. `sequence` is quoted and qualified.
    """

    role: str
    privilege: str
    column: str | None = None
    sequence: str | None = None
    grantable: bool = False


@dataclass(frozen=True)
class TriggerOrRule:
    """A trigger or a rewrite rule.

    `enabled` is the letter of pg_trigger or pg_rewrite: O as created, D disabled.
    """

    name: str
    definition: str
    enabled: str = "O"


Part = Column | Constraint | Index | Policy
"""A named part of a table that revisions create."""

Named = Part | TriggerOrRule
"""Any named part of a table."""


@dataclass(frozen=True)
class Table:
    """A table, view or sequence with all its parts. `kind` is pg_class.relkind.

    `partial` marks the expected part of a table that belongs to the app: only the listed
    parts are compared.
    """

    schema: str
    name: str
    kind: str = "r"
    owner: str = ""
    persistence: str = "p"
    row_security: bool = False
    force_row_security: bool = False
    is_partition: bool = False
    partial: bool = False
    parents: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    indexes: tuple[Index, ...] = ()
    policies: tuple[Policy, ...] = ()
    grants: frozenset[Grant] = frozenset()
    triggers: tuple[TriggerOrRule, ...] = ()
    rules: tuple[TriggerOrRule, ...] = ()

    @property
    def qualified_name(self) -> str:
        """`schema.name`, its key in a catalog."""
        return f"{self.schema}.{self.name}"

    def parts(self) -> tuple[Part, ...]:
        """Return all columns, constraints, indexes and policies."""
        return (*self.columns, *self.constraints, *self.indexes, *self.policies)

    def part(self, like: Part) -> Part | None:
        """Return the part with the type and the name of another one, or None."""
        return next((p for p in self.parts() if (type(p), p.name) == (type(like), like.name)), None)

    def column(self, name: str) -> Column | None:
        """Return the column of that name, or None."""
        return next((column for column in self.columns if column.name == name), None)

    def index(self, name: str) -> Index | None:
        """Return the index of that name, or None."""
        return next((index for index in self.indexes if index.name == name), None)
