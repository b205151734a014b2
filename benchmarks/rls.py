"""What row level security costs: the plan's policies, ours, and the same question without any.

    python benchmarks/rls.py [--traces 200000 2000000] [--postgresql 18 16] [--directory DIR]

Fills a database of its own, asks each question as a user with few, some and many traces, prints
medians in milliseconds with their ratios, and ends with exit code 1 if a limit is not held.
The floor is the question filtered by hand, asked by the owner, to whom no policy applies.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from langfuse_schema import embedded, migrations, tables

if TYPE_CHECKING:
    from collections.abc import Iterator

FEWEST, SOME, MANY = 20, 1_000, 50_000
PENDING_SHARE = 100
"""One score in so many waits to be sent."""

BATCH = 100
MAXIMUM_RUNS, MINIMUM_RUNS, SECONDS = 200, 7, 2.0
"""How often a statement is measured: as often as fits into the seconds, within bounds."""

SETTINGS = {
    "shared_buffers": "1GB",
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
    ELSE 3 + hashint8(n)::bigint & 2147483647 % ({traces} / 20 - 3) END),
  repeat('in ', 30), repeat('out ', 50), timestamptz '2026-01-01' + n * interval '1 second'
FROM generate_series(1, {traces}) AS n;
INSERT INTO public.langfuse_scores (trace_id, score_name, value, status, sent_at, created_at)
SELECT pg_temp.key('trace', n), 'user_feedback', n % 2,
  CASE WHEN n % {share} = 0 THEN 'pending' ELSE 'sent' END,
  CASE WHEN n % {share} <> 0 THEN now() END, timestamptz '2026-01-01' + n * interval '1 second'
FROM generate_series(1, {traces}) AS n;
INSERT INTO public.rate_limit_logs (user_id, endpoint, window_start)
SELECT id, '/chat', '2026-01-01' FROM auth.users;
"""

CLAIM = f"""SELECT id FROM public.{{table}} WHERE status = 'pending'
  ORDER BY created_at LIMIT {BATCH} FOR UPDATE SKIP LOCKED"""

UPSERT = """INSERT INTO public.rate_limit_logs AS log (user_id, endpoint, window_start)
  VALUES ({user}, '/chat', '2026-01-01') ON CONFLICT (user_id, endpoint, window_start)
  DO UPDATE SET request_count = log.request_count + 1 RETURNING request_count"""


@dataclass(frozen=True)
class Question:
    """A statement of a user under row level security, and the same filtered by hand."""

    name: str
    asked: str
    by_hand: str


_OWN = "JOIN public.langfuse_traces AS t ON t.trace_id = s.trace_id AND t.user_id = '{user}'"
_INSERT = "INSERT INTO public.langfuse_scores (trace_id, score_name, value) VALUES ('{trace}', "
_INSERT += "'user_feedback', 1)"

