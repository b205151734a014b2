"""Compare langfuse-schema with a bare Alembic project: the part of compare.py without rows."""

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
    measure_in_turn,
    milliseconds,
    run_process,
)

from langfuse_schema import embedded, migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from langfuse_schema.embedded import Server

PROCESS_MORE, IN_PROCESS_MORE, NOTHING_MORE, IMPORT_MORE = 60.0, 15.0, 30.0, 10.0
"""The limits in milliseconds, more than a bare project or an import of SQLAlchemy alone."""

LANGFUSE_SCHEMA = "langfuse-schema"
BARE, BY_PSQL = "a bare Alembic project", "the plan's SQL by psql"

IMPORT_LANGFUSE_SCHEMA = "import langfuse_schema"
IMPORT_SQLALCHEMY = "import sqlalchemy; from sqlalchemy.dialects.postgresql import JSONB, ARRAY"

LANGFUSE_SCHEMA_COMMAND = (sys.executable, "-m", "langfuse_schema")
ALEMBIC_COMMAND = (sys.executable, "-m", "alembic")


@dataclass(frozen=True)
class Setup:
    """A server with the Supabase stub, and the bare project."""

    server: Server
    ini: Path

    def url(self, database: str) -> str:
        """Return a URL with the driver, because SQLAlchemy 2.1 has another default driver."""
        url = self.server.connection_string(database)
        return url.replace("postgresql:", "postgresql+psycopg2:")

    def langfuse_schema(self, database: str, *arguments: str) -> tuple[float, str]:
        """Run `langfuse-schema`, and return the milliseconds and the output."""
        return run_process((*LANGFUSE_SCHEMA_COMMAND, *arguments), DATABASE_URL=self.url(database))

    def bare(self, database: str, *arguments: str) -> float:
        """Run `alembic` in the bare project, and return the milliseconds."""
        arguments = (*ALEMBIC_COMMAND, "-c", str(self.ini), *arguments)
        return run_process(arguments, self.ini.parent, DATABASE_URL=self.url(database))[0]

    def psql(self, database: str) -> float:
        """Run the plan's three files in one process, and return the milliseconds."""
        files = itertools.chain(*(("-f", str(file)) for file in sorted(PLAN.glob("2*.sql"))))
        connection = self.server.connection_string(database)
        program = str(self.server.bin / "psql")
        return run_process((program, connection, "-qX", "-v", "ON_ERROR_STOP=1", *files))[0]

    def langfuse_schema_in_process(self, database: str) -> float:
        """Upgrade without a new process, and return the milliseconds."""
        engine = sa.create_engine(self.server.url(database), poolclass=sa.NullPool)
        return milliseconds(lambda: migrations.upgrade(engine))

    def bare_in_process(self, database: str) -> float:
        """Upgrade with the bare project without a new process, and return the milliseconds."""
        engine = sa.create_engine(self.server.url(database), poolclass=sa.NullPool)
        config = Config(self.ini, attributes={"engine": engine})
        return milliseconds(lambda: command.upgrade(config, "head"))

    def on_a_clone(self, function: Callable[[str], float]) -> Callable[[], float]:
        """Return a variant that runs on a new clone of the empty database each time."""

        def variant() -> float:
            with clone(self.server, "fresh") as database:
                return function(database)

        return variant


def measure(server: Server, runs: int) -> tuple[list[Row], list[Limit]]:
    """Measure upgrades, imports, starts, verify and preflight, and compare them with the limits.

    Arguments:
        server: a server with an empty database `postgres`.
        runs: the number of measured runs of each variant.
    """
    embedded.prepare(server.url(), example_rows=False)
    rows: list[Row] = []
    limits: list[Limit] = []

    def add(name: str, samples: dict[str, Sample], more: float | None = None) -> None:
        sample = samples.pop(LANGFUSE_SCHEMA)
        added = [Row(f"{name}, ms", other, samples[other], sample) for other in samples]
        rows.extend(added)
        limits.extend(
            Limit.on_difference(row, more) for row in added if more and row.other_name != BY_PSQL
        )

    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(server, bare.create(Path(folder)))
        for name, samples, more in _upgrades(setup, runs):
            add(name, samples, more)
        for name, samples in _checks(setup, runs):
            add(name, samples)
    add("import, process", _imports(runs), IMPORT_MORE)
    for option in ("--version", "--help"):
        add(f"{option}, process", _starts(option, runs))
    return rows, limits


