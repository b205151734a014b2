"""What row level security costs: the plan's policies, ours, and the same question without any.

    python benchmarks/rls.py [--traces 200000 2000000] [--postgresql 18 16] [--directory DIR]

Fills a database of its own, asks each question as a user with few, some and many traces, prints
medians in milliseconds with their ratios, and ends with exit code 1 if a limit is not held.
The floor is the question filtered by hand, asked by the owner, to whom no policy applies.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from langfuse_schema import embedded, migrations, tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FULL_SIZE = 2_000_000
FEWEST, SOME, MANY = 20, 1_000, 50_000
PENDING_SHARE = 100
"""One score in so many, the newest, waits to be sent."""

BATCH = 100
MAXIMUM_RUNS, MINIMUM_RUNS, SECONDS = 200, 5, 1.0
"""How often a statement is measured: as often as fits into the seconds, within bounds."""

SETTINGS = {
    "shared_buffers": "2GB",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "8GB",
    # A vacuum in the middle of a measurement measures the vacuum.
    "autovacuum": "off",
}

FILL = """
CREATE FUNCTION pg_temp.key(kind text, number bigint) RETURNS uuid LANGUAGE sql IMMUTABLE
  AS $$ SELECT md5(kind || number)::uuid $$;
INSERT INTO auth.users (id) SELECT pg_temp.key('user', n) FROM generate_series(0, {traces} / 20) n;
INSERT INTO public.langfuse_traces
  (trace_id, entity_type, entity_id, user_id, input, output, created_at)
SELECT pg_temp.key('trace', n), 'ai_coach_message', pg_temp.key('entity', n),
  pg_temp.key('user', CASE
    WHEN n % ({traces} / {many}) = 0 THEN 0
    WHEN n % ({traces} / {some}) = 1 THEN 1
    WHEN n % ({traces} / {fewest}) = 2 THEN 2
    ELSE 3 + (hashint8(n)::bigint & 2147483647) % ({traces} / 20 - 3) END),
  repeat('in ', 30), repeat('out ', 50), timestamptz '2026-01-01' + n * interval '1 second'
FROM generate_series(1, {traces}) AS n;
INSERT INTO public.langfuse_scores (trace_id, score_name, value, status, sent_at, created_at)
SELECT pg_temp.key('trace', n), 'user_feedback', n % 2,
  CASE WHEN n > {sent} THEN 'pending' ELSE 'sent' END,
  CASE WHEN n <= {sent} THEN now() END, timestamptz '2026-01-01' + n * interval '1 second'
FROM generate_series(1, {traces}) AS n;
INSERT INTO public.rate_limit_logs (user_id, endpoint, window_start)
SELECT id, '/chat', '2026-01-01' FROM auth.users;
"""

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

WEAK_FOR_MANY = ("one trace's scores", "latest 20 scores")
"""The questions that the policy's array makes dearer for a user with many traces."""


@dataclass
class Figures:
    """Medians in milliseconds by (question, number of traces of the user)."""

    plan: dict[tuple[str, int], float] = field(default_factory=dict)
    ours: dict[tuple[str, int], float] = field(default_factory=dict)
    floor: dict[tuple[str, int], float] = field(default_factory=dict)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--traces", type=int, nargs="+", default=[200_000, FULL_SIZE])
    parser.add_argument("--postgresql", type=int, nargs="+", default=[18, 16])
    parser.add_argument("--directory", type=Path, help="where the databases are; a temporary one")
    options = parser.parse_args()
    missed: list[str] = []
    for version in options.postgresql:
        for traces in options.traces:
            print(f"\nPostgreSQL {version}, {traces:,} traces, {traces:,} scores\n", flush=True)
            missed += [
                f"PostgreSQL {version}, {traces:,}: {limit}"
                for limit in measure(version, traces, options.directory)
            ]
    print("\n" + "\n".join(["missed:", *missed] if missed else ["every limit is held"]))
    sys.exit(bool(missed))


