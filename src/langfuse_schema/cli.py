"""The command line `langfuse-schema`: Alembic's commands over the revisions, and its own."""

from __future__ import annotations

import os
import signal
import sys
from argparse import (
    REMAINDER,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from alembic import command
from alembic.config import CommandLine, Config
from alembic.util import CommandError

from langfuse_schema import migrations
from langfuse_schema._history.chain import History, config_file
from langfuse_schema._postgres.findings import (
    CANNOT_RUN,
    NOT_IN_RIGHT_STATE,
    Report,
    SchemaError,
    counted,
    exit_code,
)
from langfuse_schema._runtime.environment import configure_logging, interrupts

if TYPE_CHECKING:
    from collections.abc import Sequence

_ALEMBIC_COMMANDS = (
    *(command.upgrade, command.downgrade, command.current, command.history),
    *(command.heads, command.show, command.check, command.stamp),
)
"""The commands of Alembic that do not write revision files."""

_BY_SIGNAL = 128  # plus its number, as in shells

_REVISIONS = """\
To list the revisions:    langfuse-schema history
To read the recorded one: langfuse-schema current"""

_DESCRIPTION = """\
The Langfuse tables of a Supabase app, as Alembic revisions.

The database is the first that is set: -x url=URL, DATABASE_URL. With -x embedded=true it is a
temporary PostgreSQL on this machine.

Exit codes: 0 done, or nothing to do; 1 the database is not as it must be; 2 the command could not
run; 130 and 143 interrupted."""

_EXAMPLES = """\
examples:
  langfuse-schema preflight               check whether an upgrade would succeed
  langfuse-schema upgrade head            migrate, or find nothing to do
  langfuse-schema upgrade head --sql      print the SQL instead
  langfuse-schema verify                  compare the database with the revisions
  langfuse-schema export supabase/migrations
                                          write files for the Supabase CLI
  langfuse-schema downgrade -1            undo the newest revision
  langfuse-schema dev                     run the embedded database until Ctrl-C"""


_EXAMPLES_OF = {
    "upgrade": (
        "upgrade head",
        "upgrade REVISION",
        "upgrade head --sql",
        "-x lock_timeout=2s -x lock_deadline=1h upgrade head",
    ),
    "downgrade": ("downgrade -1", "downgrade base", "downgrade head:base --sql"),
    "current": ("current", "current --verbose"),
    "history": ("history", "history --indicate-current"),
    "heads": ("heads",),
    "show": ("show head",),
    "check": ("check",),
    "stamp": ("stamp REVISION", "stamp base"),
    "preflight": ("preflight", "preflight --format json"),
    "verify": ("verify", "verify --revision REVISION", "verify --verbose", "verify --format json"),
    "export": (
        "export supabase/migrations",
        "export supabase/migrations --after REVISION",
        "export sql-editor --one-transaction",
    ),
    "dev": ("dev", "dev --port 0", "dev --fresh --without-app-tables", "dev psql -c '\\dt'"),
}
"""The examples in `--help` of each command. A test runs them."""


class _Parser(ArgumentParser):
    """A parser that explains the place of the options of a run."""

    def error(self, message: str) -> NoReturn:
        """Print the message, and exit with 2."""
        if "unrecognized arguments: -x" in message:
            message += "\n-x stands before the command: langfuse-schema -x NAME=VALUE COMMAND"
        super().error(message)


class _CommandLine(CommandLine):
    """Alembic's command line without the commands that write revision files."""

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
            help="url, embedded, lock_timeout (500ms), lock_deadline (10min),"
            " connect_timeout (10s)",
        )
        self.parser.add_argument(
            "--raiseerr", action="store_true", help="show a traceback with an error"
        )
        self.parser.add_argument(
            "-q", "--quiet", action="store_true", help="print only warnings and errors"
        )
        self.subparsers = parser.add_subparsers(metavar="COMMAND")
        for function in _ALEMBIC_COMMANDS:
            self.register_command(function)
        self._add_own_commands()
        for name, parser in self.subparsers.choices.items():
            parser.formatter_class = RawDescriptionHelpFormatter
            parser.epilog = "\n  langfuse-schema ".join(["examples:", *_EXAMPLES_OF[name]])

    def _add_own_commands(self) -> None:
        parser = self._add("preflight", "Check whether an upgrade would succeed.")
        parser.add_argument("--format", choices=("text", "json"), default="text")
        parser.set_defaults(cmd=(_preflight, [], ["format"]))

        parser = self._add("verify", "Compare the database with the revisions.")
        parser.add_argument("--format", choices=("text", "json"), default="text")
        parser.add_argument("--revision", default="head", metavar="ID", help="default: head")
        parser.add_argument("--verbose", action="store_true", help="list all differences")
        parser.set_defaults(cmd=(_verify, [], ["format", "revision", "verbose"]))

        parser = self._add("export", "Write the revisions as SQL files for the Supabase CLI.")
        parser.add_argument("directory", metavar="DIR", help="usually supabase/migrations")
        parser.add_argument("--after", metavar="ID", help="leave out this revision and all before")
        parser.add_argument(
            "--one-transaction",
            action="store_true",
            help="for the SQL Editor, and for the CLI before 2.109.0: index builds block writes",
        )
        parser.add_argument("--force", action="store_true", help="overwrite files that differ")
        parser.set_defaults(cmd=(_export, ["directory"], ["after", "one_transaction", "force"]))

        parser = self._add("dev", "Run the embedded database until Ctrl-C, or for a command.")
        parser.add_argument(
            "command",
            nargs=REMAINDER,
            help="a command with its arguments; DATABASE_URL and libpq's variables are set for it",
        )
        parser.add_argument(
            "--port", type=_port, metavar="N", help="listen on 127.0.0.1; 0 for a free port"
        )
        flags = {
            "fresh": "start a new database, and delete it at the end",
            "without-app-tables": "omit the built-in app tables and their rows",
            "remove": "delete the database and its files",
        }
        for name, purpose in flags.items():
            parser.add_argument(f"--{name}", action="store_true", help=purpose)
        keywords = ["port", "fresh", "without_app_tables", "remove"]
        parser.set_defaults(cmd=(_dev, ["command"], keywords))

    def _add(self, name: str, purpose: str) -> ArgumentParser:
        parser: ArgumentParser = self.subparsers.add_parser(name, help=purpose, description=purpose)
        return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with the code of its command.

    Arguments:
        arguments: without the name of the program; those of the process if None.
    """
    line = _CommandLine()
    options = line.parser.parse_args(arguments)
    if options.version:
        from importlib.metadata import version

        print("langfuse-schema", version("langfuse-schema"))
        return
    if not hasattr(options, "cmd"):
        line.parser.error("a command is missing; --help lists them")
    given = [vars(options).get(name) for name in ("revision", "revisions", "rev", "after")]
    if "" in given or [""] in given:
        line.parser.error("the revision is empty; name one, such as head")
    sys.exit(_run(Config(config_file(), cmd_opts=options), options))


def _run(config: Config, options: Namespace) -> int:
    function, positional, keywords = options.cmd
    values: dict[str, Any] = vars(options)
    try:
        code: int | None = function(
            config,
            *[values.get(name) for name in positional],
            **{name: values.get(name) for name in keywords},
        )
        sys.stdout.flush()
    except (CommandError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader, such as `head`, has read enough. Nothing is left to be flushed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _BY_SIGNAL + signal.SIGPIPE
        if options.raiseerr:
            raise
        return _failed(error, function, as_json=values.get("format") == "json")
    except KeyboardInterrupt as interrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        number: int = next(iter(interrupt.args), signal.SIGINT)
        return _BY_SIGNAL + number
    return code or 0


def _failed(error: Exception, function: object, *, as_json: bool) -> int:
    """Print an error, and return the exit code."""
    print("FAILED:", error, file=sys.stderr)
    if isinstance(error, SchemaError):
        if as_json:
            print(Report(None, error.findings).as_json())
        return exit_code(error.findings)
    if function in _ALEMBIC_COMMANDS and isinstance(error, CommandError):
        print(_REVISIONS, file=sys.stderr)
        return NOT_IN_RIGHT_STATE
    return CANNOT_RUN


def _preflight(config: Config, format: str) -> int:  # noqa: A002 - the option's name
    configure_logging(config)
    with interrupts(config):
        report = migrations.preflight_report(config)
    print(report.as_json() if format == "json" else report.as_text())
    return 0 if report.ok else NOT_IN_RIGHT_STATE


def _verify(config: Config, format: str, revision: str, verbose: bool) -> int:  # noqa: A002
    from langfuse_schema import verify

    configure_logging(config)
    with interrupts(config):
        target, history = migrations.target_of(config), History.of(config)
        report = verify.report(target, history, revision, verbose=verbose)
    print(report.as_json() if format == "json" else verify.as_text(report))
    return 0 if report.ok else NOT_IN_RIGHT_STATE


def _export(
    config: Config, directory: str, after: str | None, one_transaction: bool, force: bool
) -> int:
    from langfuse_schema import export

    rendered = export.files(config, after, one_transaction=one_transaction)
    written = export.write(Path(directory), rendered, force=force, one_transaction=one_transaction)
    for name in rendered:
        print(Path(directory, name), "" if name in written else "(unchanged)")
    newer = export.newer_files(Path(directory), rendered)
    if newer:
        command_line = "supabase migration up --include-all"
        print(f"{newer[-1]} is newer. If it was applied, run:\n{command_line}", file=sys.stderr)
    if written:
        print(f"Wrote {counted(len(written), 'file')} to {directory}.")
    else:
        reason = "All files are current" if rendered else f"No revision follows {after}"
        print(f"{reason}. Nothing to do.")
    return 0


def _dev(config: Config, command_line: list[str], **options: Any) -> int:  # noqa: ANN401 - of the parser
    from langfuse_schema.embedded import dev

    base = migrations.checkout(config) or Path.cwd()
    out, note = (partial(print, file=file, flush=True) for file in (sys.stdout, sys.stderr))
    return dev.command(base, command_line, dev.Options(**options), out, note)


def _port(text: str) -> int:
    """Parse the value of --port."""
    from langfuse_schema.embedded.dev import HIGHEST_PORT, LOWEST_PORT

    if text.isdecimal() and (int(text) == 0 or LOWEST_PORT <= int(text) <= HIGHEST_PORT):
        return int(text)
    raise ArgumentTypeError(f"{text!r}: expected 0, or {LOWEST_PORT} to {HIGHEST_PORT}")
