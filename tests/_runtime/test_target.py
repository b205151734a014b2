"""The database that a command uses, for each form of its URL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from langfuse_schema import migrations
from langfuse_schema._history.chain import config_file
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema._postgres.urls import parse_url
from langfuse_schema._runtime.options import Options, parse_options
from langfuse_schema._runtime.target import configured_url
from langfuse_schema.verify import verify
from tests.helpers.databases import Database, alembic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

URL = "postgresql://u:p@host:6432/app"


@pytest.mark.parametrize("value", [0, 0.0001, -1, 1e9, "2s", None])
@pytest.mark.parametrize("name", ["lock_timeout", "lock_deadline"])
def test_downgrade_refuses_invalid_time_limit(name: str, value: object) -> None:
    """In PostgreSQL, a lock_timeout of 0 means to wait indefinitely."""
    with pytest.raises(SchemaError, match="option-invalid"):
        migrations.downgrade("postgresql://nobody@127.0.0.1:1/x", "-1", **{name: value})  # type: ignore[arg-type] # on purpose


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (None, "url-missing"),
        (sa.create_engine("sqlite://"), "url-not-postgresql"),
    ],
    ids=["None", "sqlite"],
)
def test_upgrade_refuses_target_that_is_not_postgresql(target: object, code: str) -> None:
    with pytest.raises(SchemaError, match=code):
        migrations.upgrade(target)  # type: ignore[arg-type] # on purpose


@pytest.mark.parametrize("driver", ["asyncpg", "pg8000"])
@pytest.mark.parametrize("function", [migrations.upgrade, migrations.preflight, verify])
def test_engine_of_other_driver_is_refused_with_url_to_pass(
    driver: str, function: Callable[[sa.Engine], object]
) -> None:
    # With this module, SQLAlchemy does not import the driver.
    module = SimpleNamespace(paramstyle="format", __version__="1.31.0")
    engine = sa.create_engine(f"postgresql+{driver}://u@127.0.0.1:1/x", module=module)
    with pytest.raises(SchemaError, match=r"upgrade\(engine.url\)") as refused:
        function(engine)
    code = "engine-async" if driver == "asyncpg" else "driver-unsupported"
    assert refused.value.findings[0].code == code


def test_preflight_accepts_url_of_refused_engine(database: Database) -> None:
    url = database.url.set(drivername="postgresql+asyncpg")
    assert migrations.preflight(url).findings == ()


def test_commands_succeed_with_psycopg_engine_that_prepares_every_statement(
    database: Database,
) -> None:
    url = database.url.set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, connect_args={"prepare_threshold": 0})
    assert migrations.preflight(engine).findings == ()
    migrations.upgrade(engine)
    assert verify(engine) == []
    with engine.connect() as connection:
        assert verify(connection) == []
        driver_connection: Any = connection.connection.dbapi_connection
        assert driver_connection.prepare_threshold == 0
    engine.dispose()


class TestUrl:
    def test_schema_in_url_is_refused_unless_public(self) -> None:
        with pytest.raises(SchemaError, match=r"url-schema-unsupported.*the schema app"):
            parse_url(f"{URL}?schema=app", "DATABASE_URL")
        assert parse_url(f"{URL}?schema=public", "DATABASE_URL").query == {}

    @pytest.mark.parametrize(
        "scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg"]
    )
    def test_parse_url_maps_every_scheme_to_psycopg2(self, scheme: str) -> None:
        parsed = parse_url(f"{scheme}://u:p@host:6432/app", "the URL")
        assert parsed.render_as_string(False) == "postgresql+psycopg2://u:p@host:6432/app"

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("?pgbouncer=true&connection_limit=1&pool_timeout=0", {}),
            ("?schema=public&statement_cache_size=0", {}),
            ("?sslmode=require&supa=base-pooler.x", {"sslmode": "require"}),
            ("?options=-c%20work_mem%3D4MB", {"options": "-c work_mem=4MB"}),
            (
                "?application_name=api&connect_timeout=3&target_session_attrs=read-write",
                {
                    "application_name": "api",
                    "connect_timeout": "3",
                    "target_session_attrs": "read-write",
                },
            ),
            ("?ssl=require", {"sslmode": "require"}),
        ],
    )
    def test_parse_url_drops_parameters_of_other_clients(
        self, query: str, expected: dict[str, str]
    ) -> None:
        assert parse_url(URL + query, "the URL").query == expected

    def test_current_prints_names_of_ignored_url_parameters(self, database: Database) -> None:
        url = database.url.update_query_dict({"pgbouncer": "true", "connection_limit": "1"})
        outcome = alembic(None, "current", DATABASE_URL=url.render_as_string())
        assert outcome.code == 0
        assert "does not have: connection_limit, pgbouncer" in outcome.stderr

    @pytest.mark.parametrize(
        ("quoted", "password"),
        [("50%25off", "50%off"), ("50%off", "50%off"), ("a%40b%3Ac%2Fd", "a@b:c/d"), ("%s", "%s")],
    )
    def test_parse_url_decodes_percent_signs_in_password(self, quoted: str, password: str) -> None:
        assert parse_url(f"postgres://u:{quoted}@host/app", "the URL").password == password

    def test_parse_url_accepts_ipv6_host(self) -> None:
        parsed = parse_url("postgres://u@[::1]:5433/app", "the URL")
        assert (parsed.host, parsed.port) == ("::1", 5433)

    @pytest.mark.parametrize(
        "url", ["postgresql://u@%2Fvar%2Frun%2Fpg/app", "postgresql://u@/app?host=/var/run/pg"]
    )
    def test_parse_url_accepts_socket_directory(self, url: str) -> None:
        parsed = parse_url(url, "the URL")
        assert (parsed.host or parsed.query["host"]) == "/var/run/pg"

    def test_url_with_socket_directory_as_host_connects(self, database: Database) -> None:
        folder = str(database.url.query["host"])
        quoted = folder.replace("/", "%2F")
        url = f"postgres://postgres@{quoted}:{database.url.query['port']}/{database.url.database}"
        assert alembic(None, "current", DATABASE_URL=url).code == 0

    def test_parse_url_strips_surrounding_spaces(self) -> None:
        assert parse_url(f" {URL}\n", "the URL").database == "app"


class TestUrlSource:
    def test_url_option_precedes_ini_and_environment(self) -> None:
        environment = {"DATABASE_URL": "postgres://env/e"}
        found = configured_url({"url": "postgres://x/x"}, "postgres://ini/i", environment)
        assert found.url is not None
        assert (found.url.host, found.origin) == ("x", "-x url")
        found = configured_url({}, "postgres://ini/i", environment)
        assert found.url is not None
        assert (found.url.host, found.origin) == ("ini", "sqlalchemy.url")
        found = configured_url({}, None, environment, checkout=True)
        assert found.url is not None
        assert (found.url.host, found.origin) == ("env", "DATABASE_URL")

    def test_embedded_database_is_default_in_checkout_only(self) -> None:
        assert configured_url({}, None, {}, checkout=True).url is None
        with pytest.raises(SchemaError, match="export DATABASE_URL="):
            configured_url({}, None, {})

    def test_embedded_option_overrides_ini_and_environment(self) -> None:
        found = configured_url({"embedded": "true"}, "postgres://ini/i", {"DATABASE_URL": URL})
        assert found.url is None

    def test_empty_database_url_is_refused(self) -> None:
        with pytest.raises(SchemaError, match="DATABASE_URL"):
            configured_url({}, None, {"DATABASE_URL": ""}, checkout=True)

    def test_url_option_with_embedded_option_is_refused(self) -> None:
        with pytest.raises(SchemaError, match="one of them"):
            configured_url({"embedded": "true", "url": URL}, None, {})


class TestOptions:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("500ms", 0.5), ("2s", 2.0), ("10min", 600.0), ("1h", 3600.0), ("1.5s", 1.5)],
    )
    def test_parse_options_converts_time_with_unit_to_seconds(
        self, text: str, seconds: float
    ) -> None:
        assert parse_options({"lock_timeout": text}) == Options(lock_timeout=seconds)

    def test_parse_options_returns_defaults_without_arguments(self) -> None:
        assert parse_options({}) == Options(lock_timeout=0.5, lock_deadline=600.0)


class TestAlembicConfig:
    def test_alembic_upgrade_uses_url_of_ini(self, database: Database, tmp_path: Path) -> None:
        ini = tmp_path / "alembic.ini"
        scripts = config_file().parent / "alembic"
        url = database.text.replace("%", "%%")
        ini.write_text(f"[alembic]\nscript_location = {scripts}\nsqlalchemy.url = {url}\n")
        assert alembic(None, "-c", str(ini), "upgrade", "head").code == 0
        assert "public.langfuse_traces" in database.catalog().tables

    def test_alembic_upgrade_restores_settings_of_given_connection(
        self, database: Database
    ) -> None:
        engine = sa.create_engine(database.url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("SET lock_timeout = '7s'")
            connection.commit()
            config = Config(config_file(), attributes={"connection": connection})
            command.upgrade(config, "head")
            assert not connection.in_transaction()
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "7s"
            assert "public" in str(connection.exec_driver_sql("SHOW search_path").scalar())
        assert "public.langfuse_traces" in database.catalog().tables

    def test_alembic_upgrade_refuses_connection_in_transaction(self, database: Database) -> None:
        before = database.catalog()
        engine = sa.create_engine(database.url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            config = Config(config_file(), attributes={"connection": connection})
            with pytest.raises(SchemaError, match=r"engine\.connect\(\)"):
                command.upgrade(config, "head")
        assert database.catalog() == before

    def test_upgrade_restores_settings_of_engine_sessions(self, database: Database) -> None:
        engine = sa.create_engine(database.url)
        with engine.connect() as connection:
            before = connection.exec_driver_sql("SHOW lock_timeout").scalar()
        migrations.upgrade(engine)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == before
        engine.dispose()
        assert "public.langfuse_traces" in database.catalog().tables
