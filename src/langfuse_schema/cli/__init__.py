"""The command line `langfuse-schema`: Alembic's commands over the revisions, and its own."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from langfuse_schema import migrations
from langfuse_schema._history.chain import History, config_file
from langfuse_schema._postgres.findings import (
    NOT_IN_RIGHT_STATE,
    Report,
    counted,
    exit_code,
)
from langfuse_schema._postgres.terminal import coloured, print_findings
from langfuse_schema._runtime.environment import configure_logging, interrupts
from langfuse_schema.cli.arguments import parser
from langfuse_schema.cli.failures import BY_SIGNAL, findings_of, is_of_alembic

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

_ALEMBIC_COMMANDS = (
    *(command.upgrade, command.downgrade, command.current, command.history),
    *(command.heads, command.show, command.check, command.stamp),
)
"""The commands of Alembic that do not write revision files."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with the code of its command.

    Arguments:
        arguments: without the name of the program; those of the process if None.
    """
    functions: dict[str, Callable[..., int | None]] = {
        **{function.__name__: function for function in _ALEMBIC_COMMANDS},
        "preflight": _preflight,
        "verify": _verify,
        "export": _export,
        "dev": _dev,
    }
    line = parser(functions)
    options = line.parse(arguments)
    if options.version:
        from importlib.metadata import version

        print("langfuse-schema", version("langfuse-schema"))
        return
    if not hasattr(options, "cmd"):
        line.error("a command is missing; --help lists them")
    given = [vars(options).get(name) for name in ("revision", "revisions", "rev", "after")]
    if "" in given or [""] in given:
        options.parser.error("the revision is empty; name one, such as head")
    if vars(options).get("directory") == "":
        options.parser.error("the directory is empty; name one, such as supabase/migrations")
    if str(vars(options).get("rev_range")).count(":") > 1:
        options.parser.error("the range has more than two revisions; write it as FROM:TO")
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
    except (CommandError, OSError, AssertionError, ValueError) as error:
        from_alembic = isinstance(error, (CommandError, OSError)) or is_of_alembic(error)
        if options.raiseerr or isinstance(error, BrokenPipeError) or not from_alembic:
            raise
        return _failed(error, function.__name__, as_json=values.get("format") == "json")
    except KeyboardInterrupt as interrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        number: int = next(iter(interrupt.args), signal.SIGINT)
        return BY_SIGNAL + number
    return code or 0


def _failed(error: Exception, command_name: str, *, as_json: bool) -> int:
    """Print an error, and return the exit code."""
    findings = findings_of(error, command_name.strip("_"))
    print_findings(findings)
    if as_json:
        print(Report(None, findings).as_json())
    return exit_code(findings)


def _preflight(config: Config, format: str) -> int:  # noqa: A002 - the option's name
    configure_logging(config)
    with interrupts(config):
        report = migrations.preflight_report(config)
    print(report.as_json() if format == "json" else coloured(report.as_text(), sys.stdout))
    return 0 if report.ok else NOT_IN_RIGHT_STATE


def _verify(config: Config, format: str, revision: str, verbose: bool) -> int:  # noqa: A002
    from langfuse_schema import verify

    configure_logging(config)
    with interrupts(config):
        target, history = migrations.target_of(config), History.of(config)
        report = verify.report(target, history, revision, verbose=verbose)
    text = report.as_json() if format == "json" else coloured(verify.as_text(report), sys.stdout)
    print(text)
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
