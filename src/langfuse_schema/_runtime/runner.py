"""Run the steps of a command that writes: one runner at a time, with bounded waits and retries."""

from __future__ import annotations

import logging
import random
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy.exc import DBAPIError, PendingRollbackError

from langfuse_schema._postgres.errors import (
    DEADLOCK_DETECTED,
    LOCK_NOT_AVAILABLE,
    QUERY_CANCELED,
    sqlstate,
)
from langfuse_schema._postgres.findings import Finding, SchemaError, finding
from langfuse_schema._runtime import pooler_detection, runner_lock, settings, signals
from langfuse_schema._runtime.alembic_internals import Steps, purges, steps_after
from langfuse_schema._runtime.lock_monitor import LockMonitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from alembic.runtime.environment import EnvironmentContext
    from sqlalchemy import Connection

    from langfuse_schema._postgres.version_table import VersionTable
    from langfuse_schema._runtime.options import Options

log = logging.getLogger("langfuse_schema")

_RETRIED = (LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED)
# Other sessions queue behind a run for one lock_timeout at a time, and proceed between two tries.
# The pauses differ, so that two sessions that collide do not collide again.
_PAUSE_SECONDS = (1.0, 2.0)
_REMINDER_SECONDS = 10.0


class Checks(Protocol):
    """The checks that a run calls. The runtime itself contains no schema."""

    def heads(self, heads: Sequence[str]) -> list[Finding]:
        """Check the recorded revisions."""

    def upgrade(
        self, connection: Connection, applied: str | None, pending: tuple[str, ...]
    ) -> list[Finding]:
        """Check the database before these revisions run. Without any, check the applied one."""

    def other(self, connection: Connection) -> list[Finding]:
        """Check the database before a downgrade or a stamp."""


