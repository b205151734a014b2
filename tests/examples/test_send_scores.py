"""The example `send_scores` loses no score and counts none twice, for every answer of the API."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
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


def queue_scores(engine: sa.Engine, number: int) -> list[UUID]:
    """Queue scores in separate transactions, so that their creation times differ."""
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
    ids = queue_scores(engine, 5)
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
        pytest.param(401, "pending", "HTTP 401", marks=pytest.mark.slow),
        pytest.param(429, "pending", "HTTP 429", marks=pytest.mark.slow),
        (500, "pending", "HTTP 500"),
        (TIMEOUT, "pending", "ReadTimeout"),
        pytest.param(DROP, "pending", "RemoteProtocolError", marks=pytest.mark.slow),
    ],
)
def test_send_pending_sets_status_for_each_response_of_api(
    engine: sa.Engine,
    langfuse: LangfuseStub,
    answer: int | str,
    status: str,
    problem: str | None,
) -> None:
    bad, good = (str(id_) for id_ in queue_scores(engine, 2))
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
    age_runs(engine, send_scores.DELAYS[0])
    send_scores.send_pending(engine, api(langfuse))
    if status == "pending":
        assert statuses(engine)[bad] == "sent!"
    assert len(langfuse.identities()) == len({score["id"] for score in langfuse.stored})


def errors_of(engine: sa.Engine, score: UUID) -> list[dict[str, Any]]:
    """Return the recorded problems of a score, oldest first."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text(
                "SELECT problem FROM langfuse_batch_runs,"
                " jsonb_array_elements(errors) AS problem"
                " WHERE problem->>'score' = :id ORDER BY started_at"
            ),
            {"id": str(score)},
        )
        return [row[0] for row in rows]


def age_runs(engine: sa.Engine, age: timedelta) -> None:
    """Move the start times of the recorded runs into the past."""
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE langfuse_batch_runs SET started_at = started_at - :age"), {"age": age}
        )


def test_three_oldest_scores_with_http_500_delay_no_other_score(
    engine: sa.Engine, langfuse: LangfuseStub
) -> None:
    ids = queue_scores(engine, 20)
    bad = {str(id_) for id_ in ids[:3]}
    langfuse.answer = lambda score: 500 if score["id"] in bad else 202
    run = run_of(engine, send_scores.send_pending(engine, api(langfuse), batch=5))
    assert {id_ for id_, status in statuses(engine).items() if status == "pending"} == bad
    assert run.scores_sent == len(langfuse.identities()) == 17
    # The next run skips the delayed scores, which do not block newer ones.
    newer = queue_scores(engine, 2)
    langfuse.received.clear()
    send_scores.send_pending(engine, api(langfuse))
    assert [score["id"] for score in langfuse.received] == [str(id_) for id_ in newer]


def test_score_that_always_fails_is_marked_failed_with_reason_after_its_attempts(
    engine: sa.Engine, langfuse: LangfuseStub
) -> None:
    bad, good = queue_scores(engine, 2)
    langfuse.answer = lambda score: 500 if score["id"] == str(bad) else 202
    for number, delay in enumerate([*send_scores.DELAYS, timedelta()], 1):
        send_scores.send_pending(engine, api(langfuse))
        assert len(errors_of(engine, bad)) == number
        send_scores.send_pending(engine, api(langfuse))
        assert len(errors_of(engine, bad)) == number, (
            "the score was sent before the end of its delay"
        )
        age_runs(engine, delay)
    assert statuses(engine) == {str(bad): "failed", str(good): "sent!"}
    errors = errors_of(engine, bad)
    assert [error["attempt"] for error in errors] == [1, 2, 3, 4, 5]
    assert errors[-1]["status"] == "failed"
    assert errors[-1]["problem"].startswith("HTTP 500")


@pytest.mark.slow
@pytest.mark.parametrize("answer", [500, 401])
def test_outage_marks_no_score_failed_and_sends_few_requests(
    engine: sa.Engine, langfuse: LangfuseStub, answer: int | str
) -> None:
    queue_scores(engine, 1)
    send_scores.send_pending(engine, api(langfuse))
    ids = queue_scores(engine, 8)
    langfuse.received.clear()
    langfuse.answer = lambda _: answer
    for _ in range(send_scores.MAX_ATTEMPTS + 1):
        send_scores.send_pending(engine, api(langfuse), batch=5)
        age_runs(engine, timedelta(hours=7))
    assert len(langfuse.received) == 2 * (send_scores.MAX_ATTEMPTS + 1)
    assert set(statuses(engine).values()) == {"pending", "sent!"}
    langfuse.answer = lambda _: 202
    send_scores.send_pending(engine, api(langfuse))
    assert set(statuses(engine).values()) == {"sent!"}
    assert {score["id"] for score in langfuse.stored} >= {str(id_) for id_ in ids}


