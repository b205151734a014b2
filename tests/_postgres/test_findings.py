"""Every code of the catalogue has text, JSON and an anchor in the reference, and is used."""

from __future__ import annotations

import ast
import json
import re
from string import Formatter

import pytest

from langfuse_schema._postgres.findings import (
    CANNOT_RUN,
    NOT_IN_RIGHT_STATE,
    Report,
    SchemaError,
    catalogue,
    exit_code,
    finding,
)
from tests.helpers.databases import CHECKOUT
from tools.pages import EXAMPLES

SOURCE = CHECKOUT / "src" / "langfuse_schema"
REFERENCE = (CHECKOUT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")

every_code = pytest.mark.parametrize("code", catalogue())

DIFFERENCE_CODES = re.compile(r"(.*)-(missing|differs|unexpected)|revision-(behind|ahead)")
"""Codes that `messages.code` and `drift` compose from parts."""


def fields(code: str) -> set[str]:
    """Return the names of the values in the texts of a code."""
    text = "\n".join(catalogue()[code].values())
    return {name for _, name, _, _ in Formatter().parse(text) if name} - {"place"}


@every_code
def test_code_is_rendered_as_text_and_json(code: str) -> None:
    values = {name: f"<{name}>" for name in fields(code)}
    rendered = finding(code, "public.example", **values)
    first, *lines = str(rendered).splitlines()
    assert re.fullmatch(rf"(error|warning)\[{code}\]: .+", first)
    assert lines[-1].split() == ["docs:", f"docs/reference/errors.md#{code}"]
    assert any(line.startswith("  fix:") for line in lines)
    text = str(rendered)
    assert all(value in text for value in values.values())
    (found,) = json.loads(Report(None, (rendered,)).as_json())["findings"]
    assert found.keys() == {
        "code", "severity", "object", "message", "found", "expected", "cause", "state",
        "advice", "fix", "docs", "sqlstate",
    }  # fmt: skip
    assert (found["code"], found["object"]) == (code, "public.example")
    assert isinstance(found["fix"], list)


@every_code
def test_code_has_example_with_every_value(code: str) -> None:
    example = json.loads(EXAMPLES.read_text("utf-8"))[code]
    assert fields(code) <= example["values"].keys()
    rendered = finding(code, example["object"], **example["values"])
    assert f"```text\n{rendered}\n```" in REFERENCE


@every_code
def test_code_has_anchor_in_reference(code: str) -> None:
    assert f"\n## {code}\n" in REFERENCE


@every_code
def test_code_is_lower_case_words_with_hyphens(code: str) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+", code)
    assert catalogue()[code]["about"].endswith(".")


def calls() -> list[ast.Call]:
    """Return the calls of `finding` in the source."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node for node in nodes if ast.unparse(node.func) == "finding"]


def literal_codes(node: ast.expr) -> set[str]:
    """Return the codes that an expression contains as strings."""
    return {
        str(part.value)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and str(part.value) in catalogue()
    }


def test_every_code_is_used() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    unused = [
        code
        for code in catalogue()
        if f'"{code}"' not in sources and not DIFFERENCE_CODES.fullmatch(code)
    ]
    assert unused == []


def test_every_call_passes_values_of_its_code() -> None:
    for call in calls():
        given = {keyword.arg for keyword in call.keywords}
        for code in literal_codes(call.args[0]) if None not in given else ():
            assert fields(code) <= given, (code, ast.unparse(call))


def test_multi_line_values_are_indented() -> None:
    rendered = str(finding("table-in-use", "t", seconds="1", cause="one\ntwo"))
    assert "\n  cause: one\n         two\n" in rendered


def test_lines_of_statement_are_indented() -> None:
    rendered = str(finding("policy-missing", "t", advice="Run:", expected="e", fix=["a\n  b;"]))
    assert "\n  fix:      Run:\n              a\n                b;\n" in rendered


def test_sqlstate_is_printed_after_code() -> None:
    refused = finding("server-refused", "t", cause="c", advice="a", sqlstate="42501")
    assert str(refused).startswith("error[server-refused 42501]: ")


@pytest.mark.parametrize(
    ("code", "expected"),
    [("url-missing", CANNOT_RUN), ("table-locked", NOT_IN_RIGHT_STATE)],
)
def test_exit_code_is_read_from_catalogue(code: str, expected: int) -> None:
    values = dict.fromkeys(fields(code), "x")
    assert exit_code([finding(code, "t", **values)]) == expected


def test_schema_error_contains_all_findings() -> None:
    findings = [finding("app-table-missing", name) for name in ("one", "two")]
    error = SchemaError(*findings)
    assert error.findings == tuple(findings)
    assert all(str(one) in str(error) for one in findings)
