"""What a session of ours is set to, and what it leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langfuse_schema import migrations, sessions
from langfuse_schema.database import Options
from tests.support import Database, alembic

if TYPE_CHECKING:
    import sqlalchemy as sa


def test_settings(database: Database) -> None:
    names = ("lock_timeout", "statement_timeout", "search_path", "application_name")

    def settings(connection: sa.Connection) -> list[str | None]:
        return [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]

    options = Options(lock_timeout=1.25)
    wanted = ["1250ms", "0", "public", "langfuse-schema"]
    with sessions.connect(database.url, options) as connection:
        assert settings(connection) == wanted
        connection.rollback()
        before = settings(connection)
        assert before[0] == "0", "a reader leaves nothing in a session"
        connection.rollback()
        with sessions.session(connection, options):
            assert settings(connection) == wanted
            connection.rollback()
            assert settings(connection) == wanted
        assert settings(connection) == before


def test_the_role_may_have_another_search_path(database: Database) -> None:
    database.execute("CREATE SCHEMA elsewhere")
    name = database.url.database
    database.execute(f'ALTER DATABASE "{name}" SET search_path TO elsewhere, public')
    migrations.upgrade(database.url)
    made = {name for name in database.catalog().tables if "langfuse_traces" in name}
    assert made == {"public.langfuse_traces"}
    assert alembic(database, "check").code == 0


def test_a_name_of_its_own_is_kept(database: Database) -> None:
    url = database.url.update_query_dict({"application_name": "deploy"})
    with sessions.connect(url, Options()) as connection:
        assert connection.exec_driver_sql("SHOW application_name").scalar() == "deploy"
