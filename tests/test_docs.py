"""What the documentation shows works as it stands there, and what is generated is of today."""

from __future__ import annotations

import re
import shlex
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from rate_limit import allow
from sqlalchemy.exc import ProgrammingError

from langfuse_schema import migrations
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    AOI,
    CHECKOUT,
    PLAN_REVISIONS,
    POLICIES,
    Database,
    insert_example_rows,
    langfuse_schema,
    plan_sql,
    run,
)
from tools import chain, generate, pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGES = [*sorted(CHECKOUT.glob("*.md")), *sorted(CHECKOUT.glob("docs/**/*.md"))]

ELSEWHERE = {
    "make ": "run in a fresh clone by test_fresh_clone",
    "pip install": "installed from the wheel by test_wheel",
    "export DATABASE_URL": "an example; the tests set their own",
    "alembic upgrade head": "the app's own, in a scratch app with a history of its own",
    "uv run": "the same as make, for whoever has uv",
    "langfuse-schema export": "run by test_export, in a folder of its own",
    "supabase ": "run by test_supabase_cli",
    "langfuse-schema dev": "run by test_embedded and test_fresh_clone",
    "pg_dump ": "run by test_operations",
    "for t in ": "run by test_operations",
    "psql ": "run by test_operations",
}
"""Commands that are run, or not, for the reason beside them, by the beginning of the line."""


def shown(pattern: str) -> Iterator[Any]:
    for page in PAGES:
        for found in re.findall(
            pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            yield pytest.param(found, id=f"{page.name}: {found.splitlines()[0][:60]}")


def commands() -> list[Any]:
    """Each once, however many pages show it."""
    fenced = shown(r"^\$ ([^\n]*)$")
    inline = shown(r"`(langfuse-schema [^`\n]*)`")
    once = {command.values[0]: command for command in [*fenced, *inline]}
    return [
        command
        for text, command in once.items()
        if not text.startswith(tuple(ELSEWHERE)) and "…" not in text
    ]


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_documented_command_exits_0(database: Database, command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "langfuse-schema"
    if "stamp" in arguments:
        database.execute(plan_sql(*PLAN_REVISIONS))
    elif not {"upgrade", "preflight"} & set(arguments):
        migrations.upgrade(database.url)
    outcome = langfuse_schema(database, *arguments)
    assert outcome.code == 0, outcome.stderr


def test_adopted_plan_upgrades_to_head_and_passes_check(database: Database) -> None:
    database.execute(plan_sql(*PLAN_REVISIONS))
    assert langfuse_schema(database, "stamp", POLICIES).code == 0
    assert langfuse_schema(database, "upgrade", "head").code == 0
    assert langfuse_schema(database, "check").code == 0


def belongs_to_alembic(program: str) -> bool:
    """Whether test_beside_alembic runs the program in an app."""
    return "from alembic" in program or program.startswith("# migrations/")


@pytest.mark.parametrize(
    "program",
    [code for code in shown(r"^```python\n(.*?)```") if not belongs_to_alembic(code.values[0])],
)
def test_documented_program_exits_0(database: Database, tmp_path: Path, program: str) -> None:
    migrations.upgrade(database.url)
    path = tmp_path / "app.py"
    path.write_text(program, encoding="utf-8")
    outcome = run(sys.executable, str(path), DATABASE_URL=database.text)
    assert (outcome.code, outcome.stderr) == (0, "")


def test_readme_output_of_upgrade_lists_current_revisions() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    upgrades = re.findall(r"Running upgrade \S* ?-> (\d+), ", readme)
    assert upgrades == migrations.revisions()
    assert f"\n{migrations.revisions()[-1]} (head)\n" in readme


def test_readme_output_of_verify_is_current(database: Database) -> None:
    migrations.upgrade(database.url)
    printed = langfuse_schema(database, "verify").stdout.splitlines()
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^(\[x\] .*|\d+ differences)$", readme, re.MULTILINE)
    assert len(shown) == 3
    assert set(shown) <= set(printed)


def test_generated_files_are_current(database: Database) -> None:
    measured = chain.run_all(database.url)
    generated = generate.snapshot_files(measured) | pages.pages(measured)
    for page, text in generated.items():
        assert page.read_text(encoding="utf-8") == text, "run: make generate"


def test_every_relative_link_points_to_existing_file() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def sql_of(page: str, beginning: str) -> str:
    text = (CHECKOUT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sql\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    (found,) = (block for block in blocks if block.startswith(beginning))
    return str(found)


def test_documented_sql_partitions_rate_limit_logs(database: Database) -> None:
    migrations.upgrade(database.url)
    database.execute(sql_of("scaling.md", "BEGIN;"))
    engine = sa.create_engine(database.url)
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL ROLE service_role"))
        arguments = {"limit": 2, "window": timedelta(days=1)}
        counted = [allow(connection, UUID(AOI), "/chat", **arguments) for _ in range(3)]
    engine.dispose()
    assert counted == [True, True, False]
    (finding,) = verify(database.url)
    assert (finding.code, finding.object) == ("table-differs", "public.rate_limit_logs")
    with database.signed_in("authenticated", AOI) as user, pytest.raises(ProgrammingError):
        user.execute(sa.text("SELECT * FROM rate_limit_logs_rest"))
    migrations.downgrade(database.url, "base")
    assert not any("rate_limit" in name for name in database.catalog().tables)


def test_documented_sql_deletes_old_traces_with_their_scores(database: Database) -> None:
    migrations.upgrade(database.url)
    insert_example_rows(database)
    database.execute(
        "UPDATE langfuse_traces SET created_at = '2020-01-01' WHERE trace_id IN"
        " (SELECT trace_id FROM langfuse_traces ORDER BY trace_id LIMIT 1)"
    )
    database.execute(sql_of("scaling.md", "DELETE FROM langfuse_traces"))
    assert database.execute("SELECT count(*) FROM langfuse_traces") == [(1,)]
    assert database.execute("SELECT count(*) FROM langfuse_scores") == [(1,)]
