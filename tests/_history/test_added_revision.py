"""A copy of the checkout with a new revision, whose snapshot and docs are generated."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.databases import CHECKOUT, HEAD, REVISIONS, Database, Outcome, run
from tests.helpers.fixes import follows, printed_commands

pytestmark = pytest.mark.slow

NEW = str(int(HEAD) + 1)

REVISION = f'''"""Add notes on traces, and the score name `helpful`.

Why: a user keeps notes on their own traces.
Locks: SHARE ROW EXCLUSIVE on auth.users; ACCESS EXCLUSIVE on langfuse_scores and langfuse_traces.
Duration: grows with the rows of langfuse_scores, whose score names are checked again.
Reversible: yes; the notes are lost.
If interrupted: nothing is left behind. Run the same command again.

Revision ID: {NEW}
Revises: {HEAD}
"""

from alembic import op

from langfuse_schema import operations

revision = "{NEW}"
down_revision = "{HEAD}"
branch_labels = None
depends_on = None

NAMES = "'user_feedback', 'mission_completed', 'next_day_activity', 'weekly_completion_rate'"


def upgrade() -> None:
    lock_tables()
    op.execute("""
CREATE TABLE public.langfuse_notes (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
  trace_id uuid REFERENCES public.langfuse_traces (trace_id),
  title text NOT NULL,
  words text[],
  length int GENERATED ALWAYS AS (length(title)) STORED
)""")
    op.execute("CREATE INDEX idx_langfuse_notes_words ON public.langfuse_notes USING gin (words)")
    op.execute("CREATE INDEX idx_langfuse_notes_title ON public.langfuse_notes (lower(title) DESC)")
    op.execute("ALTER TABLE public.langfuse_notes ENABLE ROW LEVEL SECURITY")
    op.execute("""CREATE POLICY "Users can view their own notes" ON public.langfuse_notes
FOR SELECT TO authenticated USING ((SELECT auth.uid()) = user_id)""")
    operations.set_table_access(
        "public.langfuse_notes", {{"service_role": "SELECT, INSERT", "authenticated": "SELECT"}}
    )
    op.execute("ALTER TABLE public.langfuse_traces ADD COLUMN model text")
    replace_names(NAMES + ", 'helpful'")


def downgrade() -> None:
    lock_tables()
    replace_names(NAMES)
    op.execute("ALTER TABLE public.langfuse_traces DROP COLUMN model")
    op.execute("DROP TABLE public.langfuse_notes")


def lock_tables() -> None:
    operations.lock_tables(
        {{
            "public.langfuse_scores": "ACCESS EXCLUSIVE",
            "public.langfuse_traces": "ACCESS EXCLUSIVE",
            "public.langfuse_notes": "ACCESS EXCLUSIVE",
            "auth.users": "SHARE ROW EXCLUSIVE",
        }}
    )


def replace_names(names: str) -> None:
    name = "langfuse_scores_score_name_check"
    op.execute(f"ALTER TABLE public.langfuse_scores DROP CONSTRAINT {{name}},"
               f" ADD CONSTRAINT {{name}} CHECK (score_name IN ({{names}}))")
'''

NOTES_TABLE = '''
langfuse_notes = Table(
    "langfuse_notes",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_id", Uuid, ForeignKey(auth_users.c.id, ondelete="CASCADE"), nullable=False),
    Column("trace_id", Uuid, ForeignKey(langfuse_traces.c.trace_id)),
    Column("title", Text, nullable=False),
    Column("words", ARRAY(Text)),
    Column("length", Integer, Computed("length(title)", persisted=True)),
    _index("idx_langfuse_notes_words", "words", postgresql_using="gin"),
    _index("idx_langfuse_notes_title", text("lower(title) DESC")),
)
"""A note of a user on a trace."""

'''

PERMISSIONS = """
NOTES = "public.langfuse_notes"
LANGFUSE_TABLES = (*LANGFUSE_TABLES, NOTES)
ALLOWED = (
    *ALLOWED,
    Allowed("user", NOTES, "SELECT", OWN, "{new}"),
    *(
        Allowed("service_role", NOTES, action, ALL, "{new}")
        for action in ("SELECT", "INSERT", INSERT_ALL)
    ),
    *(Allowed("owner", NOTES, action, ALL, "{new}") for action in ACTIONS),
)


def expected("""


@dataclass(frozen=True)
class Copy:
    """A copy of the checkout, and the commands that run in it with the Python of the tests."""

    folder: Path

    def run(self, *command: str, timeout: float = 300, **variables: str) -> Outcome:
        path = f"{self.folder / 'src'}{os.pathsep}{self.folder}"
        return run(*command, cwd=self.folder, timeout=timeout, PYTHONPATH=path, **variables)

    def run_checked(self, *command: str, **variables: str) -> str:
        """Run a command, assert that it succeeds, and return its output."""
        outcome = self.run(*command, **variables)
        assert outcome.code == 0, outcome.stdout + outcome.stderr
        return outcome.stdout

    def schema(self, database: Database, *arguments: str) -> Outcome:
        """Run `langfuse-schema` of the copy."""
        command = (sys.executable, "-m", "langfuse_schema", *arguments)
        return self.run(*command, DATABASE_URL=database.text)

    def edit(self, path: str, before: str, after: str) -> None:
        file = self.folder / path
        text = file.read_text(encoding="utf-8")
        assert before in text
        file.write_text(text.replace(before, after, 1), encoding="utf-8")

    def add_revision(self, text: str) -> None:
        path = self.folder / "alembic" / "versions" / f"{NEW}_add_langfuse_notes.py"
        path.write_text(text, encoding="utf-8")

    def generate(self) -> None:
        programs = f"BIN={Path(sys.executable).parent}"
        self.run_checked("make", "--old-file=dev", "generate", programs)

    def pytest(self, *arguments: str) -> Outcome:
        command = (sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", *arguments)
        return self.run(*command, timeout=900)


@pytest.fixture
def copied(tmp_path: Path) -> Copy:
    """Return a copy of the checkout without caches and environments."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".tox", "node_modules", "*cache*", ".langfuse-schema"
    )
    shutil.copytree(CHECKOUT, tmp_path / "copy", ignore=ignored)
    return Copy(tmp_path / "copy")


