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
import random
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from questions import BATCH, CLAIM, INSERT, ONLY_PENDING, QUESTIONS, UPSERT, ask
from shared import PLAN_REVISION, Row, Sample, engine_of, execute, own_server

from langfuse_schema import embedded, migrations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import sqlalchemy as sa

FULL_SIZE = 2_000_000
FEWEST, SOME, MANY = 20, 1_000, 50_000
PENDING_SHARE = 100
"""One score in so many, the newest, waits to be sent."""

MAXIMUM_RUNS, MINIMUM_RUNS, SECONDS = 200, 5, 1.0
"""How often a statement is measured: as often as fits into the seconds, within bounds."""

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
"""The questions that the policy's array makes dearer for a user with many traces."""


@dataclass
class Figures:
    """Milliseconds by (question, number of traces of the user)."""

    plan: dict[tuple[str, int], Sample] = field(default_factory=dict)
    ours: dict[tuple[str, int], Sample] = field(default_factory=dict)
    floor: dict[tuple[str, int], Sample] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What was measured in one database.

    Attributes:
        traces: how many there are, and as many scores.
        figures: of the users' questions.
        claims: of the queue: the plan's indexes, ours, and a table of the pending alone.
        claim_plan: PostgreSQL's plan of ours.
        upserts: of the rate limit: the plan's tables, and ours.
    """

    traces: int
    figures: Figures
    claims: tuple[Sample, ...]
    claim_plan: str
    upserts: tuple[Sample, ...]

    def rows(self) -> Iterator[Row]:
        """The lines of a table, against the plan and against the floor."""
        for (name, traces), ours in self.figures.ours.items():
            parameters = {"question": name, "traces": traces, "rows": self.traces}
            what = f"{name}, user of {traces:,} traces, {self.traces:,} rows, ms"
            plan, floor = self.figures.plan[name, traces], self.figures.floor[name, traces]
            yield Row(what, "the plan's policies", plan, ours, parameters)
            yield Row(what, "filtered by hand", floor, ours, parameters)
        without, with_index, floor = self.claims
        what = f"claim of {BATCH} pending, {self.traces:,} rows, ms"
        yield Row(what, "the plan's indexes", without, with_index, {"rows": self.traces})
        yield Row(what, "a table of the pending alone", floor, with_index, {"rows": self.traces})
        what = f"rate limit upsert, {self.traces // 20:,} rows, ms"
        yield Row(what, "the plan's tables", *self.upserts, {"rows": self.traces // 20})

    def missed_limits(self) -> list[str]:
        """Say which limits are missed."""
        missed = list(missed_limits(self.figures, self.traces))
        _, with_index, floor = (sample.median for sample in self.claims)
        if with_index > 2 * floor:
            missed.append(f"claim: {with_index:.2f} ms is more than twice {floor:.2f} ms")
        if "Sort" in self.claim_plan or "idx_langfuse_scores_pending" not in self.claim_plan:
            missed.append("claim: not the partial index alone")
        return missed


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
            result = measure(version, traces, options.directory)
            print_result(result)
            missed += [
                f"PostgreSQL {version}, {traces:,}: {limit}" for limit in result.missed_limits()
            ]
    print("\n" + "\n".join(["missed:", *missed] if missed else ["every limit is held"]))
    sys.exit(bool(missed))


def measure(version: int, traces: int, directory: Path | None, seconds: float = SECONDS) -> Result:
    """Fill a database and measure all questions.

    Arguments:
        version: PostgreSQL's major version, 18 or 16.
        traces: how many traces there are to be, and as many scores.
        directory: where the database is made; where temporary files are if None.
        seconds: for how long each statement is repeated.
    """
    with own_server(version, directory, **SETTINGS) as server:
        plan, ours = engine_of(server, "postgres"), engine_of(server, "ours")
        embedded.prepare(plan.url, example_rows=False)
        migrations.upgrade(plan.url, PLAN_REVISION)
        many, some, fewest = users_of(traces)
        with plan.connect() as connection:
            sent = traces - traces // PENDING_SHARE
            numbers = {"many": many, "some": some, "fewest": fewest, "sent": sent}
            execute(connection, FILL.format(traces=traces, **numbers))
            execute(connection, "VACUUM ANALYZE")
        with engine_of(server, "template1").connect() as connection:
            execute(connection, "CREATE DATABASE ours TEMPLATE postgres")
        migrations.upgrade(ours.url)
        return compare(plan, ours, traces, seconds)


def users_of(traces: int) -> tuple[int, int, int]:
    """How many traces the users 0, 1 and 2 have; fewer only where there are few in all."""
    return min(MANY, traces // 4), min(SOME, traces // 20), min(FEWEST, traces // 100)


def compare(plan: sa.Engine, ours: sa.Engine, among: int, seconds: float) -> Result:
    """Measure in turn the plan's policies, ours and the floor: a busy moment is busy for all."""
    with ExitStack() as opened:
        before, user, owner = (opened.enter_context(e.connect()) for e in (plan, ours, ours))
        old_owner = opened.enter_context(plan.connect())
        execute(owner, "VACUUM ANALYZE public.langfuse_scores")
        execute(owner, "VACUUM ANALYZE public.langfuse_traces")
        execute(owner, ONLY_PENDING)
        execute(owner, "VACUUM ANALYZE public.only_pending")
        figures = ask_all(before, user, owner, users_of(among), seconds)
        claim = CLAIM.format(table="langfuse_scores")
        shown = explain(owner, claim)
        only_pending = (owner, CLAIM.format(table="only_pending"))
        claims = repeat([(old_owner, claim), (owner, claim), only_pending], seconds)
        for connection in (old_owner, owner):
            connection.exec_driver_sql("SET ROLE service_role")
        upserts = repeat([(old_owner, UPSERT), (owner, UPSERT)], seconds)
    return Result(among, figures, tuple(claims), shown, tuple(upserts))


