"""Sessions that hold a table, and probes that measure the waits of other sessions."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

from tests.helpers.databases import AOI, SUPERUSER, Database

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITES = {
    "ai_coach_messages": f"INSERT INTO ai_coach_messages (user_id, body) VALUES ('{AOI}', 'x')",
    "encouragement_messages": "INSERT INTO encouragement_messages (user_id, body)"
    f" VALUES ('{AOI}', 'x')",
    "reflections": f"INSERT INTO reflections (user_id, body) VALUES ('{AOI}', 'x')",
    # Each holder updates the row of another user, so that two holders do not block each other.
    "auth.users": "UPDATE auth.users SET email = email WHERE id ="
    " (SELECT id FROM auth.users LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)",
}
PROBES = WRITES | {"auth.users": "SELECT count(*) FROM auth.users"}


def connect(database: Database) -> psycopg.Connection:
    url = database.as_user(SUPERUSER).set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


@contextmanager
def held(database: Database, table: str) -> Iterator[psycopg.Connection]:
    """Write to a table in an open transaction, and yield the connection."""
    with connect(database) as holder:
        holder.execute("SET application_name = 'nightly report'")
        holder.execute("BEGIN")
        holder.execute(WRITES[table])
        yield holder


@dataclass
class Probe:
    """A session that repeats a statement, and records the longest duration in seconds."""

    statement: str
    worst: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, database: Database) -> None:
        with connect(database) as connection:
            while not self.stop.wait(0.01):
                began = time.monotonic()
                connection.execute(self.statement)
                self.worst = max(self.worst, time.monotonic() - began)


@contextmanager
def probes(database: Database) -> Iterator[dict[str, Probe]]:
    running = {table: Probe(statement) for table, statement in PROBES.items()}
    threads = [threading.Thread(target=probe.run, args=(database,)) for probe in running.values()]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        for probe in running.values():
            probe.stop.set()
        for thread in threads:
            thread.join()
