"""The Supabase stub behaves like a Supabase database for migrations and the app."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import DataError, ProgrammingError

from langfuse_schema import embedded
from langfuse_schema.embedded import EmbeddedError
from tests.helpers.folders import server_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

AOI = "a0000000-0000-4000-8000-000000000001"
API_ROLES = ["anon", "authenticated", "service_role"]
APP_TABLES = ["ai_coach_messages", "encouragement_messages", "reflections"]


@pytest.fixture(scope="module", params=[18, 16])
def server(request: pytest.FixtureRequest) -> Iterator[embedded.Server]:
    with (
        server_folder() as folder,
        embedded.start(
            folder / "state", version=request.param, settings={"fsync": "off"}
        ) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def restricted(server: embedded.Server) -> URL:
    return new_database(server, "restricted", prepared_as="restricted")


@pytest.fixture(scope="module")
def legacy(server: embedded.Server) -> URL:
    return new_database(server, "legacy", prepared_as="legacy")


@pytest.fixture
def urls(restricted: URL, legacy: URL) -> dict[str, URL]:
    return {"restricted": restricted, "legacy": legacy}


def new_database(
    server: embedded.Server, name: str, *, prepared_as: embedded.World | None = None
) -> URL:
    """Create a database, and return its URL with the migrating role."""
    engine = create_engine(
        server.url(user="supabase_admin"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE template0')
    if prepared_as is not None:
        embedded.prepare(server.url(name), default_privileges=prepared_as)
    return server.url(name)


def rows(url: URL, *statements: str, user: str = "postgres") -> list[tuple[Any, ...]]:
    """Run statements in a transaction, return the rows of the last one, and roll back."""
    engine = create_engine(url.set(username=user), poolclass=NullPool)
    with engine.connect() as connection:
        for statement in statements:
            result = connection.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []


def value(url: URL, *statements: str, user: str = "postgres") -> object:
    return rows(url, *statements, user=user)[0][0]


def set_user(user: str) -> str:
    """Return the statement by which PostgREST 12 sets the user of a request."""
    return f"""SET LOCAL request.jwt.claims = '{{"sub": "{user}", "role": "authenticated"}}'"""


def granted(url: URL, table: str, role: str) -> set[str]:
    """Return the privileges that a role holds directly on a new table."""
    found = rows(
        url,
        f"CREATE TABLE public.{table} (id int)",
        "SELECT privilege_type FROM pg_class, aclexplode(relacl) AS acl"
        f" WHERE oid = 'public.{table}'::regclass AND grantee = '{role}'::regrole",
    )
    return {privilege for (privilege,) in found}


def test_postgres_role_has_supabase_attributes_without_superuser(restricted: URL) -> None:
    assert rows(
        restricted,
        "SELECT rolsuper, rolcanlogin, rolcreatedb, rolcreaterole, rolbypassrls"
        " FROM pg_roles WHERE rolname = 'postgres'",
    ) == [(False, True, True, True, True)]


@pytest.mark.parametrize(
    ("role", "attributes"),
    [
        ("anon", (False, False, True)),
        ("authenticated", (False, False, True)),
        ("service_role", (False, True, True)),
        ("authenticator", (True, False, False)),
    ],
)
def test_api_role_has_supabase_attributes(
    restricted: URL, role: str, attributes: tuple[bool, bool, bool]
) -> None:
    assert rows(
        restricted,
        f"SELECT rolcanlogin, rolbypassrls, rolinherit FROM pg_roles WHERE rolname = '{role}'",
    ) == [attributes]


def test_roles_have_supabase_settings(restricted: URL) -> None:
    assert rows(
        restricted,
        "SELECT rolname, rolconfig FROM pg_roles WHERE rolconfig IS NOT NULL ORDER BY rolname",
    ) == [
        ("anon", ["statement_timeout=3s"]),
        ("authenticated", ["statement_timeout=8s"]),
        ("authenticator", ["statement_timeout=8s", "lock_timeout=8s"]),
        ("postgres", ["statement_timeout=2min"]),
    ]


def test_postgres_role_can_read_all_and_signal_backends(restricted: URL) -> None:
    roles = ["pg_monitor", "pg_read_all_data", "pg_signal_backend"]
    for role in roles:
        assert value(restricted, f"SELECT pg_has_role('postgres', '{role}', 'USAGE')")


def test_postgres_role_administers_api_roles(restricted: URL) -> None:
    assert rows(restricted, "CREATE ROLE app", "GRANT anon TO app", "SELECT 1") == [(1,)]


@pytest.mark.parametrize("role", API_ROLES)
@pytest.mark.parametrize("login", ["postgres", "authenticator"])
def test_postgres_and_authenticator_can_set_role_to_api_role(
    restricted: URL, login: str, role: str
) -> None:
    assert value(restricted, f"SET ROLE {role}", "SELECT current_user", user=login) == role


def test_authenticator_cannot_read_app_table_before_set_role(legacy: URL) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"):
        rows(legacy, "SELECT * FROM public.reflections", user="authenticator")


def test_postgres_role_owns_database_and_can_create_in_public(restricted: URL) -> None:
    assert rows(
        restricted,
        "SELECT datdba::regrole::text, nspowner::regrole::text FROM pg_database, pg_namespace"
        " WHERE datname = current_database() AND nspname = 'public'",
    ) == [("postgres", "pg_database_owner")]
    assert value(restricted, "SELECT has_schema_privilege('public', 'CREATE')") is True


def test_auth_schema_and_users_belong_to_supabase_roles(restricted: URL) -> None:
    assert rows(
        restricted,
        "SELECT nspowner::regrole::text, relowner::regrole::text, relrowsecurity,"
        " proowner::regrole::text, provolatile, prosecdef"
        " FROM pg_namespace, pg_class, pg_proc WHERE nspname = 'auth'"
        " AND pg_class.oid = 'auth.users'::regclass AND pg_proc.oid = 'auth.uid()'::regprocedure",
    ) == [("supabase_admin", "supabase_auth_admin", True, "supabase_auth_admin", "s", False)]
    assert (
        value(restricted, "SELECT count(*) FROM pg_policy WHERE polrelid = 'auth.users'::regclass")
        == 0
    )


def test_postgres_role_can_reference_users_but_not_change_auth_schema(restricted: URL) -> None:
    rows(restricted, "CREATE TABLE public.notes (user_id uuid REFERENCES auth.users (id))")
    with pytest.raises(ProgrammingError, match="permission denied for schema auth"):
        rows(restricted, "CREATE TABLE auth.notes (id int)")
    with pytest.raises(ProgrammingError, match="must be owner"):
        rows(restricted, "ALTER TABLE auth.users ADD COLUMN mine int")


@pytest.mark.parametrize("role", API_ROLES)
def test_api_role_can_call_auth_uid_but_not_read_users(legacy: URL, role: str) -> None:
    assert value(legacy, f"SET ROLE {role}", "SELECT auth.uid()") is None
    with pytest.raises(ProgrammingError, match="permission denied for table users"):
        rows(legacy, f"SET ROLE {role}", "SELECT * FROM auth.users")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], None),
        (["SET LOCAL request.jwt.claims = ''"], None),
        (["""SET LOCAL request.jwt.claims = '{"role": "anon"}'"""], None),
        ([set_user(AOI)], AOI),
        ([f"SET LOCAL request.jwt.claim.sub = '{AOI}'"], AOI),
        (["SET LOCAL request.jwt.claim.sub = ''", set_user(AOI)], AOI),
        ([f"SET LOCAL request.jwt.claim.sub = '{AOI}'", set_user("other")], AOI),
    ],
)
def test_auth_uid_returns_subject_of_request(
    restricted: URL, settings: list[str], expected: str | None
) -> None:
    assert value(restricted, *settings, "SELECT auth.uid()::text") == expected


def test_auth_uid_raises_for_subject_that_is_not_a_uuid(restricted: URL) -> None:
    with pytest.raises(DataError, match="invalid input syntax for type uuid"):
        rows(restricted, set_user("aoi"), "SELECT auth.uid()")


@pytest.mark.parametrize("role", API_ROLES)
def test_new_table_grants_all_to_api_role_under_legacy_defaults(legacy: URL, role: str) -> None:
    found = granted(legacy, "fresh", role)
    assert found >= {"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"}


@pytest.mark.parametrize("role", API_ROLES)
def test_new_table_grants_no_select_or_dml_to_api_role_under_restricted_defaults(
    server: embedded.Server, restricted: URL, role: str
) -> None:
    remaining = {"TRUNCATE", "REFERENCES", "TRIGGER"}
    maintain = {"MAINTAIN"} if "18" in server.bin.parent.name else set()
    assert granted(restricted, "fresh", role) == remaining | maintain


@pytest.mark.parametrize(("defaults", "expected"), [("legacy", True), ("restricted", False)])
def test_new_sequence_is_granted_to_anon_under_legacy_defaults_only(
    urls: dict[str, URL], defaults: str, expected: bool
) -> None:
    create = "CREATE SEQUENCE public.fresh"
    for privilege in ("USAGE", "SELECT"):
        privilege_query = f"SELECT has_sequence_privilege('anon', 'public.fresh', '{privilege}')"
        assert value(urls[defaults], create, privilege_query) is expected


@pytest.mark.parametrize(("defaults", "expected"), [("legacy", True), ("restricted", False)])
def test_new_function_is_granted_to_anon_under_legacy_defaults_only(
    urls: dict[str, URL], defaults: str, expected: bool
) -> None:
    create = "CREATE FUNCTION public.fresh() RETURNS int LANGUAGE sql AS 'SELECT 1'"
    revoke = "REVOKE EXECUTE ON FUNCTION public.fresh FROM PUBLIC"
    privilege_query = "SELECT has_function_privilege('anon', 'public.fresh()', 'EXECUTE')"
    assert value(urls[defaults], create, revoke, privilege_query) is expected


@pytest.mark.parametrize("defaults", ["legacy", "restricted"])
@pytest.mark.parametrize("table", APP_TABLES)
def test_user_reads_and_inserts_own_app_rows_only(
    urls: dict[str, URL], defaults: str, table: str
) -> None:
    url = urls[defaults]
    assert (
        value(url, f"SELECT relowner::regrole::text FROM pg_class WHERE relname = '{table}'")
        == "postgres"
    )
    assert value(url, f"SELECT count(DISTINCT user_id) FROM public.{table}") == 3
    as_aoi = ["SET ROLE authenticated", set_user(AOI)]
    assert rows(url, *as_aoi, f"SELECT DISTINCT user_id::text FROM public.{table}") == [(AOI,)]
    write = f"INSERT INTO public.{table} (user_id, body) VALUES ('{{}}', 'こんにちは')"
    rows(url, *as_aoi, write.format(AOI))
    with pytest.raises(ProgrammingError, match="row-level security"):
        rows(url, *as_aoi, write.format("a0000000-0000-4000-8000-000000000002"))


@pytest.mark.parametrize("table", APP_TABLES)
def test_service_role_reads_all_app_rows_and_anon_none(restricted: URL, table: str) -> None:
    count = f"SELECT count(DISTINCT user_id) FROM public.{table}"
    assert value(restricted, "SET ROLE service_role", count) == 3
    with pytest.raises(ProgrammingError, match="permission denied"):
        rows(restricted, "SET ROLE anon", count)


def test_deleting_user_deletes_app_rows_of_user(restricted: URL) -> None:
    for table in APP_TABLES:
        assert rows(
            restricted,
            f"DELETE FROM auth.users WHERE id = '{AOI}'",
            f"SELECT count(DISTINCT user_id) FROM public.{table}",
        ) == [(2,)]


def test_prepare_without_example_rows_creates_empty_tables(server: embedded.Server) -> None:
    url = new_database(server, "without rows")
    embedded.prepare(url, example_rows=False)
    for table in ("auth.users", *APP_TABLES):
        assert value(url, f"SELECT count(*) FROM {table}") == 0


def test_prepare_skips_prepared_database(server: embedded.Server) -> None:
    url = new_database(server, "once", prepared_as="restricted")
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql("DROP TABLE public.reflections")
    embedded.prepare(url)
    assert value(url, "SELECT to_regclass('public.reflections')") is None


def test_four_concurrent_prepare_calls_succeed_on_two_databases(server: embedded.Server) -> None:
    urls = [new_database(server, f"concurrent {number}") for number in range(2)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(embedded.prepare, urls * 2))
    for url in urls:
        assert value(url, "SELECT count(*) FROM public.reflections") == 3


def test_prepare_refuses_unknown_default_privileges(server: embedded.Server) -> None:
    url = new_database(server, "nowhere")
    with pytest.raises(EmbeddedError, match="is invalid, expected legacy or restricted"):
        embedded.prepare(url, default_privileges="invalid")  # type: ignore[arg-type]
    assert value(url, "SELECT to_regnamespace('auth')", user="supabase_admin") is None
