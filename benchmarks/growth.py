"""The rows, the statements and the measurements of scaling.py."""

from __future__ import annotations

import hashlib
import json
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import queries
from shared import Sample, engine_of, execute

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import sqlalchemy as sa

    from langfuse_schema.embedded import Server

TRACES_OF_A_USER = 20
"""The traces of each user. Each trace has one score and one row of rate_limit_logs."""

DAYS = 100
"""The days over which the rows are spread evenly, up to now."""

PENDING_SHARE = 100
"""The number of scores for each pending one. The newest scores are pending."""

TABLES = ("langfuse_traces", "langfuse_scores", "rate_limit_logs")

_WHEN = "now() - interval '{days} days' * (1 - n / {rows}.0)"

# The ids are random, because an index on ascending ids would be smaller and faster.
FILL = {
    "langfuse_traces": f"""INSERT INTO public.langfuse_traces
      (trace_id, entity_type, entity_id, user_id, input, output, created_at)
      SELECT md5('trace' || n)::uuid, 'ai_coach_message', md5('entity' || n)::uuid,
        md5('user' || n % {{users}})::uuid, 'How did it go today?', 'A little better each day.',
        {_WHEN} FROM generate_series(1, {{rows}}) AS n""",
    "langfuse_scores": f"""INSERT INTO public.langfuse_scores
      (trace_id, score_name, value, status, sent_at, created_at)
      SELECT md5('trace' || n)::uuid, 'user_feedback', n % 2,
        CASE WHEN n > {{sent}} THEN 'pending' ELSE 'sent' END,
        CASE WHEN n <= {{sent}} THEN {_WHEN} END, {_WHEN}
      FROM generate_series(1, {{rows}}) AS n""",
    "rate_limit_logs": f"""INSERT INTO public.rate_limit_logs
      (user_id, endpoint, window_start, created_at)
      SELECT md5('user' || n % {{users}})::uuid, '/chat', date_trunc('minute', {_WHEN}), {_WHEN}
      FROM generate_series(1, {{rows}}) AS n""",
}

# REINDEX after the INSERT is much faster than an update of the indexes for each row.
SUSPEND_INDEXES = """UPDATE pg_index SET indisready = false, indisvalid = false
  WHERE indrelid = 'public.{table}'::regclass"""


@dataclass(frozen=True)
class Statement:
    """A frequent statement of an app.

    Attributes:
        name: the name in the tables of results.
        sql: the SQL, in which {user} and {trace} are the ids of a user and of the user's trace.
        role: the role of the Data API, or None for the owner of the tables.
        at_plan: True if the statement is measured in the plan's schema, too.
    """

    name: str
    sql: str
    role: str | None = None
    at_plan: bool = False


_ALL_SCORES = queries.QUERIES[0]

ALL_SCORES = f"all my scores, user of {TRACES_OF_A_USER} traces"

STATEMENTS = (
    Statement(
        "insert a trace",
        """INSERT INTO public.langfuse_traces
          (trace_id, entity_type, entity_id, user_id, input, output)
          VALUES (gen_random_uuid(), 'reflection', gen_random_uuid(), '{user}', 'in', 'out')""",
    ),
    Statement("insert a score", queries.INSERT),
    Statement(ALL_SCORES, _ALL_SCORES.sql, "authenticated", at_plan=True),
    Statement(
        "my latest 20 traces", queries.LATEST_TRACES.format(""), "authenticated", at_plan=True
    ),
    Statement(
        f"claim {queries.BATCH} pending scores",
        queries.CLAIM.format(table="langfuse_scores"),
        "service_role",
        at_plan=True,
    ),
    Statement(
        "count a request (upsert)",
        """INSERT INTO public.rate_limit_logs AS log (user_id, endpoint, window_start)
          VALUES ('{user}', '/chat', date_trunc('minute', now()))
          ON CONFLICT (user_id, endpoint, window_start)
          DO UPDATE SET request_count = log.request_count + 1 RETURNING request_count""",
        "service_role",
    ),
    Statement(
        "delete a trace with its score",
        "DELETE FROM public.langfuse_traces WHERE trace_id = '{trace}'",
    ),
    Statement("delete a user with everything", "DELETE FROM auth.users WHERE id = '{user}'"),
    Statement(
        "delete a day of old rate_limit_logs",
        f"""DELETE FROM public.rate_limit_logs
          WHERE window_start < now() - interval '{DAYS - 1} days'""",
        "service_role",
    ),
)

FLOORS = tuple(Statement(ALL_SCORES, sql) for sql in _ALL_SCORES.by_hand)
"""All scores of a user, filtered by hand. They run as the owner, to whom no policy applies."""

RETENTION = """DELETE FROM public.langfuse_traces WHERE id IN (
  SELECT id FROM public.langfuse_traces WHERE created_at < now() - interval '{days} days'
  ORDER BY created_at LIMIT {batch})"""

