"""The output of the command line: closed or full streams, interrupts and colours."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest

from langfuse_schema._postgres.terminal import coloured
from tests.helpers.databases import Outcome, environment, run

FULL_DEVICE = Path("/dev/full")

_INTERRUPTED_IMPORT = """
import sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
sys.argv = [{program!r}, "history"]
from langfuse_schema.__main__ import main
main()
"""


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which `$0` is langfuse-schema."""
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
@pytest.mark.parametrize("unbuffered", [pytest.param("", marks=pytest.mark.slow), "1"])
def test_full_output_device_is_reported_once_with_exit_code_2(
    arguments: str, unbuffered: str
) -> None:
    if not FULL_DEVICE.exists():
        pytest.skip("this system has no /dev/full")
    ended = shell(f"PYTHONUNBUFFERED={unbuffered} $0 {arguments} > {FULL_DEVICE}")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error[output-failed]: could not write the output\n")
    assert ended.stderr.count("No space left on device") == 1


@pytest.mark.parametrize("unbuffered", [pytest.param("", marks=pytest.mark.slow), "1"])
def test_reader_that_closes_output_is_reported_by_exit_code_141(unbuffered: str) -> None:
    ended = shell(f"{{ PYTHONUNBUFFERED={unbuffered} $0 history; echo $? >&2; }} | exec true")
    assert ended.stderr == "141\n"


@pytest.mark.parametrize(
    "closed", [">&- 2>&-", *(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "2>&-"))]
)
def test_closed_streams_do_not_fail_a_command(closed: str) -> None:
    ended = shell(f"$0 history {closed}")
    assert (ended.returncode, ended.stderr) == (0, "")


def interrupted(program: str, module: str) -> Outcome:
    """Run a program in which Ctrl-C interrupts the import of a module."""
    return run(sys.executable, "-c", _INTERRUPTED_IMPORT.format(program=program, module=module))


@pytest.mark.parametrize("module", ["sqlalchemy", "langfuse_schema.cli"])
@pytest.mark.parametrize("program", ["/usr/bin/langfuse-schema", "-m"])
def test_interrupt_during_imports_exits_130_without_traceback(program: str, module: str) -> None:
    ended = interrupted(program, module)
    assert ended.code == 130
    assert ended.stderr == "interrupted before the start\n"


def test_interrupt_during_import_into_other_program_is_raised() -> None:
    ended = interrupted("/usr/bin/app", "sqlalchemy")
    assert ended.stderr.endswith("\nKeyboardInterrupt\n")


def on_terminal(*arguments: str, **variables: str) -> str:
    """Return the output of langfuse-schema on a terminal."""
    parent_end, child_end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "langfuse_schema", *arguments],
        env=environment(**{"TERM": "xterm"} | variables),
        stdout=child_end,
        stderr=child_end,
    ):
        os.close(child_end)
        printed = b""
        with suppress(OSError):  # Linux reports a closed terminal as an error
            while part := os.read(parent_end, 4096):
                printed += part
    os.close(parent_end)
    return printed.decode()


@pytest.mark.parametrize(
    ("variables", "colours"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_error_has_colour_on_terminal_only_and_not_under_no_color(
    variables: dict[str, str], colours: bool
) -> None:
    unreachable = {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}
    printed = on_terminal("preflight", **unreachable, **variables)
    assert ("\x1b[31merror\x1b[0m[server-unreachable]" in printed) == colours
    assert ("\x1b" in printed) == colours
    redirected = run(sys.executable, "-m", "langfuse_schema", "preflight", **unreachable)
    assert "error[server-unreachable]" in redirected.stderr
    assert "\x1b" not in redirected.stderr


def test_checklist_has_colour_on_terminal_only() -> None:
    terminal = StringIO()
    text = "[x] tables … 4\n[ ] policies … 2 of 3\n[-] index … not checked\nerror[x]: [x]"
    assert coloured(text, terminal) == text
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.delenv("NO_COLOR", raising=False)
        lines = coloured(text, terminal).splitlines()
    assert [line[:5] for line in lines] == ["\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[31m"]
    assert lines[-1].endswith("[x]: [x]")
