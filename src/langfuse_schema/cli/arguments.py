"""The arguments of the command line, and their help."""

from __future__ import annotations

import re
from argparse import (
    REMAINDER,
    ArgumentParser,
    ArgumentTypeError,
    RawDescriptionHelpFormatter,
)
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from argparse import Action, Namespace
    from collections.abc import Callable, Mapping, Sequence

_DESCRIPTION = """\
The Langfuse tables of a Supabase app, as Alembic revisions.

The database is the first that is set: -x url=URL, DATABASE_URL. With -x embedded=true it is a
temporary PostgreSQL on this machine."""

_X_OPTIONS = """\
options after -x, before the command:
  url=URL                 the database, instead of DATABASE_URL
  embedded=true           a temporary PostgreSQL on this machine
  lock_timeout=500ms      the longest wait for locks at a time; default: 500ms
  lock_deadline=1h        how long to retry, and to wait for another runner; default: 10min
  connect_timeout=5s      the longest wait for a connection; default: 10s"""

_EXAMPLES = """\
examples:
  langfuse-schema preflight               check whether an upgrade would succeed
  langfuse-schema upgrade head            run the pending revisions
  langfuse-schema upgrade head --sql      print the SQL instead
  langfuse-schema verify                  compare the database with the revisions
  langfuse-schema export supabase/migrations
                                          write files for the Supabase CLI
  langfuse-schema downgrade -1            undo the newest revision
  langfuse-schema dev                     run the embedded database until Ctrl-C

`langfuse-schema COMMAND --help` describes a command."""