RETENTION_BATCH, RETENTION_BATCHES = 1_000, 10
RETENTION_SHARE = 10
"""The minimum number of traces for each deleted one. The oldest traces are deleted."""


def fill(server: Server, database: str, rows: int) -> None:
    """Fill the three growing tables, two at a time, without checks of the foreign keys.

    Arguments:
        server: the server of the database.
        database: an empty database at a revision of the plan.
        rows: the number of rows in each table.
    """
    users = rows // TRACES_OF_A_USER
    numbers = {"rows": rows, "users": users, "sent": rows - rows // PENDING_SHARE, "days": DAYS}
    engine = engine_of(server, database, "supabase_admin")

    def fill_table(table: str) -> None:
        with engine.connect() as connection:
            execute(connection, "SET session_replication_role = replica")
            execute(connection, SUSPEND_INDEXES.format(table=table))
            execute(connection, FILL[table].format(**numbers))
            execute(connection, f"REINDEX TABLE public.{table}")
            execute(connection, f"VACUUM ANALYZE public.{table}")

    with engine.connect() as connection:
        execute(
            connection,
            "INSERT INTO auth.users (id) SELECT md5('user' || n)::uuid"
            f" FROM generate_series(0, {users - 1}) AS n",
        )
        execute(connection, "VACUUM ANALYZE auth.users")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill_table, TABLES))
    with engine.connect() as connection:
        execute(connection, "CHECKPOINT")


def bytes_per_row(connection: sa.Connection, rows: int) -> dict[str, dict[str, float]]:
    """Return the bytes of a row, in each table and in all indexes of the table."""
    found = {}
    for table in TABLES:
        sql = f"""SELECT pg_table_size('public.{table}'), pg_indexes_size('public.{table}')"""
        heap, indexes = connection.exec_driver_sql(sql).one()
        found[table] = {"heap": round(heap / rows, 1), "indexes": round(indexes / rows, 1)}
    return found


FEWEST, MOST = 3, 200
"""The limits of the runs of a statement. More dead rows would change a small table."""


@dataclass(frozen=True)
class Meter:
    """Measures statements in a database.

    Attributes:
        engine: an engine of the database.
        rows: the number of rows in each table.
        seconds: the duration of the measurement of a statement, between FEWEST and MOST runs.
    """

    engine: sa.Engine
    rows: int
    seconds: float

    def measure(self, statement: Statement) -> Sample:
        """Run a statement as a random user each time, and roll it back.

        Returns:
            The milliseconds of each run, with those to fetch the rows.
        """
        generator = random.Random(statement.name)  # noqa: S311 - no secret
        with self.engine.connect() as connection:
            if statement.role:
                execute(connection, f"SET ROLE {statement.role}")

            def run_as_random_user() -> float:
                ids = _random_user(generator, self.rows)
                claims = json.dumps({"sub": ids["user"], "role": statement.role})
                execute(connection, f"SELECT set_config('request.jwt.claims', '{claims}', false)")
                return queries.measure(connection, statement.sql.format(**ids))

            return self.repeat(run_as_random_user)

    def measure_all(self, statements: tuple[Statement, ...]) -> Mapping[str, Sample]:
        """Measure each statement."""
        return {statement.name: self.measure(statement) for statement in statements}

    def repeat(self, run: Callable[[], float]) -> Sample:
        """Repeat a run for the configured seconds."""
        run()  # The first run fills the caches.
        durations = []
        stop = time.perf_counter() + self.seconds
        while len(durations) < FEWEST or (len(durations) < MOST and time.perf_counter() < stop):
            durations.append(run())
        return Sample(tuple(durations))

    def delete_old(self) -> Sample:
        """Delete the oldest traces with their scores in batches, and measure traces per second."""
        batch = min(RETENTION_BATCH, self.rows // RETENTION_SHARE // RETENTION_BATCHES)
        days = DAYS - DAYS // RETENTION_SHARE
        rates = []
        with self.engine.connect() as connection:
            execute(connection, "SET ROLE service_role")
            for _ in range(RETENTION_BATCHES):
                begin = time.perf_counter()
                deleted = connection.exec_driver_sql(RETENTION.format(days=days, batch=batch))
                rates.append(deleted.rowcount / (time.perf_counter() - begin))
        return Sample(tuple(rates))


def _random_user(generator: random.Random, rows: int) -> dict[str, str]:
    """Return the ids of a user and of one trace of this user."""
    users = rows // TRACES_OF_A_USER
    user = generator.randrange(users)
    trace = user + users * generator.randrange(1, TRACES_OF_A_USER)
    return {"user": _key("user", user), "trace": _key("trace", trace)}


def _key(kind: str, number: int) -> str:
    """Return the same id as md5 in the SQL of FILL."""
    digest = hashlib.md5(f"{kind}{number}".encode(), usedforsecurity=False).hexdigest()
    return str(uuid.UUID(digest))
