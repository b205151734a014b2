"""Let a user call an endpoint so many times in a window of time, however many servers ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from langfuse_schema import rate_limit_logs as log

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID


def allow(
    connection: sa.Connection, user_id: UUID, endpoint: str, *, limit: int, window: timedelta
) -> bool:
    """Count a request, unless the limit is reached.

    One statement, so that clients that ask at the same moment are counted one after the other:
    whoever comes second waits for the row, and sees the first one's count. Commit at once, or
    the others wait.

    Arguments:
        connection: of the server's own role; users never see the counters.
        user_id: who calls.
        endpoint: what is called.
        limit: how many calls a window has.
        window: how long it is; all windows begin at multiples of it, by the database's clock.

    Returns:
        Whether the request may go on.
    """
    window_start = sa.func.date_bin(window, sa.func.now(), sa.text("timestamptz 'epoch'"))
    counted = (
        insert(log)
        .values(user_id=user_id, endpoint=endpoint, window_start=window_start)
        .on_conflict_do_update(
            index_elements=[log.c.user_id, log.c.endpoint, log.c.window_start],
            set_={log.c.request_count: log.c.request_count + 1},
            # A refused request writes nothing, so that a flood of them costs little.
            where=log.c.request_count < limit,
        )
        .returning(log.c.request_count)
    )
    return limit > 0 and connection.scalar(counted) is not None


def forget(connection: sa.Connection, *, older_than: timedelta) -> int:
    """Delete counters that no window needs any more; for a nightly job.

    Arguments:
        connection: of the server's own role.
        older_than: longer than the longest window.

    Returns:
        How many there were.
    """
    old = sa.delete(log).where(log.c.window_start < sa.func.now() - older_than)
    return connection.execute(old).rowcount
