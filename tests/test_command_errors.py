"""Errors of Alembic and of the operating system have the form of all messages."""

from __future__ import annotations

import json
from functools import partial

import pytest

from langfuse_schema import migrations
from langfuse_schema.migrations import SchemaError
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    CORE,
    LINKS,
    REVISIONS,
    Database,
    insert_example_rows,
    langfuse_schema,
)

slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ("upgrade nosuch", "Can't locate revision identified by 'nosuch'"),
        slow("show nosuch", "Can't locate revision identified by 'nosuch'"),
        slow("verify --revision nosuch", "Can't locate revision identified by 'nosuch'"),
        ("upgrade head+1", "Alembic cannot resolve the revision or the range"),
        slow("upgrade head: --sql", "Alembic cannot resolve the revision or the range"),
        slow("downgrade head:base:x --sql", "Alembic cannot resolve the revision or the range"),
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
    database.execute("ALTER TABLE langfuse_scores ALTER comment TYPE integer USING NULL")
    database.execute("ALTER TABLE langfuse_scores ALTER comment SET NOT NULL")
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
        "modify type of column public.langfuse_scores.comment",
        "modify nullable of column public.langfuse_scores.comment",
        "add fk langfuse_scores_trace_id_fkey of public.langfuse_scores",
        "add index idx_langfuse_scores_status of public.langfuse_scores",
    ):
        assert line in outcome.stderr


@pytest.mark.parametrize("recorded", [CORE, LINKS])
def test_downgrade_of_tables_at_later_revision_is_refused_and_keeps_rows(
    database: Database, recorded: str
) -> None:
    migrations.upgrade(database.url)
    insert_example_rows(database)
    before = database.catalog()
    migrations.stamp(database.url, recorded)
    with pytest.raises(SchemaError) as refused:
        migrations.downgrade(database.url, "-1")
    (finding,) = refused.value.findings
    assert finding.code == "revision-behind"
    assert finding.found == f"revision {recorded}, while the tables are at {REVISIONS[-1]}"
    assert database.catalog() == before
    assert database.execute("SELECT count(*) > 0 FROM langfuse_traces") == [(True,)]


def test_downgrade_without_a_table_is_refused_like_upgrade(database: Database) -> None:
    migrations.upgrade(database.url)
    database.execute("DROP TABLE rate_limit_logs")
    for run in (migrations.upgrade, partial(migrations.downgrade, revision="-1")):
        with pytest.raises(SchemaError) as refused:
            run(database.url)
        assert [one.code for one in refused.value.findings] == ["revision-without-tables"]
    missing = next(one for one in verify(database.url) if one.code == "table-missing")
    database.execute("\n".join(missing.fix))
    migrations.downgrade(database.url, "base")


def test_missing_table_is_created_closed_by_its_fix(legacy_database: Database) -> None:
    migrations.upgrade(legacy_database.url)
    legacy_database.execute("DROP TABLE langfuse_batch_runs")
    missing = next(one for one in verify(legacy_database.url) if one.code == "table-missing")
    begin, create, *_ = missing.fix
    assert (begin, create.split(" (")[0]) == ("BEGIN;", "CREATE TABLE public.langfuse_batch_runs")
    closed = missing.fix[: missing.fix.index("COMMIT;") + 1]
    legacy_database.execute("\n".join(closed))
    for role in ("anon", "authenticated"):
        query = f"SELECT has_table_privilege('{role}', 'langfuse_batch_runs', 'SELECT, INSERT')"
        assert legacy_database.execute(query) == [(False,)]
