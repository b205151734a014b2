"""The command line with closed or full output, and interrupted before it starts."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.databases import environment

FULL = Path("/dev/full")

_INTERRUPTED_IMPORT = """
import sys
import langfuse_schema.__main__ as program

class Interrupting:
    def find_spec(self, name, *_):
        if name == "langfuse_schema.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
program.main()
"""


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of a shell, in which `$0` is langfuse-schema."""
    program = f"{shlex.quote(sys.executable)} -m langfuse_schema"
    return subprocess.run(
        ["/bin/sh", "-c", command.replace("$0", program)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", ["history", pytest.param("--help", marks=pytest.mark.slow)])
def test_full_output_device_is_reported_once_with_exit_code_2(arguments: str) -> None:
    if not FULL.exists():
        pytest.skip("this system has no /dev/full")
    ended = shell(f"PYTHONUNBUFFERED= $0 {arguments} > {FULL}")
    assert ended.returncode == 2
    assert ended.stderr.startswith("FAILED: ")
    assert ended.stderr.count("No space left on device") == 1
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "closed", [">&- 2>&-", *(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "2>&-"))]
)
def test_closed_streams_do_not_fail_a_command(closed: str) -> None:
    ended = shell(f"$0 history {closed}")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_interrupt_during_imports_exits_130_without_traceback() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_IMPORT],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 130
    assert ended.stderr == "interrupted before the start\n"
