"""A run that writes: alone, patient with others, and healed by running it again."""

from __future__ import annotations

import logging
import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alembic.runtime.migration import RevisionStep
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from langfuse_schema import interruption, locking, pooling, sessions, version_table
from langfuse_schema._checks import preflight
from langfuse_schema._checks.pending import PendingUpgrade
from langfuse_schema._history.chain import History
from langfuse_schema._history.discards import with_discards
from langfuse_schema._postgres.findings import Finding, SchemaError
from langfuse_schema.watching import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alembic.runtime.environment import EnvironmentContext
    from sqlalchemy import Connection

    from langfuse_schema.database import Options

log = logging.getLogger("langfuse_schema")

_RETRIED = ("55P03", "40P01")  # lock_not_available, deadlock_detected
_CANCELLED = "57014"  # query_canceled
# Others queue behind us for one lock_timeout at a time; in between they get through. Of
# different lengths, so that two who keep meeting part.
_PAUSE_SECONDS = (1.0, 2.0)
_REMINDER_SECONDS = 10.0


def run(  # noqa: PLR0913 - one for each part of a run
    context: EnvironmentContext,
    configure: Callable[..., None],
    connection: Connection,
    options: Options,
    *,
    terminal: bool,
    checked: bool = True,
) -> None:
    """Take the steps of a command that writes, if there are any.

    Arguments:
        context: Alembic's, configured for the connection.
        configure: passes options to `context.configure`.
        connection: from `sessions.connect`, in the transaction it came with.
        options: of the run.
        terminal: whether progress is a line that is written over.
        checked: whether preflight runs before the first step.

    Raises:
        SchemaError: the database cannot take it, or others were in the way for too long.
    """
    destination = context.get_context().opts["destination_rev"]
    if not isinstance(destination, str) and len(destination) > 1:
        finding = Finding(
            "option-invalid",
            "the revision to stamp",
            ", ".join(destination),
            "one revision: ours follow one another",
            f"type: langfuse-schema stamp {max(destination)}",
        )
        raise SchemaError([finding])
    pending = _Run(context, configure, connection, options, checked=checked)
    pending.plan()
    if not pending:
        pending.check_at_rest()
        return
    connection.rollback()
    # Before anything of the session is changed, since it may be somebody else's.
    pooled = pooling.find(connection)
    if pooled:
        raise SchemaError(pooled)
    with (
        sessions.session(connection, options),
        locking.runner_lock(connection, options.lock_deadline),
    ):
        # Another runner may have done it meanwhile.
        pending.plan()
        connection.rollback()
        if pending:
            pending.take_steps(terminal=terminal)


def known_heads(context: EnvironmentContext, connection: Connection) -> tuple[str, ...]:
    """Read the revision of the database; none if the command is about to erase it anyway.

    Arguments:
        context: Alembic's, configured for the connection.
        connection: to the database; only read.

    Raises:
        SchemaError: it is not one of ours.
    """
    if context.get_context().opts.get("purge"):
        return ()
    heads = version_table.heads(connection)
    findings = preflight.check_heads(heads, History(context.script))
    if findings:
        raise SchemaError(findings)
    return heads


def position(connection: Connection) -> str:
    """Say where an interrupted run left the database.

    Arguments:
        connection: of the run, closed by now.
    """

    def look() -> str:
        with connection.engine.connect() as looking:
            return ", ".join(version_table.heads(looking)) or "base"

    reached = interruption.briefly(look)
    known = f"the database is at {reached}; " if reached else ""
    return f"{known}run the same command again to go on"


