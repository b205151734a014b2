"""Samples, tables of results, servers and processes for the benchmarks."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.config import Config

from langfuse_schema import embedded
from langfuse_schema._history.chain import History, config_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

CHECKOUT = Path(__file__).parents[1]
PLAN = CHECKOUT / "tests" / "plan"

HISTORY = History.of(Config(config_file()))
PLAN_REVISION = HISTORY.plan[-1]
HOT_PATHS = next(s.revision for s in HISTORY.scripts if "index_hot_paths" in s.path)

SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    # A vacuum during a measurement would change its result.
    "autovacuum": "off",
}

GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Sample:
    """The measured values of all runs, in the unit of the row."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median of the values."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Return the first and the third quartile. Both equal the value if there is only one."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third

    def as_text(self) -> str:
        """Return the median, followed by the quartiles in brackets."""
        first, third = self.quartiles
        return f"{_short(self.median)} ({_short(first)} to {_short(third)})"

    def as_json(self) -> dict[str, float]:
        """Return the statistics for a JSON file."""
        first, third = self.quartiles
        figures = {
            "median": self.median,
            "first_quartile": first,
            "third_quartile": third,
            "minimum": min(self.values),
            "maximum": max(self.values),
        }
        return {name: float(f"{figure:.4g}") for name, figure in figures.items()} | {
            "runs": len(self.values)
        }


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"  # noqa: PLR2004 - three digits


@dataclass(frozen=True)
class Row:
    """A line of a table: a measurement of langfuse-schema and of another variant.

    Attributes:
        name: the name of the measurement, with its unit.
        other_name: the name of the other variant.
        other: the sample of the other variant.
        langfuse_schema: the sample of langfuse-schema.
        parameters: the keys by which readers of the JSON file select rows.
    """

    name: str
    other_name: str
    other: Sample
    langfuse_schema: Sample
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Return the ratio of the medians. Below 1, langfuse-schema is faster."""
        return self.langfuse_schema.median / self.other.median

    def as_json(self) -> dict[str, Any]:
        """Return the row for a JSON file."""
        return {
            "name": self.name,
            "other_name": self.other_name,
            "other": self.other.as_json(),
            "langfuse_schema": self.langfuse_schema.as_json(),
            "ratio": float(f"{self.ratio:.3g}"),
            **self.parameters,
        }


@dataclass(frozen=True)
class Limit:
    """A limit, with the measured and the expected value."""

    text: str
    is_met: bool

    @staticmethod
    def on_difference(row: Row, milliseconds: float) -> Limit:
        """Limit the median of langfuse-schema to that of the other variant plus milliseconds."""
        difference = row.langfuse_schema.median - row.other.median
        return Limit(
            f"{row.name}: {difference:+.1f} ms against {row.other_name},"
            f" expected at most {milliseconds:.0f} ms more",
            difference <= milliseconds,
        )


def print_rows(rows: Sequence[Row]) -> None:
    """Print a table of medians, quartiles and ratios."""
    heads = ("measurement", "other", "median of other", "median of langfuse-schema", "ratio")
    lines = [
        (
            *(row.name, row.other_name, row.other.as_text()),
            *(row.langfuse_schema.as_text(), f"{row.ratio:.2g}"),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    for line in (heads, ["-" * width for width in widths], *lines):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(flush=True)


def measure_in_turn(variants: Mapping[str, Callable[[], float]], runs: int) -> dict[str, Sample]:
    """Measure variants in turn, so that other load on the machine affects all of them.

    Arguments:
        variants: the function of each variant by its name. It returns the measured value.
        runs: the number of measured runs. A first run fills the caches.
    """
    measured: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(runs + 1):
        for name, variant in variants.items():
            measured[name].append(variant())
    return {name: Sample(tuple(values[1:])) for name, values in measured.items()}


def process_environment(**changes: str) -> dict[str, str]:
    """Return the environment of a process, without the variables that select a database.

    PYTHONDONTWRITEBYTECODE is removed, too. Without bytecode, every process would compile the
    checkout again, but not the installed libraries.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DATABASE_URL", "PYTHONDONTWRITEBYTECODE")
        and not name.startswith(("PG", "ALEMBIC"))
    }
    return kept | changes


def run_process(
    command: Sequence[str], folder: Path = CHECKOUT, **variables: str
) -> tuple[float, str]:
    """Run a process, and exit if it fails.

    Returns:
        The duration in milliseconds, and the output.
    """
    begin = time.perf_counter()
    ended = subprocess.run(  # noqa: S603 - the benchmarks build the command
        command,
        cwd=folder,
        env=process_environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    duration = 1000 * (time.perf_counter() - begin)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{ended.stdout}{ended.stderr}")
    return duration, ended.stdout


def milliseconds(function: Callable[[], object]) -> float:
    """Return the duration of a call."""
    begin = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - begin)


@contextmanager
def temporary_server(
    version: int, directory: Path | None, **settings: str
) -> Iterator[embedded.Server]:
    """Start a server in a new folder, and delete both at the end.

    Arguments:
        version: the major version of PostgreSQL, 18 or 16.
        directory: the parent of the new folder, or None for the folder of temporary files.
        settings: settings of PostgreSQL, in addition to SETTINGS.
    """
    folder = Path(tempfile.mkdtemp(prefix="langfuse-schema-benchmark-", dir=directory))
    # If root runs the benchmark, PostgreSQL runs as another account, which needs access.
    folder.chmod(0o755)
    try:
        with embedded.start(
            folder / "server", version=version, settings=SETTINGS | settings
        ) as server:
            yield server
    finally:
        shutil.rmtree(folder)


def engine_of(server: embedded.Server, database: str, user: str = "postgres") -> sa.Engine:
    """Return an engine in autocommit mode, by default for the owner of the tables."""
    return sa.create_engine(
        server.url(database, user), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
    )


def execute(connection: sa.Connection, sql: str) -> None:
    """Run SQL without parameters."""
    connection.exec_driver_sql(sql.replace("%", "%%"))


@contextmanager
def clone(server: embedded.Server, name: str) -> Iterator[str]:
    """Copy the database `postgres` of the server, and drop the copy at the end."""
    engine = engine_of(server, "template1")
    with engine.connect() as connection:
        execute(connection, f"CREATE DATABASE {name} TEMPLATE postgres")
        try:
            yield name
        finally:
            execute(connection, f"DROP DATABASE {name} WITH (FORCE)")


def server_version(server: embedded.Server) -> str:
    """Return the version of PostgreSQL, for example 18.4."""
    with engine_of(server, "template1", "supabase_admin").connect() as connection:
        return str(connection.exec_driver_sql("SHOW server_version").scalar())


def conditions(postgresql: str) -> dict[str, Any]:
    """Return the date, the machine and the versions of a measurement.

    Arguments:
        postgresql: the version from `server_version`.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIGABYTE
    return {
        "date": datetime.now(tz=timezone.utc).date().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GB",
        "versions": {
            "Python": platform.python_version(),
            "SQLAlchemy": version("sqlalchemy"),
            "alembic": version("alembic"),
            "PostgreSQL": postgresql,
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def write_json(file: Path | None, content: Mapping[str, Any]) -> None:
    """Write figures into a JSON file, unless the path is None."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")


def print_elapsed(began: float) -> None:
    """Print the time since `began`, which is a value of time.monotonic()."""
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"\nelapsed: {minutes} min {seconds} s", file=sys.stderr)
