"""The commands and programs of the documentation run, and its generated parts are current."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from rate_limit import allow
from sqlalchemy.exc import ProgrammingError

from langfuse_schema import migrations
from langfuse_schema._runtime.options import KNOWN
from langfuse_schema.cli import arguments
from langfuse_schema.tables import APP_TABLES
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    AOI,
    CHECKOUT,
    CORE,
    HEAD,
    PLAN_REVISIONS,
    POLICIES,
    Database,
    alembic,
    drop_langfuse_objects,
    insert_example_rows,
    langfuse_schema,
    langfuse_tables,
    plan_sql,
    run,
)
from tests.helpers.pages import block as page_block
from tests.helpers.pages import blocks as page_blocks
from tools import chain, generate, pages

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [*sorted(CHECKOUT.glob("*.md")), *sorted(CHECKOUT.glob("docs/**/*.md"))]

EXCEPTIONS = {
    ". .venv/bin/activate": "the tests run in an environment",
    ".venv/bin/pip install": "needed for the figures of a release only",
    ".venv/bin/pre-commit install": "writes into .git; test_project_files runs the hook",
    ".venv/bin/python benchmarks/compare.py": "run with few rows by test_benchmarks",
    ".venv/bin/python benchmarks/plot.py": "run by test_benchmarks",
    ".venv/bin/tox ": "runs the fast suite with other versions",
    "alembic current": "run below, with its output",
    "alembic downgrade -1": "run below, with its output",
    "git grep ": "run below, in a copy of the checkout",
    "unset DATABASE_URL": "the tests have no such variable",
    ".venv/bin/langfuse-schema dev": "run by the test of the tutorial, and by tests/embedded",
    ".venv/bin/python benchmarks/scaling.py": "run with few rows by test_benchmarks",
    ".venv/bin/python benchmarks/live.py": "takes minutes; test_benchmarks runs it in compare.py",
    ".venv/bin/python benchmarks/rls.py": "takes minutes, with 2,000,000 traces",
    "alembic upgrade head": "run by test_beside_alembic, in an app with revisions",
    "export DATABASE_URL": "has placeholders; the tests set another URL",
    "git clone ": "has a placeholder; the tests run in a checkout",
    "for t in ": "run by test_operations",
    "langfuse-schema dev": "run by tests/embedded and test_fresh_clone",
    "langfuse-schema export": "run by test_export, in a temporary folder",
    "make ": "run by test_fresh_clone",
    "pg_dump ": "run by test_operations",
    "pip install": "run by test_wheel, with the built wheel",
    "psql ": "run by test_operations",
    "supabase db reset": "needs Docker; test_supabase_cli runs the files without it",
    "supabase migration ": "run by test_supabase_cli",
}
"""The beginnings of commands that do not run here, with another test or a reason."""

PLACEHOLDERS = {"COMMAND": "upgrade", "REVISION": HEAD}


def blocks(text: str, *kinds: str) -> list[str]:
    """Return the fenced blocks of these languages."""
    return re.findall(rf"^ *```(?:{'|'.join(kinds)})\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def commands_of(text: str) -> list[str]:
    """Return the commands in the blocks of a page, and of langfuse-schema in its sentences."""
    # The name of a command without its argument is not a command.
    found = re.findall(r"`(langfuse-schema (?!(?:upgrade|downgrade|stamp)`)[^`\n]*)`", text)
    for block in blocks(text, "bash", "sh", "shell", "console"):
        lines = [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found += prompted or [line for line in lines if not line.startswith("#")]
    return found


def commands() -> dict[str, str]:
    """Return the page of each command. A command of several pages is listed once."""
    return {
        command: page.name
        for page in PAGES
        for command in commands_of(page.read_text(encoding="utf-8"))
        if "…" not in command
    }


def runnable_commands() -> list[Any]:
    return [
        pytest.param(command, id=f"{page}: {command}")
        for command, page in commands().items()
        if not command.startswith(tuple(EXCEPTIONS))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("command", runnable_commands())
def test_documented_command_exits_0(database: Database, command: str) -> None:
    program, *arguments = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    assert program == "langfuse-schema"
    if arguments == ["stamp", "base"]:
        migrations.upgrade(database.url)
        drop_langfuse_objects(database)
    elif "stamp" in arguments:
        database.execute(plan_sql(*PLAN_REVISIONS))
    elif "--revision" in arguments:
        migrations.upgrade(database.url, arguments[arguments.index("--revision") + 1])
    elif not {"upgrade", "preflight"} & set(arguments):
        migrations.upgrade(database.url)
    outcome = langfuse_schema(database, *arguments)
    assert outcome.code == 0, outcome.stderr


@pytest.mark.parametrize("beginning", EXCEPTIONS)
def test_exception_begins_a_documented_command(beginning: str) -> None:
    assert any(command.startswith(beginning) for command in commands())


@pytest.mark.slow
def test_tutorial_prints_documented_output(database: Database, tmp_path: Path) -> None:
    # Without the test, `dev` passes an embedded database to the commands as DATABASE_URL.
    page = (CHECKOUT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    names = iter(re.findall(r"[Ss]ave (?:it|this program) as `(\w+\.py)`", page))
    programs = {"langfuse-schema": ["-m", "langfuse_schema"], "python": []}
    migrations.upgrade(database.url)
    printed, run_commands = "", 0
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if language == "python":
            (tmp_path / next(names)).write_text(block, encoding="utf-8")
        elif language == "text":
            assert block in printed
        elif not block.startswith("make "):
            command = block.strip().removeprefix(".venv/bin/langfuse-schema dev .venv/bin/")
            program, *arguments = shlex.split(command)
            words = [*programs[program], *arguments]
            outcome = run(sys.executable, *words, cwd=tmp_path, DATABASE_URL=database.text)
            assert outcome.code == 0, outcome.stderr
            printed, run_commands = outcome.stdout, run_commands + 1
    assert run_commands == 5
    assert not {*langfuse_tables()} & {*database.catalog().tables}


def test_reference_lists_every_command_and_option() -> None:
    page = (CHECKOUT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    rows = {row.split()[1].strip("`"): row for row in page.splitlines() if row.startswith("| `")}
    created = arguments.parser(dict.fromkeys(arguments.EXAMPLES_OF, print))
    (group,) = (one for one in created._actions if isinstance(one.choices, dict))
    parser = group.choices
    assert parser.keys() <= rows.keys()
    of_env_py = {"--help", "--tag", "--resolve-dependencies"}
    for command, options in parser.items():
        for action in options._actions:
            long = {name for name in action.option_strings if name.startswith("--")} - of_env_py
            assert all(f"`{name}" in rows[command] for name in long), (command, long)
    listed = {name.partition("=")[0] for name in rows if "=" in name}
    assert listed == {*KNOWN}


def test_adopted_plan_upgrades_to_head_and_passes_check(database: Database) -> None:
    database.execute(plan_sql(*PLAN_REVISIONS))
    assert langfuse_schema(database, "stamp", POLICIES).code == 0
    assert langfuse_schema(database, "upgrade", "head").code == 0
    assert langfuse_schema(database, "check").code == 0


def runs_elsewhere(program: str) -> bool:
    """Return whether test_beside_alembic or test_readme runs the program."""
    return any(part in program for part in ("from alembic", "# migrations/", "from langfuse "))


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            program,
            id=f"{page.name}: {program.splitlines()[0][:60]}",
            marks=() if page.parent == CHECKOUT else pytest.mark.slow,
        )
        for page in PAGES
        for program in blocks(page.read_text(encoding="utf-8"), "python")
        if not runs_elsewhere(program)
    ],
)
def test_documented_program_exits_0(database: Database, tmp_path: Path, program: str) -> None:
    migrations.upgrade(database.url)
    path = tmp_path / "app.py"
    path.write_text(program, encoding="utf-8")
    outcome = run(sys.executable, str(path), DATABASE_URL=database.text)
    assert (outcome.code, outcome.stderr) == (0, "")


def test_readme_demo_prints_shown_output(database: Database) -> None:
    typed = page_block("README.md", "$ make demo").commands
    demo = ["alembic upgrade head", "alembic current"]
    printed = ""
    for command in [*demo, *(line for line in typed if line.startswith("alembic "))]:
        outcome = alembic(database, *command.split()[1:])
        assert outcome.code == 0, outcome.stderr
        printed += outcome.stderr + outcome.stdout
    assert page_block("README.md", "INFO ").is_printed_by(printed)


def test_japanese_readme_has_blocks_and_headings_of_readme() -> None:
    assert page_blocks("README.ja.md") == page_blocks("README.md")
    english, japanese = (
        re.findall(r"^#+ ", (CHECKOUT / page).read_text(encoding="utf-8"), re.MULTILINE)
        for page in ("README.md", "README.ja.md")
    )
    assert english == japanese


def test_plan_page_lists_lines_of_verify_in_order(database: Database) -> None:
    page = (CHECKOUT / "docs" / "plan.ja.md").read_text(encoding="utf-8")
    section = page.partition("\n## 検証項目\n")[2]
    items = re.findall(r"^\| .* \| `([^`]+)` \|$", section, re.MULTILINE)
    migrations.upgrade(database.url)
    printed = langfuse_schema(database, "verify").stdout.splitlines()
    found = [line.removeprefix("[x] ").partition(" … ")[0] for line in printed]
    assert len(items) == 8
    assert [item for item in found if item in items] == items


@pytest.mark.slow
def test_readme_command_replaces_name_of_app_table(tmp_path: Path) -> None:
    for part in ("alembic.ini", "alembic", "src"):
        copy = shutil.copytree if (CHECKOUT / part).is_dir() else shutil.copy
        copy(CHECKOUT / part, tmp_path / part)
    (command,) = page_block("README.md", "$ git grep").commands
    script = f"set -e; git init -q; git add src alembic; {command.replace('YOUR_TABLE', 'notes')}"
    assert run("sh", "-c", script, cwd=tmp_path).code == 0
    variables = {"PYTHONPATH": str(tmp_path / "src")}
    embedded = "-x embedded=true"
    for options in (f"{embedded} upgrade head", f"{embedded} verify", "dev --remove"):
        words = options.split()
        outcome = run(sys.executable, "-m", "langfuse_schema", *words, cwd=tmp_path, **variables)
        assert outcome.code == 0, outcome.stderr
    assert "reflections" not in (tmp_path / "src" / "langfuse_schema" / "tables.py").read_text()


def test_generated_files_are_current(database: Database) -> None:
    measured = chain.run_all(database.url)
    generated = generate.snapshot_files(measured) | pages.pages(measured)
    for page, text in generated.items():
        assert page.read_text(encoding="utf-8") == text, "run: make generate"


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_relative_link_points_to_existing_file_and_heading(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_index_links_every_page() -> None:
    index = CHECKOUT / "docs" / "index.md"
    links = re.findall(r"\]\(([\w./-]+\.md)\)", index.read_text("utf-8"))
    linked = {(index.parent / link).resolve() for link in links}
    pages = {page for page in PAGES if index.parent in page.parents and ".ja." not in page.name}
    assert pages - linked == {index}


def sql_of(page: str, beginning: str) -> str:
    text = (CHECKOUT / "docs" / page).read_text(encoding="utf-8")
    (found,) = (block for block in blocks(text, "sql") if block.startswith(beginning))
    return found


def test_documented_sql_partitions_rate_limit_logs(database: Database) -> None:
    migrations.upgrade(database.url)
    database.execute(sql_of("how-to/retention.md", "BEGIN;"))
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
    database.execute(sql_of("how-to/retention.md", "DELETE FROM langfuse_traces"))
    assert database.execute("SELECT count(*) FROM langfuse_traces") == [(1,)]
    assert database.execute("SELECT count(*) FROM langfuse_scores") == [(1,)]


def test_documented_sql_deletes_old_counters(database: Database) -> None:
    migrations.upgrade(database.url)
    insert_example_rows(database)
    database.execute(
        "INSERT INTO rate_limit_logs (user_id, endpoint, window_start)"
        f" VALUES ('{AOI}', '/old', now() - interval '2 days')"
    )
    database.execute(sql_of("how-to/retention.md", "DELETE FROM rate_limit_logs"))
    assert database.execute("SELECT count(*) FROM rate_limit_logs WHERE endpoint = '/old'") == [
        (0,)
    ]
    assert database.execute("SELECT count(*) FROM rate_limit_logs") == [(1,)]


def test_first_revision_needs_no_app_table(database: Database) -> None:
    # docs/how-to/other-names.md recommends this revision for an app with other tables.
    database.execute(f"DROP TABLE {', '.join(APP_TABLES)}")
    migrations.upgrade(database.url, CORE)
    assert verify(database.url, CORE) == []
