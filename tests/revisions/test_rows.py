"""The effect of every default, constraint and ON DELETE of the plan on rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from langfuse_schema import (
    EntityType,
    ScoreName,
    ScoreStatus,
    langfuse_batch_runs,
    langfuse_scores,
    langfuse_traces,
    migrations,
    rate_limit_logs,
)
from langfuse_schema.tables import APP_TABLES
from tests.helpers.databases import AOI, BEN, TRACE, Database, insert_example_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

UNUSED_ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def migrated(database: Database) -> Database:
    migrations.upgrade(database.url)
    insert_example_rows(database)
    return database


@pytest.fixture
def connection(migrated: Database) -> Iterator[sa.Connection]:
    with migrated.connect() as opened:
        yield opened


TRACE_ROW: dict[str, Any] = {
    "trace_id": UNUSED_ID,
    "entity_type": EntityType.REFLECTION,
    "entity_id": UNUSED_ID,
    "user_id": AOI,
    "input": "in",
    "output": "out",
}
SCORE_ROW: dict[str, Any] = {
    "trace_id": TRACE.format(1),
    "score_name": ScoreName.USER_FEEDBACK,
    "value": 1,
}
RUN_ROW: dict[str, Any] = {"id": UNUSED_ID, "batch_name": "nightly", "started_at": sa.func.now()}
LIMIT_ROW: dict[str, Any] = {"user_id": AOI, "endpoint": "/x", "window_start": sa.func.now()}

ROWS = {
    langfuse_traces: TRACE_ROW,
    langfuse_scores: SCORE_ROW,
    langfuse_batch_runs: RUN_ROW,
    rate_limit_logs: LIMIT_ROW,
}


def insert(connection: sa.Connection, table: sa.Table, **changes: Any) -> Any:
    values = {
        name: sa.cast(value, table.c[name].type) if isinstance(value, str) else value
        for name, value in (ROWS[table] | changes).items()
    }
    return connection.execute(sa.insert(table).values(values).returning(table)).one()


def assert_refused(
    connection: sa.Connection, constraint: str, table: sa.Table, **changes: Any
) -> None:
    with pytest.raises(DBAPIError) as raised:
        insert(connection, table, **changes)
    diagnostics = raised.value.orig.diag
    assert constraint in (diagnostics.constraint_name, diagnostics.column_name)


class TestDefaults:
    def test_trace_has_default_id_and_created_at(self, connection: sa.Connection) -> None:
        row = insert(connection, langfuse_traces)
        assert row.id is not None
        assert row.created_at is not None
        assert (row.metadata, row.tags) == (None, None)

    def test_score_has_default_status_pending_without_sent_at(
        self, connection: sa.Connection
    ) -> None:
        row = insert(connection, langfuse_scores)
        assert (row.status, row.sent_at) == (ScoreStatus.PENDING, None)
        assert None not in (row.id, row.created_at)

    def test_batch_run_has_default_counts_of_0(self, connection: sa.Connection) -> None:
        row = insert(connection, langfuse_batch_runs)
        assert (row.scores_created, row.scores_sent, row.completed_at) == (0, 0, None)

    def test_batch_run_without_id_is_refused(self, connection: sa.Connection) -> None:
        assert_refused(connection, "id", langfuse_batch_runs, id=sa.null())

    def test_rate_limit_log_has_default_request_count_of_1(self, connection: sa.Connection) -> None:
        row = insert(connection, rate_limit_logs)
        assert row.request_count == 1


class TestChecks:
    @pytest.mark.parametrize("value", EntityType)
    def test_every_entity_type_is_accepted(
        self, connection: sa.Connection, value: EntityType
    ) -> None:
        assert insert(connection, langfuse_traces, entity_type=value).entity_type == value

    @pytest.mark.parametrize("value", ScoreName)
    def test_every_score_name_is_accepted(
        self, connection: sa.Connection, value: ScoreName
    ) -> None:
        assert insert(connection, langfuse_scores, score_name=value).score_name == value

    @pytest.mark.parametrize("value", ScoreStatus)
    def test_every_score_status_is_accepted(
        self, connection: sa.Connection, value: ScoreStatus
    ) -> None:
        assert insert(connection, langfuse_scores, status=value).status == value

    @pytest.mark.parametrize("value", [0, 1])
    def test_score_values_0_and_1_are_accepted(self, connection: sa.Connection, value: int) -> None:
        assert insert(connection, langfuse_scores, value=value).value == value

    @pytest.mark.parametrize(
        ("table", "column", "value"),
        [
            (langfuse_traces, "entity_type", "profile"),
            (langfuse_scores, "score_name", "mood"),
            (langfuse_scores, "status", "lost"),
            (langfuse_scores, "value", 2),
            (langfuse_scores, "value", 0.5),
        ],
    )
    def test_any_other_value_is_refused(
        self, connection: sa.Connection, table: sa.Table, column: str, value: object
    ) -> None:
        assert_refused(connection, f"{table.name}_{column}_check", table, **{column: value})

    @pytest.mark.parametrize(
        ("table", "column"),
        [(table, column.name) for table in ROWS for column in table.c if not column.nullable],
    )
    def test_null_in_not_null_column_is_refused(
        self, connection: sa.Connection, table: sa.Table, column: str
    ) -> None:
        assert_refused(connection, column, table, **{column: sa.null()})


class TestKeys:
    def test_second_row_with_same_trace_id_is_refused(self, connection: sa.Connection) -> None:
        assert_refused(
            connection, "langfuse_traces_trace_id_key", langfuse_traces, trace_id=TRACE.format(1)
        )

    def test_second_rate_limit_log_for_user_endpoint_and_window_is_refused(
        self, connection: sa.Connection
    ) -> None:
        window = insert(connection, rate_limit_logs).window_start
        assert_refused(
            connection, "idx_rate_limit_logs_unique", rate_limit_logs, window_start=window
        )

    @pytest.mark.parametrize(
        ("table", "column"),
        [(langfuse_traces, "user_id"), (langfuse_scores, "trace_id"), (rate_limit_logs, "user_id")],
    )
    def test_reference_to_missing_row_is_refused(
        self, connection: sa.Connection, table: sa.Table, column: str
    ) -> None:
        assert_refused(connection, f"{table.name}_{column}_fkey", table, **{column: UNUSED_ID})


class TestDeletes:
    def test_deleting_a_user_deletes_traces_scores_and_limits(self, migrated: Database) -> None:
        migrated.execute(f"DELETE FROM auth.users WHERE id = '{AOI}'")
        assert migrated.execute("SELECT user_id::text FROM langfuse_traces") == [(BEN,)]
        assert migrated.execute("SELECT trace_id::text FROM langfuse_scores") == [
            (TRACE.format(2),)
        ]
        assert migrated.execute("SELECT count(*) FROM rate_limit_logs") == [(0,)]

    def test_deleting_a_trace_deletes_its_scores(self, migrated: Database) -> None:
        migrated.execute(f"DELETE FROM langfuse_traces WHERE trace_id = '{TRACE.format(1)}'")
        assert migrated.execute("SELECT trace_id::text FROM langfuse_scores") == [
            (TRACE.format(2),)
        ]

    @pytest.mark.parametrize("table", APP_TABLES)
    def test_deleting_a_trace_keeps_the_row_of_the_app(
        self, migrated: Database, table: str
    ) -> None:
        rows = migrated.execute(f"SELECT count(*) FROM {table}")
        migrated.execute(f"UPDATE {table} SET langfuse_trace_id = '{TRACE.format(1)}'")
        migrated.execute("DELETE FROM langfuse_traces")
        assert (
            migrated.execute(f"SELECT count(*) FROM {table} WHERE langfuse_trace_id IS NULL")
            == rows
        )
