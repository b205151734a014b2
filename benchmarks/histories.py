"""Run public Alembic histories with the runner, and compare the results with their own env.py.

Each project is installed from PyPI. Six concurrent runners upgrade an empty database to head,
downgrade it to base, and upgrade it again. Each runner must exit with 0. After each step, the dump
of the database must be equal to the dump after the same step with the project's own env.py.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared import CHECKOUT, engine_of, execute, server_version, temporary_server

from langfuse_schema import embedded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langfuse_schema.embedded import Server

RUNNERS = 6


@dataclass(frozen=True)
class History:
    """The migrations of a public project.

    Attributes:
        package: the name of the package on PyPI.
        scripts: the folder of env.py, below site-packages.
        driver: the driver of the URL.
        lowest: the earliest revision to which the downgrades work on PostgreSQL.
        extra: the extra of the package that its env.py needs, in brackets.
    """

    package: str
    scripts: str
    driver: str
    lowest: str = "base"
    extra: str = ""


HISTORIES = {
    # With its own env.py, too, the downgrade of v3.0.0.c raises AttributeError.
    "optuna": History("optuna", "optuna/storages/_rdb/alembic", "psycopg2", "v3.0.0.c"),
    "mlflow-auth": History("mlflow", "mlflow/server/auth/db/migrations", "psycopg", extra="[auth]"),
}

INI = """\
[alembic]
script_location = %(here)s/migrations
sqlalchemy.url = {url}
[loggers]
keys = root,alembic
[handlers]
keys = stderr
[formatters]
keys = plain
[logger_root]
level = WARNING
handlers = stderr
[logger_alembic]
level = INFO
handlers =
qualname = alembic
[handler_stderr]
class = StreamHandler
args = (sys.stderr,)
formatter = plain
[formatter_plain]
format = %(message)s
"""

RUNNER_IMPORT = """\
import logging

from langfuse_schema.online import run_migrations

# Not every project prints the revisions that it runs.
logging.basicConfig(format="%(message)s")
logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
"""

OWN_CALL = re.compile(
    r"context\.configure\(\s*connection=connection,(?P<options>[^()]*)\)\s*"
    r"with context\.begin_transaction\(\):\s*context\.run_migrations\(\)"
)


@dataclass(frozen=True)
class Project:
    """A copy of a project's Alembic environment, with its own env.py or with the runner."""

    python: Path
    folder: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command `alembic`."""
        return subprocess.Popen(  # noqa: S603 - this file builds the command
            [str(self.python), "-m", "alembic", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, count: int, *arguments: str) -> tuple[float, int]:
        """Run concurrent processes of `alembic`, and exit if one fails.

        Returns:
            The duration in seconds, and the number of processes that ran revisions.
        """
        started = time.monotonic()
        processes = [self.start(*arguments) for _ in range(count)]
        outputs = [process.communicate()[0] for process in processes]
        seconds = time.monotonic() - started
        codes = [process.returncode for process in processes]
        if any(codes):
            sys.exit(f"{arguments} exited with {codes}:\n" + "\n".join(outputs))
        return seconds, sum("Running" in text for text in outputs)


def copy(history: History, python: Path, folder: Path, url: str, *, runner: bool) -> Project:
    """Copy the Alembic environment of an installed project."""
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    shutil.copytree(site / history.scripts, folder / "migrations")
    (folder / "alembic.ini").write_text(INI.format(url=url.replace("%", "%%")), "utf-8")
    env = folder / "migrations" / "env.py"
    if runner:
        call, count = OWN_CALL.subn(
            r"run_migrations(context, connection,\g<options>)", env.read_text()
        )
        if count != 1:
            sys.exit(f"{env} does not match the pattern OWN_CALL")
        env.write_text(RUNNER_IMPORT + call, "utf-8")
    return Project(python, folder)


def dump(server: Server, database: str) -> str:
    """Return the schema and the data of a database as SQL."""
    command = [str(server.bin / "pg_dump"), server.connection_string(database)]
    return re.sub(r"^\\(un)?restrict .*$", "", output(command), flags=re.MULTILINE)


def create_database(server: Server, name: str) -> None:
    """Create an empty database."""
    with engine_of(server, "template1").connect() as connection:
        execute(connection, f"CREATE DATABASE {name}")


def compare(name: str, python: Path, server: Server, folder: Path) -> None:
    """Run a history in both environments, and print the figures."""
    history = HISTORIES[name]
    projects = []
    for kind in ("own", "runner"):
        database = f"{kind}_{name}".replace("-", "_")
        create_database(server, database)
        url = server.url(database).set(drivername=f"postgresql+{history.driver}")
        text = url.render_as_string(hide_password=False)
        project_folder = folder / database
        project_folder.mkdir()
        projects.append(copy(history, python, project_folder, text, runner=kind == "runner"))
    own, runner = projects
    revisions = len(list((own.folder / "migrations" / "versions").glob("*.py")))
    print(f"{name} {version_of(python, history.package)}, {history.driver}: {revisions} files")
    for command in (("upgrade", "head"), ("downgrade", history.lowest), ("upgrade", "head")):
        own_seconds, _ = own.run(1, *command)
        seconds, ran = runner.run(RUNNERS, *command)
        found, expected = (dump(server, f"{kind}_{name}".replace("-", "_")) for kind in
                           ("runner", "own"))  # fmt: skip
        if ran != 1 or found != expected:
            sys.exit(f"{command}: {ran} runners ran revisions, equal dumps: {found == expected}")
        print(
            f"  {' '.join(command)}: own env.py {own_seconds:.1f} s;"
            f" {RUNNERS} runners {seconds:.1f} s, all exited with 0, one ran the revisions;"
            f" {len(found.splitlines())} equal lines"
        )


def version_of(python: Path, package: str) -> str:
    """Return the version of an installed package."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return output([str(python), "-c", code]).strip()


def output(command: Sequence[str]) -> str:
    """Return the output of a command."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - this file builds the commands


def install(folder: Path, names: Sequence[str]) -> Path:
    """Install the projects and langfuse-schema in a new environment, and return its Python."""
    output([sys.executable, "-m", "venv", str(folder)])
    python = folder / "bin" / "python"
    packages = [f"{HISTORIES[name].package}{HISTORIES[name].extra}" for name in names]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    output([*pip, str(CHECKOUT), "psycopg[binary]", *packages])
    return python


def main() -> None:
    """Install the projects, and run them on an embedded server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=HISTORIES, nargs="+", default=list(HISTORIES))
    parser.add_argument(
        "--python", type=Path, help="the Python of an environment with all packages"
    )
    parser.add_argument("--directory", type=Path, help="folder of the server, open to all users")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        temporary_server(18, options.directory) as server,
    ):
        folder = Path(name)
        python = options.python or install(folder / "venv", options.only)
        # This creates the role `postgres`, among others.
        embedded.prepare(server.url("postgres", "supabase_admin"))
        print(f"PostgreSQL {server_version(server)}")
        for history in options.only:
            compare(history, python, server, folder)


if __name__ == "__main__":
    main()