def test_unreachable_langfuse_marks_no_score_failed(engine: sa.Engine) -> None:
    queue_scores(engine, 3)
    unreachable = LangfuseAPI(base_url="http://127.0.0.1:1", username="public", password="secret")
    for _ in range(send_scores.MAX_ATTEMPTS + 1):
        run = run_of(engine, send_scores.send_pending(engine, unreachable))
        age_runs(engine, timedelta(hours=7))
    assert run.completed_at is not None
    assert run.errors[0]["problem"].startswith("ConnectError")
    assert set(statuses(engine).values()) == {"pending"}


def test_changed_vote_replaces_earlier_score(engine: sa.Engine, langfuse: LangfuseStub) -> None:
    trace = UUID(TRACE.format(1))
    for good in (True, False):
        with engine.begin() as connection:
            send_scores.queue_vote(connection, trace, ScoreName.USER_FEEDBACK, good=good)
        send_scores.send_pending(engine, api(langfuse))
    assert [score["value"] for score in langfuse.received] == [1, 0]
    assert len(langfuse.identities()) == 1
    assert list(statuses(engine).values()) == ["sent!"]


def test_backlog_counts_pending_and_failed_scores(
    engine: sa.Engine, langfuse: LangfuseStub
) -> None:
    with engine.connect() as connection:
        assert send_scores.backlog(connection) == send_scores.Backlog(0, None, 0)
    bad, *_ = queue_scores(engine, 3)
    langfuse.answer = lambda score: 400 if score["id"] == str(bad) else 401
    send_scores.send_pending(engine, api(langfuse))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE langfuse_scores SET created_at = now() - interval '1h'"))
        found = send_scores.backlog(connection)
    assert found == send_scores.Backlog(2, timedelta(hours=1), 1)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_engine_of_accepts_urls_of_supabase_and_prisma(database: Database, scheme: str) -> None:
    url = database.url.set(drivername=scheme).update_query_dict(
        {"pgbouncer": "true", "connection_limit": "1", "pool_timeout": "9", "schema": "public"}
    )
    engine = send_scores.engine_of(url.render_as_string(hide_password=False))
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    engine.dispose()


def test_send_pending_sends_metadata_of_any_json_type(
    engine: sa.Engine, langfuse: LangfuseStub
) -> None:
    queue_scores(engine, 3)
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
    ids = queue_scores(engine, 60)
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
    ids = queue_scores(engine, 5)
    second_engine = sa.create_engine(
        database.url, poolclass=sa.NullPool, connect_args={"options": "-c lock_timeout=2s"}
    )
    with engine.begin() as connection:
        claimed = send_scores.claim(connection, 2, after=None)
        send_scores.send_pending(second_engine, api(langfuse))
    assert [row.id for row in claimed] == ids[:2]
    assert [score["id"] for score in langfuse.received] == [str(id_) for id_ in ids[2:]]


@pytest.mark.slow
def test_rerun_after_kill_loses_no_score_and_counts_none_twice(
    database: Database, engine: sa.Engine, langfuse: LangfuseStub
) -> None:
    ids = {str(id_) for id_ in queue_scores(engine, 50)}
    variables = environment(
        DATABASE_URL=database.text,
        LANGFUSE_BASE_URL=langfuse.url,
        LANGFUSE_PUBLIC_KEY="public",
        LANGFUSE_SECRET_KEY="secret",
    )
    script = [sys.executable, str(CHECKOUT / "examples" / "send_scores.py")]
    for arrived in (7, 27):
        # The job waits for a missing answer, so the signal ends it during a batch.
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
    assert {score["id"] for score in langfuse.stored} == ids
    # Some scores arrived twice, and Langfuse counts each of them once.
    assert len(langfuse.stored) > len(ids) == len(langfuse.identities())
    with engine.connect() as connection:
        unfinished, sent = connection.execute(
            sa.text(
                "SELECT count(*) FILTER (WHERE completed_at IS NULL), sum(scores_sent)"
                " FROM langfuse_batch_runs WHERE batch_name = 'send_scores'"
            )
        ).one()
    assert (unfinished, sent) == (2, 50)
