"""A pytest plugin for an app's tests: each test gets a separate migrated database.

Name it in the `conftest.py` of the root folder:

    pytest_plugins = ["langfuse_schema.testing"]

The fixture `langfuse_database_url` is the URL of the database. `as_user` signs a user in, so that
a test sees the rows that row level security shows to this user.
"""

from __future__ import annotations

import inspect
import json
import os
from typing import TYPE_CHECKING, Any, overload
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from langfuse_schema import migrations
from langfuse_schema._postgres.findings import SchemaError, finding
from langfuse_schema.embedded.clones import Run, connection_string
from langfuse_schema.embedded.preparation import prepare

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from langfuse_schema.embedded.clones import Template

__all__ = ["as_user", "langfuse_app_migrations", "langfuse_database_url", "langfuse_server_url"]

_SIGN_IN = sa.text(
    "SELECT set_config('role', :role, true), set_config('request.jwt.claims', :claims, true),"
    " set_config('request.jwt.claim.sub', :subject, true)"
)
_SIGNED_IN = sa.text("SELECT current_user = :role")


@overload
def as_user(
    connection: sa.Connection | Session,
    user_id: UUID | str | None,
    *,
    claims: Mapping[str, Any] | None = None,
) -> None: ...


@overload
def as_user(
    connection: AsyncConnection | AsyncSession,
    user_id: UUID | str | None,
    *,
    claims: Mapping[str, Any] | None = None,
) -> Awaitable[None]: ...


def as_user(
    connection: Any,
    user_id: UUID | str | None,
    *,
    claims: Mapping[str, Any] | None = None,
) -> Awaitable[None] | None:
    """Act as a signed-in user for the rest of the transaction, as Supabase's Data API does.

    The role becomes `authenticated`, and `auth.uid()` returns the id. Role and claims end with the
    transaction. Await the call if the connection is asynchronous.

    Arguments:
        connection: a connection or session of SQLAlchemy, of a role that can become
            `authenticated`, such as `postgres` or `authenticator`.
        user_id: the user. None is a visitor who is not signed in, with the role `anon`.
        claims: more claims of the token, such as {"email": "aoi@example.com"}.

    Raises:
        SchemaError: the connection is in AUTOCOMMIT mode, where the role would end at once.
        ValueError: `user_id` is not a UUID.
    """
    role = "anon" if user_id is None else "authenticated"
    try:
        subject = {} if user_id is None else {"sub": str(UUID(str(user_id)))}
    except ValueError:
        raise ValueError(f"user_id must be a UUID or None, not {user_id!r}") from None
    token = json.dumps({**(claims or {}), **subject, "role": role})
    values = {"role": role, "claims": token, "subject": subject.get("sub", "")}
    done = connection.execute(_SIGN_IN, values)
    if inspect.isawaitable(done):
        return _signed_in_async(connection, done, role)
    _check_signed_in(connection.execute(_SIGNED_IN, {"role": role}).scalar())
    return None


async def _signed_in_async(
    connection: AsyncConnection | AsyncSession, done: Awaitable[object], role: str
) -> None:
    await done
    _check_signed_in((await connection.execute(_SIGNED_IN, {"role": role})).scalar())


def _check_signed_in(signed_in: object) -> None:
    if not signed_in:
        raise SchemaError(finding("transaction-missing", "as_user"))


@pytest.fixture(scope="session")
def langfuse_server_url() -> str | None:
    """Return the URL of a server for the tests, or None for the embedded one. You can override it.

    The user of the URL must be a superuser. The environment variable LANGFUSE_SCHEMA_TEST_URL is
    the default.
    """
    return os.environ.get("LANGFUSE_SCHEMA_TEST_URL") or None


@pytest.fixture(scope="session")
def langfuse_app_migrations() -> Callable[[str], object] | None:
    """Return a function that runs the app's migrations, given a URL. You can override it.

    It runs once in each test run, before the upgrade of the Langfuse tables. By default there is
    none, and the database has the three built-in app tables, without rows.
    """
    return None


@pytest.fixture
def langfuse_database_url(_langfuse_template: Template) -> Iterator[str]:
    """Return the URL of a migrated database that only this test uses.

    It begins with `postgresql://`, as DATABASE_URL does. Its user is the one that migrates.
    """
    with _langfuse_template.clone() as url:
        yield url


_LOCK_DEADLINE_SECONDS = 10.0

_RUN = pytest.StashKey[Run]()


def _run_of(config: pytest.Config) -> Run:
    if _RUN not in config.stash:
        # All processes of a run with pytest-xdist get the same id.
        run_id = getattr(config, "workerinput", {}).get("testrunuid") or uuid4().hex
        config.stash[_RUN] = Run(f"langfuse_{run_id[:12]}")
    return config.stash[_RUN]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Join the run before the first test of any process begins, so that there is one template."""
    if session.config.option.collectonly:
        return
    if any("langfuse_database_url" in getattr(item, "fixturenames", ()) for item in session.items):
        _run_of(session.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the run."""
    if _RUN in config.stash:
        config.stash[_RUN].close()


@pytest.fixture(scope="session")
def _langfuse_template(
    pytestconfig: pytest.Config,
    langfuse_server_url: str | None,
    langfuse_app_migrations: Callable[[str], object] | None,
) -> Template:
    """Return the migrated database of this test run."""
    app_migrations = langfuse_app_migrations
    if app_migrations is not None and (
        not callable(app_migrations) or inspect.iscoroutinefunction(app_migrations)
    ):
        return pytest.fail(
            "the fixture langfuse_app_migrations must return a synchronous function of a URL",
            pytrace=False,
        )

    def fill(administrator: URL, owner: URL) -> None:
        app_tables = app_migrations is None
        prepare(administrator, app_tables=app_tables, example_rows=False, superuser=None)
        if app_migrations is not None:
            app_migrations(connection_string(owner))
        # A lock that is not available soon belongs to the app's migrations.
        migrations.upgrade(owner, lock_deadline=_LOCK_DEADLINE_SECONDS)

    try:
        return _run_of(pytestconfig).template(langfuse_server_url, fill)
    except SchemaError as error:
        message = str(error).strip()
    return pytest.fail(message, pytrace=False)
