"""A client with a frozen network loses its locks, and exits if it was in an index build."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from langfuse_schema import migrations
from tests.helpers.databases import REVISIONS
from tests.helpers.probes import WRITES, Probe
from tests.helpers.projects import Project
from tests.helpers.relay import relayed
from tests.helpers.tcp_proxy import start

if TYPE_CHECKING:
    from tests.helpers.databases import Database

SIGN_UP_SECONDS, NEXT_RUNNER_SECONDS, EXIT_SECONDS = 12.0, 30.0, 60.0

MESSAGES = re.compile(rb"LOCK TABLE|alembic_version SET|INTO \S*alembic_version|INDEX CONCURRENTLY")
"""The messages with a lock, with a build, and at the end of a revision."""

TARGETS = {"upgrade": ("base", "head"), "downgrade": ("head", "base")}

PACKAGE = Project()


def test_run_limits_idle_time_of_its_session(database: Database) -> None:
    limits = ("idle_in_transaction_session_timeout", "idle_session_timeout")
    seen: set[tuple[Any, ...]] = set()

    def record(_connection: object, cursor: Any, statement: str, *_: object) -> None:
        if "CREATE TABLE public.langfuse_traces" in statement:
            cursor.execute("SELECT current_setting(%s), current_setting(%s)", limits)
            seen.add(cursor.fetchone())

    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    sa.event.listen(engine, "before_cursor_execute", record)
    migrations.upgrade(engine)
    assert seen == {("10s", "15s")}


def freeze_points(database: Database, direction: str) -> list[bytes]:
    """Return the messages of a run after which the network is frozen."""
    origin, target = TARGETS[direction]
    PACKAGE.migrate(database, "head")
    PACKAGE.migrate(database, origin, downgrade=origin == "base")
    with relayed(database) as (relay, through):
        PACKAGE.migrate(through, target, downgrade=target == "base")
        return [message for message in relay.sent if MESSAGES.search(message)]


@pytest.mark.slow
@pytest.mark.parametrize("direction", TARGETS)
def test_next_runner_finishes_soon_after_client_is_frozen(
    database: Database, direction: str
) -> None:
    origin, target = TARGETS[direction]
    worst = {"sign-up": 0.0, "next runner": 0.0, "exit": 0.0}
    messages = freeze_points(database, direction)
    assert len(messages) >= len(REVISIONS)
    assert any(b"CONCURRENTLY" in message for message in messages) == (direction == "upgrade")
    for message in messages:
        PACKAGE.migrate(database, origin, downgrade=origin == "base")
        sign_up = Probe(WRITES["auth.users"])
        thread = threading.Thread(target=sign_up.run, args=(database,))
        thread.start()
        with relayed(database) as (relay, through):
            relay.freezes_after = message.__eq__
            frozen_run = start(direction, through, target)
            while relay.frozen_at is None:
                assert frozen_run.is_alive()
                time.sleep(0.01)
            next_run = start(direction, database, target)
            next_run.join()
            ended = time.monotonic() - relay.frozen_at
            if b"CONCURRENTLY" in message:
                frozen_run.join(EXIT_SECONDS)
                assert frozen_run.exitcode == 1, message
                worst["exit"] = max(worst["exit"], time.monotonic() - relay.frozen_at)
            frozen_run.kill()
            frozen_run.join()
        sign_up.stop.set()
        thread.join()
        assert next_run.exitcode == 0, message
        worst["next runner"] = max(worst["next runner"], ended)
        worst["sign-up"] = max(worst["sign-up"], sign_up.worst)
    print(f"{direction}, {len(messages)} points: {worst}")
    assert worst["sign-up"] <= SIGN_UP_SECONDS
    assert worst["next runner"] <= NEXT_RUNNER_SECONDS
    assert worst["exit"] <= EXIT_SECONDS