def _upgrades(setup: Setup, runs: int) -> Iterator[tuple[str, dict[str, Sample], float]]:
    """Measure upgrades of an empty and of a migrated database, with and without a new process."""
    processes = {
        BY_PSQL: setup.psql,
        BARE: lambda database: setup.bare(database, "upgrade", "head"),
        LANGFUSE_SCHEMA: lambda database: setup.langfuse_schema(database, "upgrade", "head")[0],
    }
    in_process = {
        BARE: setup.bare_in_process,
        LANGFUSE_SCHEMA: setup.langfuse_schema_in_process,
    }
    for variants, name, more in (
        (processes, "process", PROCESS_MORE),
        (in_process, "in-process", IN_PROCESS_MORE),
    ):
        fresh = {variant: setup.on_a_clone(function) for variant, function in variants.items()}
        yield f"upgrade head, empty database, {name}", measure_in_turn(fresh, runs), more
    with (
        clone(setup.server, "of_bare") as of_bare,
        clone(setup.server, "of_langfuse_schema") as of_langfuse_schema,
    ):
        setup.bare_in_process(of_bare)
        setup.langfuse_schema_in_process(of_langfuse_schema)
        for variants, name, more in (
            (processes, "process", NOTHING_MORE),
            (in_process, "in-process", IN_PROCESS_MORE),
        ):
            second_upgrades = {
                BARE: lambda function=variants[BARE]: function(of_bare),
                LANGFUSE_SCHEMA: lambda function=variants[LANGFUSE_SCHEMA]: function(
                    of_langfuse_schema
                ),
            }
            yield (
                f"upgrade head, nothing to do, {name}",
                measure_in_turn(second_upgrades, runs),
                more,
            )


def _checks(setup: Setup, runs: int) -> Iterator[tuple[str, dict[str, Sample]]]:
    """Measure preflight and verify, with `current` of the bare project for comparison."""
    elapsed: list[float] = []

    def verify(database: str) -> float:
        duration, output = setup.langfuse_schema(database, "verify", "--format", "json")
        elapsed.append(json.loads(output)["facts"]["elapsed_milliseconds"])
        return duration

    with clone(setup.server, "fresh") as fresh, clone(setup.server, "migrated") as migrated:
        setup.langfuse_schema_in_process(migrated)
        samples = measure_in_turn(
            {
                "current": lambda: setup.bare(fresh, "current"),
                "preflight": lambda: setup.langfuse_schema(fresh, "preflight")[0],
                "verify": lambda: verify(migrated),
            },
            runs,
        )
    current = f"`current` of {BARE}"
    for name in ("preflight", "verify"):
        yield f"{name}, process", {current: samples["current"], LANGFUSE_SCHEMA: samples[name]}
    connected = Sample(tuple(elapsed[1:]))
    whole_process = samples["verify"]
    yield (
        "verify, after the connection is open",
        {"the whole process": whole_process, LANGFUSE_SCHEMA: connected},
    )


def _imports(runs: int) -> dict[str, Sample]:
    commands = {
        "SQLAlchemy with JSONB, ARRAY": IMPORT_SQLALCHEMY,
        LANGFUSE_SCHEMA: IMPORT_LANGFUSE_SCHEMA,
    }
    return measure_in_turn(
        {
            name: lambda code=code: run_process((sys.executable, "-c", code))[0]
            for name, code in commands.items()
        },
        runs,
    )


def _starts(option: str, runs: int) -> dict[str, Sample]:
    return measure_in_turn(
        {
            f"alembic {option}": lambda: run_process((*ALEMBIC_COMMAND, option))[0],
            LANGFUSE_SCHEMA: lambda: run_process((*LANGFUSE_SCHEMA_COMMAND, option))[0],
        },
        runs,
    )
