"""The Alembic environments of the tests: this package, and projects of `alembic init`."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config

from langfuse_schema import migrations
from langfuse_schema._history.chain import VERSION_TABLE
from langfuse_schema._runtime.runner_lock import RunnerLock
from tests.helpers.databases import CHECKOUT, Database, Outcome, environment, run

if TYPE_CHECKING:
    from pathlib import Path

CONFIG_WITH_URL = """config = context.config
import os
if "DATABASE_URL" in os.environ:
    config.set_main_option("sqlalchemy.url", os.environ["DATABASE_URL"].replace("%", "%%"))
"""

GENERATED_RUN = """        context.configure(
            connection=connection, target_metadata=target_metadata
        )

        with context.begin_transaction():
            context.run_migrations()


if"""

PLAIN_CALL = """context.configure(connection=connection, target_metadata=target_metadata)
        with context.begin_transaction():
            context.run_migrations()"""
"""The lines of env.py that run the revisions without a runner."""

RUNNER_CALL = "run_migrations(context, connection, target_metadata=target_metadata)"

IMPORT = "from alembic import context\n"


@dataclass(frozen=True)
class Project:
    """An Alembic environment.

    `folder` is None for the environment of this package.
    """

    folder: Path | None = None
    schema: str = VERSION_TABLE.schema
    name: str = VERSION_TABLE.name

    @property
    def version_table(self) -> str:
        """The name of the version table in SQL."""
        return self.name if self.folder else f"{self.schema}.{self.name}"

    @property
    def env(self) -> Path:
        assert self.folder
        return self.folder / "migrations" / "env.py"

    @property
    def lock(self) -> RunnerLock:
        return RunnerLock.of(self.schema, self.name)

    def text(self, database: Database) -> str:
        """Return the URL with the application name by which tests identify a runner."""
        url = database.url.update_query_dict({"application_name": "langfuse-schema"})
        return url.render_as_string(hide_password=False)

    def start(
        self, database: Database, *arguments: str, stdout: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        """Start `alembic`."""
        return subprocess.Popen(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.folder or CHECKOUT,
            env=environment(DATABASE_URL=self.text(database)),
            stderr=subprocess.PIPE,
            stdout=stdout,
            text=True,
        )

    def alembic(self, database: Database, *arguments: str) -> Outcome:
        """Run `alembic`."""
        variables = {"DATABASE_URL": self.text(database)}
        return run(sys.executable, "-m", "alembic", *arguments, cwd=self.folder or CHECKOUT,
                   **variables)  # fmt: skip

    def config(self, database: Database) -> Config:
        """Return a configuration that does not set up logging."""
        assert self.folder
        config = Config(stdout=io.StringIO())
        config.set_main_option("script_location", str(self.folder / "migrations"))
        config.set_main_option("version_locations", versions(self.folder))
        config.set_main_option("path_separator", "newline")
        config.set_main_option("sqlalchemy.url", self.text(database).replace("%", "%%"))
        return config

    def migrate(self, database: Database, revision: str, *, downgrade: bool = False) -> None:
        """Upgrade or downgrade in this process."""
        if self.folder is None:
            direction = migrations.downgrade if downgrade else migrations.upgrade
            direction(database.url, revision, lock_deadline=60)
        else:
            run_command = command.downgrade if downgrade else command.upgrade
            run_command(self.config(database), revision)


def versions(folder: Path) -> str:
    """Return the folder of the revisions, or that of this package if the project has none."""
    written = folder / "migrations" / "versions"
    return str(written if any(written.glob("*.py")) else CHECKOUT / "alembic" / "versions")


def create(folder: Path, call: str = RUNNER_CALL, **revisions: str) -> Project:
    """Run `alembic init`, and insert the lines of the runner into env.py.

    Arguments:
        folder: an empty folder.
        call: the line that runs the revisions.
        revisions: the text of each revision file, by name. The default is this package.
    """
    ini = folder / "alembic.ini"
    command.init(Config(ini, stdout=io.StringIO()), str(folder / "migrations"))
    for name, text in revisions.items():
        (folder / "migrations" / "versions" / f"{name}.py").write_text(text, encoding="utf-8")
    project = Project(folder, "public", "alembic_version")
    text = project.env.read_text(encoding="utf-8")
    for before, after in (
        ("config = context.config\n", CONFIG_WITH_URL),
        (IMPORT, IMPORT + "from langfuse_schema.online import run_migrations\n"),
        (GENERATED_RUN, f"        {call}\n\n\nif"),
    ):
        assert before in text, before
        text = text.replace(before, after)
    project.env.write_text(text, encoding="utf-8")
    location = f"version_locations = {versions(folder)}"
    text = ini.read_text(encoding="utf-8")
    assert "\nscript_location = " in text
    text = text.replace("\nscript_location = ", f"\n{location}\nscript_location = ")
    ini.write_text(text, encoding="utf-8")
    return project
