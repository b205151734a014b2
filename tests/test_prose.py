"""The limits of the language, in the pages of this project and in test projects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.databases import CHECKOUT
from tools import prose

if TYPE_CHECKING:
    from pathlib import Path

GOOD = "You run the command. It prints the result of your run. Then you read the next page."


def exit_code(root: Path, readme: str, comment: str = "", folder: str = "src") -> int:
    """Return the exit code for a project with this README, and this comment in a folder."""
    (root / folder).mkdir()
    (root / folder / "module.py").write_text(f"# {comment}\n", encoding="utf-8")
    (root / "README.md").write_text(readme, encoding="utf-8")
    return prose.main(root)


def test_page_within_limits_exits_0(tmp_path: Path) -> None:
    assert exit_code(tmp_path, GOOD, "Close the connection.") == 0


@pytest.mark.parametrize(
    "expression",
    [
        "Nobody waits.",
        "It prints what was found.",
        "It has a lock of its own.",
        "It is built anew.",
        "The command says so.",
        "It stands there.",
        "These are our tables.",
    ],
)
@pytest.mark.parametrize("place", ["page", "src", "tests"])
def test_expression_over_limit_exits_1_and_is_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], expression: str, place: str
) -> None:
    texts = (f"{GOOD} {expression}",) if place == "page" else (GOOD, expression, place)
    assert exit_code(tmp_path, *texts) == 1
    quoted = [line for line in capsys.readouterr().out.splitlines() if expression[:-1] in line]
    assert len(quoted) == 1
    assert quoted[0].startswith("  README.md: …" if place == "page" else f"  {place}/module.py: …")


@pytest.mark.parametrize(
    "text",
    [
        "```console\n$ say what is ours\n```",
        "| nobody | what is |\n|---|---|",
        "## What is ours",
        "`nobody says what is ours`",
        "[link](nobody.md)",
        "<!-- nobody -->",
    ],
)
def test_code_tables_headings_and_targets_of_links_are_ignored(tmp_path: Path, text: str) -> None:
    assert exit_code(tmp_path, f"{GOOD}\n\n{text}\n") == 0


@pytest.mark.parametrize(
    ("readme", "problem"),
    [
        ("The command prints the result.", "you: fewer than 8"),
        ("You run it: it ends. You read it; it is short. You stop.", "have : or ;"),
        (GOOD + "\n" * 131, "README.md has 131 lines"),
    ],
)
def test_page_over_other_limit_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], readme: str, problem: str
) -> None:
    assert exit_code(tmp_path, readme) == 1
    assert problem in capsys.readouterr().out


def test_japanese_and_generated_pages_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("plan.ja.md", "revisions.md", "deploy.md"):
        (tmp_path / "docs" / name).write_text("Nobody waits.", encoding="utf-8")
    assert prose.pages_of(tmp_path) == {"docs/deploy.md": "Nobody waits."}


def test_readme_contributing_and_security_are_within_limits() -> None:
    pages = {name: text for name, text in prose.pages_of(CHECKOUT).items() if "/" not in name}
    assert len(pages) == 3
    assert prose.problems(CHECKOUT, pages) == []
