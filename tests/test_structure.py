"""The structure of the source: direction of imports, and length of modules and functions."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

import pytest

from tests.helpers.databases import CHECKOUT, HISTORY

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "langfuse_schema"
SOURCE = CHECKOUT / "src" / PACKAGE

ALLOWED = {
    "tables": set(),
    "operations": set(),
    "_postgres": set(),
    "_history": {"_postgres", "tables"},
    "_runtime": {"_postgres"},
    "_checks": {"_history", "_postgres", "operations", "tables"},
    "embedded": {"_postgres"},
    "creation": {"_history", "_postgres", "tables"},
    "online": {"_postgres", "_runtime"},
    "migrations": {"_checks", "_history", "_postgres", "_runtime", "embedded", "online", "tables"},
    "verify": {"_checks", "_history", "_postgres", "_runtime", "migrations"},
    "testing": {"_postgres", "embedded", "migrations"},
    "export": {"_history", "_postgres", "_runtime"},
    "cli": {"_history", "_postgres", "_runtime", "embedded", "export", "migrations", "verify"},
    "__init__": {"_checks", "creation", "tables"},
    "__main__": {"cli"},
}
"""The parts that each part of the package may import."""

GENERIC = ("_postgres", "_runtime", "embedded")
MAX_ENTRIES, MAX_LEVELS, MAX_FUNCTION_LINES, MAX_MODULE_LINES = 18, 8, 40, 300

MODULES = sorted(SOURCE.rglob("*.py"))
every_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix()
)


def part_of(module: str) -> str:
    """Return the entry of the package that contains a module."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def name_of(path: Path) -> str:
    """Return the dotted name of a module."""
    relative = path.relative_to(SOURCE.parent).with_suffix("")
    names = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    return ".".join(names)


NAMES = {name_of(path): path for path in MODULES}


def imports_of(path: Path) -> set[str]:
    """Return the modules of the package that a module imports, also under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in NAMES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith(PACKAGE)}
    return found


def forbidden_imports(module: str, imported: set[str]) -> set[str]:
    """Return the imports of a module in the wrong direction."""
    part = part_of(module)
    same_part = {one for one in imported if part_of(one) == part and part != "__init__"}
    return {one for one in imported - same_part if part_of(one) not in ALLOWED[part]}


@every_module
def test_module_imports_in_one_direction(path: Path) -> None:
    assert forbidden_imports(name_of(path), imports_of(path)) == set()


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("_postgres.catalog", "_history.chain"),
        ("_runtime.runner", "_checks.preflight"),
        ("_history.chain", "_runtime.target"),
        ("_checks.drift", "migrations"),
        ("tables", "_postgres.objects"),
    ],
)
def test_import_in_wrong_direction_is_reported(module: str, imported: str) -> None:
    names = (f"{PACKAGE}.{module}", {f"{PACKAGE}.{imported}"})
    assert forbidden_imports(*names) == {f"{PACKAGE}.{imported}"}


def dependencies(module: str) -> set[str]:
    """Return the modules that a module imports, without itself and the package."""
    return imports_of(NAMES[module]) - {PACKAGE, module}


@cache
def level(module: str) -> int:
    """Return the number of modules in the longest chain of imports from a module."""
    return 1 + max(map(level, dependencies(module)), default=0)


def test_imports_have_no_cycle_and_few_levels() -> None:
    cycles = TopologicalSorter({module: dependencies(module) for module in NAMES})
    cycles.prepare()  # raises CycleError
    levels = {module: level(module) for module in NAMES}
    assert max(levels.values()) <= MAX_LEVELS, sorted(levels.items(), key=lambda item: item[1])


def test_package_has_few_entries() -> None:
    entries = {path.name for path in SOURCE.iterdir()} - {"__pycache__"}
    assert len(entries) <= MAX_ENTRIES, entries


@pytest.mark.parametrize("part", GENERIC)
def test_generic_package_contains_no_name_of_the_schema(part: str) -> None:
    head = HISTORY.schema(HISTORY.head)
    names = {table.name for table in head.values()} | set(HISTORY.revisions)
    names |= {"langfuse_trace_id", "langfuse_migrations"}
    for path in (SOURCE / part).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not {name for name in names if name in text}, path


@every_module
def test_module_contains_no_revision_id(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not {revision for revision in HISTORY.revisions if revision in text}


@every_module
def test_module_and_its_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert code_lines(node, lines) <= MAX_FUNCTION_LINES, node.name


def code_lines(function: ast.FunctionDef, lines: list[str]) -> int:
    """Return the number of lines of a function without docstring, comments and blank lines."""
    first, *_ = function.body
    documentation: range | tuple[int, ...] = ()
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        documentation = range(first.lineno, (first.end_lineno or 0) + 1)
    numbers = range(function.lineno, (function.end_lineno or 0) + 1)
    texts = [lines[number - 1].strip() for number in numbers if number not in documentation]
    return sum(bool(text) and not text.startswith("#") for text in texts)


@every_module
def test_only_one_module_uses_private_interfaces_of_alembic(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name != "alembic_internals.py":
        private = ("RevisionStep", 'opts["fn"]', "destination_rev", "nextrev", "migration_fn")
        private += ("_setups", "_proxy", "_migration_context")
        assert not [name for name in private if name in text]
