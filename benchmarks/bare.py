"""A bare Alembic project that runs the SQL of the revisions.

The project has no runner lock, no timeouts and no checks, so it shows the cost of Alembic alone.
Each revision has a file, which is generated from `alembic upgrade head --sql`.
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


def create(folder: Path) -> Path:
    """Write the project.

    Arguments:
        folder: an empty folder.

    Returns:
        The path of alembic.ini.
    """
    scripts = folder / "alembic"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text(ENVIRONMENT)
    down_revision = None
    for revision, sql in _revisions():
        text = REVISION.format(revision=revision, down_revision=down_revision, body=_body(sql))
        (scripts / "versions" / f"{revision}.py").write_text(text, encoding="utf-8")
        down_revision = revision
    # The sections on logging are the same, so both print the same number of lines.
    ini = config_file().read_text(encoding="utf-8")
    (folder / "alembic.ini").write_text(ini, encoding="utf-8")
    return folder / "alembic.ini"


def _revisions() -> Iterator[tuple[str, str]]:
    """Yield the id and the SQL of each revision."""
    output = io.StringIO()
    config = Config(config_file(), output_buffer=output)
    command.upgrade(config, "head", sql=True)
    _, *parts = re.split(r"-- Running upgrade .*-> (\S+)\n", output.getvalue())
    yield from zip(parts[::2], parts[1::2], strict=True)


def _body(sql: str) -> str:
    """Return the body of a function that runs SQL. It keeps the limits of the transactions."""
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
