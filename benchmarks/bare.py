"""A bare Alembic project that runs the SQL of our revisions, and nothing around it.

No lock, no timeouts, no look at the database before or after: what a project costs that has
only Alembic. Its files are made from `alembic upgrade head --sql`, one for each revision.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config

from langfuse_schema._history.chain import config_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENVIRONMENT = """\
import os
from logging.config import fileConfig

from alembic import context
from sqlalchemy import NullPool, create_engine

config = context.config
if config.cmd_opts is not None:
    fileConfig(config.config_file_name)
engine = config.attributes.get("engine")
if engine is None:
    engine = create_engine(os.environ["DATABASE_URL"], poolclass=NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
"""

REVISION = """\
from alembic import op

revision = {revision!r}
down_revision = {down_revision!r}


def upgrade():
{body}
"""


def make(folder: Path) -> Path:
    """Write the project.

    Arguments:
        folder: an empty one.

    Returns:
        Its alembic.ini.
    """
    scripts = folder / "alembic"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text(ENVIRONMENT)
    down_revision = None
    for revision, sql in _revisions():
        text = REVISION.format(revision=revision, down_revision=down_revision, body=_body(sql))
        (scripts / "versions" / f"{revision}.py").write_text(text, encoding="utf-8")
        down_revision = revision
    # Our own sections on logging, so that both print as much.
    ini = config_file().read_text(encoding="utf-8")
    (folder / "alembic.ini").write_text(ini, encoding="utf-8")
    return folder / "alembic.ini"


def _revisions() -> Iterator[tuple[str, str]]:
    """The id of each revision, and its SQL up to where the next one begins."""
    output = io.StringIO()
    config = Config(config_file(), output_buffer=output)
    command.upgrade(config, "head", sql=True)
    _, *parts = re.split(r"-- Running upgrade .*-> (\S+)\n", output.getvalue())
    yield from zip(parts[::2], parts[1::2], strict=True)


def _body(sql: str) -> str:
    """A function's body that runs statements, those between transactions outside of one."""
    lines = []
    in_transaction = True
    for part in sql.split(";\n\n"):
        statement = part.strip()
        if statement in ("BEGIN", "COMMIT"):
            in_transaction = statement == "BEGIN"
        elif statement and "alembic_version" not in statement:
            indent = "    "
            if not in_transaction:
                lines.append(f"{indent}with op.get_context().autocommit_block():")
                indent *= 2
            lines.append(f"{indent}op.execute({statement!r})")
    return "\n".join(lines)
