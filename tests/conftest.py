"""The PostgreSQL server of the tests, and a cloned database for each test."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_postgresql import factories
from sqlalchemy.engine import URL, make_url

from langfuse_schema import embedded
from langfuse_schema.embedded import binaries, folders
from tests.helpers import projects
from tests.helpers.databases import CHECKOUT, FAST_SETTINGS, SUPERUSER, Database, run
from tests.helpers.folders import server_folder
from tests.helpers.npm import clients, start_postgresql  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection
    from pytest_postgresql.executors import NoopExecutor

POSTGRESQL = int(os.environ.get("LANGFUSE_SCHEMA_TEST_POSTGRESQL", "18"))
"""The version of the server. The wheel contains 16 and 18, and npm provides 14, 15 and 17."""

_CLIENT_EXAMPLES = ["examples/test_send_scores.py", "examples/test_readme.py"]
collect_ignore = [] if sys.version_info >= (3, 11) else _CLIENT_EXAMPLES
"""The Langfuse client, which these examples use, needs Python 3.11."""

PASSWORD_ROLE = "with_password"
"""The only role that must give a password to the server of the tests."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the sums of the numbers that tests recorded in all test processes."""
    sums: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        sums.update(dict(report.user_properties))
    for name, number in sums.items():
        terminalreporter.write_line(f"{number} {name}")


def pytest_configure(config: pytest.Config) -> None:
    """Create one folder for all temporary files, and delete it at the end."""
    if hasattr(config, "workerinput"):
        return
    folder = Path(tempfile.mkdtemp(prefix="langfuse-schema-tests-"))
    # Under root, PostgreSQL runs as another account, which must be able to enter the folder.
    folder.chmod(0o755)
    config.option.basetemp = str(folder / "base")
    os.environ["LANGFUSE_SCHEMA_SHARED_FOLDER"] = str(folder)
    config.add_cleanup(lambda: shutil.rmtree(folder))


@dataclass(frozen=True)
class TestServer:
    """The attributes that pytest-postgresql reads from a server that it did not start."""

    __test__ = False

    host: str
    port: int
    programs: Path | None = None
    user: str = SUPERUSER
    password: str = ""
    options: str = ""
    maintenance_dbname: str = "postgres"
    template_dbname: str | None = None


