"""Write the revisions as SQL files for the Supabase CLI.

The CLI runs each file of `supabase/migrations` in one transaction and records the number in its
name. So the files contain neither BEGIN and COMMIT nor a version table.
"""

from __future__ import annotations

import io
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING

from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

from langfuse_schema._postgres.findings import SchemaError, finding
from langfuse_schema._runtime.options import Options
from langfuse_schema._runtime.settings import session_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.config import Config
    from alembic.script import Script

_NOTE = """\
Written by `langfuse-schema export` for supabase/migrations, where the Supabase CLI runs it in
one transaction. CREATE INDEX CONCURRENTLY cannot run in a transaction, so this file builds indexes
without it, and writes to the table wait for the build. On large tables in use, run
`langfuse-schema upgrade` instead."""


def files(config: Config, after: str | None = None) -> dict[str, str]:
    """Render the revisions. The same revisions give the same text.

    Arguments:
        config: of Alembic.
        after: a revision; it and the revisions before it are left out.

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
        f"{Path(script.path).stem}.sql": _file(config, directory, script)
        for script in scripts
        if script.revision != base
    }


def _file(config: Config, directory: ScriptDirectory, script: Script) -> str:
    title, _, rest = cleandoc(script.module.__doc__ or "").partition("\n")
    why, _, _ = rest.strip().partition("\nLocks:")
    downgrade = _render(config, directory, script.module.downgrade)
    header = [title, "", cleandoc(why), "", _NOTE, "", "Rollback:", "", downgrade]
    comment = [f"-- {line}".rstrip() for line in "\n".join(header).splitlines()]
    # In effect until the end of the transaction, and without a warning outside of one.
    timeout = session_settings(Options.lock_timeout)["lock_timeout"]
    lock_timeout = f"SELECT set_config('lock_timeout', '{timeout}', true);"
    upgrade = _render(config, directory, script.module.upgrade)
    return "\n".join([*comment, "", lock_timeout, "", upgrade, ""])


def _render(config: Config, directory: ScriptDirectory, function: Callable[[], None]) -> str:
    """Return the SQL of one direction of a revision."""
    output = io.StringIO()
    with EnvironmentContext(config, directory, as_sql=True) as environment:
        environment.configure(
            dialect_name="postgresql",
            literal_binds=True,
            # Otherwise every % of the SQL is doubled.
            dialect_opts={"paramstyle": "named"},
            output_buffer=output,
            plain_indexes=True,
        )
        with Operations.context(environment.get_context()):
            function()
    return output.getvalue().strip()


def write(directory: Path, rendered: dict[str, str], *, force: bool = False) -> list[str]:
    """Write all files, or none.

    Arguments:
        directory: created if it is missing.
        rendered: from `files`.
        force: whether to overwrite files with other content.

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
            differs = [finding("file-differs", str(directory / name)) for name in differing]
            raise SchemaError(*differs)
        directory.mkdir(parents=True, exist_ok=True)
        written = [name for name in rendered if name in differing or name not in existing]
        for name in written:
            (directory / name).write_text(rendered[name], encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        unusable = finding("directory-unusable", str(directory), cause=str(error))
        raise SchemaError(unusable) from error
    return written


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
