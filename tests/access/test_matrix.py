"""Every role tries everything on every table, at every revision, upwards and downwards."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extensions
from permissions import (
    ACTIONS,
    ALL,
    BATCH_RUNS,
    INSERT_ALL,
    OURS,
    OWN,
    PAGE,
    RATE_LIMITS,
    SCORES,
    TRACES,
    VERSION,
    expected,
    page,
)
from support import AOI, BEN, CORE, MIO, REVISIONS, TRACE, Database

from langfuse_schema import migrations, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP_TABLES = tuple(f"public.{name}" for name in tables.APP_TABLES)
TABLES = (*OURS, VERSION, *APP_TABLES)

WHO = {
    "anon": ("anon", "authenticator", "anon", None),
    "user A": ("user", "authenticator", "authenticated", AOI),
    "user B": ("user", "authenticator", "authenticated", BEN),
    "service_role": ("service_role", "authenticator", "service_role", None),
    "authenticator": ("authenticator", "authenticator", None, None),
    "owner": ("owner", "postgres", None, None),
}
"""Role of the table of permissions, login, SET ROLE, and the user in the claims."""

REFUSED, ABSENT = "refused", "absent"
PRIVILEGE, NO_TABLE, NO_SCHEMA = "42501", "42P01", "3F000"

ROWS = {AOI: 1, BEN: 2, MIO: 4}
"""How many rows each user has in a table of ours: any sum says whose were reached."""


def fill(database: Database) -> None:
    """Give each user as many traces, scores and rate limit entries as ROWS says."""
    values = ", ".join(
        f"('{TRACE.format(number)}'::uuid, '{user}'::uuid, {number})"
        for number, user in enumerate(
            [user for user, count in ROWS.items() for _ in range(count)], start=1
        )
    )
    database.execute(
        f"""
        CREATE TEMP TABLE example (trace_id, user_id, number) AS VALUES {values};
        INSERT INTO langfuse_traces (trace_id, entity_type, entity_id, user_id, input, output)
        SELECT trace_id, 'reflection', gen_random_uuid(), user_id, 'in', 'out' FROM example;
        INSERT INTO langfuse_scores (trace_id, score_name, value)
        SELECT trace_id, 'user_feedback', 1 FROM example;
        INSERT INTO rate_limit_logs (user_id, endpoint, window_start)
        SELECT user_id, 'example ' || number, now() FROM example;
        INSERT INTO langfuse_batch_runs (id, batch_name, started_at)
        VALUES (gen_random_uuid(), 'nightly', now())
        """
    )


def row_of(table: str, user: str) -> dict[str, str]:
    """A new row for a user, by column; of tables without users just a row."""
    # The first traces of the two users: 1 is Aoi's, 2 is Ben's.
    trace = TRACE.format(2 if user == BEN else 1)
    return {
        TRACES: {
            "trace_id": "gen_random_uuid()",
            "entity_type": "'reflection'",
            "entity_id": "gen_random_uuid()",
            "user_id": f"'{user}'",
            "input": "'in'",
            "output": "'out'",
        },
        SCORES: {"trace_id": f"'{trace}'", "score_name": "'user_feedback'", "value": "1"},
        BATCH_RUNS: {"id": "gen_random_uuid()", "batch_name": "'x'", "started_at": "now()"},
        RATE_LIMITS: {"user_id": f"'{user}'", "endpoint": "'x'", "window_start": "now()"},
        VERSION: {"version_num": "'x'"},
    }.get(table, {"user_id": f"'{user}'", "body": "'x'"})


def times_of(table: str) -> dict[str, str]:
    """The columns of a table that are the server's to set."""
    if table == VERSION:
        return {}
    times = {"created_at": "now()"}
    return times | {"status": "'sent'", "sent_at": "now()"} if table == SCORES else times


class Session:
    """A session of one of WHO, in which everything is rolled back."""

    def __init__(
        self, connection: psycopg2.extensions.connection, role: str | None, user: str | None
    ) -> None:
        self.cursor = connection.cursor()
        self.role = role
        self.claims = json.dumps({"role": role, **({"sub": user} if user else {})})

    def run(self, sql: str) -> int | str:
        """Run a statement; the rows that it reached, or why not."""
        self.cursor.execute("BEGIN")
        try:
            if self.role:
                self.cursor.execute(f"SET LOCAL ROLE {self.role}")
                self.cursor.execute(
                    "SELECT set_config('request.jwt.claims', %s, true)", (self.claims,)
                )
            self.cursor.execute(sql)
        except psycopg2.Error as error:
            state = str(error.pgcode)
            return {PRIVILEGE: REFUSED, NO_TABLE: ABSENT, NO_SCHEMA: ABSENT}.get(state, state)
        else:
            return int(self.cursor.rowcount)
        finally:
            self.cursor.execute("ROLLBACK")

    def attempt(self, table: str, action: str, user: str) -> tuple[int | str, ...]:
        """Try an action on a table as a user, to whom other rows than their own are others'."""
        if action in ("INSERT", INSERT_ALL):
            added = times_of(table) if action == INSERT_ALL else {}
            rows = [row_of(table, owner) | added for owner in (user, AOI if user == BEN else BEN)]
            return tuple(
                self.run(
                    f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})"
                )
                for row in rows
            )
        # A constant, and no column read: UPDATE alone, without SELECT.
        column, value = list(row_of(table, user).items())[-1]
        statement = {
            "SELECT": f"SELECT * FROM {table}",
            "UPDATE": f"UPDATE {table} SET {column} = {value}",
            "DELETE": f"DELETE FROM {table}",
            "TRUNCATE": f"TRUNCATE {table} CASCADE",
            # Before PostgreSQL 17 only the owner may.
            "MAINTAIN": f"REINDEX TABLE {table}",
        }[action]
        return (self.run(statement),)


