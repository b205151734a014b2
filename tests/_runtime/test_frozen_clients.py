"""A client that is frozen, or whose network is, releases its locks, and notices it."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from langfuse_schema import migrations
from tests.helpers.canary import WRITES, Canary
from tests.helpers.projects import Project
from tests.helpers.relay import relayed
from tests.helpers.tcp_proxy import start

if TYPE_CHECKING:
    from tests.helpers.databases import Database

SIGN_UP_SECONDS, NEXT_RUNNER_SECONDS, NOTICED_SECONDS = 12.0, 30.0, 60.0

POINTS = re.compile(rb"LOCK TABLE|alembic_version SET|INTO \S*alembic_version|INDEX CONCURRENTLY")
"""In messages at the end of a revision, with a lock, and with a build."""

TARGETS = {"upgrade": ("base", "head"), "downgrade": ("head", "base")}

OWN = Project()


def test_run_bounds_pauses_of_its_session(database: Database) -> None:
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


def points(database: Database, direction: str) -> list[bytes]:
    """The beginnings of the messages of a run after which it is frozen."""
    origin, target = TARGETS[direction]
    OWN.go(database, "head")
    OWN.go(database, origin, downgrade=origin == "base")
    with relayed(database) as (relay, through):
        OWN.go(through, target, downgrade=target == "base")
        return [message for message in relay.sent if POINTS.search(message)]


@pytest.mark.slow
@pytest.mark.parametrize("direction", TARGETS)
def test_next_runner_finishes_soon_after_client_is_frozen(
    database: Database, direction: str
) -> None:
    origin, target = TARGETS[direction]
    worst = {"sign-up": 0.0, "next runner": 0.0, "noticed": 0.0}
    frozen = points(database, direction)
    assert len(frozen) >= len(OWN_STEPS[direction])
    for message in frozen:
        OWN.go(database, origin, downgrade=origin == "base")
        sign_up = Canary(WRITES["auth.users"])
        watching = threading.Thread(target=sign_up.run, args=(database,))
        watching.start()
        with relayed(database) as (relay, through):
            relay.freezes_after = message.__eq__
            stalled = start(direction, through, target)
            while relay.frozen_at is None:
                assert stalled.is_alive()
                time.sleep(0.01)
            following = start(direction, database, target)
            following.join()
            ended = time.monotonic() - relay.frozen_at
            if b"CONCURRENTLY" in message:
                stalled.join(NOTICED_SECONDS)
                assert stalled.exitcode == 1, message
                worst["noticed"] = max(worst["noticed"], time.monotonic() - relay.frozen_at)
            stalled.kill()
            stalled.join()
        sign_up.stop.set()
        watching.join()
        assert following.exitcode == 0, message
        worst["next runner"] = max(worst["next runner"], ended)
        worst["sign-up"] = max(worst["sign-up"], sign_up.worst)
    print(f"{direction}, {len(frozen)} points: {worst}")
    assert worst["sign-up"] <= SIGN_UP_SECONDS
    assert worst["next runner"] <= NEXT_RUNNER_SECONDS
    assert worst["noticed"] <= NOTICED_SECONDS


OWN_STEPS = {"upgrade": range(5 + 6), "downgrade": range(5)}
"""Revisions and builds."""