class _Run:
    """The steps of a command, and how far they are done."""

    def __init__(
        self,
        context: EnvironmentContext,
        configure: Callable[..., None],
        connection: Connection,
        options: Options,
        *,
        checked: bool,
    ) -> None:
        self._context = context
        self._configure = configure
        self._connection = connection
        self._options = options
        opts = context.get_context().opts
        self._choose_steps = opts["fn"]
        self._purging = bool(opts.get("purge"))
        self._heads: tuple[str, ...] = ()
        self._steps: list[Any] = []
        self._prepared = False
        self._checked = checked
        self._building: str | None = None
        self._advanced = time.monotonic()
        self._told, self._told_at = "", 0.0
        self._watcher: Watcher

    def __bool__(self) -> bool:
        return bool(self._steps or self._purging)

    def plan(self) -> None:
        """Choose the steps, once: chosen anew in the middle, `+2` would be two more."""
        self._heads = known_heads(self._context, self._connection)
        steps = self._choose_steps(self._heads, self._context.get_context())
        self._steps = with_discards(steps, self._context.script)

    def take_steps(self, *, terminal: bool) -> None:
        """Take all steps, each as often as others are in the way, until the deadline."""
        self._advanced = time.monotonic()
        self._watcher = Watcher(self._connection, self._options, terminal=terminal)
        try:
            while not self._try_steps():
                pause = random.uniform(*_PAUSE_SECONDS)  # noqa: S311 - no secret
                time.sleep(min(pause, self._left()))
        finally:
            self._watcher.close()

    def _try_steps(self) -> bool:
        """Take the steps that are left; False if others were in the way."""
        try:
            if not self._prepared:
                self.check()
                version_table.create(self._connection)
                self._prepared = True
            self._configure(
                connection=self._connection,
                dont_mutate=True,
                fn=self._remaining,
                online_build=self._build,
                online_build_wait=round(self._options.lock_deadline * 1000),
            )
            with self._context.begin_transaction():
                self._context.run_migrations()
        except (DBAPIError, PendingRollbackError) as error:
            self._recover(error)
            return False
        return True

    def check(self) -> None:
        """Ask preflight whether the database can take the steps, or none; warn, or refuse."""
        if not self._checked:
            return
        steps = [step for step in self._steps if isinstance(step, RevisionStep) and step.is_upgrade]
        if len(steps) == len(self._steps):
            pending = tuple(step.revision.revision for step in steps)
            applied = self._heads[0] if self._heads else None
            upgrade = PendingUpgrade(History(self._context.script), applied, pending)
            findings = preflight.check(self._connection, upgrade)
        else:
            findings = preflight.check_writable(self._connection)
        self._connection.rollback()
        for finding in findings:
            if finding.severity == "warning":
                log.warning("%s", finding)
        errors = [finding for finding in findings if finding.severity == "error"]
        if errors:
            raise SchemaError(errors)

    def check_at_rest(self) -> None:
        """Look whether everything is still there, unless somebody is in the way."""
        try:
            self.check()
        except DBAPIError as error:
            if sessions.sqlstate(error) not in _RETRIED:
                raise
            log.warning("nothing to do; a table is locked, so none was looked at")

    def _remaining(self, *_: object) -> Iterator[Any]:
        while self._steps:
            # In the transaction of the step.
            locking.ensure_held(self._connection)
            yield self._steps[0]
            # Alembic comes back for more when the step is committed.
            del self._steps[0]
            self._advanced = time.monotonic()

    @contextmanager
    def _build(self, table: str) -> Iterator[None]:
        """What `operations` builds an index in."""
        locking.ensure_held(self._connection)
        self._building = table
        with self._watcher.build(table):
            yield
        self._building = None
        self._advanced = time.monotonic()

    def _recover(self, error: Exception) -> None:
        """Go back to before the step that failed, if trying again can help."""
        code = sessions.sqlstate(error)
        gave_up = code == _CANCELLED and self._watcher.gave_up
        if not (gave_up or code in _RETRIED):
            raise error
        self._connection.rollback()
        # A build that failed may have left lock_timeout at 0.
        sessions.apply_settings(self._connection, self._options)
        self._connection.commit()
        wait = self._watcher.last_wait
        place = (wait and wait.table) or self._building or "the database"
        blockers = str(wait) if wait else self._watcher.unseen
        left = self._left()
        if gave_up or not left:
            raise SchemaError([self._in_the_way(place, blockers)]) from error
        self._building = None
        if self._told != place or time.monotonic() - self._told_at >= _REMINDER_SECONDS:
            log.warning("%s is locked; trying again for %.0f s. By %s", place, left, blockers)
            self._told, self._told_at = place, time.monotonic()

    def _left(self) -> float:
        """Seconds that are left to get further than the last step or build that was finished."""
        return max(0.0, self._advanced + self._options.lock_deadline - time.monotonic())

    def _in_the_way(self, place: str, blockers: str) -> Finding:
        reached = ", ".join(version_table.heads(self._connection)) or "base"
        self._connection.rollback()
        return Finding(
            "table-locked",
            place,
            f"locked, for {self._options.lock_deadline:g} s on end, by\n{blockers}",
            f"that they end within {self._options.lock_deadline:g} s"
            if self._building
            else f"the lock within {self._options.lock_timeout:g} s of one of our tries",
            f"the database is at {reached}; what is finished stays, and the next run goes on from"
            " there. Wait for these sessions, or end them:\nSELECT pg_terminate_backend(pid)\nthen"
            " run the same command again; -x lock_deadline=1h waits longer",
        )
