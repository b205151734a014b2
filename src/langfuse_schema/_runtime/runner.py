"""Run the steps of a command that writes: one runner at a time, with bounded waits and retries."""

from __future__ import annotations

import logging
import random
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError, PendingRollbackError

from langfuse_schema._postgres.errors import (
    DEADLOCK_DETECTED,
    LOCK_NOT_AVAILABLE,
    QUERY_CANCELED,
    busy,
    sqlstate,
)
from langfuse_schema._postgres.findings import SchemaError, finding
from langfuse_schema._runtime import lost_sessions, pooler_detection, settings
from langfuse_schema._runtime.alembic_internals import (
    Steps,
    collect_statements,
    has_operations,
    purges,
    recorded_heads,
    steps_after,
)
from langfuse_schema._runtime.batches import Batch
from langfuse_schema._runtime.builds import Builds
from langfuse_schema._runtime.lock_monitor import LockMonitor
from langfuse_schema._runtime.lost_sessions import Session
from langfuse_schema._runtime.results import Result, named, nothing_to_do
from langfuse_schema._runtime.runner_lock import RunnerLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alembic.runtime.environment import EnvironmentContext
    from sqlalchemy import Connection

    from langfuse_schema._runtime.checks import Checks
    from langfuse_schema._runtime.options import Options

log = logging.getLogger("langfuse_schema")

_RETRIED = (LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED)
# Other sessions queue behind a run for one lock_timeout at a time, and proceed between two tries.
# The pauses differ, so that two sessions that collide do not collide again.
_PAUSE_SECONDS = (1.0, 2.0)
_REMINDER_SECONDS = 10.0


