"""What writers feel of a migration: `alembic upgrade head`, and the plan's SQL run by psql.

    python benchmarks/live.py [--rows 100000 1000000 5000000] [--runs 3] [--postgresql 18]

Fills the three app tables of a database of its own with so many rows each, and lets 8 writers
insert 200 rows a second. The longest write while a migration runs is compared with the longest
in the seconds before it, which is the load's own. Prints medians in milliseconds with their
ratio, and ends with exit code 1 if a limit is not held.
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

from shared import PLAN, Limit, Row, Sample, engine_of, environment, own_server, run_process

from langfuse_schema import embedded, tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from langfuse_schema.embedded import Server

ROWS = (100_000, 1_000_000, 5_000_000)
"""Of each of the app's tables."""

WRITERS, WRITES_A_SECOND = 8, 200
LOG_FIELDS = 7
"""Of a whole line of pgbench's log: the last may be cut."""

BEFORE_SECONDS, AFTER_SECONDS = 10.0, 2.0
LONGEST_MILLISECONDS, GROWTH_MILLISECONDS = 100.0, 50.0
"""The limits: beyond the load's own, and of the largest tables beyond the smallest."""

USER = "a0000000-0000-4000-8000-000000000001"

SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "16GB"}


@dataclass(frozen=True)
class Measurement:
    """The longest write before a migration and during it, and how long it took."""

    own: float
    during: float
    seconds: float

    @property
    def beyond(self) -> float:
        """Milliseconds by which the migration made a write longer."""
        return max(0.0, self.during - self.own)


@dataclass(frozen=True)
class Result:
    """What was measured at one size: our upgrade and the plan's SQL, by turns."""

    rows: int
    ours: tuple[Measurement, ...]
    plan: tuple[Measurement, ...]

    def own(self) -> Sample:
        """The load's own longest write, in milliseconds."""
        return Sample(tuple(m.own for m in (*self.ours, *self.plan)))

    @property
    def beyond(self) -> float:
        """By how many milliseconds our upgrade makes the longest write longer; the median."""
        return Sample(tuple(m.beyond for m in self.ours)).median

    def table(self) -> Iterator[Row]:
        """The lines of a table."""
        what = f"longest write under load, {self.rows:,} rows, ms"
        ours, plan = (Sample(tuple(m.during for m in of)) for of in (self.ours, self.plan))
        parameters = {"figure": "stall", "rows": self.rows}
        yield Row(what, "the plan's SQL by psql", plan, ours, parameters)
        yield Row(what, "the load alone", self.own(), ours, parameters)
        ours, plan = (Sample(tuple(m.seconds for m in of)) for of in (self.ours, self.plan))
        what = f"upgrade under load, {self.rows:,} rows, s"
        yield Row(what, "the plan's SQL by psql", plan, ours, {"rows": self.rows})


