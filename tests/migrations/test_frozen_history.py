"""Revisions are history: they import nothing that changes, and each documents itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import Script, ScriptDirectory

from langfuse_schema import environment

SCRIPTS = list(ScriptDirectory.from_config(Config(environment.config_file())).walk_revisions())[
    ::-1
]

every_revision = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.revision)

FROZEN = {"alembic", "sqlalchemy", "langfuse_schema.operations", "__future__", "typing"}


def imported_modules(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module == "langfuse_schema"
            found |= {f"{node.module}.{name.name}" if package else str(node.module)
                      for name in node.names}  # fmt: skip
    return found


@every_revision
def test_a_revision_imports_only_what_is_frozen(script: Script) -> None:
    imported = imported_modules(Path(script.path).read_text(encoding="utf-8"))
    ours = {name for name in imported if name.startswith("langfuse_schema")}
    assert ours <= {"langfuse_schema.operations"}
    assert {name.partition(".")[0] for name in imported - ours} <= FROZEN


def test_the_helpers_of_revisions_import_nothing_that_changes() -> None:
    from langfuse_schema import operations

    imported = imported_modules(Path(str(operations.__file__)).read_text(encoding="utf-8"))
    assert not {name for name in imported if name.startswith("langfuse_schema")}


@every_revision
def test_a_revision_says_what_an_operator_asks(script: Script) -> None:
    for heading in ("Why:", "Locks:", "Duration:", "Reversible:", "If interrupted:"):
        assert re.search(f"^{heading}", script.longdoc, re.MULTILINE), heading


@every_revision
def test_a_revision_has_its_id_in_its_file_name(script: Script) -> None:
    name = script.path.rpartition("/")[2]
    assert re.fullmatch(rf"{script.revision}_[a-z0-9_]+\.py", name)


def test_ids_are_14_digits_and_increase_along_the_chain() -> None:
    """The Supabase CLI skips other names, and runs the exported files in this order."""
    ids = [script.revision for script in SCRIPTS]
    assert all(re.fullmatch(r"\d{14}", revision) for revision in ids)
    assert ids == sorted(ids)


def test_revisions_form_one_line() -> None:
    below = [script.down_revision for script in SCRIPTS]
    assert below == [None, *(script.revision for script in SCRIPTS[:-1])]


def test_the_folder_of_revisions_does_not_hide_the_library() -> None:
    assert not (environment.config_file().parent / "alembic" / "__init__.py").exists()
