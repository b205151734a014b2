"""The checks of a schema, which a run calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from langfuse_schema._postgres.findings import Finding


class Checks(Protocol):
    """The checks of a schema. The runtime itself contains no schema.

    A run with checks sends the statements of a revision as one message, so its revisions must not
    catch the error of a statement.
    """

    @property
    def settings(self) -> Mapping[str, str]:
        """Return the settings of the session, in addition to the timeouts of the run."""

    def destinations(self, revisions: Sequence[str]) -> list[Finding]:
        """Check the target revisions of a command."""

    def heads(self, heads: Sequence[str]) -> list[Finding]:
        """Check the recorded revisions."""

    def upgrade(
        self, connection: Connection, applied: str | None, pending: tuple[str, ...]
    ) -> list[Finding]:
        """Check the database before these revisions run. Without any, check the applied one."""

    def downgrade(self, connection: Connection, applied: str) -> list[Finding]:
        """Check the database before a downgrade from the applied revision."""

    def stamp(self, connection: Connection) -> list[Finding]:
        """Check the database before a revision is recorded."""

    def prepare(self, connection: Connection) -> None:
        """Create the version table unless it exists. The runner commits."""