def measure(version: int, traces: int, directory: Path | None) -> list[str]:
    """Fill a database, measure all questions, print them, and say which limits are missed."""
    folder = Path(tempfile.mkdtemp(prefix="langfuse-schema-benchmark-", dir=directory))
    folder.chmod(0o755)
    try:
        with embedded.start(folder / "server", version=version, settings=SETTINGS) as server:
            plan, ours = engine_of(server, "postgres"), engine_of(server, "ours")
            embedded.prepare(plan.url, example_rows=False)
            migrations.upgrade(plan.url, tables.POLICIES)
            with plan.connect() as connection:
                sent = traces - traces // PENDING_SHARE
                numbers = {"many": MANY, "some": SOME, "fewest": FEWEST, "sent": sent}
                run(connection, FILL.format(traces=traces, **numbers))
                run(connection, "VACUUM ANALYZE")
            with engine_of(server, "template1").connect() as connection:
                run(connection, "CREATE DATABASE ours TEMPLATE postgres")
            migrations.upgrade(ours.url)
            return compare(plan, ours, traces)
    finally:
        shutil.rmtree(folder)


def engine_of(server: embedded.Server, database: str) -> sa.Engine:
    """Connect to a database as the tables' owner, each statement by itself."""
    url = server.url(database)
    return sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")


def run(connection: sa.Connection, sql: str) -> None:
    """Run statements as they are."""
    connection.exec_driver_sql(sql.replace("%", "%%"))


def compare(plan: sa.Engine, ours: sa.Engine, among: int) -> list[str]:
    """Measure in turn the plan's policies, ours and the floor: a busy moment is busy for all."""
    with ExitStack() as opened:
        before, user, owner = (opened.enter_context(e.connect()) for e in (plan, ours, ours))
        old_owner = opened.enter_context(plan.connect())
        run(owner, "VACUUM ANALYZE public.langfuse_scores")
        run(owner, "VACUUM ANALYZE public.langfuse_traces")
        run(owner, ONLY_PENDING)
        run(owner, "VACUUM ANALYZE public.only_pending")
        figures = ask_all(before, user, owner)
        shown = explain(owner, CLAIM.format(table="langfuse_scores"))
        claim = CLAIM.format(table="langfuse_scores")
        only_pending = (owner, CLAIM.format(table="only_pending"))
        without, with_index, floor = median([(old_owner, claim), (owner, claim), only_pending])
        for connection in (old_owner, owner):
            connection.exec_driver_sql("SET ROLE service_role")
        upsert_before, upsert_after = median([(old_owner, UPSERT), (owner, UPSERT)])
    print_questions(figures)
    print(f"\nclaim of {BATCH} pending: {without:.2f} ms without the index, {with_index:.2f} ms")
    print(f"with it, {floor:.2f} ms from a table of the pending alone; its plan:\n{shown}")
    print(f"rate limit upsert: {upsert_before:.2f} ms before, {upsert_after:.2f} ms after")
    limits = list(missed_limits(figures, among))
    if with_index > 2 * floor:
        limits.append(f"claim: {with_index:.2f} ms is more than twice {floor:.2f} ms")
    if "Sort" in shown or "idx_langfuse_scores_pending" not in shown:
        limits.append("claim: not the partial index alone")
    return limits