@dataclass
class Runner:
    """One command that writes: an upgrade, a downgrade or a stamp.

    Attributes:
        context: Alembic's, configured for the connection.
        configure: passes options to `context.configure`.
        connection: without an open transaction, or in one with the settings of the run.
        checks: called before the first step; None to run without.
    """

    context: EnvironmentContext
    configure: Callable[..., None]
    connection: Connection
    options: Options
    checks: Checks | None
    _steps: Steps = field(default_factory=Steps, init=False)
    _prepared: bool = field(default=False, init=False)
    _advanced_at: float = field(default=0.0, init=False)
    _retrying: bool = field(default=False, init=False)
    _logged: str = field(default="", init=False)
    _logged_at: float = field(default=0.0, init=False)
    _lock: RunnerLock = field(init=False)
    _session: Session = field(init=False)
    _monitor: LockMonitor = field(init=False)
    _builds: Builds = field(init=False)
    _batch: Batch = field(init=False)
    _collects: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Choose the settings of the session."""
        more = self.checks.settings if self.checks else {}
        times = settings.timeouts(
            self.options.lock_timeout,
            idle_in_transaction=self.options.idle_in_transaction_timeout,
            idle=self.options.idle_session_timeout,
        )
        self._settings = {**times, **more}

    def run(self) -> None:
        """Run all steps, if there are any."""
        connection, started = self.connection, time.monotonic()
        if not settings.applied_locally(connection):
            settings.apply_locally(connection, self._settings)
        self._plan()
        if not self._steps:
            self._check_at_rest()
            connection.rollback()
            self._log_nothing_to_do()
            return
        migrations = self.context.get_context()
        place = (migrations.version_table_schema, migrations.version_table)
        self._lock = RunnerLock.located(connection, *place)
        connection.rollback()
        # Before any setting is changed: other clients can use the same session.
        pooled = pooler_detection.detect(connection)
        if pooled:
            raise SchemaError(*pooled)
        with (
            settings.changed(connection, self._settings),
            self._lock.held(connection, self.options.lock_deadline),
        ):
            # Another runner can have completed the steps.
            self._plan()
            connection.rollback()
            if not self._steps:
                self._log_nothing_to_do()
                return
            result = Result.of(self._steps)
            self._run_steps()
            reached = recorded_heads(self.context)
            connection.rollback()
        log.info(result.line(reached, time.monotonic() - started))

    def _log_nothing_to_do(self) -> None:
        log.info(nothing_to_do(self._steps.heads, self.context.script.get_heads()))

    def _plan(self) -> None:
        """Choose the steps before the first one runs: after it, `+2` would be two more."""
        try:
            heads = recorded_heads(self.context)
        except DBAPIError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            raise SchemaError(busy(self.connection)) from error
        if self.checks and not purges(self.context):
            findings = self.checks.heads(heads)
            if findings:
                raise SchemaError(*findings)
        self._steps = steps_after(self.context, heads)

    def _run_steps(self) -> None:
        """Run all steps, and retry them until the deadline while locks are held."""
        self._advanced_at = time.monotonic()
        connection = self.connection
        self._session = Session.of(connection)
        longest = self._session.longest_pause or _PAUSE_SECONDS[1]
        terminal = self.context.config.cmd_opts is not None and sys.stderr.isatty()
        self._monitor = LockMonitor(connection, self._session.pid, self.options, terminal=terminal)
        self._builds = Builds(connection, self.options, self._watch, self._advance)
        self._batch = Batch(connection)
        # The revisions of any other environment can catch the error of a statement.
        self._collects = self.checks is not None and connection.dialect.driver == "psycopg2"
        with closing(self._monitor), self._batch.collecting(), self._builds.watched():
            while not self._try_steps():
                pause = min(random.uniform(*_PAUSE_SECONDS), longest)  # noqa: S311 - no secret
                time.sleep(min(pause, self._left()))

    def _try_steps(self) -> bool:
        """Run the remaining steps. Return False if a lock was not available."""
        try:
            if self.checks and not self._prepared:
                self._check()
                self.checks.prepare(self.connection)
                self.connection.commit()
                self._prepared = True
            # A second purge would delete the steps that are completed.
            self.configure(
                fn=self._remaining,
                dont_mutate=self._prepared,
                purge=self._steps.purge,
                watches_builds=True,
            )
            if self._collects:
                collect_statements(self.context, self._batch.collect)
            with self.context.begin_transaction():
                self.context.run_migrations()
            # The record of a revision that has committed is in a new transaction.
            self.connection.commit()
        except (DBAPIError, PendingRollbackError) as error:
            self._recover(error)
            return False
        return True

    def _check(self) -> None:
        """Run the checks: log warnings, and raise errors."""
        if self.checks is None:
            return
        steps = self._steps
        applied = steps.heads[0] if steps.heads else None
        if steps.only_upgrades:
            findings = self.checks.upgrade(self.connection, applied, steps.revisions)
        elif applied and steps.kind == "Downgraded":
            findings = self.checks.downgrade(self.connection, applied)
        else:
            findings = self.checks.stamp(self.connection)
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
            if not has_operations(self.context):
                raise SchemaError(finding("command-in-thread", "this process"))
            # In the transaction of the step. Alembic returns here after its commit.
            self._lock.ensure_held(self.connection)
            yield step
            self._steps.purge = False
            self._advance()

    @contextmanager
    def _watch(self, table: str) -> Iterator[None]:
        """Wrap a statement with CONCURRENTLY."""
        self._lock.ensure_held(self.connection, settings.milliseconds(self.options.lock_deadline))
        if not self._retrying:
            self._advanced_at = time.monotonic()
        with self._monitor.build(table):
            yield

    def _advance(self) -> None:
        """Record that a step, or a build, is completed."""
        self._advanced_at = time.monotonic()
        self._retrying = False

    def _recover(self, error: Exception) -> None:
        """Roll back, and raise the error unless a retry can help."""
        code = sqlstate(error)
        blocked_by = self._monitor.blocked_by
        gave_up = code == QUERY_CANCELED and (self._monitor.gave_up or blocked_by is not None)
        if not (gave_up or code in _RETRIED):
            self._explain_lost_session(error)
            self._name_statement(error)
            raise error
        self.connection.rollback()
        # A failed build has left the long lock_timeout.
        settings.apply(self.connection, self._settings)
        wait, blocking = self._monitor.last_wait, self._monitor.blocking()
        building = self._builds.running
        self._builds.forget()
        if not (self._retrying or building):
            # The time that the step computed before is no wait.
            self._advanced_at = time.monotonic() - self.options.lock_timeout
        self._retrying = True
        place = (wait and wait.table) or building or "the database"
        of_build = self._builds.action if building and not (wait and wait.table) else None
        action = of_build or f"lock {place}"
        left = self._left()
        if blocked_by:
            raise SchemaError(blocked_by.holds(place, state=self._state())) from error
        if gave_up or not left:
            raise SchemaError(self._monitor.locked(place, action, self._state())) from error
        if self._logged != place or time.monotonic() - self._logged_at >= _REMINDER_SECONDS:
            problem = f"could not {of_build}" if of_build else f"{place} is locked"
            log.warning("%s; retrying for %.0f s. Blocked by %s", problem, left, blocking)
            self._logged, self._logged_at = place, time.monotonic()

    def _name_statement(self, error: Exception) -> None:
        """Replace the message of several statements in an error by the one that failed."""
        if isinstance(error, DBAPIError) and not error.connection_invalidated:
            self.connection.rollback()
            failed = self._batch.failing_statement(error)
            error.statement = failed or error.statement

    def _explain_lost_session(self, error: Exception) -> None:
        """Raise an error that explains why the session has ended, if it has."""
        if not lost_sessions.is_lost(error):
            return
        silent = self._monitor.lost
        timed_out = None if silent or self.checks else self._session.timed_out(self._builds.idle)
        lost = timed_out or lost_sessions.lost(self.connection, error, silent=silent)
        raise SchemaError(lost) from error

    def _left(self) -> float:
        """Return the seconds until the deadline, counted from the first try of a step or build."""
        return max(0.0, self._advanced_at + self.options.lock_deadline - time.monotonic())

    def _state(self) -> str:
        reached = named(recorded_heads(self.context))
        self.connection.rollback()
        return f"the database is at {reached}; completed steps are kept"
