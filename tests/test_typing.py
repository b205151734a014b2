"""The public types. mypy (strict) and pyright check a consumer and the examples."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.databases import CHECKOUT, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="langfuse needs Python 3.11"),
]

CONSUMER = Path(__file__).parent / "consumer" / "app.py"


def mypy(*files: Path) -> str:
    """Check files as files of a project that installs langfuse-schema, and return the output."""
    outcome = run(
        sys.executable,
        *("-m", "mypy", "--strict", "--no-error-summary", "--config-file="),
        f"--cache-dir={CHECKOUT / '.mypy_cache' / 'consumer'}",
        *map(str, files),
        cwd=CONSUMER.parent,
    )
    return outcome.stdout + outcome.stderr


def pyright(clients: Path, *files: Path) -> list[dict[str, Any]]:
    """Check files with pyright, and return its diagnostics."""
    outcome = run(
        *("node", str(clients / "pyright" / "index.js"), "--outputjson"),
        *("--pythonpath", sys.executable, *map(str, files)),
        cwd=CONSUMER.parent,
    )
    found: list[dict[str, Any]] = json.loads(outcome.stdout)["generalDiagnostics"]
    return found


FILES = [CONSUMER, *sorted((CHECKOUT / "examples").glob("*.py"))]

WRONG_TYPES = """
from langfuse_schema import ScoreName
from langfuse_schema.verify import verify
name: int = ScoreName.USER_FEEDBACK
code: int = verify('url')[0].code
verify(3)
"""


@pytest.fixture
def wrong_types(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.py"
    path.write_text(WRONG_TYPES.lstrip())
    return path


def test_mypy_strict_accepts_consumer_and_examples() -> None:
    assert mypy(*FILES) == ""


def test_mypy_strict_reports_wrong_types_of_consumer(wrong_types: Path) -> None:
    found = mypy(wrong_types)
    assert [line.split(":")[1] for line in found.splitlines()] == ["3", "4", "5"], found


def test_pyright_accepts_consumer_and_examples(clients: Path) -> None:
    assert pyright(clients, *FILES) == []


def test_pyright_reports_wrong_types_of_consumer(clients: Path, wrong_types: Path) -> None:
    found = pyright(clients, wrong_types)
    assert [one["range"]["start"]["line"] + 1 for one in found] == [3, 4, 5]
