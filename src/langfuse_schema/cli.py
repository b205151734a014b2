"""The command line `langfuse-schema`: Alembic's own over the packaged revisions, and ours."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from argparse import REMAINDER, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from alembic import command
from alembic.config import CommandLine, Config
from alembic.util import CommandError

from langfuse_schema import environment, migrations
from langfuse_schema._postgres.findings import Report, SchemaError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langfuse_schema.embedded import Server

_ALEMBIC_COMMANDS = (
    command.upgrade,
    command.downgrade,
    command.current,
    command.history,
    command.heads,
    command.show,
    command.check,
    command.stamp,
)
"""Those that make sense over revisions which somebody else maintains."""

_FAILED = 1
_CANNOT_RUN = 2
_BY_SIGNAL = 128  # and its number, as shells have it

_WHERE_TO_LOOK = """\
the revisions there are:  langfuse-schema history
where the database is:    langfuse-schema current"""

_DESCRIPTION = """\
The Langfuse tables of a Supabase app, as Alembic revisions.

The database is the first that is set: -x url=URL, DATABASE_URL; -x embedded=true starts a
throw-away PostgreSQL of its own."""

_EXAMPLES = """\
examples:
  langfuse-schema preflight               would an upgrade succeed? changes nothing
  langfuse-schema upgrade head            migrate, or find nothing to do
  langfuse-schema upgrade head --sql      print the SQL instead
  langfuse-schema verify                  is it what the revisions promised? changes nothing
  langfuse-schema export supabase/migrations
                                          the revisions as files for the Supabase CLI
  langfuse-schema downgrade -1            take the newest revision back
  langfuse-schema dev                     a database to play with; Ctrl-C stops it"""


_EXAMPLES_OF = {
    "upgrade": (
        "langfuse-schema upgrade head",
        "langfuse-schema upgrade REVISION",
        "langfuse-schema upgrade head --sql",
        "langfuse-schema -x lock_timeout=2s -x lock_deadline=1h upgrade head",
    ),
    "downgrade": (
        "langfuse-schema downgrade -1",
        "langfuse-schema downgrade base",
        "langfuse-schema downgrade head:base --sql",
    ),
    "current": ("langfuse-schema current", "langfuse-schema current --verbose"),
    "history": ("langfuse-schema history", "langfuse-schema history --indicate-current"),
    "heads": ("langfuse-schema heads",),
    "show": ("langfuse-schema show head",),
    "check": ("langfuse-schema check",),
    "stamp": ("langfuse-schema stamp REVISION", "langfuse-schema stamp base"),
    "preflight": ("langfuse-schema preflight", "langfuse-schema preflight --format json"),
    "verify": (
        "langfuse-schema verify",
        "langfuse-schema verify --revision REVISION",
        "langfuse-schema verify --format json",
    ),
    "export": (
        "langfuse-schema export supabase/migrations",
        "langfuse-schema export supabase/migrations --after REVISION",
    ),
    "dev": ("langfuse-schema dev", "langfuse-schema dev psql -c '\\dt'"),
}
"""What `--help` of each command shows; a test runs them."""


class _Parser(ArgumentParser):
    """One that says where the options of a run stand."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with 2."""
        if "unrecognized arguments: -x" in message:
            message += "\n-x stands before the command: langfuse-schema -x NAME=VALUE COMMAND"
        super().error(message)


