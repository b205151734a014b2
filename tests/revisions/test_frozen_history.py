"""Each revision imports only modules that do not change, and documents its effects."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import Script, ScriptDirectory

from langfuse_schema._history.chain import config_file

SCRIPTS = list(ScriptDirectory.from_config(Config(config_file())).walk_revisions())[::-1]

every_revision = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.revision)

FROZEN_MODULES = {"alembic", "sqlalchemy", "langfuse_schema.operations", "__future__", "typing"}


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
def test_revision_imports_frozen_modules_only(script: Script) -> None:
    imported = imported_modules(Path(script.path).read_text(encoding="utf-8"))
    package_imports = {name for name in imported if name.startswith("langfuse_schema")}
    assert package_imports <= {"langfuse_schema.operations"}
    assert {name.partition(".")[0] for name in imported - package_imports} <= FROZEN_MODULES


def test_operations_import_no_other_part_of_package() -> None:
    from langfuse_schema import operations

    for path in Path(str(operations.__file__)).parent.glob("*.py"):
        imported = imported_modules(path.read_text(encoding="utf-8"))
        others = {name for name in imported if name.startswith("langfuse_schema")}
        assert all(name.startswith("langfuse_schema.operations._") for name in others), path


@every_revision
def test_revision_docstring_has_headings_for_operators(script: Script) -> None:
    for heading in ("Why:", "Locks:", "Duration:", "Reversible:", "If interrupted:"):
        assert re.search(rf"^{heading} \S", script.longdoc, re.MULTILINE), heading


@every_revision
def test_revision_file_name_begins_with_its_id(script: Script) -> None:
    name = script.path.rpartition("/")[2]
    assert re.fullmatch(rf"{script.revision}_[a-z0-9_]+\.py", name)


def test_ids_are_14_digits_and_increase_along_the_chain() -> None:
    # The Supabase CLI skips other names, and runs the exported files in this order.
    ids = [script.revision for script in SCRIPTS]
    assert all(re.fullmatch(r"\d{14}", revision) for revision in ids)
    assert ids == sorted(ids)


def test_revisions_form_one_linear_chain() -> None:
    below = [script.down_revision for script in SCRIPTS]
    assert below == [None, *(script.revision for script in SCRIPTS[:-1])]


def test_alembic_folder_does_not_shadow_alembic_library() -> None:
    assert not (config_file().parent / "alembic" / "__init__.py").exists()
