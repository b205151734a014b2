"""The effect of the pending revisions, as the difference of two snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from langfuse_schema._postgres.objects import Table

if TYPE_CHECKING:
    from langfuse_schema._history.chain import History
    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.objects import Part


@dataclass(frozen=True)
class PendingUpgrade:
    """The `revisions` between the `applied` one (None for base) and a target, oldest first."""

    history: History
    applied: str | None
    revisions: tuple[str, ...]

    @cached_property
    def before(self) -> Tables:
        """The schema of the applied revision."""
        return self.history.schema(self.applied)

    @cached_property
    def after(self) -> Tables:
        """The schema of the last pending revision."""
        return self.history.schema(self.revisions[-1] if self.revisions else self.applied)

    @cached_property
    def affected(self) -> tuple[Table, ...]:
        """The tables that the upgrade creates or changes, as they are afterwards."""
        return tuple(table for name, table in self.after.items() if self.before.get(name) != table)

    @property
    def changed(self) -> list[Table]:
        """The affected tables that exist before the upgrade."""
        return [t for t in self.affected if t.partial or t.qualified_name in self.before]

    def known(self, table: Table) -> Table:
        """Return a table as it is before the upgrade, perhaps without any part."""
        return self.before.get(table.qualified_name) or Table(table.schema, table.name)

    def referenced(self) -> set[str]:
        """Return the existing tables that new foreign keys refer to."""
        names = {
            constraint.references
            for table in self.affected
            for constraint in table.constraints
            if constraint not in self.known(table).constraints
        }
        return {n for n in names if n and (n not in self.after or n in self.before)}

    def calls(self, function: str) -> bool:
        """Return whether a new policy calls a function."""
        return any(
            function in f"{policy.using} {policy.check}"
            for table in self.affected
            for policy in table.policies
            if policy not in self.known(table).policies
        )

    def can_exist(self, table: Table, part: Part) -> bool:
        """Return whether the revision that adds a part accepts one that exists already."""
        name = table.qualified_name
        for revision in self.revisions:
            after = self.history.schema(revision).get(name)
            if after is not None and part in after.parts():
                return not self.history.is_one_transaction(revision)
        return False


def names(tables: Tables) -> dict[str, str]:
    """Return the tables, as `schema.table`, by their own names and the names of their indexes."""
    indexes = {index.name: name for name, table in tables.items() for index in table.indexes}
    return indexes | {table.name: name for name, table in tables.items() if not table.partial}
