"""The index helpers of `operations`, with a runner and in a plain Alembic environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from alembic.util import CommandError

from langfuse_schema.operations import create_index_online
from tests.helpers import projects
from tests.helpers.databases import SUPERUSER, Database, run_script
from tests.helpers.projects import PLAIN_CALL, RUNNER_CALL, Project

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ORDERS = """
from alembic import op

revision, down_revision = "a", None


def upgrade():
    op.execute('CREATE SCHEMA "Shop"')
    op.execute('CREATE TYPE "Shop".state AS ENUM (\\'new\\', \\'paid\\')')
    op.execute('CREATE TABLE "Shop"."Orders" (id int, email varchar(99), tags jsonb,'
               ' state "Shop".state, note text, "Total" int)')
    op.execute('INSERT INTO "Shop"."Orders" (id) SELECT generate_series(1, 100)')


def downgrade():
    op.execute('DROP SCHEMA "Shop" CASCADE')
"""

INDEXES = """
from alembic import op
from langfuse_schema import operations

revision, down_revision = "b", "a"


def upgrade():
    operations.create_index_online({arguments}, schema="Shop")


def downgrade():
    operations.drop_index_online({name!r}, schema="Shop")
"""

# The arguments of create_index_online, and the definition that PostgreSQL prints.
DEFINITIONS = {
    "expression in another spelling": (
        "'lower_email', 'Orders', ['lower(email)', '\"Total\" DESC']",
        'btree (lower(email::text), "Total" DESC)',
    ),
    "operator class": (
        "'by_email', 'Orders', ['email varchar_pattern_ops']",
        "btree (email varchar_pattern_ops)",
    ),
    "method": (
        "'by_tags', 'Orders', ['tags jsonb_path_ops'], method='gin'",
        "gin (tags jsonb_path_ops)",
    ),
    "unique with INCLUDE": (
        "'by_id', 'Orders', ['id'], unique=True, include=['email', '\"Total\"']",
        'btree (id) INCLUDE (email, "Total")',
    ),
    "predicate with a colon and a percent sign": (
        "'New Orders', 'Orders', ['id'], where=\"state = 'new' AND note LIKE 'a :b %c:%'\"",
        "btree (id) WHERE state = 'new'::\"Shop\".state AND note ~~ 'a :b %c:%'::text",
    ),
}


WITH_RUNNER, WITHOUT_RUNNER = (
    pytest.param(RUNNER_CALL, id="runner"),
    pytest.param(PLAIN_CALL, id="plain", marks=pytest.mark.slow),
)


@pytest.fixture(params=[WITH_RUNNER, WITHOUT_RUNNER])
def create(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], Project]:
    """Return a function that creates a project whose revision b builds an index."""

    def run(arguments: str, name: str) -> Project:
        indexes = INDEXES.format(arguments=arguments, name=name)
        return projects.create(tmp_path, request.param, a=ORDERS, b=indexes)

    return run


def index(database: Database, name: str) -> tuple[int, bool, str] | None:
    """Return the oid, the validity and the definition of an index."""
    found = database.execute(
        "SELECT c.oid, i.indisvalid, pg_get_indexdef(c.oid, 0, true) FROM pg_class AS c"
        f" LEFT JOIN pg_index AS i ON i.indexrelid = c.oid WHERE c.relname = '{name}'"
    )
    return found[0] if found else None


def run_again(database: Database, project: Project) -> None:
    """Run revision b again, without the record of its first run."""
    database.execute("UPDATE alembic_version SET version_num = 'a'")
    project.migrate(database, "b")


@pytest.mark.parametrize(("arguments", "definition"), DEFINITIONS.values(), ids=DEFINITIONS)
def test_index_is_built_kept_rebuilt_and_dropped(
    database: Database, create: Callable[[str, str], Project], arguments: str, definition: str
) -> None:
    name = arguments.split("'")[1]
    project = create(arguments, name)
    project.migrate(database, "b")
    built = index(database, name)
    assert built
    assert built[1:] == (True, built[2])
    assert built[2].endswith(f'ON "Shop"."Orders" USING {definition}')
    run_again(database, project)
    assert index(database, name) == built, "a valid index with the same definition was replaced"
    database.execute(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = {built[0]}", SUPERUSER
    )
    run_again(database, project)
    rebuilt = index(database, name)
    assert rebuilt
    assert rebuilt[0] != built[0]
    assert rebuilt[1:] == built[1:]
    project.migrate(database, "a", downgrade=True)
    assert index(database, name) is None
    project.migrate(database, "b")
    database.execute(f'DROP INDEX "Shop"."{name}"')
    project.migrate(database, "a", downgrade=True)


CONFLICTS = {
    "other column": 'CREATE INDEX "By Id" ON "Shop"."Orders" ("Total")',
    "unique": 'CREATE UNIQUE INDEX "By Id" ON "Shop"."Orders" (id)',
    "other table": 'CREATE TABLE "Shop".t (id int); CREATE INDEX "By Id" ON "Shop".t (id)',
    "table": 'CREATE TABLE "Shop"."By Id" (id int)',
}


@pytest.mark.slow
@pytest.mark.parametrize("conflict", CONFLICTS.values(), ids=CONFLICTS)
def test_object_with_name_of_index_is_refused_until_renamed(
    database: Database, create: Callable[[str, str], Project], conflict: str
) -> None:
    project = create("'By Id', 'Orders', ['id']", "By Id")
    project.migrate(database, "a")
    database.execute(conflict)
    before = index(database, "By Id")
    with pytest.raises(CommandError, match="another object has this name") as refused:
        project.migrate(database, "b")
    assert index(database, "By Id") == before
    fix = str(refused.value).rpartition("again:\n")[2]
    database.execute(fix)
    project.migrate(database, "b")
    built = index(database, "By Id")
    assert built
    assert built[1] is True
    assert index(database, "old_By Id")[0] == before[0]


@pytest.mark.slow
def test_script_of_helpers_runs_twice(database: Database, tmp_path: Path, psql: str) -> None:
    arguments = "'By Id', 'Orders', ['id', '\"Total\"'], where='id > 1'"
    project = projects.create(
        tmp_path, a=ORDERS, b=INDEXES.format(arguments=arguments, name="By Id")
    )
    project.migrate(database, "a")
    up = project.alembic(database, "upgrade", "a:b", "--sql").stdout
    down = project.alembic(database, "downgrade", "b:a", "--sql").stdout
    run_script(psql, database, up)
    built = index(database, "By Id")
    assert built
    database.execute("UPDATE alembic_version SET version_num = 'a'")
    run_script(psql, database, up)
    assert index(database, "By Id") == built
    run_script(psql, database, down)
    assert index(database, "By Id") is None


ODD_ORDERS = """
from alembic import op

