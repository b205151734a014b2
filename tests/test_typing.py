"""The types that an app sees: a consumer's file and the examples, checked by mypy, strictly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.databases import CHECKOUT, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="langfuse needs Python 3.11"),
]

CONSUMER = Path(__file__).parent / "consumer" / "app.py"


def mypy(*files: Path) -> str:
    """Check files as those of another project, to whom our package is just installed."""
    outcome = run(
        sys.executable,
        *("-m", "mypy", "--strict", "--no-error-summary", "--config-file="),
        f"--cache-dir={CHECKOUT / '.mypy_cache' / 'consumer'}",
        *map(str, files),
        cwd=CONSUMER.parent,
    )
    return outcome.stdout + outcome.stderr


def test_mypy_strict_accepts_consumer_and_examples() -> None:
    assert mypy(CONSUMER, *sorted((CHECKOUT / "examples").glob("*.py"))) == ""


def test_mypy_strict_reports_wrong_types_of_consumer(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from langfuse_schema import ScoreName\n"
        "from langfuse_schema.verify import verify\n"
        "name: int = ScoreName.USER_FEEDBACK\n"
        "code: int = verify('url')[0].code\n"
        "verify(3)\n"
    )
    found = mypy(wrong)
    assert [line.split(":")[1] for line in found.splitlines()] == ["3", "4", "5"], found