@contextmanager
def sessions(database: Database) -> Iterator[dict[str, Session]]:
    connections = []
    opened = {}
    for who, (_, login, role, user) in WHO.items():
        url = database.as_user(login).set(drivername="postgresql")
        connection = psycopg2.connect(url.render_as_string(hide_password=False))
        connection.autocommit = True
        connections.append(connection)
        opened[who] = Session(connection, role, user)
    yield opened
    for connection in connections:
        connection.close()


def meaning(table: str, outcome: tuple[int | str, ...], user: str) -> str:
    """What the outcome of an attempt on one of our tables means, in the words of the table."""
    if len(outcome) > 1:
        own, others = outcome
        if own == others:
            return ALL if own == 1 else str(own)
        return OWN if (own, others) == (1, REFUSED) else f"{own}, of others {others}"
    (reached,) = outcome
    total = 1 if table in (BATCH_RUNS, VERSION) else sum(ROWS.values())
    # What is not about rows has none to count.
    return ALL if reached in (total, -1) else OWN if reached == ROWS[user] else str(reached)


def test_every_role_may_do_what_the_table_says_and_nothing_else(
    any_world: Database, record_property: Callable[[str, object], None]
) -> None:
    cells = 0
    wrong = []
    before: dict[tuple[str, str, str], tuple[int | str, ...]] = {}
    applied = ["base", *REVISIONS, *reversed(REVISIONS[:-1]), "base"]
    for position, revision in enumerate(applied):
        down = position > len(REVISIONS)
        if down:
            migrations.downgrade(any_world.url, revision)
        elif revision != "base":
            migrations.upgrade(any_world.url, revision)
        if revision == CORE and not down:
            fill(any_world)
        with sessions(any_world) as opened:
            for who, session in opened.items():
                role, user = WHO[who][0], WHO[who][3] or AOI
                for table in TABLES:
                    for action in ACTIONS:
                        cells += 1
                        outcome = session.attempt(table, action, user)
                        key = (who, table, action)
                        if table in APP_TABLES:
                            wanted: Any = before.setdefault(key, outcome)
                            found: Any = outcome
                        else:
                            wanted = wanted_of(role, table, action, revision, down=down)
                            found = meaning(table, outcome, user)
                        if found != wanted:
                            direction = "down to" if down else "up to"
                            wrong.append(f"{direction} {revision}: {key}: {found}, not {wanted}")
    record_property("cells of permissions", cells)
    assert wrong == []
    assert cells == len(applied) * len(WHO) * len(TABLES) * len(ACTIONS)
    assert_the_app_is_as_supabase_leaves_it(before)


def wanted_of(role: str, table: str, action: str, revision: str, *, down: bool) -> str:
    """What the table says; at base nothing of ours is there but the closed version table."""
    if revision != "base":
        return expected(role, table, action, revision)
    if table != VERSION or not down:
        return ABSENT
    return expected(role, table, action, CORE) if role != "owner" else empty(action)


def empty(action: str) -> str:
    """What the owner reaches in the version table once it is empty."""
    return "0" if action in ("SELECT", "UPDATE", "DELETE") else ALL


def assert_the_app_is_as_supabase_leaves_it(
    outcomes: dict[tuple[str, str, str], tuple[int | str, ...]],
) -> None:
    """The app's tables are compared with themselves; so they must have been reached at all."""
    for table in APP_TABLES:
        (own,) = outcomes["user A", table, "SELECT"]
        (everything,) = outcomes["owner", table, "SELECT"]
        assert 0 < int(own) < int(everything)
        assert outcomes["user A", table, "INSERT"] == (1, REFUSED)
        assert outcomes["authenticator", table, "SELECT"] == (REFUSED,)
        assert outcomes["anon", table, "INSERT"] == (REFUSED, REFUSED)


def test_the_page_shows_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: PYTHONPATH=tests python tests/access/permissions.py"
    )
