"""The example of README, with Langfuse's client and a stub of its server."""

from __future__ import annotations

import sys
from uuid import UUID

import pytest

from langfuse_schema import migrations
from tests.examples.langfuse_stub import PROJECT, langfuse_stub
from tests.helpers.databases import Database, run
from tests.helpers.pages import block

pytestmark = pytest.mark.slow

CALLER = """
import os

from langfuse import observe

url = sa.make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg2")


@observe()
def ask_model(question):
    return question.upper()


with sa.create_engine(url).begin() as db:
    message = db.execute(sa.text("SELECT id, user_id FROM ai_coach_messages LIMIT 1")).one()
    trace_id = answer(db, ask_model, message.id, message.user_id, "Why?")
get_client().flush()
print(message.id, message.user_id, trace_id, get_client().get_trace_url(trace_id=trace_id.hex))
"""


def test_readme_example_records_trace_and_its_link(database: Database) -> None:
    migrations.upgrade(database.url)
    program = block("README.md", "from uuid").text
    with langfuse_stub() as stub:
        outcome = run(
            sys.executable,
            "-c",
            program + CALLER,
            DATABASE_URL=database.text,
            LANGFUSE_BASE_URL=stub.url,
            LANGFUSE_PUBLIC_KEY="public",
            LANGFUSE_SECRET_KEY="secret",
        )
    assert outcome.code == 0, outcome.stderr
    message, user, trace, link = outcome.stdout.split()
    assert link == f"{stub.url}/project/{PROJECT['id']}/traces/{UUID(trace).hex}"
    assert any(UUID(trace).bytes in spans for spans in stub.spans), (
        "no span has the id of the trace"
    )
    recorded = database.execute(
        "SELECT entity_type, entity_id::text, t.user_id::text, input, output, m.id::text"
        " FROM langfuse_traces AS t JOIN ai_coach_messages AS m"
        " ON langfuse_trace_id = trace_id"
    )
    assert recorded == [("ai_coach_message", message, user, "Why?", "WHY?", message)]
    assert database.execute("SELECT count(*) FROM langfuse_scores") == [(0,)]
