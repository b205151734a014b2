"""Queue scores in the database, and send them to Langfuse: a job to run every minute or night.

    pip install langfuse-schema httpx 'langfuse>=5'
    DATABASE_URL=… LANGFUSE_BASE_URL=… LANGFUSE_PUBLIC_KEY=… LANGFUSE_SECRET_KEY=… \
      python send_scores.py

Nothing is lost and nothing counted twice, wherever the job is killed: a score stays pending
until Langfuse has said yes, and sent again it is the same score, because Langfuse tells scores
apart by id, name and the date of the timestamp, which all come from the row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx
import sqlalchemy as sa
from langfuse.api import CreateScoreBatchResults, CreateScoreRequest, LangfuseAPI, ScoreDataType
from langfuse.api.core import ApiError

from langfuse_schema import ScoreName, ScoreStatus, langfuse_batch_runs, langfuse_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

score, run = langfuse_scores.c, langfuse_batch_runs.c

REFUSED = (400, 404, 413, 422)
"""Answers that are about this score, and will be the same tomorrow."""

TROUBLES_IN_A_ROW = 3
"""After so many scores without a yes or a no, Langfuse is given a rest until the next run."""


def queue_score(
    connection: sa.Connection, trace_id: UUID, name: ScoreName, *, good: bool, comment: str = ""
) -> UUID:
    """Queue a score; as the app's server, or as the user whose trace it is.

    Arguments:
        connection: in the transaction in which the app learns of it.
        trace_id: of a row of langfuse_traces.
        name: which question it answers.
        good: the answer.
        comment: in the user's own words.

    Returns:
        The id of the score, here and in Langfuse.
    """
    new = sa.insert(langfuse_scores).values(
        id=uuid4(), trace_id=trace_id, score_name=name.value, value=int(good), comment=comment
    )
    score_id: UUID = connection.execute(new.returning(score.id)).scalar_one()
    return score_id


@dataclass(frozen=True)
class Answer:
    """What became of a score: SENT, FAILED, or PENDING, to be tried again in another run."""

    score_id: UUID
    status: ScoreStatus
    problem: str | None = None


def send_pending(
    engine: sa.Engine, api: LangfuseAPI, *, batch: int = 20, timeout: int = 10
) -> UUID:
    """Send what is pending, oldest first; several jobs side by side share the work.

    Arguments:
        engine: of the server's own role.
        api: Langfuse's own client.
        batch: how many scores one transaction holds: what a kill lets go to be sent again.
        timeout: how long to wait for an answer, in seconds.

    Returns:
        The id of the row of langfuse_batch_runs, which says how it went.
    """
    run_id = uuid4()
    with engine.begin() as connection:
        new = {"id": run_id, "batch_name": "send_scores", "started_at": sa.func.now()}
        connection.execute(sa.insert(langfuse_batch_runs).values(new))
    last: sa.Row[Any] | None = None
    problems: list[dict[str, str]] = []
    troubles = 0
    while troubles < TROUBLES_IN_A_ROW:
        with engine.begin() as connection:
            rows = claim(connection, batch, after=last)
            if not rows:
                break
            answers = []
            for row in rows:
                answers.append(send(api, row, timeout))
                pending = answers[-1].status is ScoreStatus.PENDING
                troubles = troubles + 1 if pending else 0
                if troubles == TROUBLES_IN_A_ROW:
                    break
            last = rows[len(answers) - 1]
            problems += [
                {"score": str(answer.score_id), "problem": answer.problem}
                for answer in answers
                if answer.problem
            ]
            mark(connection, run_id, answers, problems)
    with engine.begin() as connection:
        ended = sa.update(langfuse_batch_runs).where(run.id == run_id)
        connection.execute(ended.values(completed_at=sa.func.now()))
    return run_id


def claim(
    connection: sa.Connection, batch: int, *, after: sa.Row[Any] | None
) -> Sequence[sa.Row[Any]]:
    """Lock pending scores that no other job holds, past those that this run has tried."""
    # A literal, so that the partial index of the queue serves a prepared statement too.
    pending = sa.select(langfuse_scores).where(score.status == sa.literal_column("'pending'"))
    if after is not None:
        tried = sa.tuple_(sa.literal(after.created_at), sa.literal(after.id))
        pending = pending.where(sa.tuple_(score.created_at, score.id) > tried)
    oldest = pending.order_by(score.created_at, score.id).limit(batch)
    # The locks end with the transaction, also where the job is killed.
    return connection.execute(oldest.with_for_update(skip_locked=True)).all()


def send(api: LangfuseAPI, row: sa.Row[Any], timeout: int) -> Answer:
    """Send one score by itself: the answer to several does not say which was refused."""
    request = CreateScoreRequest(
        id=str(row.id),
        name=row.score_name,
        timestamp=row.created_at,
        trace_id=row.trace_id.hex,
        value=int(row.value),
        # Without it 0 and 1 would be numbers, to be averaged instead of counted.
        data_type=ScoreDataType("BOOLEAN"),
        comment=row.comment or None,
        metadata=row.metadata if isinstance(row.metadata, dict) else {"metadata": row.metadata},
    )
    try:
        # The queue is the retry; waiting for one here would keep the rows locked.
        answer = api.scores.create(
            request=[request], request_options={"timeout_in_seconds": timeout, "max_retries": 0}
        )
    except ApiError as error:
        refused = error.status_code in REFUSED
        status = ScoreStatus.FAILED if refused else ScoreStatus.PENDING
        return Answer(row.id, status, f"HTTP {error.status_code}: {error.body}")
    except httpx.HTTPError as error:
        return Answer(row.id, ScoreStatus.PENDING, f"{type(error).__name__}: {error}")
    if isinstance(answer, CreateScoreBatchResults) and answer.rejected:
        reasons = "; ".join(problem.message for problem in answer.errors)
        return Answer(row.id, ScoreStatus.FAILED, f"rejected: {reasons}")
    return Answer(row.id, ScoreStatus.SENT)


def mark(
    connection: sa.Connection,
    run_id: UUID,
    answers: Sequence[Answer],
    problems: Sequence[dict[str, str]],
) -> None:
    """Note what became of the scores, and in the same transaction how the run stands."""
    for status in (ScoreStatus.SENT, ScoreStatus.FAILED):
        ids = [answer.score_id for answer in answers if answer.status is status]
        sent_at = sa.func.now() if status is ScoreStatus.SENT else None
        marked = sa.update(langfuse_scores).where(score.id.in_(ids))
        connection.execute(marked.values(status=status.value, sent_at=sent_at))
    sent = sum(answer.status is ScoreStatus.SENT for answer in answers)
    standing = {"scores_sent": run.scores_sent + sent, "errors": list(problems) or sa.null()}
    connection.execute(sa.update(langfuse_batch_runs).where(run.id == run_id).values(standing))


if __name__ == "__main__":
    send_pending(
        sa.create_engine(os.environ["DATABASE_URL"]),
        LangfuseAPI(
            base_url=os.environ["LANGFUSE_BASE_URL"],
            username=os.environ["LANGFUSE_PUBLIC_KEY"],
            password=os.environ["LANGFUSE_SECRET_KEY"],
        ),
    )
