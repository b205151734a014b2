"""What the benchmarks share: samples and how they are shown, the machine, servers, processes."""

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
    # A vacuum in the middle of a measurement measures the vacuum.
    "autovacuum": "off",
}

GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Sample:
    """What was measured, run by run, in the unit that its row names."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third; both are the value itself if it was measured once."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third

    def as_text(self) -> str:
        """The median, and the quartiles in brackets."""
        first, third = self.quartiles
        return f"{_short(self.median)} ({_short(first)} to {_short(third)})"

    def as_json(self) -> dict[str, float]:
        """What a file keeps of it."""
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
    """One line of a table: what was measured, of us and of somebody else.

    Attributes:
        what: was measured, with its unit.
        against: the other's name.
        other: the other's sample.
        ours: our sample.
        parameters: what a program that reads the file selects by.
    """

    what: str
    against: str
    other: Sample
    ours: Sample
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Ours to the other's: below 1 we are the faster."""
        return self.ours.median / self.other.median

    def as_json(self) -> dict[str, Any]:
        """The row as a file keeps it."""
        return {
            "what": self.what,
            "against": self.against,
            "other": self.other.as_json(),
            "ours": self.ours.as_json(),
            "ratio": float(f"{self.ratio:.3g}"),
            **self.parameters,
        }


@dataclass(frozen=True)
class Limit:
    """What we promise, with what was found, and whether it is held."""

    described: str
    held: bool

    @staticmethod
    def more(row: Row, milliseconds: float) -> Limit:
        """At most so many milliseconds more than the other."""
        difference = row.ours.median - row.other.median
        return Limit(
            f"{row.what}: {difference:+.1f} ms against {row.against},"
            f" expected at most {milliseconds:.0f} ms more",
            difference <= milliseconds,
        )


def print_rows(rows: Sequence[Row]) -> None:
    """Print a table: medians with quartiles, and ratios."""
    heads = ("what", "against", "its median", "our median", "ours : its")
    lines = [
        (row.what, row.against, row.other.as_text(), row.ours.as_text(), f"{row.ratio:.2g}")
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    for line in (heads, ["-" * width for width in widths], *lines):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(flush=True)


def in_turn(contenders: Mapping[str, Callable[[], float]], runs: int) -> dict[str, Sample]:
    """Let contenders run by turns, so that a busy moment is busy for all.

    Arguments:
        contenders: by name, each returning what it took.
        runs: how often each is measured, after once for the caches.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs + 1):
        for name, contender in contenders.items():
            taken[name].append(contender())
    return {name: Sample(tuple(values[1:])) for name, values in taken.items()}


def environment(**changes: str) -> dict[str, str]:
    """The environment of a process: nothing of this one that could choose a database.

    Bytecode is kept, as pip keeps it of what it installs: otherwise a checkout is compiled anew
    by every process, and the libraries are not.
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
    """Run a process to its end and with success.

    Returns:
        How many milliseconds it took from its start to its end, and what it printed.
    """
    begin = time.perf_counter()
    ended = subprocess.run(  # noqa: S603 - a command of the benchmark's own
        command,
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    taken = 1000 * (time.perf_counter() - begin)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{ended.stdout}{ended.stderr}")
    return taken, ended.stdout


def milliseconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - begin)


@contextmanager
def own_server(version: int, directory: Path | None, **settings: str) -> Iterator[embedded.Server]:
    """A server in a folder of its own, gone at the end.

    Arguments:
        version: PostgreSQL's major version, 18 or 16.
        directory: where the folder is made; where temporary files are if None.
        settings: of PostgreSQL, beyond those of all benchmarks.
    """
    folder = Path(tempfile.mkdtemp(prefix="langfuse-schema-benchmark-", dir=directory))
    # Open to the account that PostgreSQL runs as for root.
    folder.chmod(0o755)
    try:
        with embedded.start(
            folder / "server", version=version, settings=SETTINGS | settings
        ) as server:
            yield server
    finally:
        shutil.rmtree(folder)


def engine_of(server: embedded.Server, database: str, user: str = "postgres") -> sa.Engine:
    """Connect to a database as the tables' owner, each statement by itself."""
    return sa.create_engine(
        server.url(database, user), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
    )


def execute(connection: sa.Connection, sql: str) -> None:
    """Run statements as they are."""
    connection.exec_driver_sql(sql.replace("%", "%%"))


@contextmanager
def clone(server: embedded.Server, name: str) -> Iterator[str]:
    """A copy of the server's database `postgres` under another name, dropped at the end."""
    engine = engine_of(server, "template1")
    with engine.connect() as connection:
        execute(connection, f"CREATE DATABASE {name} TEMPLATE postgres")
        try:
            yield name
        finally:
            execute(connection, f"DROP DATABASE {name} WITH (FORCE)")


def server_version(server: embedded.Server) -> str:
    """PostgreSQL's version, as in 18.4."""
    with engine_of(server, "template1", "supabase_admin").connect() as connection:
        return str(connection.exec_driver_sql("SHOW server_version").scalar())


def surroundings(postgresql: str) -> dict[str, Any]:
    """When and on what something was measured; not on whose machine.

    Arguments:
        postgresql: from `server_version`.
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
    """Write figures into a file, if one is asked for."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")


def print_elapsed(began: float) -> None:
    """Say how long all of it took, from a value of time.monotonic()."""
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"\nelapsed: {minutes} min {seconds} s", file=sys.stderr)
