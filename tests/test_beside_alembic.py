"""Beside the app's own Alembic: from the built wheel, in a scratch app with its own revisions."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from langfuse_schema.verify import verify
from tests.helpers.databases import CHECKOUT, Database, Outcome, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

MODELS = '''
"""The app's tables: one of them carries the link to a trace."""
import sqlalchemy as sa

from langfuse_schema import copy_tables, langfuse_trace_id_column

metadata = sa.MetaData()
copy_tables(metadata)


def table(name):
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        langfuse_trace_id_column(),
    )


for name in ("ai_coach_messages", "encouragement_messages", "reflections"):
    table(name)
sa.Table("streaks", metadata, sa.Column("id", sa.Uuid, primary_key=True))
'''

REVISIONS = {
    "a1_messages": """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "a1", None
NAMES = ("ai_coach_messages", "encouragement_messages", "reflections")


def upgrade():
    for name in NAMES:
        op.create_table(
            name,
            sa.Column("id", sa.Uuid, primary_key=True),
            sa.Column("body", sa.Text, nullable=False),
        )


def downgrade():
    for name in NAMES:
        op.drop_table(name)
""",
    "a2_streaks": """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "a2", "a1"


def upgrade():
    op.create_table("streaks", sa.Column("id", sa.Uuid, primary_key=True))


def downgrade():
    op.drop_table("streaks")
""",
}

CONFIG = """config = context.config
import os
from langfuse_schema import include_object
config.set_main_option("sqlalchemy.url", os.environ["DATABASE_URL"].replace("%", "%%"))
"""

DEPLOY = '''
"""One program that brings both histories to head, and back."""
import logging
import os
import sys

from alembic import command
from alembic.config import Config

from langfuse_schema import migrations
from langfuse_schema.verify import verify

url = os.environ["DATABASE_URL"]
app = Config("alembic.ini")
log = logging.getLogger("app")
if sys.argv[1] == "up":
    command.upgrade(app, "head")
    log.disabled = False  # the env.py that Alembic writes disables every logger
    migrations.upgrade(url)
    assert not log.disabled
    assert verify(url) == []
    command.check(app)
else:
    migrations.downgrade(url, "base")
    command.downgrade(app, "base")
'''


@dataclass(frozen=True)
class App:
    """A folder with an Alembic of its own, and a Python that has our wheel."""

    folder: Path
    wheel: Path
    database: Database

    def python(self, *arguments: str) -> Outcome:
        return run(
            sys.executable,
            *arguments,
            cwd=self.folder,
            DATABASE_URL=self.database.text,
            # Before the editable install of this checkout.
            PYTHONPATH=f"{self.wheel}:{self.folder}",
        )

    def alembic(self, *arguments: str) -> None:
        self.succeeds("-m", "alembic", *arguments)

    def langfuse_schema(self, *arguments: str) -> None:
        self.succeeds("-m", "langfuse_schema", *arguments)

    def succeeds(self, *arguments: str) -> None:
        outcome = self.python(*arguments)
        assert outcome.code == 0, outcome.stdout + outcome.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked as pip does it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(CHECKOUT)]
    subprocess.run(build, check=True)
    (built,) = folder.glob("*.whl")
    target = folder / "site-packages"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(built)], check=True)
    return target


@pytest.fixture
def app(database: Database, tmp_path: Path, wheel: Path) -> App:
    database.execute(
        "DROP TABLE public.ai_coach_messages, public.encouragement_messages, public.reflections"
    )
    app = App(tmp_path, wheel, database)
    app.alembic("init", "migrations")
    env = tmp_path / "migrations" / "env.py"
    # What an app adds to the env.py that `alembic init` writes, and one line of ours.
    text = env.read_text()
    for before, after in (
        ("target_metadata = None", "from models import metadata as target_metadata"),
        ("config = context.config\n", CONFIG),
        (
            "connection=connection, target_metadata=target_metadata",
            "connection=connection, target_metadata=target_metadata, include_object=include_object",
        ),
    ):
        assert before in text
        text = text.replace(before, after)
    env.write_text(text)
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "deploy.py").write_text(DEPLOY)
    for name, content in REVISIONS.items():
        (tmp_path / "migrations" / "versions" / f"{name}.py").write_text(content)
    return app


def test_app_imports_package_from_wheel(app: App) -> None:
    outcome = app.python("-c", "import langfuse_schema; print(langfuse_schema.__file__)")
    assert outcome.stdout.strip() == str(app.wheel / "langfuse_schema" / "__init__.py")


def test_app_and_package_upgrade_and_downgrade_in_one_deploy_step(app: App) -> None:
    before = app.database.catalog()
    app.alembic("upgrade", "head")
    app.langfuse_schema("upgrade", "head")
    app.alembic("check")
    app.langfuse_schema("check")
    app.langfuse_schema("verify")
    assert verify(app.database.url) == []
    versions = "SELECT * FROM {}.alembic_version"
    assert app.database.execute(versions.format("public")) == [("a2",)]

    app.langfuse_schema("downgrade", "base")
    app.alembic("downgrade", "base")
    left = app.database.catalog().tables.keys() - before.tables.keys()
    assert left == {"public.alembic_version", "langfuse_migrations.alembic_version"}


def test_later_revision_of_app_upgrades_after_langfuse_tables(app: App) -> None:
    app.alembic("upgrade", "a1")
    app.langfuse_schema("upgrade", "head")
    app.alembic("upgrade", "head")
    app.langfuse_schema("upgrade", "head")
    app.alembic("check")
    app.langfuse_schema("verify")


def test_autogenerate_of_app_omits_langfuse_tables(app: App) -> None:
    app.alembic("upgrade", "head")
    app.langfuse_schema("upgrade", "head")
    models = app.folder / "models.py"
    column = """metadata.tables["streaks"].append_column(sa.Column("days", sa.Integer))"""
    models.write_text(f"{models.read_text()}{column}\n")
    app.alembic("revision", "--autogenerate", "--rev-id", "a3", "-m", "days")
    (written,) = (app.folder / "migrations" / "versions").glob("a3_*.py")
    assert "days" in written.read_text()
    assert "langfuse" not in written.read_text()


def test_python_program_upgrades_and_downgrades_both_histories(app: App) -> None:
    for direction in ("up", "up", "down", "up"):
        app.succeeds("deploy.py", direction)
    assert verify(app.database.url) == []
