"""The settings of a session, and the settings that remain after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langfuse_schema import migrations
from langfuse_schema._runtime.connect import connect
from langfuse_schema._runtime.options import Options
from langfuse_schema._runtime.settings import changed, session_settings
from langfuse_schema._runtime.target import Target
from tests.helpers.databases import Database, alembic

if TYPE_CHECKING:
    import sqlalchemy as sa


def test_session_applies_settings_and_restores_previous_ones(database: Database) -> None:
    names = ("lock_timeout", "statement_timeout", "search_path", "application_name")

    def settings(connection: sa.Connection) -> list[str | None]:
        return [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]

    options = Options(lock_timeout=1.25)
    expected = ["1250ms", "0", "public", "langfuse-schema"]
    with Target(database.url, options).connect() as connection:
        assert settings(connection) == expected
        connection.rollback()
        before = settings(connection)
        assert before[0] == "0", "the settings remain after the transaction"
        connection.rollback()
        with changed(connection, session_settings(options.lock_timeout)):
            assert settings(connection) == expected
            connection.rollback()
            assert settings(connection) == expected
        assert settings(connection) == before


def test_upgrade_creates_tables_in_public_under_other_search_path(database: Database) -> None:
    database.execute("CREATE SCHEMA elsewhere")
    name = database.url.database
    database.execute(f'ALTER DATABASE "{name}" SET search_path TO elsewhere, public')
    migrations.upgrade(database.url)
    found = {name for name in database.catalog().tables if "langfuse_traces" in name}
    assert found == {"public.langfuse_traces"}
    assert alembic(database, "check").code == 0


def test_session_keeps_application_name_of_url(database: Database) -> None:
    url = database.url.update_query_dict({"application_name": "deploy"})
    with connect(url, Options()) as connection:
        assert connection.exec_driver_sql("SHOW application_name").scalar() == "deploy"
