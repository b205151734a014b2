"""The example apps with tests. Each runs from a copy in a temporary folder."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.databases import CHECKOUT, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def copy_example(example: str, folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    return shutil.copytree(CHECKOUT / "examples" / example, folder / example, ignore=ignored)


@pytest.mark.parametrize("example", ["fastapi_app", "plain_app"])
def test_tests_of_app_pass_twice_in_a_row(example: str, tmp_path: Path) -> None:
    app = copy_example(example, tmp_path)
    for arguments in ((), ("-n", "2")):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        outcome = run(*command, cwd=app, TMPDIR=str(app.parent))
        assert outcome.code == 0, outcome.stdout
        assert " passed" in outcome.stdout
    assert [path.name for path in app.parent.iterdir() if "langfuse" in path.name] == []


def test_deploy_command_of_app_succeeds_twice_in_a_row(tmp_path: Path) -> None:
    app = copy_example("fastapi_app", tmp_path)
    deploy = "alembic upgrade head && langfuse-schema upgrade head && langfuse-schema verify"
    for _ in range(2):
        outcome = run(
            sys.executable, "-m", "langfuse_schema", "dev", "--fresh", "--without-app-tables",
            "sh", "-c", f"{deploy} && {deploy} && alembic check && alembic revision -m empty",
            cwd=app,
            PATH=f"{sys.exec_prefix}/bin:/usr/bin:/bin",
        )  # fmt: skip
        assert outcome.code == 0, outcome.stderr
        assert "No new upgrade operations detected." in outcome.stdout