@pytest.fixture(scope="session", autouse=True)
def _no_database_variables() -> Iterator[None]:
    """Remove DATABASE_URL and the variables of libpq and Alembic from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name == "DATABASE_URL" or name.startswith(("PG", "ALEMBIC")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """Yield a folder that the account of the server can enter, in memory if there is space."""
    with server_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def server(scratch: Path) -> Iterator[TestServer]:
    """Yield the server of LANGFUSE_SCHEMA_TEST_URL, or a new server for this test process."""
    configured = os.environ.get("LANGFUSE_SCHEMA_TEST_URL")
    if configured:
        url = make_url(configured)
        host = url.host or str(url.query.get("host", "localhost"))
        yield TestServer(
            host, url.port or 5432, user=url.username or SUPERUSER, password=url.password or ""
        )
        return
    with start_postgresql(
        POSTGRESQL,
        scratch / "server",
        FAST_SETTINGS,
        host_based_authentication=[f"local all {PASSWORD_ROLE} scram-sha-256"],
    ) as started:
        yield TestServer(started.host, started.port, client_programs(started))


def client_programs(server: embedded.Server) -> Path:
    """Return the folder with psql and pg_dump, which the servers from npm do not contain."""
    if (server.bin / "psql").exists():
        return server.bin
    return binaries.locate(18, folders.server_account())


@pytest.fixture(scope="session")
def psql(server: TestServer) -> str:
    """Return the path of psql, from PATH if LANGFUSE_SCHEMA_TEST_URL is set."""
    found = server.programs / "psql" if server.programs else shutil.which("psql")
    if found is None:
        pytest.skip("psql is not installed on this machine")
    return str(found)


def _prepare_restricted(**parameters: str) -> None:
    _prepare(parameters, "restricted")


def _prepare_legacy(**parameters: str) -> None:
    _prepare(parameters, "legacy")


def _prepare(parameters: dict[str, str], default_privileges: embedded.World) -> None:
    url = _url(parameters["host"], int(parameters["port"]), parameters["dbname"], SUPERUSER)
    embedded.prepare(url, default_privileges=default_privileges)


def _url(host: str, port: int, database: str, user: str) -> URL:
    return URL.create(
        "postgresql+psycopg2",
        username=user,
        database=database,
        query={"host": host, "port": str(port)},
    )


restricted_template = factories.postgresql_noproc(
    dbname="restricted", load=[_prepare_restricted], depends_on="server"
)
legacy_template = factories.postgresql_noproc(
    dbname="legacy", load=[_prepare_legacy], depends_on="server"
)
restricted_clone = factories.postgresql("restricted_template")
legacy_clone = factories.postgresql("legacy_template")


def _database(clone: Connection) -> Database:
    name = clone.info.dbname
    # The superuser creates the clone, but postgres must own the database and its schema public.
    clone.execute(f'ALTER DATABASE "{name}" OWNER TO postgres')
    clone.commit()
    return Database(_url(clone.info.host, clone.info.port, name, "postgres"))


@pytest.fixture
def database(restricted_clone: Connection) -> Database:
    """Return a Supabase database with app rows and restricted default privileges."""
    return _database(restricted_clone)


@pytest.fixture
def legacy_database(legacy_clone: Connection) -> Database:
    """Return a database whose legacy default privileges grant all to the API roles."""
    return _database(legacy_clone)


@pytest.fixture(params=["restricted", "legacy"])
def any_world(request: pytest.FixtureRequest) -> Database:
    """Return a database with restricted and with legacy default privileges, in turn."""
    return _database(request.getfixturevalue(f"{request.param}_clone"))


@pytest.fixture
def second_database(restricted_template: NoopExecutor) -> Iterator[Database]:
    """Yield another clone, for tests that use two databases."""
    from pytest_postgresql.janitor import DatabaseJanitor

    janitor = DatabaseJanitor(
        user=restricted_template.user,
        host=restricted_template.host,
        port=restricted_template.port,
        dbname=restricted_template.dbname + "_second",
        template_dbname=restricted_template.template_dbname,
        maintenance_dbname=restricted_template.maintenance_dbname,
    )
    with janitor:
        url = _url(
            restricted_template.host, int(restricted_template.port), janitor.dbname, SUPERUSER
        )
        Database(url).execute(f'ALTER DATABASE "{janitor.dbname}" OWNER TO postgres', SUPERUSER)
        yield Database(url.set(username="postgres"))


@pytest.fixture
def password_role(database: Database) -> Iterator[str]:
    """Yield a role that must give the password `right`."""
    if os.environ.get("LANGFUSE_SCHEMA_TEST_URL"):
        pytest.skip("the server of LANGFUSE_SCHEMA_TEST_URL decides which roles give a password")
    database.execute(f"CREATE ROLE {PASSWORD_ROLE} LOGIN PASSWORD 'right'", SUPERUSER)
    yield PASSWORD_ROLE
    database.execute(f"DROP ROLE {PASSWORD_ROLE}", SUPERUSER)


@pytest.fixture(scope="session")
def bare_project(tmp_path_factory: pytest.TempPathFactory) -> projects.Project:
    """Return a project of `alembic init` with the runner and revisions of this package."""
    return projects.create(tmp_path_factory.mktemp("bare"))


PROJECTS = ["this package", pytest.param("alembic init", marks=pytest.mark.slow)]
"""The Alembic environments that `project` returns."""


@pytest.fixture(params=PROJECTS)
def project(request: pytest.FixtureRequest) -> projects.Project:
    """Return each Alembic environment in turn."""
    if request.param == "this package":
        return projects.Project()
    return request.getfixturevalue("bare_project")


class OwnServer:
    """A server for one test, which can restart it and read its log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start()
        embedded.prepare(self._server.url())
        self.database = Database(self._server.url())

    def _start(self) -> None:
        self._server = start_postgresql(POSTGRESQL, self._folder, _VERBOSE_LOG)

    def restart(self, *, standby: bool = False) -> None:
        """Restart the server while clients are connected, as a standby server if `standby`."""
        self._server.close()
        if standby:
            (self._folder / "data" / "standby.signal").touch()
        self._start()

    def log(self) -> str:
        """Return the log, which contains DDL, deadlocks and other errors."""
        return (self._folder / "server.log").read_text()

    def close(self) -> None:
        """Stop the server."""
        self._server.close()


_VERBOSE_LOG = FAST_SETTINGS | {"log_statement": "ddl", "deadlock_timeout": "100ms"}


@pytest.fixture
def own_server(scratch: Path) -> Iterator[OwnServer]:
    """Yield a server for one test only."""
    folder = Path(tempfile.mkdtemp(prefix="own-", dir=scratch))
    folder.chmod(0o755)
    server = OwnServer(folder / "server")
    yield server
    server.close()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, and return its file."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        f"--wheel-dir={folder}", str(CHECKOUT),
    )  # fmt: skip
    assert built.code == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path
