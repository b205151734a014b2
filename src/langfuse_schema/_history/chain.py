"""The revisions in the order of Alembic's chain, with the schema after each of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from alembic.script import ScriptDirectory

from langfuse_schema._history import snapshots
from langfuse_schema._postgres.findings import Finding, SchemaError

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script

    from langfuse_schema._history.snapshots import Tables


class History:
    """The revisions of a script directory.

    Attributes:
        revisions: all ids, oldest first.
        plan: the ids of the plan's own files, oldest first: those with `of_plan = True`.
    """

    def __init__(self, directory: ScriptDirectory) -> None:
        """Read the chain of a script directory."""
        self._directory = directory
        self._scripts: dict[str, Script] = {
            script.revision: script for script in reversed(list(directory.walk_revisions()))
        }
        self.revisions: tuple[str, ...] = tuple(self._scripts)
        self.plan = tuple(
            revision
            for revision, script in self._scripts.items()
            if getattr(script.module, "of_plan", False)
        )

    @classmethod
    def of(cls, config: Config) -> History:
        """Read the chain of the script directory that a configuration names."""
        return cls(ScriptDirectory.from_config(config))

    @property
    def scripts(self) -> tuple[Script, ...]:
        """Alembic's scripts, oldest first."""
        return tuple(self._scripts.values())

    @property
    def head(self) -> str:
        """The newest revision."""
        return self.revisions[-1]

    def resolve(self, name: str) -> str | None:
        """Return the id of `head`, an id, or an abbreviated id; None for `base`.

        Raises:
            CommandError: there is no such revision.
        """
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
        return not hasattr(self._scripts[revision].module, "discard_partial_upgrade")

    def schema(self, revision: str | None) -> Tables:
        """Return the tables after a revision, by `schema.table`; empty for base.

        Arguments:
            revision: one of `revisions`, or None for base.

        Raises:
            SchemaError: the revision has no snapshot.
        """
        if revision is None:
            return {}
        path = self.snapshot_path(revision)
        try:
            return _read(path, path.stat().st_mtime_ns)
        except FileNotFoundError:
            raise SchemaError([_snapshot_missing(revision, path)]) from None

    def snapshot_path(self, revision: str) -> Path:
        """Return the file with the schema after a revision."""
        return Path(self._directory.dir) / "snapshots" / f"{revision}.json"

    def below(self, revision: str) -> str | None:
        """Return the revision before this one, or None for the first."""
        position = self.position(revision)
        return self.revisions[position - 2] if position > 1 else None


@cache
def _read(path: Path, _modified: int) -> Tables:
    return snapshots.parse(path.read_text(encoding="utf-8"))


def _snapshot_missing(revision: str, path: Path) -> Finding:
    return Finding(
        "snapshot-missing",
        f"revision {revision}",
        "no snapshot",
        str(path),
        "make generate",
    )