@pytest.fixture
def extended(copied: Copy) -> Copy:
    """Return a copy with a sixth revision, its tables, its permissions and generated files."""
    copied.add_revision(REVISION)
    tables = "src/langfuse_schema/tables.py"
    copied.edit(
        tables, "    ARRAY,\n", "    ARRAY,\n    BigInteger,\n    Computed,\n    Identity,\n"
    )
    copied.edit(tables, "\nlangfuse_batch_runs = ", f"{NOTES_TABLE}\nlangfuse_batch_runs = ")
    copied.edit(tables, "    _created_at(),\n    UniqueConstraint", "    _created_at(),\n"
                '    Column("model", Text),\n    UniqueConstraint')  # fmt: skip
    names = '"weekly_completion_rate"\n'
    copied.edit(tables, names, f'{names}    HELPFUL = "helpful"\n')
    permissions = PERMISSIONS.replace("{new}", NEW)
    copied.edit("tests/access/permissions.py", "\ndef expected(", permissions)
    copied.generate()
    return copied


def test_history_tests_pass_with_sixth_revision(extended: Copy) -> None:
    """The tests of the history read their cases from the chain of revisions."""
    outcome = extended.pytest(
        "tests/revisions", "tests/_history", "tests/_checks", "tests/verify",
        "tests/access/test_matrix.py", "tests/test_docs.py", "tests/test_creation.py",
        "tests/test_export.py", "tests/test_cli.py", "tests/test_tables.py",
        "tests/test_operations.py",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stdout[-6000:]


def test_make_revision_creates_id_after_head(copied: Copy) -> None:
    programs = f"BIN={Path(sys.executable).parent}"
    make = ("make", "--old-file=dev", programs, "revision")
    copied.run_checked(*make, "MESSAGE=add a table")
    (path,) = (copied.folder / "alembic" / "versions").glob("*_add_a_table.py")
    assert int(path.name.partition("_")[0]) > int(HEAD)
    assert f'down_revision = "{HEAD}"' in path.read_text().replace("'", '"')
    assert copied.run(*make, "MESSAGE=").code != 0
    heads = copied.run_checked(sys.executable, "-m", "alembic", "heads")
    assert heads.startswith(path.name.partition("_")[0])


@pytest.mark.parametrize("earlier", ["base", *REVISIONS])
def test_every_earlier_revision_upgrades_to_new_head_and_back(
    extended: Copy, database: Database, earlier: str
) -> None:
    def codes(*arguments: str) -> list[str]:
        outcome = extended.schema(database, *arguments, "--format", "json")
        return [finding["code"] for finding in json.loads(outcome.stdout)["findings"]]

    if earlier != "base":
        assert extended.schema(database, "upgrade", earlier).code == 0
        assert codes("verify", "--revision", earlier) == []
        assert codes("verify") == ["revision-behind"]
    before = database.catalog()
    assert codes("preflight") == []
    outcome = extended.schema(database, "upgrade", "head")
    assert outcome.code == 0, outcome.stderr
    assert codes("verify") == []
    database.execute(
        """ALTER POLICY "Users can view their own notes" ON langfuse_notes TO anon;
        GRANT UPDATE ON langfuse_notes TO anon;
        GRANT ALL ON SEQUENCE langfuse_notes_id_seq TO anon"""
    )
    found = json.loads(extended.schema(database, "verify", "--format", "json").stdout)["findings"]
    assert [finding["code"] for finding in found] == [
        "policy-differs", "grant-unexpected", "grant-unexpected",
    ]  # fmt: skip
    for finding in found:
        for statement in finding["fix"]:
            database.execute(statement)
    assert codes("verify") == []
    assert extended.schema(database, "downgrade", earlier).code == 0
    if earlier != "base":
        assert database.catalog() == before


@follows("snapshot-missing")
def test_permission_matrix_fails_for_revision_that_opens_table(
    copied: Copy, database: Database
) -> None:
    """The matrix fails although the snapshot of the revision is generated."""
    opens = REVISION[: REVISION.index("def upgrade")] + (
        'def upgrade() -> None:\n    op.execute("GRANT SELECT ON public.rate_limit_logs TO anon")\n'
        "\n\ndef downgrade() -> None:\n    op.execute("
        '"REVOKE SELECT ON public.rate_limit_logs FROM anon")\n'
    )
    copied.add_revision(opens)
    refused = copied.schema(database, "upgrade", "head")
    assert refused.code == 1
    assert printed_commands(refused.stderr, "snapshot-missing") == ("make generate",)
    copied.generate()
    assert copied.schema(database, "upgrade", "head").code == 0
    outcome = copied.pytest("tests/access/test_matrix.py")
    assert outcome.code == 1
    assert "('anon', 'public.rate_limit_logs', 'SELECT')" in outcome.stdout


def test_permission_matrix_fails_for_table_without_expected_rows(extended: Copy) -> None:
    extended.edit(
        "tests/access/permissions.py",
        "\ndef expected(",
        "\nALLOWED = ALLOWED[:-10]\n\n\ndef expected(",
    )
    outcome = extended.pytest("tests/access/test_matrix.py")
    assert outcome.code == 1
    assert "langfuse_notes" in outcome.stdout
