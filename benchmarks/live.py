"""Measure the longest write during `alembic upgrade head`, and while psql runs the plan's SQL.

    python benchmarks/live.py [--rows 100000 1000000 5000000] [--runs 3] [--postgresql 18]

The benchmark fills each of the three app tables of a new database with these rows. Then 8 writers
insert 200 rows a second. The longest write during a migration is compared with the longest write
of the load alone, in the seconds before the migration. The output has medians in milliseconds and
their ratio. The exit code is 1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared import (
    PLAN,
    Limit,
    Row,
    Sample,
    engine_of,
    process_environment,
    run_process,
    temporary_server,
)

from langfuse_schema import embedded, tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from langfuse_schema.embedded import Server

ROWS = (100_000, 1_000_000, 5_000_000)
"""The numbers of rows in each app table."""

WRITERS, WRITES_A_SECOND = 8, 200
LOG_FIELDS = 7
"""The number of fields in a complete line of the log of pgbench. The last line can be cut."""

BEFORE_SECONDS, AFTER_SECONDS = 10.0, 2.0
LONGEST_MILLISECONDS, GROWTH_MILLISECONDS = 100.0, 50.0
"""The limits of the added wait, and of its growth from the smallest to the largest tables."""

USER = "a0000000-0000-4000-8000-000000000001"

SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "16GB"}


@dataclass(frozen=True)
class Measurement:
    """A migration under load.

    Attributes:
        before: the longest write before the migration, in milliseconds.
        during: the longest write during the migration, in milliseconds.
        seconds: the duration of the migration.
    """

    before: float
    during: float
    seconds: float

    @property
    def added(self) -> float:
        """Return the milliseconds that the migration added to the longest write."""
        return max(0.0, self.during - self.before)


@dataclass(frozen=True)
class Result:
    """The measurements at one size: the upgrade of langfuse-schema and the plan's SQL, in turn."""

    rows: int
    langfuse_schema: tuple[Measurement, ...]
    plan: tuple[Measurement, ...]

    def load_alone(self) -> Sample:
        """Return the longest writes of the load alone, in milliseconds."""
        return Sample(tuple(m.before for m in (*self.langfuse_schema, *self.plan)))

    @property
    def added(self) -> float:
        """Return the median of the milliseconds that the upgrade added to the longest write."""
        return Sample(tuple(m.added for m in self.langfuse_schema)).median

    def table(self) -> Iterator[Row]:
        """Yield the lines of a table."""
        variants = (self.langfuse_schema, self.plan)
        name = f"longest write under load, {self.rows:,} rows, ms"
        upgrade, plan = (Sample(tuple(m.during for m in variant)) for variant in variants)
        parameters = {"figure": "stall", "rows": self.rows}
        yield Row(name, "the plan's SQL by psql", plan, upgrade, parameters)
        yield Row(name, "the load alone", self.load_alone(), upgrade, parameters)
        upgrade, plan = (Sample(tuple(m.seconds for m in variant)) for variant in variants)
        name = f"upgrade under load, {self.rows:,} rows, s"
        yield Row(name, "the plan's SQL by psql", plan, upgrade, {"rows": self.rows})


def fill(server: Server, rows: int) -> None:
    """Fill each app table up to this number of rows, without checks of the foreign keys."""
    with engine_of(server, "postgres", "supabase_admin").connect() as connection:
        connection.exec_driver_sql("SET session_replication_role = replica")
        for table in tables.APP_TABLES:
            connection.exec_driver_sql(
                f"INSERT INTO public.{table} (user_id, body, created_at)"
                f" SELECT '{USER}', 'x', timestamptz '2026-01-01' + n * interval '1 second'"
                f" FROM generate_series(1, {rows} - (SELECT count(*) FROM public.{table})) AS n"
            )
        connection.exec_driver_sql("VACUUM ANALYZE")
        connection.exec_driver_sql("CHECKPOINT")