class _CommandLine(CommandLine):
    """Alembic's command line without the commands that would write into site-packages."""

    def __init__(self) -> None:
        parser: ArgumentParser = _Parser(
            prog="langfuse-schema",
            description=_DESCRIPTION,
            epilog=_EXAMPLES,
            formatter_class=RawDescriptionHelpFormatter,
        )
        self.parser = parser
        self.parser.add_argument("--version", action="store_true", help="print the version")
        self.parser.add_argument(
            "-x",
            action="append",
            metavar="NAME=VALUE",
            help="url, embedded, lock_timeout (500ms), lock_deadline (10min)",
        )
        self.parser.add_argument(
            "--raiseerr", action="store_true", help="show a traceback with an error"
        )
        self.parser.add_argument(
            "-q", "--quiet", action="store_true", help="print nothing but warnings and errors"
        )
        self.subparsers = parser.add_subparsers(metavar="COMMAND")
        for function in _ALEMBIC_COMMANDS:
            self.register_command(function)
        self._add_preflight()
        self._add_verify()
        self._add_export()
        self._add_dev()
        for name, parser in self.subparsers.choices.items():
            parser.formatter_class = RawDescriptionHelpFormatter
            parser.epilog = "\n  ".join(["examples:", *_EXAMPLES_OF[name]])

    def _add_preflight(self) -> None:
        parser = self.subparsers.add_parser(
            "preflight", help="Find what would make an upgrade fail; change nothing."
        )
        parser.add_argument("--format", choices=("text", "json"), default="text")
        parser.set_defaults(cmd=(_preflight, [], ["format"]))

    def _add_verify(self) -> None:
        parser = self.subparsers.add_parser(
            "verify", help="Compare the database with what the revisions make; change nothing."
        )
        parser.add_argument("--format", choices=("text", "json"), default="text")
        parser.add_argument(
            "--revision", default="head", metavar="ID", help="where it should be (default: head)"
        )
        parser.set_defaults(cmd=(_verify, [], ["format", "revision"]))

    def _add_export(self) -> None:
        parser = self.subparsers.add_parser(
            "export", help="Write the revisions as SQL files for the Supabase CLI."
        )
        parser.add_argument("directory", metavar="DIR", help="usually supabase/migrations")
        parser.add_argument("--after", metavar="ID", help="leave out this revision and all before")
        parser.add_argument("--force", action="store_true", help="overwrite files that differ")
        parser.set_defaults(cmd=(_export, ["directory"], ["after", "force"]))

    def _add_dev(self) -> None:
        parser = self.subparsers.add_parser(
            "dev",
            help="Run the embedded database until Ctrl-C, or as long as a command runs.",
            description="Run the embedded database: without a command until Ctrl-C, with one as"
            " long as it runs, with DATABASE_URL and the variables of libpq set for it.",
        )
        parser.add_argument("command", nargs=REMAINDER, help="a command and its arguments")
        parser.set_defaults(cmd=(_dev, ["command"], []))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with the code of its command.

    Arguments:
        arguments: without the program's name; those of the process if None.
    """
    line = _CommandLine()
    options = line.parser.parse_args(arguments)
    if options.version:
        from importlib.metadata import version

        print("langfuse-schema", version("langfuse-schema"))
        return
    if not hasattr(options, "cmd"):
        line.parser.error("a command is missing; --help lists them")
    sys.exit(_run(Config(environment.config_file(), cmd_opts=options), options))


def _run(config: Config, options: Namespace) -> int:
    function, positional, keywords = options.cmd
    values: dict[str, Any] = vars(options)
    code: int | None
    try:
        code = function(
            config,
            *[values.get(name) for name in positional],
            **{name: values.get(name) for name in keywords},
        )
        sys.stdout.flush()
    except CommandError as error:
        if options.raiseerr:
            raise
        print("FAILED:", error, file=sys.stderr)
        ours = function in (_preflight, _verify, _export, _dev)
        if isinstance(error, SchemaError):
            if values.get("format") == "json":
                print(Report(None, error.findings).as_json())
        elif not ours:
            print(_WHERE_TO_LOOK, file=sys.stderr)
        return _CANNOT_RUN if ours else _FAILED
    except BrokenPipeError:
        # Whoever read the output, like `head`, has seen enough. Nothing is left to be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BY_SIGNAL + signal.SIGPIPE
    except OSError as error:
        if options.raiseerr:
            raise
        print("FAILED:", error, file=sys.stderr)
        return _CANNOT_RUN
    except KeyboardInterrupt as interrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        number: int = next(iter(interrupt.args), signal.SIGINT)
        return _BY_SIGNAL + number
    return code or 0


def _preflight(config: Config, format: str) -> int:  # noqa: A002 - the option's name
    environment.configure_logging(config)
    report = migrations.preflight_report(config)
    print(report.as_json() if format == "json" else report.as_text())
    return 0 if report.ok else _FAILED


def _verify(config: Config, format: str, revision: str) -> int:  # noqa: A002 - the option's name
    from langfuse_schema import verify

    environment.configure_logging(config)
    report = migrations.verify_report(config, revision)
    print(report.as_json() if format == "json" else verify.as_text(report))
    return 0 if report.ok else _FAILED


def _export(config: Config, directory: str, after: str | None, force: bool) -> int:
    from langfuse_schema import export

    rendered = export.files(config, after)
    written = export.write(Path(directory), rendered, force=force)
    for name in rendered:
        print(Path(directory, name), "" if name in written else "(unchanged)")
    others = export.others(Path(directory), rendered)
    if not rendered:
        print(f"nothing to write: no revision comes after {after}", file=sys.stderr)
    if others:
        print(
            f"{others[-1]} has a newer number: if the database has it already, type\n"
            "supabase migration up --include-all",
            file=sys.stderr,
        )
    return 0


def _dev(_config: Config, command_line: list[str]) -> int:
    from langfuse_schema import embedded

    base = environment.checkout() or Path.cwd()
    try:
        if not command_line or command_line == ["--"]:
            embedded.dev(base, print)
            return 0
        with embedded.open_default(base) as server:
            return _run_beside(server, command_line[command_line[0] == "--" :])
    except embedded.EmbeddedError as error:
        raise CommandError(str(error)) from error


def _run_beside(server: Server, command_line: list[str]) -> int:
    """Run somebody's command with our database as its default."""
    variables = {
        "DATABASE_URL": server.connection_string(),
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "PGDATABASE": "postgres",
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), str(server.bin)]),
    }
    # Ctrl-C is for the command; psql, for one, goes on after it.
    former = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        program = shutil.which(command_line[0], path=variables["PATH"])
        if program is None:
            raise CommandError(f"{command_line[0]}: no such command; check its name and PATH")
        code = subprocess.run(  # noqa: S603 - running what the user typed is the purpose
            [program, *command_line[1:]], env={**os.environ, **variables}, check=False
        ).returncode
        return code if code >= 0 else _BY_SIGNAL - code
    finally:
        signal.signal(signal.SIGINT, former)