def ask_all(
    before: sa.Connection,
    user: sa.Connection,
    owner: sa.Connection,
    users: tuple[int, int, int],
    seconds: float,
) -> Figures:
    """Ask every question as each of the three users, and by hand as the owner."""
    figures = Figures()
    for number, traces in enumerate(users):
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
            plan, ours, *by_hand = repeat(
                [(who, sql.format(user=key, trace=trace)) for who, sql in statements], seconds
            )
            asked = (question.name, traces)
            figures.plan[asked], figures.ours[asked] = plan, ours
            figures.floor[asked] = min(by_hand, key=lambda sample: sample.median)
        for connection in (before, user):
            connection.exec_driver_sql("RESET ROLE")
    return figures


def repeat(statements: Sequence[tuple[sa.Connection, str]], seconds: float) -> list[Sample]:
    """Run statements in turn, many times, each rolled back, in another order each time.

    Whoever always comes after a statement that reads a whole table finds nothing of its own in
    the processor's caches.

    Arguments:
        statements: each with its connection.
        seconds: for how long, times the number of statements.

    Returns:
        The times of each, in milliseconds, the fetching of its rows included.
    """
    times: list[list[float]] = [[] for _ in statements]
    order = list(range(len(statements)))
    shuffle = random.Random(0).shuffle  # noqa: S311 - no secret
    stop = time.perf_counter() + seconds * len(statements)
    runs = 0
    while runs <= MINIMUM_RUNS or (runs <= MAXIMUM_RUNS and time.perf_counter() < stop):
        shuffle(order)
        for number in order:
            times[number].append(ask(*statements[number]))
        runs += 1
    # The first run is for the caches.
    return [Sample(tuple(taken[1:])) for taken in times]


def explain(connection: sa.Connection, sql: str) -> str:
    """The plan of a statement, without its costs."""
    rows = connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {sql}").scalars()
    return "\n".join(f"  {row}" for row in rows)


def print_result(result: Result) -> None:
    """Print the table of medians and ratios."""
    figures = result.figures
    print(f"{'question':<20}{'traces':>8}{'plan':>10}{'ours':>10}{'floor':>10}", end="")
    print(f"{'ours/floor':>12}{'plan/ours':>11}")
    for asked, sample in figures.ours.items():
        name, traces = asked
        ours, plan, floor = (s.median for s in (sample, figures.plan[asked], figures.floor[asked]))
        print(f"{name:<20}{traces:>8}{plan:>10.2f}{ours:>10.2f}{floor:>10.2f}", end="")
        print(f"{ours / floor:>12.1f}{plan / ours:>11.1f}")
    without, with_index, floor = (sample.median for sample in result.claims)
    before, after = (sample.median for sample in result.upserts)
    print(f"\nclaim of {BATCH} pending: {without:.2f} ms without the index, {with_index:.2f} ms")
    print(f"with it, {floor:.2f} ms from a table of the pending alone; its plan:")
    print(result.claim_plan)
    print(f"rate limit upsert: {before:.2f} ms before, {after:.2f} ms after")


def missed_limits(figures: Figures, among: int) -> Iterator[str]:
    """Say which figures are beyond what we promise."""
    for (name, traces), sample in figures.ours.items():
        ours = sample.median
        plan, floor = figures.plan[name, traces].median, figures.floor[name, traces].median
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
