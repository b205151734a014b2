"""The revisions in the order of Alembic's chain, with the schema after each of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from langfuse_schema import tables
from langfuse_schema._history import snapshots
from langfuse_schema._postgres.findings import SchemaError, finding
from langfuse_schema._postgres.objects import Table
from langfuse_schema._postgres.version_table import VersionTable

if TYPE_CHECKING:
    from alembic.script import Script

    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.objects import Part, Policy

VERSION_TABLE = VersionTable("langfuse_migrations", "alembic_version", tables.API_ROLES)


def config_file() -> Path:
    """Return the path of alembic.ini, with the revisions beside it, in a checkout or a wheel."""
    package = Path(__file__).parents[1]
    packaged = package / "_scripts" / "alembic.ini"
    return packaged if packaged.exists() else package.parents[1] / "alembic.ini"


class History:
    """The revisions of a script directory.

    Attributes:
        scripts: Alembic's scripts, oldest first.
        revisions: all ids, oldest first.
        plan: the ids of the plan's files, oldest first: those with `of_plan = True`.
    """

    def __init__(self, directory: ScriptDirectory) -> None:
        """Read the chain of a script directory."""
        self._directory = directory
        self.scripts: tuple[Script, ...] = tuple(reversed(list(directory.walk_revisions())))
        self.revisions: tuple[str, ...] = tuple(script.revision for script in self.scripts)
        self.plan = tuple(s.revision for s in self.scripts if getattr(s.module, "of_plan", False))

    @classmethod
    def of(cls, config: Config) -> History:
        """Read the chain of the script directory that a configuration names."""
        return cls(ScriptDirectory.from_config(config))

    @classmethod
    def packaged(cls) -> History:
        """Read the chain that comes with the package."""
        return cls.of(Config(config_file()))

    @property
    def head(self) -> str:
        """The newest revision."""
        return self.revisions[-1]

    def resolve(self, name: str) -> str | None:
        """Return the id of `head`, an id, or an abbreviated id; None for `base`.

        Raises:
            CommandError: there is no such revision.
        """
        if not name:
            raise CommandError("the revision is empty")
        script = self._directory.get_revision(name)
        return script.revision if script else None

    def position(self, revision: str | None) -> int:
        """Return the number of revisions up to this one; 0 for base."""
        return 0 if revision is None else self.revisions.index(revision) + 1

    def after(self, revision: str | None) -> tuple[str, ...]:
        """Return the revisions after this one, oldest first."""
        return self.revisions[self.position(revision) :]

    def is_one_transaction(self, revision: str) -> bool:
        """Return whether a revision is applied completely or not at all."""
        module = self.scripts[self.revisions.index(revision)].module
        return not hasattr(module, "discard_partial_upgrade")

    def schema(self, revision: str | None) -> Tables:
        """Return the tables after a revision by `schema.table`. None is base, without tables.

        Raises:
            SchemaError: the revision has no snapshot.
        """
        if revision is None:
            return {}
        path = self.snapshot_path(revision)
        try:
            return _read(path, path.stat().st_mtime_ns)
        except FileNotFoundError:
            missing = finding("snapshot-missing", str(path), revision=revision)
            raise SchemaError(missing) from None

    def snapshot_path(self, revision: str) -> Path:
        """Return the file with the schema after a revision."""
        return Path(self._directory.dir) / "snapshots" / f"{revision}.json"

    def below(self, revision: str) -> str | None:
        """Return the revision before this one, or None for the first."""
        position = self.position(revision)
        return self.revisions[position - 2] if position > 1 else None


@dataclass(frozen=True)
class Position:
    """The state of a database between revisions.

    Attributes:
        history: the chain.
        applied: the recorded revision; None for base.
        pending: the revisions from there to the target, oldest first.
    """

    history: History
    applied: str | None
    pending: tuple[str, ...]

    @cached_property
    def before(self) -> Tables:
        """The schema of the applied revision."""
        return self.history.schema(self.applied)

    @cached_property
    def after(self) -> Tables:
        """The schema of the last pending revision."""
        return self.history.schema(self.pending[-1] if self.pending else self.applied)

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

    @property
    def changes_policies(self) -> bool:
        """Whether a pending revision creates, changes or drops a policy."""
        before = self.before
        for revision in self.pending:
            after = self.history.schema(revision)
            if _policies(after) != _policies(before):
                return True
            before = after
        return False

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
        for revision in self.pending:
            after = self.history.schema(revision).get(name)
            if after is not None and part in after.parts():
                return not self.history.is_one_transaction(revision)
        return False


def _policies(tables: Tables) -> dict[str, tuple[Policy, ...]]:
    return {name: table.policies for name, table in tables.items() if table.policies}


@cache
def _read(path: Path, _modified: int) -> Tables:
    return snapshots.parse(path.read_text(encoding="utf-8"))
