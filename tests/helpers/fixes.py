"""The fixes of messages, run as a user runs them, in psql and in a shell."""

from __future__ import annotations

import functools
import itertools
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.helpers.databases import SUPERUSER, Database, Outcome, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from langfuse_schema._postgres.findings import Finding

DECLARED: set[str] = set()
"""The codes whose fixes the imported tests follow."""

_FOLLOWED: set[str] = set()
"""The codes whose fixes the current test has followed."""

_STATEMENT = re.compile(r"[A-Z]{2,}\b")
_NAMED_ROLE = re.compile(r"As \"?(\w+)\"?, or as a superuser, run:")

_PRINTING = ("langfuse-schema preflight", "langfuse-schema verify")
"""Commands of fixes that exit with 1 if they print findings."""


def follows(*codes: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare that a test follows the fixes of these codes, and check that it does."""
    DECLARED.update(codes)

    def checked(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def checking(*arguments: Any, **fixtures: Any) -> None:
            _FOLLOWED.clear()
            test(*arguments, **fixtures)
            assert set(codes) <= _FOLLOWED

        return checking

    return checked


def user_of(finding: Finding) -> str:
    """Return the role that must run a fix: postgres, unless the advice names another role."""
    advice = str(finding.advice)
    named = _NAMED_ROLE.search(advice)
    if named:
        return named[1]
    return SUPERUSER if "As " in advice else "postgres"


def commands(finding: Finding) -> tuple[str, ...]:
    """Return the commands of a fix, and record them as followed."""
    assert finding.fix, finding
    _FOLLOWED.add(finding.code)
    return finding.fix


def printed_commands(output: str, code: str) -> tuple[str, ...]:
    """Return the commands of a printed fix, and record them as followed."""
    block = re.search(rf"\[{code}\]: .*?\n  fix: (.*?)\n  docs: ", output, re.DOTALL)
    assert block, output
    _FOLLOWED.add(code)
    _advice, *lines = block[1].splitlines()
    return tuple(line.strip() for line in lines)


def is_sql(command: str) -> bool:
    """Return whether a command is an SQL statement, and check that it ends with a semicolon."""
    if not _STATEMENT.match(command):
        return False
    assert command.endswith(";"), command
    return True


@dataclass(frozen=True)
class Terminal:
    """A shell of a user, with psql and langfuse-schema in PATH.

    Attributes:
        folder: the working directory.
        programs: folders that precede the PATH of this process.
        variables: environment variables, such as DATABASE_URL.
    """

    folder: Path
    programs: tuple[Path, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def type(self, *lines: str, stdin: str | None = None, **variables: str) -> Outcome:
        """Run lines of a shell script, which stops at the first error."""
        path = os.pathsep.join([*map(str, self.programs), os.environ["PATH"]])
        given = {**self.variables, **variables, "PATH": path}
        return run("bash", "-ec", "\n".join(lines), cwd=self.folder, stdin=stdin, **given)

    def psql(self, database: Database, user: str, *statements: str) -> str:
        """Run statements in psql, and return its output."""
        url = database.as_user(user).set(drivername="postgresql")
        variables = {"DATABASE_URL": url.render_as_string(hide_password=False)}
        command = 'psql "$DATABASE_URL" -XAtq -v ON_ERROR_STOP=1'
        outcome = self.type(command, stdin="\n".join(statements), **variables)
        assert outcome.code == 0, (statements, outcome.stderr)
        return outcome.stdout

    def follow(
        self,
        database: Database,
        finding: Finding,
        user: str | None = None,
        values: Mapping[str, str] | None = None,
    ) -> None:
        """Run the fix of a finding.

        Arguments:
            database: the database of the run that printed the finding.
            finding: a finding with a fix.
            user: the role that runs statements; `user_of` if None.
            values: the values of placeholders in capitals.
        """
        lines = [filled(line, values or {}) for line in commands(finding)]
        for sql, group in itertools.groupby(lines, is_sql):
            if sql:
                self.psql(database, user or user_of(finding), *group)
                continue
            # One shell runs all lines, because a line can export a variable for the next one.
            script = [f"{one} || test $? = 1" if one in _PRINTING else one for one in group]
            outcome = self.type(*script, DATABASE_URL=database.text)
            assert outcome.code == 0, (script, outcome.stderr)


def filled(line: str, values: Mapping[str, str]) -> str:
    """Return a line with values instead of placeholders."""
    for name, value in values.items():
        line = line.replace(name, value)
    return line


def scripts_folder() -> Path:
    """Return the folder that contains langfuse-schema of this Python environment."""
    return Path(sys.executable).parent