def fill(server: Server, rows: int) -> None:
    """Make each of the app's tables so long, without checking each row's user."""
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
    """Insert into the three tables by turns, and log each write."""
    scripts = []
    for table in tables.APP_TABLES:
        script = folder / f"{table}.sql"
        script.write_text(f"INSERT INTO public.{table} (user_id, body) VALUES ('{USER}', 'x');\n")
        scripts += ["-f", str(script)]
    pgbench = subprocess.Popen(  # noqa: S603 - of the server's own programs
        [
            *(str(server.bin / "pgbench"), "--no-vacuum", "--log"),
            *("--client", str(WRITERS), "--rate", str(WRITES_A_SECOND), "--time", "3600"),
            *(*scripts, "postgres"),
        ],
        cwd=folder,
        env=environment(PGHOST=server.host, PGPORT=str(server.port), PGUSER="postgres"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        pgbench.terminate()
        pgbench.wait()


def writes(folder: Path) -> list[tuple[float, float]]:
    """When each write ended, and how many milliseconds it took, from the logs of pgbench."""
    found = []
    for log in folder.glob("pgbench_log.*"):
        for line in log.read_text().splitlines():
            fields = line.split()
            if len(fields) == LOG_FIELDS:
                took, second, microsecond, lag = (int(fields[n]) for n in (2, 4, 5, 6))
                found.append((second + microsecond / 1e6, (took - lag) / 1e3))
    return found


def migrate(server: Server, command: list[str], before: float) -> Measurement:
    """Run a migration under load, which goes on alone for so many seconds before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with writing(server, folder):
            time.sleep(before)
            began = time.time()
            run(server, command)
            ended = time.time()
            time.sleep(AFTER_SECONDS)
        logged = writes(folder)
    own = max(took for when, took in logged if when < began)
    # A write that waited for the migration ends after it.
    during = max(took for when, took in logged if began <= when < ended + AFTER_SECONDS)
    return Measurement(own, during, ended - began)


def run(server: Server, command: list[str]) -> None:
    """Run a command against the database of a server, to its end and with success."""
    run_process(command, DATABASE_URL=server.connection_string())


def psql(server: Server, *names: str) -> list[str]:
    """The command that runs files of the plan as they stand, each in one transaction."""
    files = [argument for name in names for argument in ("-f", str(PLAN / f"{name}.sql"))]
    return [
        *(str(server.bin / "psql"), server.connection_string(), "--single-transaction"),
        *("-v", "ON_ERROR_STOP=1", *files),
    ]


def plan_files() -> list[str]:
    """The plan's three files, in their order."""
    return sorted(path.stem for path in PLAN.glob("2*.sql"))


def run_plan(server: Server) -> list[str]:
    """The command that runs the plan's files one after the other."""
    commands = [psql(server, name) for name in plan_files()]
    quoted = [" ".join(f"'{part}'" for part in command) for command in commands]
    return ["sh", "-ec", "; ".join(quoted)]


def compare(server: Server, rows: int, runs: int, before: float) -> Result:
    """Measure our upgrade and the plan's SQL by turns, and go back each time."""
    alembic = [sys.executable, "-m", "alembic"]
    ours, plan = [], []
    for _ in range(runs):
        ours.append(migrate(server, [*alembic, "upgrade", "head"], before))
        run(server, [*alembic, "downgrade", "base"])
        plan.append(migrate(server, run_plan(server), before))
        run(server, psql(server, "rollback"))
    return Result(rows, tuple(ours), tuple(plan))


def measure(
    version: int,
    sizes: Sequence[int],
    runs: int,
    directory: Path | None,
    before: float = BEFORE_SECONDS,
) -> Iterator[Result]:
    """Measure at each size, from the smallest to the largest.

    Arguments:
        version: PostgreSQL's major version, 18 or 16.
        sizes: rows of each of the app's tables.
        runs: of each migration at each size.
        directory: where the database is made; where temporary files are if None.
        before: seconds for which the load is alone.
    """
    with own_server(version, directory, **SETTINGS) as server:
        embedded.prepare(server.url())
        for rows in sorted(sizes):
            fill(server, rows)
            yield compare(server, rows, runs, before)


def limits(results: Sequence[Result]) -> list[Limit]:
    """Compare with what we promise."""
    longest = max(result.beyond for result in results)
    growth = results[-1].beyond - results[0].beyond
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
    """Print a line."""
    beyond_plan = Sample(tuple(m.beyond for m in result.plan)).median
    seconds, seconds_plan = (
        Sample(tuple(m.seconds for m in of)).median for of in (result.ours, result.plan)
    )
    print(
        f"{result.rows:>9,}  {result.own().median:9.1f}  {result.beyond:9.1f}  {beyond_plan:9.1f}"
        f"  {beyond_plan / max(result.beyond, 1.0):6.0f}x  {seconds:7.1f}  {seconds_plan:7.1f}",
        flush=True,
    )


def main() -> int:
    """Measure, print, and say by the exit code whether the limits are held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--postgresql", type=int, default=18)
    parser.add_argument("--directory", type=Path, help="where the database is; a temporary one")
    options = parser.parse_args()
    print(
        "               load's own    beyond it, ms                 duration, s\n"
        "     rows  longest, ms       ours   the plan    ratio     ours  the plan"
    )
    results = []
    for result in measure(options.postgresql, options.rows, options.runs, options.directory):
        report(result)
        results.append(result)
    missed = [limit.described for limit in limits(results) if not limit.held]
    if missed:
        print("\n".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
