"""A database that is copied for each test, on a server that all processes of a test run share."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from langfuse_schema._postgres.findings import SchemaError, finding
from langfuse_schema._postgres.urls import connection_finding, parse_url
from langfuse_schema.embedded import folders, removal
from langfuse_schema.embedded.preparation import SUPERUSER, without_libpq_variables
from langfuse_schema.embedded.server import start
from langfuse_schema.embedded.supervisor import open_lock

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import URL

_SERVER = "server-url"  # a file in the folder of a run
_ROLE = """
SELECT rolname || ' ' || rolsuper::text FROM pg_catalog.pg_roles WHERE rolname = current_user"""


@dataclass(frozen=True)
class Template:
    """The migrated database that is copied for each test."""

    name: str
    administrator: URL
    user: str | None

    def url(self, database: str) -> URL:
        """Return the URL of a database, for its owner."""
        return self.administrator.set(database=database, username=self.user)

    def execute(self, *statements: str) -> list[Any]:
        """Run statements outside a transaction, and return the values of the last."""
        engine = sa.create_engine(
            self.administrator, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement)
            return list(result.scalars()) if result.returns_rows else []

    @contextmanager
    def clone(self) -> Iterator[str]:
        """Create a copy, yield its URL, and drop it."""
        copy = f"{self.name}_{uuid4().hex[:8]}"
        self.execute(f'CREATE DATABASE "{copy}" TEMPLATE "{self.name}" OWNER "{self.user}"')
        try:
            yield connection_string(self.url(copy))
        finally:
            self.execute(f'DROP DATABASE IF EXISTS "{copy}" WITH (FORCE)')

    def create(self, fill: Callable[[URL, URL], None]) -> None:
        """Create and fill the database, unless another process of the run has done it.

        Arguments:
            fill: gets the URLs of the superuser and of the owner.
        """
        if self.execute(f"SELECT 1 FROM pg_database WHERE datname = '{self.name}'"):
            return
        unfinished = f"{self.name}_new"
        self.execute(
            f'DROP DATABASE IF EXISTS "{unfinished}" WITH (FORCE)',
            f"CREATE DATABASE \"{unfinished}\" TEMPLATE template0 ENCODING 'UTF8'",
        )
        fill(self.administrator.set(database=unfinished), self.url(unfinished))
        # The app's migrations can leave connections open, which would prevent each copy.
        self.execute(
            f'ALTER DATABASE "{unfinished}" ALLOW_CONNECTIONS false',
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{unfinished}'",
            f'ALTER DATABASE "{unfinished}" RENAME TO "{self.name}"',
        )

    def drop(self) -> None:
        """Drop the database."""
        for name in (self.name, f"{self.name}_new"):
            self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class Run:
    """One test run, which can have several processes (pytest-xdist).

    All of them hold a shared lock on `users.lock` in the folder of the run. So the server runs
    until the last of them ends, and this one deletes the remaining files.
    """

    def __init__(self, name: str) -> None:
        """Join a run by its name, which must be unpredictable."""
        self.name = name
        self.directory = folders.temporary_directory(f"tests-{name}")
        folders.create_directory(self.directory, folders.server_account())
        self._lock: int | None = open_lock(self.directory / "users.lock")
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        self._on_close = ExitStack()

    def template(self, server_url: str | None, fill: Callable[[URL, URL], None]) -> Template:
        """Return the template of the run, which the first process creates."""
        lock = open_lock(self.directory / "template.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            template = self._embedded() if server_url is None else self._of_server(server_url)
            template.create(fill)
            return template
        finally:
            os.close(lock)

    def _embedded(self) -> Template:
        server = start(self.directory, temporary=True)
        self._on_close.callback(server.close)
        self._on_close.enter_context(without_libpq_variables())
        return Template(self.name, server.url(user=SUPERUSER), "postgres")

    def _of_server(self, server_url: str) -> Template:
        """Return the template on a server of the user."""
        url = parse_url(server_url, "LANGFUSE_SCHEMA_TEST_URL")
        template = Template(self.name, url, url.username)
        try:
            role, superuser, *_ = template.execute(_ROLE)[0].split()
        except DBAPIError as error:
            raise SchemaError(connection_finding(url, error)) from error
        if superuser != "true":
            other = url.set(username="SUPERUSER", password="PASSWORD")  # noqa: S106 - placeholders
            raise SchemaError(finding("test-server-role", role, url=connection_string(other)))
        # The last process of the run drops the template, and it can be one without the fixture.
        record = self.directory / _SERVER
        record.touch(mode=0o600)
        record.write_text(connection_string(url), encoding="utf-8")
        return template

    def close(self) -> None:
        """Leave the run. The last process stops the server and deletes the folder."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        os.close(lock)
        self._on_close.close()
        record = self.directory / _SERVER
        url = record.read_text(encoding="utf-8") if record.exists() else None
        try:
            removal.remove_directory(self.directory)
        except (removal.InUseError, FileNotFoundError):
            return  # another process is the last one, or the server has deleted the folder
        if url is not None:
            parsed = parse_url(url, _SERVER)
            Template(self.name, parsed, parsed.username).drop()


def connection_string(url: URL) -> str:
    """Return a URL as every client accepts it."""
    text = url.set(drivername="postgresql").render_as_string(hide_password=False)
    # SQLAlchemy writes a space as "+", which libpq reads as a plus.
    return text.replace("+", "%20")
