"""The queries of rls.py and scaling.py, with row level security and filtered by hand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlalchemy as sa

BATCH = 100
"""The number of scores that a job claims from the queue."""

CLAIM = f"""SELECT id FROM public.{{table}} WHERE status = 'pending'
  ORDER BY created_at LIMIT {BATCH} FOR UPDATE SKIP LOCKED"""

UPSERT = """INSERT INTO public.rate_limit_logs AS log (user_id, endpoint, window_start)
  VALUES (md5('user2')::uuid, '/chat', '2026-01-01') ON CONFLICT (user_id, endpoint, window_start)
  DO UPDATE SET request_count = log.request_count + 1 RETURNING request_count"""


ONLY_PENDING = """
CREATE TABLE public.only_pending (LIKE public.langfuse_scores INCLUDING ALL);
INSERT INTO public.only_pending SELECT * FROM public.langfuse_scores WHERE status = 'pending'
"""


@dataclass(frozen=True)
class Query:
    """A query of a user under row level security, and equal queries that filter by hand."""

    name: str
    sql: str
    by_hand: tuple[str, ...]


def query_of_scores(name: str, columns: str, rest: str = "") -> Query:
    """Return a query of scores. By hand, a join or an array filters the rows."""
    scores = "public.langfuse_scores AS s"
    own = "t.user_id = '{user}'"
    return Query(
        name,
        f"SELECT {columns} FROM {scores}{rest}",
        (
            f"""SELECT {columns} FROM {scores} JOIN public.langfuse_traces AS t
              ON t.trace_id = s.trace_id AND {own}{rest}""",
            f"""SELECT {columns} FROM (SELECT * FROM {scores} WHERE s.trace_id = ANY (ARRAY(
              SELECT t.trace_id FROM public.langfuse_traces AS t WHERE {own}))) AS s{rest}""",
        ),
    )


INSERT = """INSERT INTO public.langfuse_scores (trace_id, score_name, value)
  VALUES ('{trace}', 'user_feedback', 1)"""

JOINED = """SELECT t.trace_id, t.output, s.score_name, s.value FROM public.langfuse_scores AS s
  JOIN public.langfuse_traces AS t ON t.trace_id = s.trace_id"""

LATEST_TRACES = "SELECT * FROM public.langfuse_traces{} ORDER BY created_at DESC LIMIT 20"

QUERIES = (
    query_of_scores("all scores", "s.*"),
    query_of_scores("one trace's scores", "s.*", " WHERE s.trace_id = '{trace}'"),
    query_of_scores("latest 20 scores", "s.*", " ORDER BY s.created_at DESC LIMIT 20"),
    query_of_scores("count of scores", "count(*)"),
    Query("traces with scores", JOINED, (JOINED + " WHERE t.user_id = '{user}'",)),
    Query(
        "latest 20 traces",
        LATEST_TRACES.format(""),
        (LATEST_TRACES.format(" WHERE user_id = '{user}'"),),
    ),
    # The Data API prepares a statement once for each session.
    Query("insert, prepared", "EXECUTE one_more", ("EXECUTE one_more",)),
    Query("insert, unprepared", INSERT, (INSERT,)),
)


def measure(connection: sa.Connection, sql: str) -> float:
    """Run a statement, roll it back, and return the milliseconds, with those to fetch the rows."""
    cursor = connection.connection.cursor()
    cursor.execute("BEGIN")
    begin = time.perf_counter()
    cursor.execute(sql)
    if cursor.description:
        cursor.fetchall()
    seconds = time.perf_counter() - begin
    cursor.execute("ROLLBACK")
    return 1000 * seconds
