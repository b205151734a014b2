"""Every role tries everything on every table, at every revision, upwards and downwards."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extensions

from langfuse_schema import migrations, tables
from tests.access.permissions import (
    ACTIONS,
    ALL,
    BATCH_RUNS,
    INSERT_ALL,
    OWN,
    RATE_LIMITS,
    SCORES,
    TRACES,
    VERSION,
    expected,
)
from tests.helpers.databases import AOI, BEN, CORE, HISTORY, MIO, REVISIONS, TRACE, Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP_TABLES = tuple(f"public.{name}" for name in tables.APP_TABLES)
HEAD_SCHEMA = HISTORY.schema(HISTORY.head)
COMPLETE = tuple(name for name, table in HEAD_SCHEMA.items() if not table.partial)
TABLES = (*COMPLETE, VERSION, *APP_TABLES)

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
    }.get(table) or derived_row(table, user)


VALUES = {"uuid": "gen_random_uuid()", "text": "'x'", "timestamp with time zone": "now()"}


def derived_row(table: str, user: str) -> dict[str, str]:
    """A row of a table that later revisions add, or of the app: the columns that need a value."""
    if table not in HEAD_SCHEMA or HEAD_SCHEMA[table].partial:
        return {"user_id": f"'{user}'", "body": "'x'"}
    needed = [c for c in HEAD_SCHEMA[table].columns if not (c.nullable or c.default or c.generated)]
    return {c.name: f"'{user}'" if c.name == "user_id" else VALUES[c.type] for c in needed}


def fill_added(database: Database, revision: str) -> None:
    """Give each user rows in the tables that a later revision adds."""
    before = HISTORY.schema(HISTORY.below(revision))
    for table in HISTORY.schema(revision).keys() - before.keys() - set(APP_TABLES):
        owners = [user for user, count in ROWS.items() for _ in range(count)]
        for owner in owners if has_users(table) else owners[:1]:
            row = derived_row(table, owner)
            database.execute(
                f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})"
            )


def has_users(table: str) -> bool:
    """Whether rows of a table belong to users, by themselves or through their trace."""
    if table in (BATCH_RUNS, VERSION):
        return False
    return (
        table in (TRACES, SCORES, RATE_LIMITS) or HEAD_SCHEMA[table].column("user_id") is not None
    )


def times_of(table: str) -> dict[str, str]:
    """The columns of a table that are the server's to set."""
    if table == VERSION:
        return {}
    times = {"created_at": "now()"}
    if table in HEAD_SCHEMA and HEAD_SCHEMA[table].column("created_at") is None:
        return {}
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
    total = sum(ROWS.values()) if has_users(table) else 1
    # What is not about rows has none to count.
    return ALL if reached in (total, -1) else OWN if reached == ROWS[user] else str(reached)


def test_every_role_has_exactly_the_expected_permissions(
    any_world: Database, record_property: Callable[[str, object], None]
) -> None:
    cells = 0
    wrong = []
    before: dict[tuple[str, str, str], tuple[int | str, ...]] = {}
    applied = ["base", *REVISIONS, *reversed(REVISIONS[:-1]), "base"]
    for position, revision in enumerate(applied):
        down = position > len(REVISIONS)
        go(any_world, revision, down=down)
        with sessions(any_world) as opened:
            for who, session in opened.items():
                role, user = WHO[who][0], WHO[who][3] or AOI
                for table in TABLES:
                    for action in ACTIONS:
                        cells += 1
                        outcome = session.attempt(table, action, user)
                        key = (who, table, action)
                        if table in APP_TABLES:
                            expected_outcome: Any = before.setdefault(key, outcome)
                            found: Any = outcome
                        else:
                            expected_outcome = expected_at(role, table, action, revision, down=down)
                            found = meaning(table, outcome, user)
                        if found != expected_outcome:
                            direction = "down to" if down else "up to"
                            wrong.append(
                                f"{direction} {revision}: {key}: {found}, not {expected_outcome}"
                            )
    record_property("cells of permissions", cells)
    assert wrong == []
    assert cells == len(applied) * len(WHO) * len(TABLES) * len(ACTIONS)
    assert_the_app_is_as_supabase_leaves_it(before)


def go(database: Database, revision: str, *, down: bool) -> None:
    """Migrate to a revision, and add rows to its new tables."""
    if down:
        migrations.downgrade(database.url, revision)
    elif revision != "base":
        migrations.upgrade(database.url, revision)
        if revision == CORE:
            fill(database)
        else:
            fill_added(database, revision)


def expected_at(role: str, table: str, action: str, revision: str, *, down: bool) -> str:
    """What the table says; at base nothing of ours is there but the closed version table."""
    if revision != "base" and table != VERSION and table not in HISTORY.schema(revision):
        return ABSENT
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
