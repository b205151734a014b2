"""Queue scores in the database, and send them to Langfuse. Run this file every minute.

    pip install langfuse-schema httpx 'langfuse>=5'
    DATABASE_URL=… LANGFUSE_BASE_URL=… LANGFUSE_PUBLIC_KEY=… LANGFUSE_SECRET_KEY=… \
      python send_scores.py

`langfuse>=5` needs Langfuse Cloud, or a self-hosted Langfuse server 4.59.0 or newer.

A score stays pending until Langfuse has accepted it. If the job is killed, the next run sends the
same score again. Langfuse identifies a score by its id, its name and the UTC date of its timestamp.
All three come from the row, so Langfuse keeps one score.

A score that fails delays itself only, and is marked failed after MAX_ATTEMPTS. An attempt counts
only if Langfuse accepted another score right after it. So an outage marks no score failed. The
attempts and the reasons are in the column `errors` of `langfuse_batch_runs`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4, uuid5

import httpx
import sqlalchemy as sa
from langfuse.api import CreateScoreBatchResults, CreateScoreRequest, LangfuseAPI, ScoreDataType
from langfuse.api.core import ApiError, RequestOptions
from sqlalchemy.dialects.postgresql import JSONB, insert

from langfuse_schema import ScoreName, ScoreStatus, langfuse_batch_runs, langfuse_scores

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

History = dict[UUID, tuple[int, timedelta]]
"""The counted attempts of scores that failed before, and the time since the last failure."""

score, run = langfuse_scores.c, langfuse_batch_runs.c

NAME = "send_scores"
"""The value of `batch_name` in langfuse_batch_runs."""

REFUSED = (400, 404, 413, 422)
"""The HTTP status codes that refuse the score itself. A retry would fail in the same way."""

GLOBAL = (401, 403, 429)
"""The HTTP status codes about the keys or the rate limit. They do not count as an attempt."""

DELAYS = (
    timedelta(minutes=1),
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=6),
)
"""The time before the second attempt and each later one."""

MAX_ATTEMPTS = len(DELAYS) + 1

MAX_RUN_AGE = timedelta(days=7)
"""The largest age of a run whose attempts count. It exceeds the sum of DELAYS."""


def queue_score(
    connection: sa.Connection, trace_id: UUID, name: ScoreName, *, good: bool, comment: str = ""
) -> UUID:
    """Queue a new score, as the app's server or as the user of the trace.

    Arguments:
        connection: a connection in the transaction of the app's own change.
        trace_id: the column `trace_id` of a row of langfuse_traces.
        name: the question that the score answers.
        good: the answer.
        comment: the comment of the user.

    Returns:
        The id of the score, in the database and in Langfuse.
    """
    new = sa.insert(langfuse_scores).values(
        id=uuid4(), trace_id=trace_id, score_name=name.value, value=int(good), comment=comment
    )
    score_id: UUID = connection.execute(new.returning(score.id)).scalar_one()
    return score_id


def queue_vote(
    connection: sa.Connection, trace_id: UUID, name: ScoreName, *, good: bool, comment: str = ""
) -> UUID:
    """Queue the user's vote on a trace. A changed vote replaces the earlier one, in Langfuse too.

    The id is derived from the trace and the name, so it is stable. `created_at` does not change,
    because its date is part of the identity in Langfuse. Only the app's server can call this
    function, because users have no privilege to update scores. If a job is sending this score, the
    call waits for up to two timeouts.

    Arguments:
        connection: a connection in the transaction of the app's own change.
        trace_id: the column `trace_id` of a row of langfuse_traces.
        name: the question that the vote answers.
        good: the answer.
        comment: the comment of the user.

    Returns:
        The id of the score, in the database and in Langfuse.
    """
    vote = {"value": int(good), "comment": comment}
    new = insert(langfuse_scores).values(
        id=uuid5(trace_id, name.value), trace_id=trace_id, score_name=name.value, **vote
    )
    requeued = {"status": ScoreStatus.PENDING.value, "sent_at": None}
    queued = new.on_conflict_do_update(index_elements=[score.id], set_=vote | requeued)
    score_id: UUID = connection.execute(queued.returning(score.id)).scalar_one()
    return score_id


@dataclass(frozen=True)
class Backlog:
    """The state of the queue.

    Attributes:
        pending: the number of scores that are not yet sent.
        oldest_age: the age of the oldest pending score, or None.
        failed: the number of scores that failed after their last attempt, or were refused.
    """

    pending: int
    oldest_age: timedelta | None
    failed: int


def backlog(connection: sa.Connection) -> Backlog:
    """Return the state of the queue, for monitoring. Alert on `oldest_age` and `failed`."""
    is_pending = score.status == sa.literal_column("'pending'")
    oldest = sa.select(sa.func.now() - sa.func.min(score.created_at)).where(is_pending)
    number = sa.select(sa.func.count()).select_from(langfuse_scores)
    failed = number.where(score.status == ScoreStatus.FAILED.value)
    columns = [part.scalar_subquery() for part in (number.where(is_pending), oldest, failed)]
    return Backlog(*connection.execute(sa.select(*columns)).one())


@dataclass(frozen=True)
class Result:
    """The result for a score: SENT, FAILED, or PENDING, which a later run retries.

    Attributes:
        score_id: the id of the score.
        status: the new status of the score.
        problem: the reason, if the score was not sent.
        counts: False if the attempt does not count.
    """

    score_id: UUID
    status: ScoreStatus
    problem: str | None = None
    counts: bool = True


@dataclass
class Run:
    """A run of the job, recorded in a row of langfuse_batch_runs.

    Attributes:
        api: the client of Langfuse.
        timeout: the longest wait for a response, in seconds.
        history: the attempts of the scores that failed in earlier runs.
        id: the id of the row.
        problems: the content of the column `errors`.
    """

    api: LangfuseAPI
    timeout: int
    history: History
    id: UUID = field(default_factory=uuid4)
    problems: list[dict[str, Any]] = field(default_factory=list)

    def attempt(self, score_id: UUID) -> int:
        """Return the number of the attempt of a score in this run."""
        return self.history.get(score_id, (0, timedelta()))[0] + 1

    def is_due(self, score_id: UUID) -> bool:
        """Return whether the delay of a score that failed before is over."""
        number, since = self.history[score_id]
        return number == 0 or since >= DELAYS[min(number, len(DELAYS)) - 1]


def send_pending(
    engine: sa.Engine, api: LangfuseAPI, *, batch: int = 20, timeout: int = 10
) -> UUID:
    """Send the pending scores, oldest first. Several jobs can run at the same time.

    Arguments:
        engine: an engine of the server's role.
        api: the client of Langfuse.
        batch: the number of scores in one transaction. If the job is killed, they are sent again.
        timeout: the longest wait for a response, in seconds.

    Returns:
        The id of the row of langfuse_batch_runs that records the run.
    """
    with engine.begin() as connection:
        current = Run(api, timeout, attempts(connection))
        new = {"id": current.id, "batch_name": NAME, "started_at": sa.func.now()}
        connection.execute(sa.insert(langfuse_batch_runs).values(new))
    is_up = send_new(engine, current, batch)
    for score_id in filter(current.is_due, current.history):
        if not is_up:
            break
        with engine.begin() as connection:
            _, is_up = send_rows(connection, current, claim(connection, 1, only=score_id))
    with engine.begin() as connection:
        ended = sa.update(langfuse_batch_runs).where(run.id == current.id)
        connection.execute(ended.values(completed_at=sa.func.now()))
    return current.id


def send_new(engine: sa.Engine, current: Run, batch: int) -> bool:
    """Send the scores that have not failed before. Return False if Langfuse is down."""
    last: sa.Row[Any] | None = None
    while True:
        with engine.begin() as connection:
            rows = claim(connection, batch, after=last, skip=current.history)
            if not rows:
                return True
            number, is_up = send_rows(connection, current, rows)
        if not is_up:
            return False
        last = rows[number - 1]


def send_rows(
    connection: sa.Connection, current: Run, rows: Sequence[sa.Row[Any]]
) -> tuple[int, bool]:
    """Send scores up to the first one that stays pending, and record the results.

    The early stop keeps the row locks short. A server that does not respond costs two timeouts.

    Returns:
        The number of tried scores, and False if Langfuse is down.
    """
    results: list[Result] = []
    for row in rows:
        results.append(send(current, row))
        if results[-1].status is ScoreStatus.PENDING:
            break
    tried, is_up = len(results), True
    if tried and results[-1].status is ScoreStatus.PENDING:
        is_up, probe = probe_langfuse(connection, current, rows[tried - 1])
        results[-1] = count_attempt(current, results[-1], is_up=is_up)
        results += [probe] if probe else []
    record_results(connection, current, results)
    return tried, is_up


def probe_langfuse(
    connection: sa.Connection, current: Run, failed: sa.Row[Any]
) -> tuple[bool, Result | None]:
    """Send another score, to check whether Langfuse is up.

    The score is the last sent one, because Langfuse keeps a repeated score only once. Before the
    first success, it is the newest pending score.

    Returns:
        Whether Langfuse is up, and the result if the score was pending.
    """
    others = sa.select(langfuse_scores).where(score.id != failed.id).limit(1)
    others = others.with_for_update(skip_locked=True)
    sent = others.where(score.status == ScoreStatus.SENT.value).order_by(score.sent_at.desc())
    row = connection.execute(sent).first()
    if row is None:
        pending = others.where(score.status == sa.literal_column("'pending'"))
        row = connection.execute(pending.order_by(score.created_at.desc(), score.id.desc())).first()
    if row is None:
        return False, None
    result = send(current, row)
    is_up = result.status is not ScoreStatus.PENDING
    return is_up, result if is_up and row.status == ScoreStatus.PENDING.value else None


def attempts(connection: sa.Connection) -> History:
    """Return the history of the pending scores that failed before."""
    problem = sa.func.jsonb_array_elements(run.errors, type_=JSONB).table_valued(
        sa.column("value", JSONB)
    )
    score_id = sa.cast(problem.c.value["score"].astext, sa.Uuid)
    failed = (
        sa.select(
            score_id.label("id"),
            sa.func.max(sa.cast(problem.c.value["attempt"].astext, sa.Integer)).label("attempt"),
            (sa.func.now() - sa.func.max(run.started_at)).label("since"),
        )
        .select_from(langfuse_batch_runs)
        .join(problem, sa.true())
        .join(langfuse_scores, score.id == score_id)
        .where(
            run.batch_name == NAME,
            run.started_at > sa.func.now() - MAX_RUN_AGE,
            score.status == sa.literal_column("'pending'"),
        )
        .group_by(score_id)
    )
    return {row.id: (row.attempt or 0, row.since) for row in connection.execute(failed)}


def count_attempt(current: Run, result: Result, *, is_up: bool) -> Result:
    """Return the result with the counted attempt. It is FAILED after the last attempt."""
    counts = is_up and result.counts
    failed = counts and current.attempt(result.score_id) >= MAX_ATTEMPTS
    return replace(
        result, status=ScoreStatus.FAILED if failed else ScoreStatus.PENDING, counts=counts
    )


def claim(
    connection: sa.Connection,
    batch: int,
    *,
    after: sa.Row[Any] | None = None,
    skip: Collection[UUID] = (),
    only: UUID | None = None,
) -> Sequence[sa.Row[Any]]:
    """Lock pending scores that no other job holds.

    Arguments:
        connection: a connection in a transaction. The locks end with it, even if the job is killed.
        batch: the largest number of scores.
        after: the last score that this run has tried.
        skip: the ids of scores to skip.
        only: the id of a score. No other score is locked.
    """
    # PostgreSQL uses the partial index for a literal, also in a prepared statement.
    pending = sa.select(langfuse_scores).where(score.status == sa.literal_column("'pending'"))
    if after is not None:
        tried = sa.tuple_(sa.literal(after.created_at), sa.literal(after.id))
        pending = pending.where(sa.tuple_(score.created_at, score.id) > tried)
    if skip:
        pending = pending.where(score.id.not_in(skip))
    if only is not None:
        pending = pending.where(score.id == only)
    oldest = pending.order_by(score.created_at, score.id).limit(batch)
    return connection.execute(oldest.with_for_update(skip_locked=True)).all()


def send(current: Run, row: sa.Row[Any]) -> Result:
    """Send one score. The response to several scores does not name the refused one."""
    request = CreateScoreRequest(
        id=str(row.id),
        name=row.score_name,
        timestamp=row.created_at,
        trace_id=row.trace_id.hex,
        value=int(row.value),
        # By default, Langfuse treats 0 and 1 as numbers, and averages them.
        data_type=ScoreDataType("BOOLEAN"),
        comment=row.comment or None,
        metadata=row.metadata if isinstance(row.metadata, dict) else {"metadata": row.metadata},
    )
    try:
        # A later run retries the score. A retry by the client would keep the rows locked.
        options: RequestOptions = {"timeout_in_seconds": current.timeout, "max_retries": 0}
        response = current.api.scores.create(request=[request], request_options=options)
    except ApiError as error:
        refused = error.status_code in REFUSED
        status = ScoreStatus.FAILED if refused else ScoreStatus.PENDING
        problem = f"HTTP {error.status_code}: {error.body}"
        return Result(row.id, status, problem, counts=error.status_code not in GLOBAL)
    except httpx.HTTPError as error:
        return Result(row.id, ScoreStatus.PENDING, f"{type(error).__name__}: {error}")
    if isinstance(response, CreateScoreBatchResults) and response.rejected:
        reasons = "; ".join(problem.message for problem in response.errors)
        return Result(row.id, ScoreStatus.FAILED, f"rejected: {reasons}")
    return Result(row.id, ScoreStatus.SENT)


def record_results(connection: sa.Connection, current: Run, results: Sequence[Result]) -> None:
    """Record the results of the scores and of the run in one transaction."""
    sent = 0
    for status in (ScoreStatus.SENT, ScoreStatus.FAILED):
        ids = [result.score_id for result in results if result.status is status]
        marked = sa.update(langfuse_scores).where(
            score.id.in_(ids), score.status == sa.literal_column("'pending'")
        )
        sent_at = sa.func.now() if status is ScoreStatus.SENT else None
        updated = connection.execute(marked.values(status=status.value, sent_at=sent_at))
        if status is ScoreStatus.SENT:
            sent = updated.rowcount
    for result in results:
        if result.problem:
            problem = {"score": str(result.score_id), "problem": result.problem}
            counts = {"attempt": current.attempt(result.score_id)} if result.counts else {}
            current.problems.append({**problem, **counts, "status": result.status.value})
    totals = {"scores_sent": run.scores_sent + sent, "errors": current.problems or sa.null()}
    connection.execute(sa.update(langfuse_batch_runs).where(run.id == current.id).values(totals))


def engine_of(database_url: str) -> sa.Engine:
    """Return an engine for a URL in the form of Supabase, Heroku or Prisma.

    `postgresql://` means psycopg 3 in SQLAlchemy 2.1 and psycopg2 in 2.0, and no version accepts
    `postgres://`. So the driver is named. libpq rejects the parameters of other clients.
    """
    url = sa.make_url(database_url).set(drivername="postgresql+psycopg2")
    of_other_clients = ["pgbouncer", "connection_limit", "pool_timeout", "schema"]
    return sa.create_engine(url.difference_update_query(of_other_clients))


if __name__ == "__main__":
    job_engine = engine_of(os.environ["DATABASE_URL"])
    send_pending(
        job_engine,
        LangfuseAPI(
            base_url=os.environ["LANGFUSE_BASE_URL"],
            username=os.environ["LANGFUSE_PUBLIC_KEY"],
            password=os.environ["LANGFUSE_SECRET_KEY"],
        ),
    )
    with job_engine.connect() as job_connection:
        print(backlog(job_connection))  # noqa: T201 - for the log of the job
