"""What apps ask of the tables, and the same filtered by hand: for rls.py and scaling.py."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlalchemy as sa

BATCH = 100
"""Of the queue."""

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
class Question:
    """A statement of a user under row level security, and ways to filter the same by hand."""

    name: str
    asked: str
    by_hand: tuple[str, ...]


def of_scores(name: str, columns: str, rest: str = "") -> Question:
    """A question about scores, by hand as a join and as an array: the faster is the floor."""
    scores = "public.langfuse_scores AS s"
    own = "t.user_id = '{user}'"
    return Question(
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

QUESTIONS = (
    of_scores("all scores", "s.*"),
    of_scores("one trace's scores", "s.*", " WHERE s.trace_id = '{trace}'"),
    of_scores("latest 20 scores", "s.*", " ORDER BY s.created_at DESC LIMIT 20"),
    of_scores("count of scores", "count(*)"),
    Question("traces with scores", JOINED, (JOINED + " WHERE t.user_id = '{user}'",)),
    Question(
        "latest 20 traces",
        LATEST_TRACES.format(""),
        (LATEST_TRACES.format(" WHERE user_id = '{user}'"),),
    ),
    # As the Data API sends it: prepared once for each session.
    Question("insert, prepared", "EXECUTE one_more", ("EXECUTE one_more",)),
    Question("insert, planned anew", INSERT, (INSERT,)),
)


def ask(connection: sa.Connection, sql: str) -> float:
    """Run a statement and roll it back; its time in milliseconds, fetching its rows included."""
    cursor = connection.connection.cursor()
    cursor.execute("BEGIN")
    begin = time.perf_counter()
    cursor.execute(sql)
    if cursor.description:
        cursor.fetchall()
    taken = time.perf_counter() - begin
    cursor.execute("ROLLBACK")
    return 1000 * taken
