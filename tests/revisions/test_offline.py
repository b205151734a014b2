"""`--sql` prints a script that has the effect of an online run when psql runs it."""

from __future__ import annotations

import pytest

from langfuse_schema import migrations
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    CORE,
    HARDENED,
    HOT_PATHS,
    LINKS,
    REVISIONS,
    Database,
    alembic,
    run_script,
)


def sql_script(*arguments: str) -> str:
    # No server listens at this address, so a connection would fail.
    outcome = alembic(
        None, *arguments, "--sql", DATABASE_URL="postgresql://nobody@127.0.0.1:1/nowhere"
    )
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def test_upgrade_script_creates_same_schema_as_online_run(any_world: Database, psql: str) -> None:
    run_script(psql, any_world, sql_script("upgrade", "head"))
    scripted = any_world.catalog()
    migrations.downgrade(any_world.url, "base")
    migrations.upgrade(any_world.url)
    assert any_world.catalog() == scripted
    assert alembic(any_world, "current").stdout.endswith("(head)\n")


def test_upgrade_script_runs_after_downgrade_to_base(database: Database, psql: str) -> None:
    migrations.upgrade(database.url, CORE)
    migrations.downgrade(database.url, "base")
    run_script(psql, database, sql_script("upgrade", "head"))
    assert verify(database.url) == []


@pytest.mark.parametrize(
    "position",
    [
        *(pytest.param(number, marks=pytest.mark.slow) for number in range(len(REVISIONS) - 1)),
        len(REVISIONS) - 1,
    ],
)
def test_script_of_one_revision_equals_online_run_in_both_directions(
    database: Database, psql: str, position: int
) -> None:
    below = REVISIONS[position - 1] if position else "base"
    migrations.upgrade(database.url, REVISIONS[position])
    above_catalog = database.catalog()
    migrations.downgrade(database.url, below)
    below_catalog = database.catalog()
    up = sql_script("upgrade", f"{below}:{REVISIONS[position]}")
    if below == "base":
        # The script creates the version table, which still exists after the online run.
        database.execute("DROP SCHEMA langfuse_migrations CASCADE")
    run_script(psql, database, up)
    assert database.catalog() == above_catalog
    down = sql_script("downgrade", f"{REVISIONS[position]}:{below}")
    run_script(psql, database, down)
    below_scripted = database.catalog()
    if below == "base":
        # Older releases of Alembic drop the empty version table in scripts, but not online.
        for found in (below_scripted, below_catalog):
            found.tables.pop("langfuse_migrations.alembic_version", None)
    assert below_scripted == below_catalog


def test_script_sets_lock_and_statement_timeout() -> None:
    script = alembic(None, "-x", "lock_timeout=2s", "upgrade", "head", "--sql").stdout
    assert "SET lock_timeout = '2000ms';" in script
    assert "SET statement_timeout = '0';" in script


def test_script_rebuilds_invalid_index(database: Database, psql: str) -> None:
    migrations.upgrade(database.url, LINKS)
    expected = database.catalog()
    database.execute(
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'idx_reflections_langfuse_trace_id'::regclass",
        "supabase_admin",
    )
    database.execute(f"UPDATE langfuse_migrations.alembic_version SET version_num = '{CORE}'")
    script = sql_script("upgrade", f"{CORE}:{LINKS}")
    run_script(psql, database, script)
    assert database.catalog() == expected


def test_downgrade_script_drops_objects_of_interrupted_upgrade(
    database: Database, psql: str
) -> None:
    before = database.catalog()
    migrations.upgrade(database.url, LINKS)
    database.execute(f"UPDATE langfuse_migrations.alembic_version SET version_num = '{CORE}'")
    run_script(psql, database, sql_script("downgrade", f"{CORE}:base"))
    after = database.catalog()
    after.tables.pop("langfuse_migrations.alembic_version", None)
    assert after.tables == before.tables


def test_script_stops_at_index_with_other_definition(database: Database, psql: str) -> None:
    migrations.upgrade(database.url, HARDENED)
    database.execute("CREATE INDEX idx_langfuse_scores_pending ON langfuse_scores (id)")
    script = sql_script("upgrade", f"{HARDENED}:{HOT_PATHS}")
    with pytest.raises(AssertionError, match="has another shape; rename it"):
        run_script(psql, database, script)


def test_script_has_no_doubled_percent_signs_or_bound_parameters() -> None:
    script = sql_script("upgrade", "head")
    assert "%%" not in script
    assert "%(" not in script
