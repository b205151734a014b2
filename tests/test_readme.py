"""What README.md shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import sys
from typing import TYPE_CHECKING

import pytest
from support import CHECKOUT, PLAN_REVISIONS, Database, langfuse_schema, plan_sql, run

from langfuse_schema import migrations

if TYPE_CHECKING:
    from pathlib import Path

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")

ELSEWHERE = {
    "make demo": "run in a fresh clone by test_fresh_clone",
    "make test": "run in a fresh clone by test_fresh_clone",
    "pip install langfuse-schema": "installed from the wheel by test_wheel",
    "export DATABASE_URL": "an example; the tests set their own",
    "uv run alembic upgrade head": "the same as make demo, for whoever has uv",
    "uv run pytest": "the same as make test, for whoever has uv",
}


def commands() -> list[str]:
    shown = re.findall(r"^\$ (.*)$", README, re.MULTILINE)
    named = re.findall(r"`((?:langfuse-schema|uv run) [^`]*)`", README)
    return [line for line in [*shown, *named] if not line.startswith(tuple(ELSEWHERE))]


@pytest.mark.parametrize("command", [line for line in commands() if "stamp" not in line])
def test_a_command_of_the_readme_runs(database: Database, command: str) -> None:
    if "downgrade" in command:
        migrations.upgrade(database.url)
    program, *arguments = shlex.split(command)
    if "…" in command:
        arguments = ["--help"]
    assert program == "langfuse-schema"
    outcome = langfuse_schema(database, *arguments)
    assert outcome.code == 0, outcome.stderr


def test_adopting_works_as_the_readme_says(database: Database) -> None:
    assert "`langfuse-schema stamp 20251113000005`, then `upgrade head`" in README
    database.execute(plan_sql(*PLAN_REVISIONS))
    assert langfuse_schema(database, "stamp", "20251113000005").code == 0
    assert langfuse_schema(database, "upgrade", "head").code == 0


def test_the_app_code_of_the_readme_runs(database: Database, tmp_path: Path) -> None:
    migrations.upgrade(database.url)
    program = tmp_path / "app.py"
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program.write_text(code, encoding="utf-8")
    outcome = run(sys.executable, str(program), DATABASE_URL=database.text)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.startswith("('ai_coach_message', ")
    assert database.execute("SELECT status FROM langfuse_scores") == [("pending",)]


def test_the_output_that_the_readme_shows_is_of_todays_revisions() -> None:
    shown = re.findall(r"Running upgrade \S* ?-> (\d+), (.*)\.$", README, re.MULTILINE)
    assert [revision for revision, _ in shown] == migrations.revisions()
    assert f"{migrations.revisions()[-1]} (head)" in README
