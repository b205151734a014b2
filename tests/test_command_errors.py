"""Errors of Alembic and of the operating system have the form of all messages."""

from __future__ import annotations

import json
from functools import partial

import pytest

from langfuse_schema import migrations
from langfuse_schema.verify import verify
from tests.helpers.databases import REVISIONS, Database, langfuse_schema

slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ("upgrade nosuch", "Can't locate revision identified by 'nosuch'"),
        slow("show nosuch", "Can't locate revision identified by 'nosuch'"),
        slow("verify --revision nosuch", "Can't locate revision identified by 'nosuch'"),
        slow("downgrade -9", "Relative revision -9 didn't produce 9 migrations"),
        slow("downgrade base --sql", "downgrade with --sql requires <fromrev>:<torev>"),
    ],
)
def test_invalid_revision_is_reported_with_exit_code_2(
    database: Database, arguments: str, cause: str
) -> None:
    command = arguments.split()
    outcome = langfuse_schema(database, *command)
    error = f"error[command-invalid]: could not run the command {command[0]} with these arguments"
    assert outcome.code == 2
    assert f"{error}\n  cause: {cause}\n" in outcome.stderr
    assert outcome.stdout == ""


def test_invalid_revision_is_reported_as_json(database: Database) -> None:
    outcome = langfuse_schema(database, "verify", "--format", "json", "--revision", "nosuch")
    (finding,) = json.loads(outcome.stdout)["findings"]
    assert finding["code"] == "command-invalid"
    assert finding["cause"] == "Can't locate revision identified by 'nosuch'"


@pytest.mark.parametrize("arguments", [["check"], slow(["current", "--check-heads"])])
def test_pending_revision_is_reported_with_upgrade_as_fix(
    database: Database, arguments: list[str]
) -> None:
    migrations.upgrade(database.url, REVISIONS[-2])
    outcome = langfuse_schema(database, *arguments)
    assert outcome.code == 1
    assert "error[revision-behind]" in outcome.stderr
    assert "langfuse-schema upgrade head\n" in outcome.stderr
    migrations.upgrade(database.url)
    assert langfuse_schema(database, *arguments).code == 0


def test_check_lists_each_difference_in_words(database: Database) -> None:
    migrations.upgrade(database.url)
    database.execute("ALTER TABLE langfuse_traces ADD note text")
    database.execute("ALTER TABLE langfuse_traces ALTER entity_type DROP NOT NULL")
    database.execute("ALTER TABLE langfuse_scores DROP CONSTRAINT langfuse_scores_trace_id_fkey")
    database.execute("DROP INDEX idx_langfuse_scores_status")
    outcome = langfuse_schema(database, "check")
    assert outcome.code == 1
    assert "error[metadata-differs]: the tables differ from langfuse_schema.metadata" in (
        outcome.stderr
    )
    for line in (
        "remove column public.langfuse_traces.note",
        "modify nullable of column public.langfuse_traces.entity_type",
        "add fk langfuse_scores_trace_id_fkey of public.langfuse_scores",
        "add index idx_langfuse_scores_status of public.langfuse_scores",
    ):
        assert line in outcome.stderr


@pytest.mark.slow
def test_downgrade_without_a_table_names_verify_which_repairs_it(database: Database) -> None:
    migrations.upgrade(database.url)
    database.execute("DROP TABLE rate_limit_logs")
    outcome = langfuse_schema(database, "downgrade", "base")
    assert outcome.code == 1
    assert "error[server-refused 42P01]" in outcome.stderr
    assert "A table is missing. Create it again with the SQL that" in outcome.stderr
    missing = next(one for one in verify(database.url) if one.code == "table-missing")
    for statement in missing.fix:
        database.execute(statement)
    assert langfuse_schema(database, "downgrade", "base").code == 0
