"""What we cost beside a bare Alembic project: the parts of compare.py that need no rows."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import bare
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from shared import (
    PLAN,
    Limit,
    Row,
    Sample,
    clone,
    in_turn,
    milliseconds,
    run_process,
)

from langfuse_schema import embedded, migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from langfuse_schema.embedded import Server

PROCESS_MORE, IN_PROCESS_MORE, NOTHING_MORE, IMPORT_MORE = 60.0, 15.0, 30.0, 10.0
"""The limits: milliseconds beyond a bare project, and beyond importing SQLAlchemy alone."""

OURS, BARE, BY_PSQL = "ours", "a bare Alembic project", "the plan's SQL by psql"

IMPORT_OURS = "import langfuse_schema"
IMPORT_SQLALCHEMY = "import sqlalchemy; from sqlalchemy.dialects.postgresql import JSONB, ARRAY"

LANGFUSE_SCHEMA = (sys.executable, "-m", "langfuse_schema")
ALEMBIC = (sys.executable, "-m", "alembic")


@dataclass(frozen=True)
class Contest:
    """Where the contenders meet: a server with a Supabase double, and the bare project."""

    server: Server
    ini: Path

    def url(self, database: str) -> str:
        """The URL that both take; SQLAlchemy 2.1 must be told the driver."""
        url = self.server.connection_string(database)
        return url.replace("postgresql:", "postgresql+psycopg2:")

    def ours(self, database: str, *arguments: str) -> tuple[float, str]:
        """Run our command line as a process: its time and what it printed."""
        return run_process((*LANGFUSE_SCHEMA, *arguments), DATABASE_URL=self.url(database))

    def bare(self, database: str, *arguments: str) -> float:
        """Run Alembic's command line over the bare project; its time."""
        arguments = (*ALEMBIC, "-c", str(self.ini), *arguments)
        return run_process(arguments, self.ini.parent, DATABASE_URL=self.url(database))[0]

    def psql(self, database: str) -> float:
        """Run the plan's three files in one process; its time."""
        files = itertools.chain(*(("-f", str(file)) for file in sorted(PLAN.glob("2*.sql"))))
        connection = self.server.connection_string(database)
        program = str(self.server.bin / "psql")
        return run_process((program, connection, "-qX", "-v", "ON_ERROR_STOP=1", *files))[0]

    def ours_in_process(self, database: str) -> float:
        """Upgrade from this program; its time."""
        engine = sa.create_engine(self.server.url(database), poolclass=sa.NullPool)
        return milliseconds(lambda: migrations.upgrade(engine))

    def bare_in_process(self, database: str) -> float:
        """Upgrade by the bare project from this program; its time."""
        engine = sa.create_engine(self.server.url(database), poolclass=sa.NullPool)
        config = Config(self.ini, attributes={"engine": engine})
        return milliseconds(lambda: command.upgrade(config, "head"))

    def on_a_clone(self, function: Callable[[str], float]) -> Callable[[], float]:
        """A contender that begins with an empty Supabase database each time."""

        def contender() -> float:
            with clone(self.server, "fresh") as database:
                return function(database)

        return contender


def measure(server: Server, runs: int) -> tuple[list[Row], list[Limit]]:
    """Measure upgrades, imports, starts, verify and preflight, and say which limits are held.

    Arguments:
        server: one whose database `postgres` is empty.
        runs: how often each contender is measured.
    """
    embedded.prepare(server.url(), example_rows=False)
    rows: list[Row] = []
    limits: list[Limit] = []

    def add(what: str, samples: dict[str, Sample], more: float | None = None) -> None:
        ours = samples.pop(OURS)
        added = [Row(f"{what}, ms", name, sample, ours) for name, sample in samples.items()]
        rows.extend(added)
        limits.extend(Limit.more(row, more) for row in added if more and row.against != BY_PSQL)

    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(server, bare.make(Path(folder)))
        for what, samples, more in _upgrades(contest, runs):
            add(what, samples, more)
        for what, samples in _checks(contest, runs):
            add(what, samples)
    add("import, process", _imports(runs), IMPORT_MORE)
    for option in ("--version", "--help"):
        add(f"{option}, process", _starts(option, runs))
    return rows, limits


def _upgrades(contest: Contest, runs: int) -> Iterator[tuple[str, dict[str, Sample], float]]:
    """An empty database and one with nothing to do, as a process and in this one."""
    processes = {
        BY_PSQL: contest.psql,
        BARE: lambda database: contest.bare(database, "upgrade", "head"),
        OURS: lambda database: contest.ours(database, "upgrade", "head")[0],
    }
    in_process = {BARE: contest.bare_in_process, OURS: contest.ours_in_process}
    for contenders, name, more in (
        (processes, "process", PROCESS_MORE),
        (in_process, "in-process", IN_PROCESS_MORE),
    ):
        fresh = {who: contest.on_a_clone(function) for who, function in contenders.items()}
        yield f"upgrade head, empty database, {name}", in_turn(fresh, runs), more
    with clone(contest.server, "with_bare") as theirs, clone(contest.server, "with_ours") as ours:
        contest.bare_in_process(theirs)
        contest.ours_in_process(ours)
        for contenders, name, more in (
            (processes, "process", NOTHING_MORE),
            (in_process, "in-process", IN_PROCESS_MORE),
        ):
            again = {
                BARE: lambda function=contenders[BARE]: function(theirs),
                OURS: lambda function=contenders[OURS]: function(ours),
            }
            yield f"upgrade head, nothing to do, {name}", in_turn(again, runs), more


def _checks(contest: Contest, runs: int) -> Iterator[tuple[str, dict[str, Sample]]]:
    """The commands that only read, beside the shortest that a bare project has."""
    read: list[float] = []

    def verify(database: str) -> float:
        taken, printed = contest.ours(database, "verify", "--format", "json")
        read.append(json.loads(printed)["facts"]["elapsed_milliseconds"])
        return taken

    with clone(contest.server, "fresh") as fresh, clone(contest.server, "migrated") as migrated:
        contest.ours_in_process(migrated)
        samples = in_turn(
            {
                "current": lambda: contest.bare(fresh, "current"),
                "preflight": lambda: contest.ours(fresh, "preflight")[0],
                "verify": lambda: verify(migrated),
            },
            runs,
        )
    current = f"`current` of {BARE}"
    for name in ("preflight", "verify"):
        yield f"{name}, process", {current: samples["current"], OURS: samples[name]}
    reading = Sample(tuple(read[1:]))
    yield "verify, from the open connection on", {"its process": samples["verify"], OURS: reading}


def _imports(runs: int) -> dict[str, Sample]:
    commands = {"SQLAlchemy with JSONB, ARRAY": IMPORT_SQLALCHEMY, OURS: IMPORT_OURS}
    return in_turn(
        {
            name: lambda code=code: run_process((sys.executable, "-c", code))[0]
            for name, code in commands.items()
        },
        runs,
    )


def _starts(option: str, runs: int) -> dict[str, Sample]:
    return in_turn(
        {
            f"alembic {option}": lambda: run_process((*ALEMBIC, option))[0],
            OURS: lambda: run_process((*LANGFUSE_SCHEMA, option))[0],
        },
        runs,
    )
