"""Run public Alembic histories with the safe runner, and compare the results with their own env.py.

Each project is installed from PyPI. Six runners at once upgrade an empty database to head, then
downgrade it to base and upgrade it again. After each, the dump of the database must be equal to the
one that the project's own env.py leaves, and each runner must exit with 0.
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

from shared import CHECKOUT, engine_of, execute, own_server, server_version

from langfuse_schema import embedded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langfuse_schema.embedded import Server

RUNNERS = 6


@dataclass(frozen=True)
class History:
    """A project: its package, the folder of its env.py, and the driver to run it with.

    `lowest` is the earliest revision to which its downgrades work on PostgreSQL.
    """

    package: str
    scripts: str
    driver: str
    lowest: str = "base"


HISTORIES = {
    # The downgrade of v3.0.0.c itself raises AttributeError, with its own env.py too.
    "optuna": History("optuna", "optuna/storages/_rdb/alembic", "psycopg2", "v3.0.0.c"),
    "mlflow-auth": History("mlflow", "mlflow/server/auth/db/migrations", "psycopg"),
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

ADDED = """\
import logging

from langfuse_schema.online import run_migrations

# Not every project prints the revisions that it runs.
logging.basicConfig(format="%(message)s")
logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
"""

OWN = re.compile(
    r"context\.configure\(\s*connection=connection,(?P<options>[^()]*)\)\s*"
    r"with context\.begin_transaction\(\):\s*context\.run_migrations\(\)"
)


@dataclass(frozen=True)
class Project:
    """A copy of a project's environment, with its own env.py or with the runner."""

    python: Path
    folder: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Alembic."""
        return subprocess.Popen(  # noqa: S603 - the command is made above
            [str(self.python), "-m", "alembic", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, count: int, *arguments: str) -> tuple[float, int]:
        """Run Alembic several times at once: the seconds, and how many ran revisions."""
        started = time.monotonic()
        processes = [self.start(*arguments) for _ in range(count)]
        printed = [process.communicate()[0] for process in processes]
        seconds = time.monotonic() - started
        codes = [process.returncode for process in processes]
        if any(codes):
            sys.exit(f"{arguments} exited with {codes}:\n" + "\n".join(printed))
        return seconds, sum("Running" in text for text in printed)


def copy(history: History, python: Path, folder: Path, url: str, *, runner: bool) -> Project:
    """Copy the environment of an installed project."""
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    shutil.copytree(site / history.scripts, folder / "migrations")
    (folder / "alembic.ini").write_text(INI.format(url=url.replace("%", "%%")), "utf-8")
    env = folder / "migrations" / "env.py"
    if runner:
        call, count = OWN.subn(r"run_migrations(context, connection,\g<options>)", env.read_text())
        if count != 1:
            sys.exit(f"{env} has another shape")
        env.write_text(ADDED + call, "utf-8")
    return Project(python, folder)


def dump(server: Server, database: str) -> str:
    """Return schema and data of a database as SQL."""
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
        folder_of = folder / database
        folder_of.mkdir()
        projects.append(copy(history, python, folder_of, text, runner=kind == "runner"))
    own, runner = projects
    revisions = len(list((own.folder / "migrations" / "versions").glob("*.py")))
    print(f"{name} {version_of(python, history.package)}, {history.driver}: {revisions} files")
    for command in (("upgrade", "head"), ("downgrade", history.lowest), ("upgrade", "head")):
        alone, _ = own.run(1, *command)
        seconds, ran = runner.run(RUNNERS, *command)
        found, expected = (dump(server, f"{kind}_{name}".replace("-", "_")) for kind in
                           ("runner", "own"))  # fmt: skip
        if ran != 1 or found != expected:
            sys.exit(f"{command}: {ran} runners ran revisions, equal dumps: {found == expected}")
        print(
            f"  {' '.join(command)}: own env.py {alone:.1f} s; {RUNNERS} runners {seconds:.1f} s,"
            f" all exited with 0, one ran the revisions; {len(found.splitlines())} equal lines"
        )


def version_of(python: Path, package: str) -> str:
    """Return the version of an installed package."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return output([str(python), "-c", code]).strip()


def output(command: Sequence[str]) -> str:
    """Return what a command prints, if it succeeds."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - the commands are made in this file


def install(folder: Path, names: Sequence[str]) -> Path:
    """Create a virtual environment with the projects and this package, and return its Python."""
    output([sys.executable, "-m", "venv", str(folder)])
    python = folder / "bin" / "python"
    packages = [HISTORIES[name].package for name in names]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    output([*pip, str(CHECKOUT), "psycopg[binary]", *packages])
    return python


def main() -> None:
    """Install the projects, and run them on an embedded server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=HISTORIES, nargs="+", default=list(HISTORIES))
    parser.add_argument("--python", type=Path, help="of an environment that has all packages")
    parser.add_argument("--directory", type=Path, help="for the server's files; any user enters it")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        own_server(18, options.directory) as server,
    ):
        folder = Path(name)
        python = options.python or install(folder / "venv", options.only)
        # The roles, of which `postgres` is one.
        embedded.prepare(server.url("postgres", "supabase_admin"))
        print(f"PostgreSQL {server_version(server)}")
        for history in options.only:
            compare(history, python, server, folder)


if __name__ == "__main__":
    main()
