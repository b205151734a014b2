"""A database of a chosen size, and what is asked of it: the parts of scaling.py."""

from __future__ import annotations

import hashlib
import json
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import questions
from shared import Sample, engine_of, execute

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import sqlalchemy as sa

    from langfuse_schema.embedded import Server

TRACES_OF_A_USER = 20
"""Of every user; each trace has one score, and each user one count of the rate limit for it."""

DAYS = 100
"""Over which the rows are spread evenly, up to now."""

PENDING_SHARE = 100
"""One score in so many, the newest, waits to be sent."""

TABLES = ("langfuse_traces", "langfuse_scores", "rate_limit_logs")

_WHEN = "now() - interval '{days} days' * (1 - n / {rows}.0)"

# Ids are as random as real ones: an index on ids that ascend would be smaller and faster.
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

# No index is kept up row by row; REINDEX makes them whole again, faster by far.
SUSPEND = """UPDATE pg_index SET indisready = false, indisvalid = false
  WHERE indrelid = 'public.{table}'::regclass"""


@dataclass(frozen=True)
class Statement:
    """A statement that an app sends all the time, by one user after the other.

    Attributes:
        name: in the tables.
        sql: with {user} and {trace}, whose trace it is.
        role: of the Data API that asks; the tables' owner if None.
        at_plan: whether the plan's own schema is asked too.
    """

    name: str
    sql: str
    role: str | None = None
    at_plan: bool = False


_ALL_SCORES = questions.QUESTIONS[0]

ALL_SCORES = f"all my scores, user of {TRACES_OF_A_USER} traces"

STATEMENTS = (
    Statement(
        "insert a trace",
        """INSERT INTO public.langfuse_traces
          (trace_id, entity_type, entity_id, user_id, input, output)
          VALUES (gen_random_uuid(), 'reflection', gen_random_uuid(), '{user}', 'in', 'out')""",
    ),
    Statement("insert a score", questions.INSERT),
    Statement(ALL_SCORES, _ALL_SCORES.asked, "authenticated", at_plan=True),
    Statement(
        "my latest 20 traces", questions.LATEST_TRACES.format(""), "authenticated", at_plan=True
    ),
    Statement(
        f"claim {questions.BATCH} pending scores",
        questions.CLAIM.format(table="langfuse_scores"),
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
"""All scores of a user, filtered by hand by the owner, to whom no policy applies."""

RETENTION = """DELETE FROM public.langfuse_traces WHERE id IN (
  SELECT id FROM public.langfuse_traces WHERE created_at < now() - interval '{days} days'
  ORDER BY created_at LIMIT {batch})"""

RETENTION_BATCH, RETENTION_BATCHES = 1_000, 10
RETENTION_SHARE = 10
"""At most one trace in so many is deleted, the oldest."""


def fill(server: Server, database: str, rows: int) -> None:
    """Fill the three tables that grow, two at a time, without checking each row's references.

    Arguments:
        server: whose database it is.
        database: at a revision of the plan, empty.
        rows: of each table.
    """
    users = rows // TRACES_OF_A_USER
    numbers = {"rows": rows, "users": users, "sent": rows - rows // PENDING_SHARE, "days": DAYS}
    engine = engine_of(server, database, "supabase_admin")

    def fill_table(table: str) -> None:
        with engine.connect() as connection:
            execute(connection, "SET session_replication_role = replica")
            execute(connection, SUSPEND.format(table=table))
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
    """How many bytes a row takes, in its table and in all indexes of the table together."""
    found = {}
    for table in TABLES:
        sql = f"""SELECT pg_table_size('public.{table}'), pg_indexes_size('public.{table}')"""
        heap, indexes = connection.exec_driver_sql(sql).one()
        found[table] = {"heap": round(heap / rows, 1), "indexes": round(indexes / rows, 1)}
    return found


FEWEST, MOST = 3, 200
"""How often a statement is run; more inserts rolled back would make a small table another one."""


@dataclass(frozen=True)
class Asker:
    """One after the other, users ask.

    Attributes:
        engine: of the database.
        rows: of each table.
        seconds: for how long a statement is repeated, within bounds.
    """

    engine: sa.Engine
    rows: int
    seconds: float

    def ask(self, statement: Statement) -> Sample:
        """Run a statement as one user after the other, each time rolled back.

        Returns:
            Milliseconds, the fetching of the rows included.
        """
        chosen = random.Random(statement.name)  # noqa: S311 - no secret
        with self.engine.connect() as connection:
            if statement.role:
                execute(connection, f"SET ROLE {statement.role}")

            def as_someone() -> float:
                subject = _someone(chosen, self.rows)
                claims = json.dumps({"sub": subject["user"], "role": statement.role})
                execute(connection, f"SELECT set_config('request.jwt.claims', '{claims}', false)")
                return questions.ask(connection, statement.sql.format(**subject))

            return self.repeat(as_someone)

    def ask_all(self, statements: tuple[Statement, ...]) -> Mapping[str, Sample]:
        """Run each statement by itself."""
        return {statement.name: self.ask(statement) for statement in statements}

    def repeat(self, once: Callable[[], float]) -> Sample:
        """Repeat as often as fits."""
        once()  # for the caches
        taken = []
        stop = time.perf_counter() + self.seconds
        while len(taken) < FEWEST or (len(taken) < MOST and time.perf_counter() < stop):
            taken.append(once())
        return Sample(tuple(taken))

    def delete_old(self) -> Sample:
        """Delete the oldest traces with their scores in batches, for good; traces a second."""
        batch = min(RETENTION_BATCH, self.rows // RETENTION_SHARE // RETENTION_BATCHES)
        days = DAYS - DAYS // RETENTION_SHARE
        taken = []
        with self.engine.connect() as connection:
            execute(connection, "SET ROLE service_role")
            for _ in range(RETENTION_BATCHES):
                begin = time.perf_counter()
                deleted = connection.exec_driver_sql(RETENTION.format(days=days, batch=batch))
                taken.append(deleted.rowcount / (time.perf_counter() - begin))
        return Sample(tuple(taken))


def _someone(chosen: random.Random, rows: int) -> dict[str, str]:
    """A user and one trace of theirs."""
    users = rows // TRACES_OF_A_USER
    user = chosen.randrange(users)
    trace = user + users * chosen.randrange(1, TRACES_OF_A_USER)
    return {"user": _key("user", user), "trace": _key("trace", trace)}


def _key(kind: str, number: int) -> str:
    """The id that PostgreSQL's md5 makes."""
    digest = hashlib.md5(f"{kind}{number}".encode(), usedforsecurity=False).hexdigest()
    return str(uuid.UUID(digest))
