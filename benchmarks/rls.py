"""Measure row level security: the plan's policies, those of langfuse-schema, and no policy.

    python benchmarks/rls.py [--traces 200000 2000000] [--postgresql 18 16] [--directory DIR]

The benchmark fills a new database, and runs each query as a user with few, some and many traces.
The output has medians in milliseconds and their ratios. The exit code is 1 if a limit is missed.
The floor is the query filtered by hand. It runs as the owner, to whom no policy applies.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from queries import BATCH, CLAIM, INSERT, ONLY_PENDING, QUERIES, UPSERT
from queries import measure as measure_once
from shared import PLAN_REVISION, Row, Sample, engine_of, execute, temporary_server

from langfuse_schema import embedded, migrations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import sqlalchemy as sa

FULL_SIZE = 2_000_000
FEWEST, SOME, MANY = 20, 1_000, 50_000
PENDING_SHARE = 100
"""The number of scores for each pending one. The newest scores are pending."""

MAXIMUM_RUNS, MINIMUM_RUNS, SECONDS = 200, 5, 1.0
"""The limits of the runs of a statement, and the duration of its measurement."""

SETTINGS = {"shared_buffers": "2GB", "max_wal_size": "8GB"}

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

WEAK_FOR_MANY = ("one trace's scores", "latest 20 scores")
"""The queries that the array of the policy makes slower for a user with many traces."""


@dataclass
class Figures:
    """The milliseconds of each query, by its name and the number of traces of the user."""

    plan: dict[tuple[str, int], Sample] = field(default_factory=dict)
    langfuse_schema: dict[tuple[str, int], Sample] = field(default_factory=dict)
    floor: dict[tuple[str, int], Sample] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The measurements of one size.

    Attributes:
        traces: the number of traces, which is also the number of scores.
        figures: the queries of the users.
        claims: the claims of pending scores, with the plan's indexes, with those of
            langfuse-schema, and from a table of only pending scores.
        claim_plan: the query plan of the claim with the indexes of langfuse-schema.
        upserts: the upserts of the rate limit, in the plan's schema and in langfuse-schema.
    """

    traces: int
    figures: Figures
    claims: tuple[Sample, ...]
    claim_plan: str
    upserts: tuple[Sample, ...]

    def rows(self) -> Iterator[Row]:
        """Yield the lines of a table, compared with the plan and with the floor."""
        for (query, traces), sample in self.figures.langfuse_schema.items():
            parameters = {"query": query, "traces": traces, "rows": self.traces}
            name = f"{query}, user of {traces:,} traces, {self.traces:,} rows, ms"
            plan, floor = self.figures.plan[query, traces], self.figures.floor[query, traces]
            yield Row(name, "the plan's policies", plan, sample, parameters)
            yield Row(name, "filtered by hand", floor, sample, parameters)
        without, with_index, floor = self.claims
        name = f"claim of {BATCH} pending, {self.traces:,} rows, ms"
        yield Row(name, "the plan's indexes", without, with_index, {"rows": self.traces})
        yield Row(name, "a table of only pending scores", floor, with_index, {"rows": self.traces})
        name = f"rate limit upsert, {self.traces // 20:,} rows, ms"
        yield Row(name, "the plan's tables", *self.upserts, {"rows": self.traces // 20})

    def missed_limits(self) -> list[str]:
        """Return a line for each missed limit."""
        missed = list(missed_limits(self.figures, self.traces))
        _, with_index, floor = (sample.median for sample in self.claims)
        if with_index > 2 * floor:
            missed.append(f"claim: {with_index:.2f} ms is more than twice {floor:.2f} ms")
        if "Sort" in self.claim_plan or "idx_langfuse_scores_pending" not in self.claim_plan:
            missed.append("claim: it does not use the partial index alone")
        return missed


def main() -> None:
    """Measure each version and size, print the tables, and exit with 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--traces", type=int, nargs="+", default=[200_000, FULL_SIZE])
    parser.add_argument("--postgresql", type=int, nargs="+", default=[18, 16])
    parser.add_argument("--directory", type=Path, help="parent folder of the databases")
    options = parser.parse_args()
    missed: list[str] = []
    for version in options.postgresql:
        for traces in options.traces:
            print(f"\nPostgreSQL {version}, {traces:,} traces, {traces:,} scores\n", flush=True)
            result = measure(version, traces, options.directory)
            print_result(result)
            missed += [
                f"PostgreSQL {version}, {traces:,}: {limit}" for limit in result.missed_limits()
            ]
    print("\n" + "\n".join(["missed:", *missed] if missed else ["every limit is met"]))
    sys.exit(bool(missed))


def measure(version: int, traces: int, directory: Path | None, seconds: float = SECONDS) -> Result:
    """Fill a database and measure all queries.

    Arguments:
        version: the major version of PostgreSQL, 18 or 16.
        traces: the number of traces, and of scores.
        directory: the parent folder of the database, or None for the folder of temporary files.
        seconds: the duration of the measurement of each statement.
    """
    with temporary_server(version, directory, **SETTINGS) as server:
        plan, head = engine_of(server, "postgres"), engine_of(server, "head")
        embedded.prepare(plan.url, example_rows=False)
        migrations.upgrade(plan.url, PLAN_REVISION)
        many, some, fewest = users_of(traces)
        with plan.connect() as connection:
            sent = traces - traces // PENDING_SHARE
            numbers = {"many": many, "some": some, "fewest": fewest, "sent": sent}
            execute(connection, FILL.format(traces=traces, **numbers))
            execute(connection, "VACUUM ANALYZE")
        with engine_of(server, "template1").connect() as connection:
            execute(connection, "CREATE DATABASE head TEMPLATE postgres")
        migrations.upgrade(head.url)
        return compare(plan, head, traces, seconds)


def users_of(traces: int) -> tuple[int, int, int]:
    """Return the number of traces of the users 0, 1 and 2. A small database has fewer."""
    return min(MANY, traces // 4), min(SOME, traces // 20), min(FEWEST, traces // 100)


def compare(plan: sa.Engine, head: sa.Engine, rows: int, seconds: float) -> Result:
    """Measure the plan, langfuse-schema and the floor in turn, so that load affects all of them.

    Arguments:
        plan: an engine of the database at the plan's last revision.
        head: an engine of the copy at the last revision.
        rows: the number of traces, and of scores.
        seconds: the duration of the measurement of each statement.
    """
    with ExitStack() as stack:
        plan_user, user, owner = (stack.enter_context(e.connect()) for e in (plan, head, head))
        plan_owner = stack.enter_context(plan.connect())
        execute(owner, "VACUUM ANALYZE public.langfuse_scores")
        execute(owner, "VACUUM ANALYZE public.langfuse_traces")
        execute(owner, ONLY_PENDING)
        execute(owner, "VACUUM ANALYZE public.only_pending")
        figures = measure_all(plan_user, user, owner, users_of(rows), seconds)
        claim = CLAIM.format(table="langfuse_scores")
        claim_plan = explain(owner, claim)
        only_pending = (owner, CLAIM.format(table="only_pending"))
        claims = repeat([(plan_owner, claim), (owner, claim), only_pending], seconds)
        for connection in (plan_owner, owner):
            connection.exec_driver_sql("SET ROLE service_role")
        upserts = repeat([(plan_owner, UPSERT), (owner, UPSERT)], seconds)
    return Result(rows, figures, tuple(claims), claim_plan, tuple(upserts))


def measure_all(
    plan_user: sa.Connection,
    user: sa.Connection,
    owner: sa.Connection,
    users: tuple[int, int, int],
    seconds: float,
) -> Figures:
    """Measure every query as each of the three users, and filtered by hand as the owner."""
    figures = Figures()
    for number, traces in enumerate(users):
        key = owner.exec_driver_sql(f"SELECT md5('user{number}')::uuid").scalar()
        trace = owner.exec_driver_sql(
            "SELECT trace_id FROM public.langfuse_traces"
            f" WHERE user_id = '{key}' ORDER BY created_at DESC OFFSET 10 LIMIT 1"
        ).scalar()
        claims = json.dumps({"sub": str(key), "role": "authenticated"})
        for connection in (plan_user, user):
            connection.exec_driver_sql(
                f"SELECT set_config('request.jwt.claims', '{claims}', false)"
            )
            connection.exec_driver_sql("SET ROLE authenticated")
        for connection in (plan_user, user, owner):
            connection.exec_driver_sql("DEALLOCATE ALL")
            connection.exec_driver_sql("PREPARE one_more AS " + INSERT.format(trace=trace))
        for query in QUERIES:
            statements = [(plan_user, query.sql), (user, query.sql)]
            statements += [(owner, sql) for sql in query.by_hand]
            plan, sample, *by_hand = repeat(
                [(connection, sql.format(user=key, trace=trace)) for connection, sql in statements],
                seconds,
            )
            measured = (query.name, traces)
            figures.plan[measured], figures.langfuse_schema[measured] = plan, sample
            figures.floor[measured] = min(by_hand, key=lambda sample: sample.median)
        for connection in (plan_user, user):
            connection.exec_driver_sql("RESET ROLE")
    return figures


def repeat(statements: Sequence[tuple[sa.Connection, str]], seconds: float) -> list[Sample]:
    """Run statements in turn, in a random order each time, and roll each one back.

    In a fixed order, the statement after one that reads a whole table would always find the caches
    of the processor without its rows.

    Arguments:
        statements: the statements, each with its connection.
        seconds: the duration of the measurement, for each statement.

    Returns:
        The milliseconds of each statement, with those to fetch the rows.
    """
    times: list[list[float]] = [[] for _ in statements]
    order = list(range(len(statements)))
    shuffle = random.Random(0).shuffle  # noqa: S311 - no secret
    stop = time.perf_counter() + seconds * len(statements)
    runs = 0
    while runs <= MINIMUM_RUNS or (runs <= MAXIMUM_RUNS and time.perf_counter() < stop):
        shuffle(order)
        for number in order:
            times[number].append(measure_once(*statements[number]))
        runs += 1
    # The first run fills the caches.
    return [Sample(tuple(durations[1:])) for durations in times]


def explain(connection: sa.Connection, sql: str) -> str:
    """Return the query plan of a statement, without costs."""
    rows = connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {sql}").scalars()
    return "\n".join(f"  {row}" for row in rows)


def print_result(result: Result) -> None:
    """Print the table of medians and ratios."""
    figures = result.figures
    print(f"{'query':<20}{'traces':>8}{'plan':>10}{'head':>10}{'floor':>10}", end="")
    print(f"{'head/floor':>12}{'plan/head':>11}")
    for measured, sample in figures.langfuse_schema.items():
        name, traces = measured
        samples = (sample, figures.plan[measured], figures.floor[measured])
        head, plan, floor = (s.median for s in samples)
        print(f"{name:<20}{traces:>8}{plan:>10.2f}{head:>10.2f}{floor:>10.2f}", end="")
        print(f"{head / floor:>12.1f}{plan / head:>11.1f}")
    without, with_index, floor = (sample.median for sample in result.claims)
    before, after = (sample.median for sample in result.upserts)
    print(f"\nclaim of {BATCH} pending: {without:.2f} ms without the index, {with_index:.2f} ms")
    print(f"with it, {floor:.2f} ms from a table of only pending scores. The plan with the index:")
    print(result.claim_plan)
    print(f"rate limit upsert: {before:.2f} ms before, {after:.2f} ms after")


def missed_limits(figures: Figures, rows: int) -> Iterator[str]:
    """Yield a line for each figure that exceeds a limit."""
    for (name, traces), sample in figures.langfuse_schema.items():
        head = sample.median
        plan, floor = figures.plan[name, traces].median, figures.floor[name, traces].median
        measured = f"{name} of {traces:,}: {head:.2f} ms"
        limit = max(2 * floor, floor + 0.5)
        if name == "insert, prepared" or (name == "all scores" and traces == FEWEST):
            limit = 2 * floor
        elif name == "insert, unprepared" or (traces == MANY and name != "latest 20 traces"):
            limit = math.inf
        if head > limit:
            yield f"{measured}, floor {floor:.2f} ms"
        if traces == MANY and name not in WEAK_FOR_MANY and head > 2 * plan:
            yield f"{measured}, with the plan's policies {plan:.2f} ms"
        if (name, traces, rows) == ("all scores", FEWEST, FULL_SIZE) and 200 * head > plan:
            yield f"{measured}, not 200 times faster than {plan:.2f} ms"


if __name__ == "__main__":
    main()
