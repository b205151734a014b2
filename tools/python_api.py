"""Render the reference of the Python API from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import fields, is_dataclass
from enum import EnumMeta
from importlib import import_module
from inspect import Parameter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = ("", ".migrations", ".verify", ".online", ".operations", ".testing")
"""The public modules, below `langfuse_schema`."""

_LINE = 80

_SECTION = re.compile(r"^(Arguments|Attributes|Returns|Raises):\n", re.MULTILINE)
_ENTRY = re.compile(r"^([\w*]+): ", re.MULTILINE)


def render() -> str:
    """Return the sections of the public modules, with their functions and classes."""
    described: set[int] = set()
    return "\n\n".join(part for name in MODULES for part in _module(name, described))


def _module(suffix: str, described: set[int]) -> Iterator[str]:
    """Yield the parts of a module. Names that are already described are skipped."""
    module = import_module(f"langfuse_schema{suffix}")
    yield f"## {module.__name__}"
    names = getattr(module, "__all__", [suffix.removeprefix(".")])
    tables = [name for name in names if not callable(getattr(module, name))]
    if tables:
        yield f"SQLAlchemy objects: {', '.join(f'`{name}`' for name in tables)}."
    for name in names:
        found = getattr(module, name)
        documented = inspect.isclass(found) or (inspect.isroutine(found) and not _is_fixture(found))
        if documented and id(found) not in described:
            described.add(id(found))
            yield from _described(name, found)


def _is_fixture(found: object) -> bool:
    """Return whether the object is a fixture. Another page describes the fixtures."""
    return "pytest" in type(found).__module__ or hasattr(found, "_pytestfixturefunction")


def _described(name: str, found: object) -> Iterator[str]:
    """Yield the heading, the signature and the docstring of a function or a class."""
    yield f"### {name}"
    if isinstance(found, EnumMeta):
        values = ", ".join(f"`{member.name}`" for member in found)
        yield f"{inspect.getdoc(found)} Members: {values}."
        return
    # A caller never creates a protocol, so its arguments are left out.
    if not getattr(found, "_is_protocol", False):
        yield f"```text\n{_signature(name, found)}\n```"
    summary, *sections = _SECTION.split(inspect.getdoc(found) or "")
    yield summary.strip()
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        yield f"{title}:\n\n{_section(title, text)}"
    if is_dataclass(found) and not sections:
        yield "Fields: " + ", ".join(f"`{field.name}`" for field in fields(found)) + "."


def _section(title: str, text: str) -> str:
    """Return the entries of a section as a table, or its text."""
    if title == "Returns":
        return " ".join(text.split())
    _, *entries = _ENTRY.split(textwrap.dedent(text))
    lines = ["| name | meaning |", "|---|---|"]
    for name, meaning in zip(entries[::2], entries[1::2], strict=True):
        lines.append(f"| `{name}` | {' '.join(meaning.split()).replace('|', '&#124;')} |")
    return "\n".join(lines)


def _signature(name: str, found: object) -> str:
    """Return the signature. A long signature has one argument per line."""
    signature = inspect.signature(found)  # type: ignore[arg-type] # a function or a class
    parts = [str(parameter) for parameter in signature.parameters.values()]
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if Parameter.KEYWORD_ONLY in kinds and Parameter.VAR_POSITIONAL not in kinds:
        parts.insert(kinds.index(Parameter.KEYWORD_ONLY), "*")
    returned = signature.return_annotation
    text = f"{name}({', '.join(parts)}) -> {returned}"
    if len(text) > _LINE:
        text = "\n".join([f"{name}(", *(f"    {part}," for part in parts), f") -> {returned}"])
    # The annotations are strings, because their modules import them for type checkers only.
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
