"""A run may end at any statement, in any way: the next run heals what it left."""

from __future__ import annotations

import pytest
from relay import kill_at, relayed, start
from support import Database

from langfuse_schema import catalog, migrations

DIRECTIONS = {"upgrade": ("base", "head"), "downgrade": ("head", "base")}


def go(database: Database, revision: str) -> None:
    """Migrate to base or head from wherever the database is."""
    command = migrations.downgrade if revision == "base" else migrations.upgrade
    command(database.url, revision, lock_deadline=20)


def statements_of(database: Database, direction: str) -> list[str]:
    """The statements of an undisturbed run, which ends where it began."""
    origin, target = DIRECTIONS[direction]
    with relayed(database) as (relay, through):
        process = start(direction, through, target)
        process.join()
        assert process.exitcode == 0
        statements = list(relay.statements)
    go(database, origin)
    return statements


def undisturbed(database: Database) -> dict[str, catalog.Catalog]:
    """The catalogs of all schemas at head and at base, once the version table is there."""
    found = {}
    for revision in ("head", "base"):
        go(database, revision)
        found[revision] = database.catalog()
    return found


def assert_nothing_is_left(database: Database) -> None:
    assert database.execute(
        "SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),"
        " (SELECT count(*) FROM pg_index WHERE NOT indisvalid)"
    ) == [(0, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("healed_by", ["head", "base"])
@pytest.mark.parametrize("direction", ["upgrade", "downgrade"])
def test_a_kill_at_any_statement_is_healed(
    database: Database, direction: str, healed_by: str
) -> None:
    expected = undisturbed(database)
    origin, target = DIRECTIONS[direction]
    go(database, origin)
    statements = statements_of(database, direction)
    healed = 0
    for number in range(1, len(statements) + 1, 9):
        for before in (True, False):
            killed = kill_at(direction, database, target, number, before=before)
            assert killed is not None, (number, statements[number - 1])
            go(database, healed_by)
            where = f"{'before' if before else 'after'} {number}: {killed}"
            assert database.catalog() == expected[healed_by], where
            assert_nothing_is_left(database)
            go(database, origin)
            healed += 1
    assert healed == 2 * len(statements)
    print(f"{direction}, healed by {healed_by}: {healed} of {2 * len(statements)} points")
