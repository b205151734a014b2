"""Every role tries every action on every table, after each upgrade and downgrade."""

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

ACTORS = {
    "anon": ("anon", "authenticator", "anon", None),
    "user A": ("user", "authenticator", "authenticated", AOI),
    "user B": ("user", "authenticator", "authenticated", BEN),
    "service_role": ("service_role", "authenticator", "service_role", None),
    "authenticator": ("authenticator", "authenticator", None, None),
    "owner": ("owner", "postgres", None, None),
}
"""The column of the permissions, the login, the role of SET ROLE, and the user in the claims."""

REFUSED, ABSENT = "refused", "absent"
INSUFFICIENT_PRIVILEGE, UNDEFINED_TABLE, INVALID_SCHEMA = "42501", "42P01", "3F000"

ROWS = {AOI: 1, BEN: 2, MIO: 4}
"""The number of rows of each user in a table. A sum identifies the owners of the reached rows."""


def fill(database: Database) -> None:
    """Insert the number of traces, scores and rate limit entries in `ROWS` for each user."""
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
    """Return a new row by column. In tables with users, it belongs to this user."""
    # Trace 1 belongs to Aoi, and trace 2 to Ben.
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
    """Return the required columns of a row, for a table of a later revision or of the app."""
    if table not in HEAD_SCHEMA or HEAD_SCHEMA[table].partial:
        return {"user_id": f"'{user}'", "body": "'x'"}
    needed = [c for c in HEAD_SCHEMA[table].columns if not (c.nullable or c.default or c.generated)]
    return {c.name: f"'{user}'" if c.name == "user_id" else VALUES[c.type] for c in needed}


def fill_added(database: Database, revision: str) -> None:
    """Insert rows for each user into the tables that a later revision adds."""
    before = HISTORY.schema(HISTORY.below(revision))
    for table in HISTORY.schema(revision).keys() - before.keys() - set(APP_TABLES):
        owners = [user for user, count in ROWS.items() for _ in range(count)]
        for owner in owners if has_users(table) else owners[:1]:
            row = derived_row(table, owner)
            database.execute(
                f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})"
            )


def has_users(table: str) -> bool:
    """Return whether the rows of a table belong to users, directly or through their trace."""
    if table in (BATCH_RUNS, VERSION):
        return False
    return (
        table in (TRACES, SCORES, RATE_LIMITS) or HEAD_SCHEMA[table].column("user_id") is not None
    )


def server_columns(table: str) -> dict[str, str]:
    """Return the columns that the server sets, with values."""
    if table == VERSION:
        return {}
    columns = {"created_at": "now()"}
    if table in HEAD_SCHEMA and HEAD_SCHEMA[table].column("created_at") is None:
        return {}
    return columns | {"status": "'sent'", "sent_at": "now()"} if table == SCORES else columns


class Session:
    """A session of one actor. It rolls every statement back."""

    def __init__(
        self, connection: psycopg2.extensions.connection, role: str | None, user: str | None
    ) -> None:
        self.cursor = connection.cursor()
        self.role = role
        self.claims = json.dumps({"role": role, **({"sub": user} if user else {})})

    def run(self, sql: str) -> int | str:
        """Run a statement, and return the number of its rows, or the kind of its error."""
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
            return {
                INSUFFICIENT_PRIVILEGE: REFUSED,
                UNDEFINED_TABLE: ABSENT,
                INVALID_SCHEMA: ABSENT,
            }.get(state, state)
        else:
            return int(self.cursor.rowcount)
        finally:
            self.cursor.execute("ROLLBACK")

    def attempt(self, table: str, action: str, user: str) -> tuple[int | str, ...]:
        """Try an action on a table. INSERT tries a row of the user, then one of another user."""
        if action in ("INSERT", INSERT_ALL):
            added = server_columns(table) if action == INSERT_ALL else {}
            rows = [row_of(table, owner) | added for owner in (user, AOI if user == BEN else BEN)]
            return tuple(
                self.run(
                    f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})"
                )
                for row in rows
            )
        # An UPDATE that reads no column needs no SELECT privilege.
        column, value = list(row_of(table, user).items())[-1]
        statement = {
            "SELECT": f"SELECT * FROM {table}",
            "UPDATE": f"UPDATE {table} SET {column} = {value}",
            "DELETE": f"DELETE FROM {table}",
            "TRUNCATE": f"TRUNCATE {table} CASCADE",
            # Before PostgreSQL 17, only the owner has this privilege.
            "MAINTAIN": f"REINDEX TABLE {table}",
        }[action]
        return (self.run(statement),)


