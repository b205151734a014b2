"""Statements that a batch collects, and sends as one message."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from langfuse_schema._runtime.batches import Batch
from langfuse_schema._runtime.connect import connect
from langfuse_schema._runtime.options import Options

if TYPE_CHECKING:
    from tests.helpers.databases import Database

COUNTED = sa.table("counted", sa.column("value", sa.Text))


def test_collected_update_returns_its_number_of_rows(database: Database) -> None:
    """Alembic checks the number, because another tool can change the version table."""
    with connect(database.url, Options()) as connection:
        batch = Batch(connection)
        with batch.collecting():
            batch.collect(sa.text("CREATE TABLE counted (value text)"))
            batch.collect(sa.text("INSERT INTO counted VALUES ('100 %\\:s'), ('b')"))
            updated = batch.collect(sa.update(COUNTED).values(value="c").where(sa.text("false")))
            assert updated is not None
            assert updated.rowcount == 0
            rows = connection.exec_driver_sql("SELECT value FROM counted ORDER BY 1")
            assert rows.scalars().all() == ["100 %:s", "b"]


def test_collected_statements_are_sent_before_query_and_commit_and_not_after_rollback(
    database: Database,
) -> None:
    with connect(database.url, Options()) as connection:
        batch = Batch(connection)
        with batch.collecting():
            connection.begin()
            batch.collect(sa.text("CREATE TABLE first (id int)"))
            assert connection.exec_driver_sql("SELECT count(*) FROM first").scalar() == 0
            batch.collect(sa.text("CREATE TABLE second (id int)"))
            connection.commit()
            connection.begin()
            batch.collect(sa.text("CREATE TABLE third (id int)"))
            connection.rollback()
            connection.exec_driver_sql("SELECT 1")
    tables = database.catalog().tables
    assert {"public.first", "public.second"} <= tables.keys()
    assert "public.third" not in tables


def test_failing_statement_is_none_for_error_of_earlier_batch(database: Database) -> None:
    with connect(database.url, Options()) as connection:
        batch = Batch(connection)
        errors = []
        with batch.collecting():
            for statements in (["SELECT 1", "SELECT 1/0", "SELECT 2"], ["SELECT 1/0"]):
                connection.begin()
                for statement in statements:
                    batch.collect(sa.text(statement))
                with pytest.raises(DBAPIError) as error:
                    connection.commit()
                errors.append(error.value)
                connection.rollback()
                assert batch.failing_statement(error.value) == "SELECT 1/0"
            assert batch.failing_statement(errors[0]) is None
