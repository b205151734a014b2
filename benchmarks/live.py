"""What writers feel of a migration: `alembic upgrade head`, and the plan's SQL run by psql.

    python benchmarks/live.py [--rows 100000 1000000 5000000] [--runs 3] [--postgresql 18]

Fills the three app tables of a database of its own with so many rows each, and lets 8 writers
insert 200 rows a second. The longest write while a migration runs is compared with the longest
in the seconds before it, which is the load's own. Prints medians in milliseconds with their
ratio, and ends with exit code 1 if a limit is not held.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from langfuse_schema import embedded, migrations, tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langfuse_schema.embedded import Server

PLAN = Path(__file__).parents[1] / "tests" / "plan"

WRITERS, WRITES_A_SECOND = 8, 200
LOG_FIELDS = 7
"""Of a whole line of pgbench's log: the last may be cut."""

BEFORE_SECONDS, AFTER_SECONDS = 10.0, 2.0
LONGEST_MILLISECONDS, GROWTH_MILLISECONDS = 100.0, 50.0
"""The limits: beyond the load's own, and of the largest tables beyond the smallest."""

USER = "a0000000-0000-4000-8000-000000000001"

SETTINGS = {
    "shared_buffers": "1GB",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "16GB",
    # What a vacuum does to writers is not the question.
    "autovacuum": "off",
}


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


def fill(server: Server, rows: int) -> None:
    """Make each of the app's tables so long, without checking each row's user."""
    engine = sa.create_engine(server.url(user="supabase_admin"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("SET session_replication_role = replica")
        for table in tables.APP_TABLES:
            connection.exec_driver_sql(
                f"INSERT INTO public.{table} (user_id, body, created_at)"
                f" SELECT '{USER}', 'x', timestamptz '2026-01-01' + n * interval '1 second'"
                f" FROM generate_series(1, {rows} - (SELECT count(*) FROM public.{table})) AS n"
            )
        connection.exec_driver_sql("VACUUM ANALYZE")
        connection.exec_driver_sql("CHECKPOINT")
    engine.dispose()


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
        env=os.environ | {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": "postgres"},
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


def measure(server: Server, command: list[str]) -> Measurement:
    """Run a migration under load."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with writing(server, folder):
            time.sleep(BEFORE_SECONDS)
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
    subprocess.run(  # noqa: S603 - one of those above
        command,
        check=True,
        cwd=migrations.config_file().parent,
        env=os.environ | {"DATABASE_URL": server.connection_string()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


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


def compare(server: Server, runs: int) -> tuple[list[Measurement], list[Measurement]]:
    """Measure our upgrade and the plan's SQL by turns, and go back each time."""
    alembic = [sys.executable, "-m", "alembic"]
    ours, plan = [], []
    for _ in range(runs):
        ours.append(measure(server, [*alembic, "upgrade", "head"]))
        run(server, [*alembic, "downgrade", "base"])
        plan.append(measure(server, run_plan(server)))
        run(server, psql(server, "rollback"))
    return ours, plan


def report(rows: int, ours: list[Measurement], plan: list[Measurement]) -> float:
    """Print a line, and return by how much our upgrade makes the longest write longer."""
    beyond, beyond_plan = (statistics.median(m.beyond for m in found) for found in (ours, plan))
    own = statistics.median(m.own for m in [*ours, *plan])
    seconds, seconds_plan = (statistics.median(m.seconds for m in found) for found in (ours, plan))
    print(
        f"{rows:>9,}  {own:9.1f}  {beyond:9.1f}  {beyond_plan:9.1f}"
        f"  {beyond_plan / max(beyond, 1.0):6.0f}x  {seconds:7.1f}  {seconds_plan:7.1f}",
        flush=True,
    )
    return beyond


def main() -> int:
    """Measure, print, and say by the exit code whether the limits are held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--postgresql", type=int, default=18)
    options = parser.parse_args()
    print(
        "               load's own    beyond it, ms                 duration, s\n"
        "     rows  longest, ms       ours   the plan    ratio     ours  the plan"
    )
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with embedded.start(
            folder / "server", version=options.postgresql, settings=SETTINGS
        ) as server:
            embedded.prepare(server.url())
            for rows in sorted(options.rows):
                fill(server, rows)
                found.append(report(rows, *compare(server, options.runs)))
    held = max(found) <= LONGEST_MILLISECONDS and found[-1] - found[0] <= GROWTH_MILLISECONDS
    if not held:
        print(
            f"expected at most {LONGEST_MILLISECONDS:.0f} ms, and at most"
            f" {GROWTH_MILLISECONDS:.0f} ms more for the largest tables than for the smallest"
        )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
