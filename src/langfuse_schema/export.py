"""Write the revisions as SQL files for the Supabase CLI.

The CLI runs each file of `supabase/migrations` in a transaction, except for CREATE INDEX
CONCURRENTLY, and records the number in its name. So the files contain neither BEGIN and COMMIT
nor a version table.
"""

from __future__ import annotations

import io
import shlex
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING

from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

from langfuse_schema._postgres.findings import SchemaError, finding
from langfuse_schema._runtime.environment import OFFLINE
from langfuse_schema._runtime.options import Options
from langfuse_schema._runtime.settings import session_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.config import Config
    from alembic.script import Script

    from langfuse_schema._postgres.findings import Finding

_ONLINE = """\
Written by `langfuse-schema export` for supabase/migrations. The Supabase CLI, from 2.109.0 on, runs
CREATE INDEX CONCURRENTLY outside of the file's transaction. If a run was interrupted, or a lock was
not available in time, run the same command again."""

_ONE_TRANSACTION = """\
Written by `langfuse-schema export --one-transaction` for the SQL Editor, and for versions of the
Supabase CLI before 2.109.0. CREATE INDEX CONCURRENTLY cannot run in a transaction, so this file
builds indexes without it, and writes to the table wait for the build. On large tables in use, run
`langfuse-schema upgrade` instead."""


def files(
    config: Config, after: str | None = None, *, one_transaction: bool = False
) -> dict[str, str]:
    """Render the revisions. The same revisions give the same text.

    Arguments:
        config: of Alembic.
        after: a revision; it and the revisions before it are left out.
        one_transaction: whether each file can run as one transaction. Index builds then block
            writes.

    Returns:
        SQL by file name, `<id>_<slug>.sql`, oldest first.

    Raises:
        CommandError: there is no revision `after`.
    """
    directory = ScriptDirectory.from_config(config)
    found = directory.get_revisions(after or "base")
    base = found[0].revision if found else "base"
    scripts = list(directory.walk_revisions(base, "head"))[::-1]
    return {
        f"{Path(script.path).stem}.sql": _file(config, directory, script, one_transaction)
        for script in scripts
        if script.revision != base
    }


def _file(config: Config, directory: ScriptDirectory, script: Script, one_transaction: bool) -> str:
    title, _, rest = cleandoc(script.module.__doc__ or "").partition("\n")
    why, _, _ = rest.strip().partition("\nLocks:")
    downgrade = _render(config, directory, script.module.downgrade)
    note = _ONE_TRANSACTION if one_transaction else _ONLINE
    header = [title, "", cleandoc(why), "", note, "", "Rollback:", "", downgrade]
    comment = [f"-- {line}".rstrip() for line in "\n".join(header).splitlines()]
    # The CLI splits a file around CONCURRENTLY, so the settings are those of its session. It
    # resets them before each file. In one transaction, they end with it.
    settings = session_settings(Options.lock_timeout)
    settings["langfuse_schema.lock_timeout"] = settings["lock_timeout"]
    calls = ", ".join(
        f"set_config('{name}', '{settings[name]}', {str(one_transaction).lower()})"
        for name in ("lock_timeout", "langfuse_schema.lock_timeout", "statement_timeout")
    )
    upgrade = _render(config, directory, script.module.upgrade, one_transaction)
    return "\n".join([*comment, "", f"SELECT {calls};", "", upgrade, ""])


def _render(
    config: Config,
    directory: ScriptDirectory,
    function: Callable[[], None],
    one_transaction: bool = True,
) -> str:
    """Return the SQL of one direction of a revision, without BEGIN and COMMIT."""
    output = io.StringIO()
    with EnvironmentContext(config, directory, as_sql=True) as environment:
        environment.configure(
            **OFFLINE,
            output_buffer=output,
            transactional_ddl=False,
            plain_indexes=one_transaction,
            # In the CLI, lock_timeout can be the rest of a transaction's budget.
            keeps_lock_timeout=True,
        )
        with Operations.context(environment.get_context()):
            function()
    return output.getvalue().strip()


def write(
    directory: Path,
    rendered: dict[str, str],
    *,
    force: bool = False,
    one_transaction: bool = False,
) -> list[str]:
    """Write all files, or none.

    Arguments:
        directory: created if it is missing.
        rendered: from `files`.
        force: whether to overwrite files with other content.
        one_transaction: as for `files`. The commands in a message repeat the option.

    Returns:
        The names of the files that are new or had other content.

    Raises:
        SchemaError: a file has other content, or the directory cannot be written.
    """
    try:
        existing = {name: directory / name for name in rendered if (directory / name).exists()}
        differing = [
            name
            for name, path in existing.items()
            if path.read_text(encoding="utf-8") != rendered[name]
        ]
        if differing and not force:
            raise SchemaError(_differs(directory, differing, one_transaction))
        directory.mkdir(parents=True, exist_ok=True)
        written = [name for name in rendered if name in differing or name not in existing]
        for name in written:
            (directory / name).write_text(rendered[name], encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        unusable = finding("directory-unusable", str(directory), cause=str(error))
        raise SchemaError(unusable) from error
    return written


def _differs(directory: Path, names: list[str], one_transaction: bool) -> Finding:
    option = " --one-transaction" if one_transaction else ""
    values = {
        "found": "\n".join(names),
        "command": f"langfuse-schema export {shlex.quote(str(directory))}{option}",
        "last": names[-1].partition("_")[0],
    }
    return finding("file-differs", str(directory), **values)


def newer_files(directory: Path, rendered: dict[str, str]) -> list[str]:
    """Return the files of the project that the CLI runs after one of the rendered files.

    Arguments:
        directory: of the migrations.
        rendered: from `files`.
    """
    # The CLI runs files in the order of their names.
    oldest = min(rendered, default="~")
    names = [path.name for path in directory.glob("[0-9]*.sql")]
    return sorted(name for name in names if name not in rendered and name > oldest)