QUESTIONS = (
    Question(
        "all scores",
        "SELECT * FROM public.langfuse_scores",
        f"SELECT s.* FROM public.langfuse_scores AS s {_OWN}",
    ),
    Question(
        "one trace's scores",
        "SELECT * FROM public.langfuse_scores WHERE trace_id = '{trace}'",
        f"SELECT s.* FROM public.langfuse_scores AS s {_OWN} WHERE s.trace_id = '{{trace}}'",
    ),
    Question(
        "latest 20 traces",
        "SELECT * FROM public.langfuse_traces ORDER BY created_at DESC LIMIT 20",
        "SELECT * FROM public.langfuse_traces WHERE user_id = '{user}'"
        " ORDER BY created_at DESC LIMIT 20",
    ),
    Question(
        "latest 20 scores",
        "SELECT * FROM public.langfuse_scores ORDER BY created_at DESC LIMIT 20",
        f"SELECT s.* FROM public.langfuse_scores AS s {_OWN} ORDER BY s.created_at DESC LIMIT 20",
    ),
    Question(
        "traces with scores",
        "SELECT t.trace_id, t.output, s.score_name, s.value FROM public.langfuse_scores AS s"
        " JOIN public.langfuse_traces AS t ON t.trace_id = s.trace_id",
        f"SELECT t.trace_id, t.output, s.score_name, s.value FROM public.langfuse_scores AS s {_OWN}",
    ),
    Question(
        "count of scores",
        "SELECT count(*) FROM public.langfuse_scores",
        f"SELECT count(*) FROM public.langfuse_scores AS s {_OWN}",
    ),
    Question("insert of a score", _INSERT, _INSERT),
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
    parser.add_argument("--traces", type=int, nargs="+", default=[200_000, 2_000_000])
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
            embedded.prepare(server.url(), example_rows=False)
            migrations.upgrade(server.url(), tables.POLICIES)
            engine = sa.create_engine(
                server.url(), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
            )
            with engine.connect() as connection:
                numbers = {"many": MANY, "some": SOME, "fewest": FEWEST, "share": PENDING_SHARE}
                run(connection, FILL.format(traces=traces, **numbers))
                run(connection, "CHECKPOINT", user="supabase_admin")
                run(connection, "VACUUM ANALYZE", user="supabase_admin")
            return compare(engine)
    finally:
        shutil.rmtree(folder)


def run(connection: sa.Connection, sql: str, user: str = "postgres") -> None:
    """Run statements as they are, on a connection of their own if as another user."""
    if user == "postgres":
        connection.exec_driver_sql(sql.replace("%", "%%"))
        return
    engine = sa.create_engine(connection.engine.url.set(username=user), poolclass=sa.NullPool)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
        other.exec_driver_sql(sql)


def compare(engine: sa.Engine) -> list[str]:
    """Measure the plan's policies, then upgrade, then measure ours and the floor."""
    figures = Figures()
    with engine.connect() as connection:
        ask_all(connection, figures.plan, as_user=True)
        without = claim(connection, "langfuse_scores")
        upsert_before = upsert(connection)
    migrations.upgrade(engine.url)
    with engine.connect() as connection:
        run(connection, "VACUUM ANALYZE public.langfuse_scores, public.langfuse_traces")
        ask_all(connection, figures.ours, as_user=True)
        ask_all(connection, figures.floor, as_user=False)
        with_index = claim(connection, "langfuse_scores")
        plan = explain(connection, CLAIM.format(table="langfuse_scores"))
        run(
            connection,
            "CREATE TABLE public.only_pending (LIKE public.langfuse_scores INCLUDING ALL);"
            "INSERT INTO public.only_pending SELECT * FROM public.langfuse_scores"
            " WHERE status = 'pending'",
        )
        run(connection, "VACUUM ANALYZE public.only_pending")
        floor = claim(connection, "only_pending")
        upsert_after = upsert(connection)
    print_questions(figures)
    print(
        f"\nclaim of {BATCH} pending: {without:.2f} ms without the index, {with_index:.2f} ms with"
    )
    print(f"it, {floor:.2f} ms from a table of the pending alone; its plan:\n{plan}")
    print(
        f"rate limit upsert: {upsert_before:.2f} ms with the plan, {upsert_after:.2f} ms with ours"
    )
    limits = list(missed_limits(figures))
    if with_index > 2 * floor:
        limits.append(f"claim: {with_index:.2f} ms is more than twice {floor:.2f} ms")
    if "Sort" in plan or "idx_langfuse_scores_pending" not in plan:
        limits.append("claim: not the partial index alone")
    return limits


def ask_all(
    connection: sa.Connection, medians: dict[tuple[str, int], float], *, as_user: bool
) -> None:
    """Ask every question as each of the three users, or filtered by hand as the owner."""
    for number, traces in enumerate((MANY, SOME, FEWEST)):
        user = connection.exec_driver_sql(f"SELECT md5('user{number}')::uuid").scalar()
        trace = connection.exec_driver_sql(
            "SELECT trace_id FROM public.langfuse_traces"
            f" WHERE user_id = '{user}' ORDER BY created_at DESC OFFSET 10 LIMIT 1"
        ).scalar()
        if as_user:
            claims = json.dumps({"sub": str(user), "role": "authenticated"})
            connection.exec_driver_sql(
                f"SELECT set_config('request.jwt.claims', '{claims}', false)"
            )
            connection.exec_driver_sql("SET ROLE authenticated")
        for question in QUESTIONS:
            sql = (question.asked if as_user else question.by_hand).format(user=user, trace=trace)
            medians[question.name, traces] = median(connection, sql)
        connection.exec_driver_sql("RESET ROLE")


def median(connection: sa.Connection, sql: str) -> float:
    """Run a statement many times, each rolled back; the median of its times, in milliseconds."""
    cursor = connection.connection.cursor()
    times: list[float] = []

    def once() -> None:
        cursor.execute("BEGIN")
        begin = time.perf_counter()
        cursor.execute(sql)
        if cursor.description:
            cursor.fetchall()
        times.append(1000 * (time.perf_counter() - begin))
        cursor.execute("ROLLBACK")

    once()
    times.clear()
    stop = time.perf_counter() + SECONDS
    while len(times) < MINIMUM_RUNS or (len(times) < MAXIMUM_RUNS and time.perf_counter() < stop):
        once()
    return statistics.median(times)


def claim(connection: sa.Connection, table: str) -> float:
    """Measure the claim of the oldest pending scores of a table."""
    return median(connection, CLAIM.format(table=table))


def upsert(connection: sa.Connection) -> float:
    """Measure the count of one request, as the app's server does it."""
    connection.exec_driver_sql("SET ROLE service_role")
    taken = median(connection, UPSERT.format(user="md5('user2')::uuid"))
    connection.exec_driver_sql("RESET ROLE")
    return taken


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


def missed_limits(figures: Figures) -> Iterator[str]:
    """Say which figures are beyond what we promise."""
    for (name, traces), ours in figures.ours.items():
        plan, floor = figures.plan[name, traces], figures.floor[name, traces]
        near_floor = ours <= max(2 * floor, floor + 0.5)
        if name == "all scores" and traces == FEWEST:
            near_floor = ours <= 2 * floor
        if name == "insert of a score":
            near_floor = ours <= 2 * floor
        promised = traces < MANY or name in ("latest 20 traces", "insert of a score")
        if promised and name != "latest 20 scores" and not near_floor:
            yield f"{name} of {traces:,}: {ours:.2f} ms, floor {floor:.2f} ms"
        if name not in WEAK_FOR_MANY and ours > 2 * plan:
            yield f"{name} of {traces:,}: {ours:.2f} ms, with the plan's policies {plan:.2f} ms"


if __name__ == "__main__":
    main()