@contextmanager
def sessions(database: Database) -> Iterator[dict[str, Session]]:
    connections = []
    opened = {}
    for actor, (_, login, role, user) in ACTORS.items():
        url = database.as_user(login).set(drivername="postgresql")
        connection = psycopg2.connect(url.render_as_string(hide_password=False))
        connection.autocommit = True
        connections.append(connection)
        opened[actor] = Session(connection, role, user)
    yield opened
    for connection in connections:
        connection.close()


def interpret(table: str, outcome: tuple[int | str, ...], user: str) -> str:
    """Return an outcome in the words of the expected permissions."""
    if len(outcome) > 1:
        own, others = outcome
        if own == others:
            return ALL if own == 1 else str(own)
        return OWN if (own, others) == (1, REFUSED) else f"{own}, of others {others}"
    (reached,) = outcome
    total = sum(ROWS.values()) if has_users(table) else 1
    # psycopg2 reports -1 rows for TRUNCATE and REINDEX.
    return ALL if reached in (total, -1) else OWN if reached == ROWS[user] else str(reached)


def test_every_role_has_exactly_the_expected_permissions(
    any_world: Database, record_property: Callable[[str, object], None]
) -> None:
    cells = 0
    differences = []
    before: dict[tuple[str, str, str], tuple[int | str, ...]] = {}
    applied = ["base", *REVISIONS, *reversed(REVISIONS[:-1]), "base"]
    for position, revision in enumerate(applied):
        down = position > len(REVISIONS)
        migrate(any_world, revision, down=down)
        with sessions(any_world) as opened:
            for actor, session in opened.items():
                role, user = ACTORS[actor][0], ACTORS[actor][3] or AOI
                for table in TABLES:
                    for action in ACTIONS:
                        cells += 1
                        outcome = session.attempt(table, action, user)
                        key = (actor, table, action)
                        if table in APP_TABLES:
                            expected_outcome: Any = before.setdefault(key, outcome)
                            found: Any = outcome
                        else:
                            expected_outcome = expected_at(role, table, action, revision, down=down)
                            found = interpret(table, outcome, user)
                        if found != expected_outcome:
                            direction = "down to" if down else "up to"
                            differences.append(
                                f"{direction} {revision}: {key}: {found}, not {expected_outcome}"
                            )
    record_property("permissions checked", cells)
    assert differences == []
    assert cells == len(applied) * len(ACTORS) * len(TABLES) * len(ACTIONS)
    assert_app_tables_keep_supabase_access(before)


def migrate(database: Database, revision: str, *, down: bool) -> None:
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
    """Return the expected result. At base, only the version table of an upgrade can exist."""
    if revision != "base" and table != VERSION and table not in HISTORY.schema(revision):
        return ABSENT
    if revision != "base":
        return expected(role, table, action, revision)
    if table != VERSION or not down:
        return ABSENT
    return (
        expected(role, table, action, CORE) if role != "owner" else expected_in_empty_table(action)
    )


def expected_in_empty_table(action: str) -> str:
    """Return the expected result of the owner in the empty version table."""
    return "0" if action in ("SELECT", "UPDATE", "DELETE") else ALL


def assert_app_tables_keep_supabase_access(
    outcomes: dict[tuple[str, str, str], tuple[int | str, ...]],
) -> None:
    """Check the outcomes on the app's tables, for which no permissions are listed."""
    for table in APP_TABLES:
        (own,) = outcomes["user A", table, "SELECT"]
        (all_rows,) = outcomes["owner", table, "SELECT"]
        assert 0 < int(own) < int(all_rows)
        assert outcomes["user A", table, "INSERT"] == (1, REFUSED)
        assert outcomes["authenticator", table, "SELECT"] == (REFUSED,)
        assert outcomes["anon", table, "INSERT"] == (REFUSED, REFUSED)