def ask_all(before: sa.Connection, user: sa.Connection, owner: sa.Connection) -> Figures:
    """Ask every question as each of the three users, and by hand as the owner."""
    figures = Figures()
    for number, traces in enumerate((MANY, SOME, FEWEST)):
        key = owner.exec_driver_sql(f"SELECT md5('user{number}')::uuid").scalar()
        trace = owner.exec_driver_sql(
            "SELECT trace_id FROM public.langfuse_traces"
            f" WHERE user_id = '{key}' ORDER BY created_at DESC OFFSET 10 LIMIT 1"
        ).scalar()
        claims = json.dumps({"sub": str(key), "role": "authenticated"})
        for connection in (before, user):
            connection.exec_driver_sql(
                f"SELECT set_config('request.jwt.claims', '{claims}', false)"
            )
            connection.exec_driver_sql("SET ROLE authenticated")
        for connection in (before, user, owner):
            connection.exec_driver_sql("DEALLOCATE ALL")
            connection.exec_driver_sql("PREPARE one_more AS " + INSERT.format(trace=trace))
        for question in QUESTIONS:
            statements = [(before, question.asked), (user, question.asked)]
            statements += [(owner, sql) for sql in question.by_hand]
            plan, ours, *by_hand = median(
                [(who, sql.format(user=key, trace=trace)) for who, sql in statements]
            )
            asked = (question.name, traces)
            figures.plan[asked], figures.ours[asked] = plan, ours
            figures.floor[asked] = min(by_hand)
        for connection in (before, user):
            connection.exec_driver_sql("RESET ROLE")
    return figures


def median(statements: Sequence[tuple[sa.Connection, str]]) -> list[float]:
    """Run statements in turn, many times, each rolled back.

    Returns:
        The median time of each, in milliseconds, the fetching of its rows included.
    """
    times: list[list[float]] = [[] for _ in statements]
    stop = time.perf_counter() + SECONDS * len(statements)
    runs = 0
    while runs <= MINIMUM_RUNS or (runs <= MAXIMUM_RUNS and time.perf_counter() < stop):
        for taken, (connection, sql) in zip(times, statements, strict=True):
            taken.append(once(connection, sql))
        runs += 1
    # The first run is for the caches.
    return [statistics.median(taken[1:]) for taken in times]


def once(connection: sa.Connection, sql: str) -> float:
    """Run a statement and roll it back; its time in milliseconds."""
    cursor = connection.connection.cursor()
    cursor.execute("BEGIN")
    begin = time.perf_counter()
    cursor.execute(sql)
    if cursor.description:
        cursor.fetchall()
    taken = time.perf_counter() - begin
    cursor.execute("ROLLBACK")
    return 1000 * taken


def explain(connection: sa.Connection, sql: str) -> str:
    """The plan of a statement, without its costs."""
    rows = connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {sql}").scalars()
    return "\n".join(f"  {row}" for row in rows)


def print_questions(figures: Figures) -> None:
    """Print the table of medians and ratios."""
    print(f"{'question':<20}{'traces':>8}{'plan':>10}{'ours':>10}{'floor':>10}", end="")
    print(f"{'ours/floor':>12}{'plan/ours':>11}")
    for (name, traces), ours in figures.ours.items():
        plan, floor = figures.plan[name, traces], figures.floor[name, traces]
        print(f"{name:<20}{traces:>8}{plan:>10.2f}{ours:>10.2f}{floor:>10.2f}", end="")
        print(f"{ours / floor:>12.1f}{plan / ours:>11.1f}")


def missed_limits(figures: Figures, among: int) -> Iterator[str]:
    """Say which figures are beyond what we promise."""
    for (name, traces), ours in figures.ours.items():
        plan, floor = figures.plan[name, traces], figures.floor[name, traces]
        described = f"{name} of {traces:,}: {ours:.2f} ms"
        limit = max(2 * floor, floor + 0.5)
        if name == "insert, prepared" or (name == "all scores" and traces == FEWEST):
            limit = 2 * floor
        elif name == "insert, planned anew" or (traces == MANY and name != "latest 20 traces"):
            limit = math.inf
        if ours > limit:
            yield f"{described}, floor {floor:.2f} ms"
        if traces == MANY and name not in WEAK_FOR_MANY and ours > 2 * plan:
            yield f"{described}, with the plan's policies {plan:.2f} ms"
        if (name, traces, among) == ("all scores", FEWEST, FULL_SIZE) and 200 * ours > plan:
            yield f"{described}, not 200 times faster than {plan:.2f} ms"


if __name__ == "__main__":
    main()
