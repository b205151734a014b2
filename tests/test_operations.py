"""The commands of docs/how-to/roll-back.md resolve each state and restore the rows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import migrations, tables
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    CHECKOUT,
    HEAD,
    LINKS,
    PLAN_REVISIONS,
    POLICIES,
    SUPERUSER,
    TRACE,
    Database,
    drop_langfuse_objects,
    environment,
    insert_example_rows,
    langfuse_schema,
    plan_sql,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import TestServer

PAGE = (CHECKOUT / "docs" / "how-to" / "roll-back.md").read_text(encoding="utf-8")


def drop_version_table(database: Database) -> None:
    database.execute("DROP SCHEMA langfuse_migrations CASCADE")


def record_revision(database: Database, revision: str) -> None:
    database.execute(f"UPDATE langfuse_migrations.alembic_version SET version_num = '{revision}'")


def run_plan_by_hand(database: Database) -> None:
    drop_langfuse_objects(database)
    drop_version_table(database)
    database.execute(plan_sql(*PLAN_REVISIONS))


UPGRADE = "langfuse-schema upgrade head"

# The change at head, the code that verify reports, and the commands of the page.
STATES: dict[str, tuple[Callable[[Database], object], str, str]] = {
    "tables dropped": (
        drop_langfuse_objects,
        "table-missing",
        f"langfuse-schema stamp base && {UPGRADE}",
    ),
    "downgraded": (
        lambda database: migrations.downgrade(database.url, LINKS),
        "revision-behind",
        UPGRADE,
    ),
    "recorded revision too old": (
        lambda database: record_revision(database, POLICIES),
        "revision-behind",
        f"langfuse-schema stamp --purge {HEAD}",
    ),
    "plan run by hand": (
        run_plan_by_hand,
        "version-table-missing",
        f"langfuse-schema stamp {POLICIES} && {UPGRADE}",
    ),
    "restored without version table": (
        drop_version_table,
        "version-table-missing",
        f"langfuse-schema stamp --purge {HEAD}",
    ),
    "never migrated": (
        lambda database: (drop_langfuse_objects(database), drop_version_table(database)),
        "not-migrated",
        UPGRADE,
    ),
}


@pytest.mark.parametrize(("change", "code", "documented"), STATES.values(), ids=STATES)
def test_documented_command_repairs_database(
    database: Database, change: Callable[[Database], object], code: str, documented: str
) -> None:
    migrations.upgrade(database.url)
    expected = database.catalog()
    change(database)
    finding = next(finding for finding in verify(database.url) if finding.code == code)
    if code != "table-missing":
        fix = " && ".join(finding.fix)
        assert fix.replace(HEAD, "head") == documented.replace(HEAD, "head")
    for command in documented.split(" && "):
        outcome = langfuse_schema(database, *shlex.split(command)[1:])
        assert outcome.code == 0, outcome.stderr
    assert verify(database.url) == []
    assert database.catalog() == expected


@pytest.fixture
def shell(server: TestServer, tmp_path: Path) -> Callable[[Database, str], None]:
    """Return a function that runs a command with the client programs of the server in PATH."""
    if server.programs is None:
        pytest.skip("the client programs of the configured server are unknown")
    path = os.pathsep.join([str(server.programs), os.environ["PATH"]])

    def run(database: Database, command: str) -> None:
        url = database.as_user(SUPERUSER).set(drivername="postgresql")
        text = url.render_as_string(hide_password=False)
        variables = environment(PATH=path, DATABASE_URL=text, PGOPTIONS="-c search_path=public")
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=variables)

    return run


def test_documented_commands_restore_rows_after_downgrade(
    database: Database, shell: Callable[[Database, str], None]
) -> None:
    def contents() -> list[object]:
        queries = ["SELECT * FROM langfuse_traces ORDER BY id"]
        queries += [f"SELECT id, langfuse_trace_id FROM {t} ORDER BY id" for t in tables.APP_TABLES]
        return [database.execute(query) for query in queries]

    migrations.upgrade(database.url)
    insert_example_rows(database)
    for table in tables.APP_TABLES:
        database.execute(f"UPDATE {table} SET langfuse_trace_id = '{TRACE.format(1)}'")
    before = contents()
    save_section, _, restore_section = PAGE.partition("After the next upgrade")
    save_commands, restore_commands = (
        re.findall(r"^((?:pg_dump|psql|for) .*)$", part, re.MULTILINE)
        for part in (save_section, restore_section)
    )
    assert (len(save_commands), len(restore_commands)) == (2, 2)
    for command in save_commands:
        shell(database, command)
    migrations.downgrade(database.url, "base")
    migrations.upgrade(database.url)
    for command in restore_commands:
        shell(database, command)
    assert contents() == before
    assert verify(database.url) == []


def test_restored_schema_public_is_adopted_by_stamp(
    database: Database, second_database: Database, shell: Callable[[Database, str], None]
) -> None:
    migrations.upgrade(database.url)
    insert_example_rows(database)
    shell(database, 'pg_dump "$DATABASE_URL" -n public --clean --if-exists -f public.sql')
    shell(second_database, 'psql "$DATABASE_URL" -f public.sql')
    (finding,) = verify(second_database.url)
    command = finding.fix[0].removeprefix("langfuse-schema ")
    assert langfuse_schema(second_database, *command.split()).code == 0
    assert verify(second_database.url) == []


def test_truncate_cascade_empties_app_tables_and_delete_keeps_them(database: Database) -> None:
    migrations.upgrade(database.url)
    insert_example_rows(database)
    rows = database.execute("SELECT count(*) FROM reflections")
    database.execute("DELETE FROM langfuse_traces")
    assert database.execute("SELECT count(*) FROM reflections") == rows != [(0,)]
    database.execute("TRUNCATE langfuse_traces CASCADE")
    assert database.execute("SELECT count(*) FROM reflections") == [(0,)]
