"""The sender of scores, against every answer of the API: none is lost, none counted twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import send_scores
import sqlalchemy as sa
from langfuse.api import LangfuseAPI

from langfuse_schema import ScoreName, migrations
from tests.examples.langfuse_stub import DROP, TIMEOUT, LangfuseStub, langfuse_stub
from tests.helpers.databases import CHECKOUT, TRACE, Database, environment, insert_example_rows

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def langfuse() -> Iterator[LangfuseStub]:
    with langfuse_stub() as stub:
        yield stub


@pytest.fixture
def engine(database: Database) -> sa.Engine:
    migrations.upgrade(database.url)
    insert_example_rows(database)
    database.execute("DELETE FROM langfuse_scores")
    return sa.create_engine(database.url, poolclass=sa.NullPool)


def api(langfuse: LangfuseStub) -> LangfuseAPI:
    return LangfuseAPI(base_url=langfuse.url, username="public", password="secret")


def queue(engine: sa.Engine, number: int) -> list[UUID]:
    """Queue scores, all of different moments, so that their order is theirs."""
    ids = []
    for position in range(number):
        with engine.begin() as connection:
            ids.append(
                send_scores.queue_score(
                    connection, UUID(TRACE.format(1)), ScoreName.USER_FEEDBACK, good=position > 0
                )
            )
    return ids


def statuses(engine: sa.Engine) -> dict[str, str]:
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "SELECT id::text, status || CASE WHEN sent_at IS NULL THEN '' ELSE '!' END"
                " FROM langfuse_scores"
            )
        )
        return {row[0]: row[1] for row in rows}


def run_of(engine: sa.Engine, run_id: UUID) -> sa.Row[Any]:
    with engine.connect() as connection:
        return connection.execute(
            sa.text("SELECT * FROM langfuse_batch_runs WHERE id = :id"), {"id": run_id}
        ).one()


def test_send_pending_sends_every_score_and_records_run(
    engine: sa.Engine, langfuse: LangfuseStub
) -> None:
    ids = queue(engine, 5)
    run = run_of(engine, send_scores.send_pending(engine, api(langfuse), batch=2))
    assert [score["id"] for score in langfuse.received] == [str(id_) for id_ in ids]
    first = langfuse.received[0]
    assert first["traceId"] == UUID(TRACE.format(1)).hex
    assert (first["name"], first["value"], first["dataType"]) == ("user_feedback", 0, "BOOLEAN")
    assert set(statuses(engine).values()) == {"sent!"}
    assert (run.batch_name, run.scores_sent, run.errors) == ("send_scores", 5, None)
    assert run.completed_at is not None
    send_scores.send_pending(engine, api(langfuse))
    assert len(langfuse.received) == 5


@pytest.mark.parametrize(
    ("answer", "status", "problem"),
    [
        (202, "sent!", None),
        (207, "failed", "rejected: comment is too long"),
        (400, "failed", "HTTP 400"),
        (401, "pending", "HTTP 401"),
        (429, "pending", "HTTP 429"),
        (500, "pending", "HTTP 500"),
        (TIMEOUT, "pending", "ReadTimeout"),
        (DROP, "pending", "RemoteProtocolError"),
    ],
)
def test_send_pending_sets_status_for_each_response_of_api(
    engine: sa.Engine,
    langfuse: LangfuseStub,
    answer: int | str,
    status: str,
    problem: str | None,
) -> None:
    bad, good = (str(id_) for id_ in queue(engine, 2))
    langfuse.answer = lambda score: answer if score["id"] == bad else 202
    run = run_of(engine, send_scores.send_pending(engine, api(langfuse), timeout=1))
    assert statuses(engine) == {bad: status, good: "sent!"}
    assert run.scores_sent == (2 if answer == 202 else 1)
    if problem is None:
        assert run.errors is None
    else:
        (entry,) = run.errors
        assert entry["score"] == bad
        assert entry["problem"].startswith(problem)
    langfuse.answer = lambda _: 202
    send_scores.send_pending(engine, api(langfuse))
    if status == "pending":
        assert statuses(engine)[bad] == "sent!"
    assert len(langfuse.identities()) == len({score["id"] for score in langfuse.kept})


def test_send_pending_stops_after_consecutive_server_errors(
    engine: sa.Engine, langfuse: LangfuseStub
) -> None:
    queue(engine, 8)
    langfuse.answer = lambda _: 500
    send_scores.send_pending(engine, api(langfuse), batch=5)
    assert len(langfuse.received) == send_scores.TROUBLES_IN_A_ROW
    assert set(statuses(engine).values()) == {"pending"}


def test_send_pending_sends_metadata_of_any_json_type(
    engine: sa.Engine, langfuse: LangfuseStub
) -> None:
    queue(engine, 3)
    with engine.begin() as connection:
        for position, value in enumerate(['{"a": 1}', "[1, 2]", "3"]):
            connection.execute(
                sa.text(
                    "UPDATE langfuse_scores SET metadata = CAST(:value AS jsonb) WHERE id ="
                    " (SELECT id FROM langfuse_scores ORDER BY created_at OFFSET :at LIMIT 1)"
                ),
                {"value": value, "at": position},
            )
    send_scores.send_pending(engine, api(langfuse))
    assert [score["metadata"] for score in langfuse.received] == [
        {"a": 1},
        {"metadata": [1, 2]},
        {"metadata": 3},
    ]


def test_concurrent_jobs_send_each_score_once(engine: sa.Engine, langfuse: LangfuseStub) -> None:
    ids = queue(engine, 60)
    with ThreadPoolExecutor(4) as jobs:
        for job in [
            jobs.submit(send_scores.send_pending, engine, api(langfuse), batch=3) for _ in range(4)
        ]:
            job.result()
    send_scores.send_pending(engine, api(langfuse))
    assert sorted(score["id"] for score in langfuse.received) == sorted(map(str, ids))
    assert set(statuses(engine).values()) == {"sent!"}


def test_job_skips_scores_that_another_job_claimed(
    database: Database, engine: sa.Engine, langfuse: LangfuseStub
) -> None:
    ids = queue(engine, 5)
    impatient = sa.create_engine(
        database.url, poolclass=sa.NullPool, connect_args={"options": "-c lock_timeout=2s"}
    )
    with engine.begin() as connection:
        held = send_scores.claim(connection, 2, after=None)
        send_scores.send_pending(impatient, api(langfuse))
    assert [row.id for row in held] == ids[:2]
    assert [score["id"] for score in langfuse.received] == [str(id_) for id_ in ids[2:]]


def test_rerun_after_kill_loses_no_score_and_counts_none_twice(
    database: Database, engine: sa.Engine, langfuse: LangfuseStub
) -> None:
    ids = {str(id_) for id_ in queue(engine, 50)}
    variables = environment(
        DATABASE_URL=database.text,
        LANGFUSE_BASE_URL=langfuse.url,
        LANGFUSE_PUBLIC_KEY="public",
        LANGFUSE_SECRET_KEY="secret",
    )
    script = [sys.executable, str(CHECKOUT / "examples" / "send_scores.py")]
    for arrived in (7, 27):
        # The answer to this one never comes, so the job is killed in the middle of a batch.
        langfuse.answer = lambda _, wait=arrived: TIMEOUT if len(langfuse.received) == wait else 202
        job = subprocess.Popen(script, env=variables)
        deadline = time.monotonic() + 60
        while len(langfuse.received) < arrived and time.monotonic() < deadline:
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
        job.wait()
    langfuse.answer = lambda _: 202
    subprocess.run(script, env=variables, check=True, timeout=60)
    assert set(statuses(engine).values()) == {"sent!"}
    assert {score["id"] for score in langfuse.kept} == ids
    # More arrived than there are, and Langfuse counts each once.
    assert len(langfuse.kept) > len(ids) == len(langfuse.identities())
    with engine.connect() as connection:
        unfinished, sent = connection.execute(
            sa.text(
                "SELECT count(*) FILTER (WHERE completed_at IS NULL), sum(scores_sent)"
                " FROM langfuse_batch_runs WHERE batch_name = 'send_scores'"
            )
        ).one()
    assert (unfinished, sent) == (2, 50)
