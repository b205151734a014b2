"""The fixtures of the tests. Each test has a database with the app tables and the Langfuse tables.

pip install pytest httpx2 "langfuse-schema[embedded]"
pytest
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from app import app, sync_engine
from fastapi.testclient import TestClient

pytest_plugins = ["langfuse_schema.testing"]


@pytest.fixture(scope="session")
def langfuse_app_migrations() -> Callable[[str], None]:
    """Return the function that runs the app's migrations. It is called once in a test run."""

    def migrate(url: str) -> None:
        config = Config(Path(__file__).with_name("alembic.ini"))
        config.attributes["url"] = url
        command.upgrade(config, "head")

    return migrate


@pytest.fixture
def client(langfuse_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """Yield a client of the app, which uses the database of the test."""
    monkeypatch.setenv("DATABASE_URL", langfuse_database_url)
    with TestClient(app) as client:
        yield client


@pytest.fixture
def users(langfuse_database_url: str) -> list[UUID]:
    """Insert two users, and return their ids."""
    ids = [uuid4(), uuid4()]
    with sync_engine(langfuse_database_url).begin() as connection:
        insert = sa.text("INSERT INTO auth.users (id) VALUES (:id)")
        connection.execute(insert, [{"id": id_} for id_ in ids])
    return ids