revision, down_revision = "a", None


def upgrade():
    op.execute('''CREATE SCHEMA "it's %"''')
    op.execute('''CREATE TABLE "it's %"."50%" (id int)''')


def downgrade():
    op.execute('''DROP SCHEMA "it's %" CASCADE''')
"""
ODD_INDEX = """
from langfuse_schema import operations

revision, down_revision = "b", "a"


def upgrade():
    operations.create_index_online("100% O'Neil", "50%", ["id"], schema="it's %")


def downgrade():
    operations.drop_index_online("100% O'Neil", schema="it's %")
"""


@pytest.mark.parametrize("call", [WITH_RUNNER, WITHOUT_RUNNER])
def test_percent_signs_and_apostrophes_in_names_are_kept(
    database: Database, tmp_path: Path, psql: str, call: str
) -> None:
    project = projects.create(tmp_path, call, a=ODD_ORDERS, b=ODD_INDEX)
    names = "SELECT indexname FROM pg_indexes WHERE tablename = '50%'"
    project.migrate(database, "head")
    assert database.execute(names) == [("100% O'Neil",)]
    project.migrate(database, "a", downgrade=True)
    assert database.execute(names) == []
    up = project.alembic(database, "upgrade", "a:b", "--sql").stdout
    run_script(psql, database, up)
    assert database.execute(names) == [("100% O'Neil",)]


def test_string_instead_of_list_of_columns_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'email' is one string; pass a list, such as \['email'\]"):
        create_index_online("by_email", "orders", "email")