@dataclass
class Runner:
    """One command that writes: an upgrade, a downgrade or a stamp.

    Attributes:
        context: Alembic's, configured for the connection.
        configure: passes options to `context.configure`.
        connection: in the transaction in which it was opened.
        checks: called before the first step; None to run without.
    """

    context: EnvironmentContext
    configure: Callable[..., None]
    connection: Connection
    version_table: VersionTable
    options: Options
    checks: Checks | None
    _steps: Steps = field(default_factory=Steps, init=False)
    _prepared: bool = field(default=False, init=False)
    _building: str | None = field(default=None, init=False)
    _advanced_at: float = field(default=0.0, init=False)
    _logged: str = field(default="", init=False)
    _logged_at: float = field(default=0.0, init=False)
    _monitor: LockMonitor = field(init=False)

    def run(self) -> None:
        """Run all steps, if there are any."""
        connection = self.connection
        self._plan()
        if not self._steps:
            self._check_at_rest()
            return
        connection.rollback()
        # Before any setting is changed: other clients can use the same session.
        pooled = pooler_detection.detect(connection)
        if pooled:
            raise SchemaError(*pooled)
        with (
            settings.changed(connection, self.options.lock_timeout),
            runner_lock.runner_lock(connection, self.options.lock_deadline),
        ):
            # Another runner can have completed the steps.
            self._plan()
            connection.rollback()
            if self._steps:
                self._run_steps()

    def _plan(self) -> None:
        """Choose the steps before the first one runs: after it, `+2` would be two more."""
        heads = self.version_table.heads(self.connection)
        if self.checks and not purges(self.context):
            findings = self.checks.heads(heads)
            if findings:
                raise SchemaError(*findings)
        self._steps = steps_after(self.context, heads)

    def _run_steps(self) -> None:
        """Run all steps, and retry them until the deadline while locks are held."""
        self._advanced_at = time.monotonic()
        pid = self.connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        self.connection.rollback()
        terminal = self.context.config.cmd_opts is not None and sys.stderr.isatty()
        self._monitor = LockMonitor(self.connection, pid, self.options, terminal=terminal)
        with closing(self._monitor):
            while not self._try_steps():
                pause = random.uniform(*_PAUSE_SECONDS)  # noqa: S311 - no secret
                time.sleep(min(pause, self._left()))

    def _try_steps(self) -> bool:
        """Run the remaining steps. Return False if a lock was not available."""
        try:
            if not self._prepared:
                self._check()
                self.version_table.create(self.connection)
                self.connection.commit()
                self._prepared = True
            self.configure(
                connection=self.connection,
                dont_mutate=True,
                fn=self._remaining,
                online_build=self._build,
                online_build_wait=round(self.options.lock_deadline * 1000),
            )
            with self.context.begin_transaction():
                self.context.run_migrations()
        except (DBAPIError, PendingRollbackError) as error:
            self._recover(error)
            return False
        return True

    def _check(self) -> None:
        """Run the checks: log warnings, and raise errors."""
        if self.checks is None:
            return
        steps = self._steps
        if steps.only_upgrades:
            applied = steps.heads[0] if steps.heads else None
            findings = self.checks.upgrade(self.connection, applied, steps.revisions)
        else:
            findings = self.checks.other(self.connection)
        self.connection.rollback()
        for one in findings:
            if one.severity == "warning":
                log.warning("%s", one)
        errors = [one for one in findings if one.severity == "error"]
        if errors:
            raise SchemaError(*errors)

    def _check_at_rest(self) -> None:
        """Run the checks, unless a table is locked."""
        try:
            self._check()
        except DBAPIError as error:
            if sqlstate(error) not in _RETRIED:
                raise
            log.warning("nothing to do; a table is locked, so no table was checked")

    def _remaining(self, *_: object) -> Iterator[Any]:
        for step in self._steps.remaining():
            # In the transaction of the step. Alembic returns here after its commit.
            runner_lock.ensure_held(self.connection)
            yield step
            self._advanced_at = time.monotonic()

    @contextmanager
    def _build(self, table: str) -> Iterator[None]:
        """Wrap an index build of `operations.create_index_online`."""
        runner_lock.ensure_held(self.connection)
        self._building = table
        with self._monitor.build(table):
            yield
        self._building = None
        self._advanced_at = time.monotonic()

    def _recover(self, error: Exception) -> None:
        """Roll back, and raise the error unless a retry can help."""
        code = sqlstate(error)
        blocked_by = self._monitor.blocked_by
        gave_up = code == QUERY_CANCELED and (self._monitor.gave_up or blocked_by is not None)
        if not (gave_up or code in _RETRIED):
            raise error
        self.connection.rollback()
        # A failed build can have left lock_timeout at 0.
        settings.apply(self.connection, self.options.lock_timeout)
        wait, blocking = self._monitor.last_wait, self._monitor.blocking()
        place = (wait and wait.table) or self._building or "the database"
        left = self._left()
        if blocked_by:
            raise SchemaError(blocked_by.holds(place, state=self._state())) from error
        if gave_up or not left:
            raise SchemaError(self._table_locked(place, blocking)) from error
        self._building = None
        if self._logged != place or time.monotonic() - self._logged_at >= _REMINDER_SECONDS:
            log.warning("%s is locked; retrying for %.0f s. Blocked by %s", place, left, blocking)
            self._logged, self._logged_at = place, time.monotonic()

    def _left(self) -> float:
        """Return the seconds until the deadline, counted from the last completed step or build."""
        return max(0.0, self._advanced_at + self.options.lock_deadline - time.monotonic())

    def _table_locked(self, place: str, blocking: str) -> Finding:
        deadline = f"{self.options.lock_deadline:g} s"
        values = {"deadline": deadline, "cause": blocking, "state": self._state()}
        return finding("table-locked", place, **values)

    def _state(self) -> str:
        reached = ", ".join(self.version_table.heads(self.connection)) or "base"
        self.connection.rollback()
        return f"the database is at {reached}; completed steps are kept"


def position(connection: Connection, version_table: VersionTable) -> str:
    """Return the state of the database after an interrupted run with a closed connection."""

    def read() -> str:
        with connection.engine.connect() as second:
            return ", ".join(version_table.heads(second)) or "base"

    reached = signals.call_briefly(read)
    known = f"the database is at {reached}; " if reached else ""
    return f"{known}run the same command again to resume"
