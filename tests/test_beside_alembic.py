"""The built wheel in an app that has Alembic revisions too."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from textwrap import indent
from typing import TYPE_CHECKING

import pytest

from langfuse_schema.verify import verify
from tests.helpers.databases import CHECKOUT, HEAD, Database, Outcome, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

MODELS = '''
"""The app's tables. Three of them have a link to a trace."""
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

ORM_MODELS = '''
"""The app's classes. One mixin links the three tables."""
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from langfuse_schema import copy_tables, langfuse_trace_id_column


class Base(DeclarativeBase):
    pass


class Linked:
    id: Mapped[UUID] = mapped_column(primary_key=True)
    body: Mapped[str]
    langfuse_trace_id: Mapped[UUID | None] = langfuse_trace_id_column()


class Message(Linked, Base):
    __tablename__ = "ai_coach_messages"
    __table_args__ = (sa.Index("messages_by_body", "body"),)


class Encouragement(Linked, Base):
    __tablename__ = "encouragement_messages"


class Reflection(Linked, Base):
    __tablename__ = "reflections"
    kind: Mapped[str] = mapped_column(sa.Enum("morning", "evening", name="kind"))


copy_tables(Base.metadata)
metadata = Base.metadata
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
{imports}
config.set_main_option("sqlalchemy.url", os.environ["DATABASE_URL"].replace("%", "%%"))
"""

DEPLOY = '''
"""Upgrade both histories to head, or downgrade both to base."""
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
    """The folder of an app with Alembic, the installed wheel, and a database."""

    folder: Path
    site_packages: Path
    database: Database

    def python(self, *arguments: str) -> Outcome:
        return run(
            sys.executable,
            *arguments,
            cwd=self.folder,
            DATABASE_URL=self.database.text,
            # PYTHONPATH has precedence over the editable install of this checkout.
            PYTHONPATH=f"{self.site_packages}:{self.folder}",
        )

    def alembic(self, *arguments: str) -> None:
        self.run_successfully("-m", "alembic", *arguments)

    def langfuse_schema(self, *arguments: str) -> None:
        self.run_successfully("-m", "langfuse_schema", *arguments)

    def heads(self) -> tuple[str, str]:
        """Return the recorded revisions of the app and of langfuse-schema."""
        tables = ("public.alembic_version", "langfuse_migrations.alembic_version")
        queries = [f"SELECT min(version_num) FROM {table}" for table in tables]
        (app,), (langfuse,) = (self.database.execute(query)[0] for query in queries)
        return app, langfuse

    def run_successfully(self, *arguments: str) -> None:
        outcome = self.python(*arguments)
        assert outcome.code == 0, outcome.stdout + outcome.stderr


@pytest.fixture(scope="module")
def site_packages(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel with pip into a folder, and return the folder."""
    folder = tmp_path_factory.mktemp("site-packages")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder), str(wheel)], check=True)
    return folder


def documented_program(page: str) -> str:
    """Return the first program in docs/how-to/app-alembic.md for this file of an app."""
    text = (CHECKOUT / "docs" / "how-to" / "app-alembic.md").read_text(encoding="utf-8")
    return re.findall(rf"^```python\n# {page}\n(.*?)```", text, re.MULTILINE | re.DOTALL)[0]


@pytest.fixture
def empty_app(database: Database, tmp_path: Path, site_packages: Path) -> App:
    """Return an app with classes and no revision, on a database without tables of the app."""
    database.execute(
        "DROP TABLE public.ai_coach_messages, public.encouragement_messages, public.reflections"
    )
    app = App(tmp_path, site_packages, database)
    app.alembic("init", "migrations")
    env = tmp_path / "migrations" / "env.py"
    # The page lists the lines that an app adds to the env.py of `alembic init`.
    imports, call = documented_program("migrations/env.py").split("\n\n")
    configure = "context.configure(\n    connection=connection, target_metadata=target_metadata\n)"
    text = env.read_text()
    for before, after in (
        ("target_metadata = None", "from models import metadata as target_metadata"),
        ("config = context.config\n", CONFIG.format(imports=imports)),
        (indent(configure, " " * 8), indent(call.strip(), " " * 8)),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    env.write_text(text)
    (tmp_path / "models.py").write_text(ORM_MODELS)
    return app


@pytest.fixture
def app(empty_app: App) -> App:
    """Return an app with tables and revisions."""
    (empty_app.folder / "models.py").write_text(MODELS)
    (empty_app.folder / "deploy.py").write_text(DEPLOY)
    for name, content in REVISIONS.items():
        (empty_app.folder / "migrations" / "versions" / f"{name}.py").write_text(content)
    return empty_app


def test_app_imports_package_from_wheel(app: App) -> None:
    outcome = app.python("-c", "import langfuse_schema; print(langfuse_schema.__file__)")
    assert outcome.stdout.strip() == str(app.site_packages / "langfuse_schema" / "__init__.py")


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
    remaining = app.database.catalog().tables.keys() - before.tables.keys()
    assert remaining == {"public.alembic_version", "langfuse_migrations.alembic_version"}


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
        app.run_successfully("deploy.py", direction)
    assert verify(app.database.url) == []


def test_app_with_models_and_package_upgrade_alternately_on_empty_database(empty_app: App) -> None:
    app = empty_app
    refused = app.python("-m", "langfuse_schema", "upgrade", "head")
    assert refused.code == 1
    assert "run the app's own migrations first, and then the same command again" in refused.stderr

    app.alembic("revision", "--autogenerate", "--rev-id", "a1", "-m", "first")
    (written,) = (app.folder / "migrations" / "versions").glob("a1_*.py")
    assert "langfuse" not in written.read_text()
    app.alembic("upgrade", "head")
    app.alembic("check")
    for _ in range(2):
        app.langfuse_schema("upgrade", "head")
        app.langfuse_schema("verify")
        assert verify(app.database.url) == []
        app.alembic("check")
        app.langfuse_schema("downgrade", "base")
        app.alembic("check")
    app.langfuse_schema("upgrade", "head")
    # The app can also downgrade first.
    app.alembic("downgrade", "base")
    app.langfuse_schema("downgrade", "base")


def test_documented_revision_of_app_runs_both_histories(empty_app: App) -> None:
    app = empty_app
    app.alembic("revision", "--autogenerate", "--rev-id", "a1", "-m", "first")
    page = "migrations/versions/a2_langfuse.py"
    (app.folder / page).write_text(documented_program(page))
    app.alembic("upgrade", "head")
    assert app.heads() == ("a2", HEAD)
    assert verify(app.database.url) == []
    app.alembic("check")
    app.alembic("upgrade", "head", "--sql")
    app.alembic("upgrade", "head")


@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
def test_upgrade_in_env_py_leaves_both_histories_at_head(app: App, *, first: bool) -> None:
    call = (
        "from langfuse_schema import migrations\nmigrations.upgrade(os.environ['DATABASE_URL'])\n"
    )
    env = app.folder / "migrations" / "env.py"
    run = "if context.is_offline_mode():"
    text = env.read_text()
    env.write_text(text.replace(run, f"{call}{run}") if first else f"{text}\n{call}")
    if first:
        create = "CREATE TABLE {} (id uuid PRIMARY KEY, body text NOT NULL)"
        for table in ("ai_coach_messages", "encouragement_messages", "reflections"):
            app.database.execute(create.format(table))
        app.run_successfully("-m", "alembic", "stamp", "a1")
    app.alembic("upgrade", "head")
    assert app.heads() == ("a2", HEAD)
    assert verify(app.database.url) == []
    app.alembic("check")
