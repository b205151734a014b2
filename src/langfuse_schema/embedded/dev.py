"""The command `langfuse-schema dev`: run the embedded database, for a command or until Ctrl-C."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from langfuse_schema._postgres.findings import SchemaError, finding
from langfuse_schema.embedded import removal
from langfuse_schema.embedded.folders import EmbeddedError
from langfuse_schema.embedded.opening import LOOPBACK, Opening, open_default, open_temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from langfuse_schema.embedded.server import Server

_BY_SIGNAL = 128  # plus its number, as in shells


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        port: the TCP port on 127.0.0.1, 0 for a free one, or None for the Unix socket only.
        fresh: whether it is a new, empty database that is deleted at the end.
        without_app_tables: whether a new database has no tables of the app.
        remove: whether the database is deleted instead.
    """

    port: int | None = None
    fresh: bool = False
    without_app_tables: bool = False
    remove: bool = False

    def open(self, base: Path) -> Server:
        """Return the server of a folder, or one with a new database."""
        opening = Opening(self.port, app_tables=not self.without_app_tables)
        return open_temporary(opening) if self.fresh else open_default(base, opening)


def command(
    base: Path,
    command_line: Sequence[str],
    options: Options,
    out: Callable[[str], None],
    note: Callable[[str], None],
) -> int:
    """Run the command with its options, and return the exit code.

    Arguments:
        base: the checkout or working directory.
        command_line: the command to run, with its arguments. None runs until Ctrl-C.
        options: of the command.
        out: prints a line of the result.
        note: prints any other line.

    Raises:
        SchemaError: see `run`, `run_beside` and `remove`, or the options exclude each other.
    """
    command_line = command_line[1:] if command_line[:1] == ["--"] else command_line
    if options.remove:
        if command_line or options != Options(remove=True):
            values = {"found": "another option or a command", "expected": "nothing beside it"}
            advice = "Run: langfuse-schema dev --remove"
            raise EmbeddedError(finding("option-invalid", "--remove", advice=advice, **values))
        remove(base, out)
        return 0
    if not command_line:
        run(base, out, options)
        return 0
    return run_beside(base, command_line, options, note)


def run(base: Path, out: Callable[[str], None], options: Options | None = None) -> None:
    """Run the embedded database of a folder until SIGINT or SIGTERM.

    Arguments:
        base: the checkout or working directory.
        out: prints a line. The first line is the URL.
        options: of the command.

    Raises:
        EmbeddedError: the server could not start, or was killed.
    """
    options = options or Options()
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        server = options.open(base)
        try:
            for line in (*_urls(server), _files(server, base, options)):
                out(line)
            out("Press Ctrl-C to stop it.")
            while not stop.wait(1.0):
                if not server.is_running():
                    raise EmbeddedError(finding("embedded-killed", str(server.directory)))
        finally:
            stopped = server.close()
        out("Stopped." if stopped else "Still running, until the last program that uses it ends.")
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def _urls(server: Server) -> list[str]:
    """Return the URL, a command of psql, and over TCP the URL for JDBC."""
    lines = [server.connection_string(), server.psql_command()]
    if server.password is not None:
        values = f"user=postgres&password={server.password}"
        lines.append(f"jdbc:postgresql://{LOOPBACK}:{server.port}/postgres?{values}")
    return lines


def _files(server: Server, base: Path, options: Options) -> str:
    """Return a sentence with the place of the files, and the command that deletes them."""
    if options.fresh:
        return f"Files: {server.directory}, deleted at the end."
    command = f"cd {shlex.quote(str(base))} && {_program(base)} dev --remove"
    return f"Files: {server.directory}. To delete them: {command}"


def _program(base: Path) -> str:
    """Return this program as a shell command that works in a folder."""
    program = Path(sys.executable).with_name("langfuse-schema")
    if shutil.which("langfuse-schema") == str(program):
        return "langfuse-schema"
    if not program.exists():
        return f"{shlex.quote(sys.executable)} -m langfuse_schema"
    return shlex.quote(str(program.relative_to(base) if base in program.parents else program))


def run_beside(
    base: Path, command_line: Sequence[str], options: Options, note: Callable[[str], None]
) -> int:
    """Run a command with the embedded database as its default, and return its exit code.

    Raises:
        SchemaError: the command does not exist.
        EmbeddedError: the server could not start.
    """
    with options.open(base) as server:
        note(_files(server, base, options))
        variables = {
            "DATABASE_URL": server.connection_string(),
            "PGHOST": LOOPBACK if server.password else server.host,
            "PGPORT": str(server.port),
            "PGUSER": "postgres",
            "PGDATABASE": "postgres",
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), str(server.bin)]),
        }
        if server.password:
            variables["PGPASSWORD"] = server.password
        # Ctrl-C is for the command. psql, for one, continues after it.
        former = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            program = shutil.which(command_line[0], path=variables["PATH"])
            if program is None:
                raise SchemaError(finding("command-missing", command_line[0]))
            code = subprocess.run(  # noqa: S603 - the purpose is to run the command of the user
                [program, *command_line[1:]], env={**os.environ, **variables}, check=False
            ).returncode
            return code if code >= 0 else _BY_SIGNAL - code
        finally:
            signal.signal(signal.SIGINT, former)


def remove(base: Path, out: Callable[[str], None]) -> None:
    """Delete the embedded database of a folder, wherever its files are.

    Raises:
        EmbeddedError: another program uses it, or another user owns it.
    """
    try:
        removed = removal.remove(base)
    except removal.InUseError as error:
        raise EmbeddedError(finding("embedded-in-use", str(error))) from error
    except PermissionError as error:
        folder, python = shlex.quote(str(base)), shlex.quote(sys.executable)
        command = f"cd {folder} && sudo {python} -m langfuse_schema dev --remove"
        values = {"cause": str(error), "fix": [command]}
        refused = finding("embedded-not-removed", str(base), **values)
        raise EmbeddedError(refused) from error
    for directory in removed:
        out(f"Deleted {directory}")
    if not removed:
        out(f"There is no embedded database in {base}. Nothing to do.")