EXAMPLES_OF = {
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

_EXIT_CODES = {
    "0": "done, or nothing to do",
    "1": "the database is not as it must be",
    "2": "the command could not run, such as without a URL, or the revision does not exist",
    "130, 143": "interrupted by Ctrl-C or SIGTERM",
}

_EXIT_CODES_OF: dict[str, dict[str, str | None]] = {
    "preflight": {"0": "an upgrade would succeed", "1": "an upgrade would fail"},
    "verify": {"0": "no difference", "1": "differences"},
    "check": {"0": "no difference", "1": "differences, or not at head"},
    "export": {"1": None, "2": "a file differs, or the revision does not exist"},
    "dev": {
        "0": "stopped by Ctrl-C or SIGTERM; with COMMAND, the exit code is that of COMMAND",
        "1": None,
        "130, 143": None,
    },
}
"""The exit codes of single commands, where they differ from `_EXIT_CODES`. None is never used."""


class Parser(ArgumentParser):
    """A parser whose errors suggest the nearest name."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - of ArgumentParser
        """Create the parser."""
        self._names: list[str] = []
        self._before: list[str] = []  # names that belong before the command
        super().__init__(**options, formatter_class=RawDescriptionHelpFormatter)

    def add_argument(self, *names: str, **options: Any) -> Action:  # noqa: ANN401 - passed on
        """Add an argument, and keep its names and choices for suggestions."""
        self._names += [*names, *(options.get("choices") or ())]
        return super().add_argument(*names, **options)

    def commands(self) -> Mapping[str, Parser]:
        """Add the commands, and return their parsers by name."""
        choices = self.add_subparsers(metavar="COMMAND")
        self._names += EXAMPLES_OF
        return {
            name: choices.add_parser(name, help=purpose, description=purpose)
            for name, purpose in _PURPOSES.items()
        }

    def parse(self, arguments: Sequence[str] | None) -> Namespace:
        """Return the parsed arguments, or exit with 2."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            parser: Parser = getattr(options, "parser", self)
            parser._before = [] if parser is self else self._names
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options

    def error(self, message: str) -> NoReturn:
        """Print the message with a suggestion, and exit with 2."""
        _, _, unknown = message.partition("unrecognized arguments: ")
        options = [word for word in unknown.split() if word.startswith("-")]
        for word in re.findall(r"invalid choice: '(.*?)'", message) or options:
            if word in self._before:
                example = f"langfuse-schema {word}{' NAME=VALUE' if word == '-x' else ''} COMMAND"
                message += f"\nWrite {word} before the command: {example}"
            elif nearest := get_close_matches(word, [*self._names, *self._before], 1):
                message += f"\nDid you mean {nearest[0]}?"
        super().error(message)


_PURPOSES = {
    "upgrade": "Run the pending revisions up to a revision.",
    "downgrade": "Undo revisions down to a revision.",
    "current": "Print the recorded revision of the database.",
    "history": "List the revisions, newest first.",
    "heads": "Print the newest revision.",
    "show": "Print a revision with its description.",
    "check": "Compare the tables with those that app code uses.",
    "stamp": "Record a revision, and run nothing.",
    "preflight": "Check whether an upgrade would succeed. Change nothing.",
    "verify": "Compare the database with the revisions. Change nothing.",
    "export": "Write the revisions as SQL files for the Supabase CLI.",
    "dev": "Run the embedded database until Ctrl-C, or for a command.",
}


_LOWEST_PORT, _HIGHEST_PORT = 1024, 65535
"""Lower ports are for root, and PostgreSQL does not run as root."""


def _port(text: str) -> int:
    """Parse the value of --port."""
    if text.isdecimal() and (int(text) == 0 or _LOWEST_PORT <= int(text) <= _HIGHEST_PORT):
        return int(text)
    raise ArgumentTypeError(f"{text!r}: expected 0, or {_LOWEST_PORT} to {_HIGHEST_PORT}")


_Argument = tuple[tuple[str, ...], dict[str, Any]]


def _positional(name: str, purpose: str, metavar: str = "REVISION", **options: Any) -> _Argument:  # noqa: ANN401 - of add_argument
    return (name,), {"help": purpose, "metavar": metavar, **options}


def _flag(*names: str, purpose: str) -> _Argument:
    return names, {"help": purpose, "action": "store_true"}


def _value(*names: str, purpose: str, metavar: str, **options: Any) -> _Argument:  # noqa: ANN401 - of add_argument
    return names, {"help": purpose, "metavar": metavar, **options}


_SQL = _flag("--sql", purpose="print the SQL, and contact no database")
_TAG = _value("--tag", purpose="a text for env.py, which this package does not use", metavar="TAG")
_VERBOSE = _flag("-v", "--verbose", purpose="print each revision with its description")
_FORMAT = (
    ("--format",),
    {"choices": ("text", "json"), "default": "text", "help": "of the report; default: text"},
)

_ARGUMENTS: dict[str, tuple[_Argument, ...]] = {
    "upgrade": (
        _positional("revision", "head, a revision id, or relative as in +1"),
        *(_SQL, _TAG),
    ),
    "downgrade": (
        _positional("revision", "base, a revision id, or relative as in -1; with --sql FROM:TO"),
        *(_SQL, _TAG),
    ),
    "current": (
        _VERBOSE,
        _flag("-c", "--check-heads", purpose="exit with 1 unless the database is at head"),
    ),
    "history": (
        _value("-r", "--rev-range", purpose="only these revisions", metavar="FROM:TO"),
        _VERBOSE,
        _flag("-i", "--indicate-current", purpose="mark the recorded revision of the database"),
    ),
    "heads": (
        _VERBOSE,
        _flag("--resolve-dependencies", purpose="count dependencies as revisions below"),
    ),
    "show": (_positional("rev", "head, or a revision id"),),
    "check": (),
    "stamp": (
        _positional("revisions", "head, base, or a revision id", nargs="+"),
        *(_SQL, _TAG),
        _flag("--purge", purpose="first delete the recorded revision, even an unknown one"),
    ),
    "preflight": (_FORMAT,),
    "verify": (
        _FORMAT,
        _value("--revision", purpose="default: head", metavar="ID", default="head"),
        _flag("--verbose", purpose="list all differences, those of one cause too"),
    ),
    "export": (
        _positional("directory", "usually supabase/migrations", "DIR"),
        _value("--after", purpose="omit this revision and all before", metavar="ID"),
        _flag(
            "--one-transaction",
            purpose="for the SQL Editor, and for the CLI before 2.109.0: index builds block writes",
        ),
        _flag("--force", purpose="overwrite files that differ"),
    ),
    "dev": (
        _positional(
            "command",
            "a command with its arguments; DATABASE_URL and libpq's variables are set for it",
            "COMMAND",
            nargs=REMAINDER,
        ),
        _value("--port", purpose="listen on 127.0.0.1; 0 for a free port", metavar="N", type=_port),
        _flag("--fresh", purpose="start a new database, and delete it at the end"),
        _flag("--without-app-tables", purpose="omit the built-in app tables and their rows"),
        _flag("--remove", purpose="delete the database and its files"),
    ),
}
"""The names and the options of the arguments of each command."""


def parser(functions: Mapping[str, Callable[..., int | None]]) -> Parser:
    """Return the parser of the command line.

    Arguments:
        functions: the function of each command. Its arguments are the configuration, the
            positional arguments, and the options as keywords.

    Returns:
        A parser that sets `cmd` to the function and the names of its arguments, as Alembic does.
    """
    created = Parser(
        prog="langfuse-schema",
        description=_DESCRIPTION,
        epilog=f"{_X_OPTIONS}\n\n{_exit_codes({})}\n\n{_EXAMPLES}",
    )
    created.add_argument("--version", action="store_true", help="print the version")
    created.add_argument(
        "-x", action="append", metavar="NAME=VALUE", help="an option of the run; see below"
    )
    created.add_argument("--raiseerr", action="store_true", help="show a traceback with an error")
    created.add_argument(
        "-q", "--quiet", action="store_true", help="print only warnings and errors"
    )
    for name, of_command in created.commands().items():
        examples = "\n  langfuse-schema ".join(["examples:", *EXAMPLES_OF[name]])
        of_command.epilog = f"{_exit_codes(_EXIT_CODES_OF.get(name, {}))}\n\n{examples}"
        added = [of_command.add_argument(*names, **options) for names, options in _ARGUMENTS[name]]
        positional = [one.dest for one in added if not one.option_strings]
        keywords = [one.dest for one in added if one.option_strings]
        of_command.set_defaults(parser=of_command, cmd=(functions[name], positional, keywords))
    return created


def _exit_codes(of_command: Mapping[str, str | None]) -> str:
    codes = {**_EXIT_CODES, **of_command}
    lines = [f"  {code:8}  {meaning}" for code, meaning in codes.items() if meaning]
    return "\n".join(["exit codes:", *lines])