@contextmanager
def writing(server: Server, folder: Path) -> Iterator[None]:
    """Insert rows into the three tables, and log each write."""
    scripts = []
    for table in tables.APP_TABLES:
        script = folder / f"{table}.sql"
        script.write_text(f"INSERT INTO public.{table} (user_id, body) VALUES ('{USER}', 'x');\n")
        scripts += ["-f", str(script)]
    pgbench = subprocess.Popen(  # noqa: S603 - a program of the embedded server
        [
            *(str(server.bin / "pgbench"), "--no-vacuum", "--log"),
            *("--client", str(WRITERS), "--rate", str(WRITES_A_SECOND), "--time", "3600"),
            *(*scripts, "postgres"),
        ],
        cwd=folder,
        env=process_environment(PGHOST=server.host, PGPORT=str(server.port), PGUSER="postgres"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        pgbench.terminate()
        pgbench.wait()


def writes(folder: Path) -> list[tuple[float, float]]:
    """Return the end and the duration in milliseconds of each write, from the logs of pgbench."""
    found = []
    for log in folder.glob("pgbench_log.*"):
        for line in log.read_text().splitlines():
            fields = line.split()
            if len(fields) == LOG_FIELDS:
                latency, second, microsecond, lag = (int(fields[n]) for n in (2, 4, 5, 6))
                found.append((second + microsecond / 1e6, (latency - lag) / 1e3))
    return found


def migrate(server: Server, command: list[str], before: float) -> Measurement:
    """Run a migration under load, after the load ran alone for the seconds of `before`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with writing(server, folder):
            time.sleep(before)
            began = time.time()
            run(server, command)
            ended = time.time()
            time.sleep(AFTER_SECONDS)
        logged = writes(folder)
    alone = max(duration for end, duration in logged if end < began)
    # A write that waited for the migration ends after it.
    during = max(duration for end, duration in logged if began <= end < ended + AFTER_SECONDS)
    return Measurement(alone, during, ended - began)


def run(server: Server, command: list[str]) -> None:
    """Run a command on the database of a server, and exit if it fails."""
    run_process(command, DATABASE_URL=server.connection_string())


def psql(server: Server, *names: str) -> list[str]:
    """Return the command that runs files of the plan unchanged, in one transaction."""
    files = [argument for name in names for argument in ("-f", str(PLAN / f"{name}.sql"))]
    return [
        *(str(server.bin / "psql"), server.connection_string(), "--single-transaction"),
        *("-v", "ON_ERROR_STOP=1", *files),
    ]


def plan_files() -> list[str]:
    """Return the names of the plan's three files, in order."""
    return sorted(path.stem for path in PLAN.glob("2*.sql"))


def run_plan(server: Server) -> list[str]:
    """Return the command that runs the plan's files in order."""
    commands = [psql(server, name) for name in plan_files()]
    quoted = [" ".join(f"'{part}'" for part in command) for command in commands]
    return ["sh", "-ec", "; ".join(quoted)]


def compare(server: Server, rows: int, runs: int, before: float) -> Result:
    """Measure the upgrade and the plan's SQL in turn, and roll each one back."""
    alembic = [sys.executable, "-m", "alembic"]
    upgrades, plan = [], []
    for _ in range(runs):
        upgrades.append(migrate(server, [*alembic, "upgrade", "head"], before))
        run(server, [*alembic, "downgrade", "base"])
        plan.append(migrate(server, run_plan(server), before))
        run(server, psql(server, "rollback"))
    return Result(rows, tuple(upgrades), tuple(plan))


def measure(
    version: int,
    sizes: Sequence[int],
    runs: int,
    directory: Path | None,
    before: float = BEFORE_SECONDS,
) -> Iterator[Result]:
    """Measure at each size, from the smallest to the largest.

    Arguments:
        version: the major version of PostgreSQL, 18 or 16.
        sizes: the numbers of rows in each app table.
        runs: the runs of each migration at each size.
        directory: the parent folder of the database, or None for the folder of temporary files.
        before: the duration of the load before each migration, in seconds.
    """
    with temporary_server(version, directory, **SETTINGS) as server:
        embedded.prepare(server.url())
        for rows in sorted(sizes):
            fill(server, rows)
            yield compare(server, rows, runs, before)


def limits(results: Sequence[Result]) -> list[Limit]:
    """Compare the added waits with the limits."""
    longest = max(result.added for result in results)
    growth = results[-1].added - results[0].added
    return [
        Limit(
            f"a write under load waits {longest:.0f} ms longer,"
            f" expected at most {LONGEST_MILLISECONDS:.0f} ms",
            longest <= LONGEST_MILLISECONDS,
        ),
        Limit(
            f"with the largest tables {growth:+.0f} ms against the smallest,"
            f" expected at most {GROWTH_MILLISECONDS:.0f} ms",
            growth <= GROWTH_MILLISECONDS,
        ),
    ]


def report(result: Result) -> None:
    """Print the line of a result."""
    added_by_plan = Sample(tuple(m.added for m in result.plan)).median
    seconds, seconds_of_plan = (
        Sample(tuple(m.seconds for m in variant)).median
        for variant in (result.langfuse_schema, result.plan)
    )
    print(
        f"{result.rows:>9,}  {result.load_alone().median:9.1f}  {result.added:9.1f}"
        f"  {added_by_plan:9.1f}  {added_by_plan / max(result.added, 1.0):6.0f}x"
        f"  {seconds:7.1f}  {seconds_of_plan:7.1f}",
        flush=True,
    )


def main() -> int:
    """Measure, print the table, and return 1 if a limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--postgresql", type=int, default=18)
    parser.add_argument("--directory", type=Path, help="parent folder of the database")
    options = parser.parse_args()
    print(
        "             longest  added to it, ms                  duration, s\n"
        "     rows  write, ms    upgrade   the plan    ratio  upgrade  the plan"
    )
    results = []
    for result in measure(options.postgresql, options.rows, options.runs, options.directory):
        report(result)
        results.append(result)
    missed = [limit.text for limit in limits(results) if not limit.is_met]
    if missed:
        print("\n".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
