"""The revisions as SQL files for the Supabase CLI, as the plan runs them.

The CLI runs each file of `supabase/migrations` in one transaction of its own and notes it by the
number in its name, so the files hold neither BEGIN and COMMIT nor a version table.
"""

from __future__ import annotations

import io
from inspect import cleandoc
from typing import TYPE_CHECKING

from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

from langfuse_schema import database, sessions
from langfuse_schema._postgres.findings import Finding, SchemaError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from alembic.config import Config
    from alembic.script import Script

_NOTE = """\
Written by `langfuse-schema export` for supabase/migrations, where the Supabase CLI runs it in
one transaction. Indexes are built plainly here: CONCURRENTLY cannot be in a transaction, so
whoever needs a table waits until its index is built. Where that is too long, let
`langfuse-schema upgrade` build them online instead."""


def files(config: Config, after: str | None = None) -> dict[str, str]:
    """Render the revisions, the same text every time.

    Arguments:
        config: Alembic's configuration.
        after: leave out this revision and all before it.

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
        f"{script.revision}_{_slug(script)}.sql": _file(config, directory, script)
        for script in scripts
        if script.revision != base
    }


def _slug(script: Script) -> str:
    from pathlib import Path

    return Path(script.path).stem.removeprefix(f"{script.revision}_")


def _file(config: Config, directory: ScriptDirectory, script: Script) -> str:
    title, why = _what_it_does(script)
    upgrade = _render(config, directory, script.module.upgrade)
    downgrade = _render(config, directory, script.module.downgrade)
    header = [title, "", why, "", _NOTE, "", "Rollback:", "", downgrade]
    comment = "\n".join(header).splitlines()
    return "\n".join(
        [*(f"-- {line}".rstrip() for line in comment), "", _lock_timeout(), "", upgrade, ""]
    )


def _what_it_does(script: Script) -> tuple[str, str]:
    """The title of a revision and the paragraph that says why."""
    title, _, rest = cleandoc(script.module.__doc__ or "").partition("\n")
    why, _, _ = rest.strip().partition("\nLocks:")
    return title, "\n".join(line.strip() for line in why.splitlines())


def _lock_timeout() -> str:
    setting = sessions.session_settings(database.Options())["lock_timeout"]
    # In effect until the end of the transaction, without a warning where there is none.
    return f"SELECT set_config('lock_timeout', '{setting}', true);"


def _render(config: Config, directory: ScriptDirectory, function: Callable[[], None]) -> str:
    """Print what one direction of a revision does, without anything around it."""
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
    """Write the files, all or none.

    Arguments:
        directory: made if it is not there.
        rendered: from `files`.
        force: overwrite a file of the same name that says something else.

    Returns:
        The names of the files that were not there before, or said something else.

    Raises:
        SchemaError: a file differs, or the directory cannot be written to.
    """
    try:
        differing = {
            name
            for name, content in rendered.items()
            if (directory / name).exists()
            and (directory / name).read_text(encoding="utf-8") != content
        }
        if differing and not force:
            raise SchemaError([_differs(directory / name) for name in sorted(differing)])
        directory.mkdir(parents=True, exist_ok=True)
        written = [
            name for name in rendered if name in differing or not (directory / name).exists()
        ]
        for name in written:
            (directory / name).write_text(rendered[name], encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        finding = Finding(
            "directory-unusable",
            str(directory),
            str(error),
            "a directory of SQL files that can be written to",
            "name another directory, as in: langfuse-schema export supabase/migrations",
        )
        raise SchemaError([finding]) from error
    return written


def _differs(path: Path) -> Finding:
    return Finding(
        "file-differs",
        str(path),
        "a file of that name with another content",
        "no file, or the same content",
        "if it is the plan's own, which was applied already, export what comes after:"
        " langfuse-schema export DIR --after REVISION\n"
        "to overwrite it: langfuse-schema export DIR --force",
    )


def others(directory: Path, rendered: dict[str, str]) -> list[str]:
    """Name the project's own files that the CLI would run after one of ours.

    Arguments:
        directory: of the migrations.
        rendered: from `files`.
    """
    if not rendered:
        return []
    oldest = min(rendered)
    return sorted(
        path.name
        for path in directory.glob("[0-9]*.sql")
        if path.name not in rendered and path.name > oldest
    )
