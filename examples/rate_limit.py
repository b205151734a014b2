"""Limit the calls of an endpoint by a user in a time window, across all servers of an app."""

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
    """Count a request, and return whether it is allowed.

    One statement checks and counts the request, so concurrent requests cannot exceed the limit.
    A concurrent request of the same user waits for the row lock. Commit at once to release it.

    Arguments:
        connection: a connection of the server's role. Users have no access to the counters.
        user_id: the user who sent the request.
        endpoint: the name of the endpoint.
        limit: the number of allowed requests in a window.
        window: the length of a window. Windows begin at multiples of it, by the database's clock.

    Returns:
        False if the limit is reached.
    """
    window_start = sa.func.date_bin(window, sa.func.now(), sa.text("timestamptz 'epoch'"))
    counted = (
        insert(log)
        .values(user_id=user_id, endpoint=endpoint, window_start=window_start)
        .on_conflict_do_update(
            index_elements=[log.c.user_id, log.c.endpoint, log.c.window_start],
            set_={log.c.request_count: log.c.request_count + 1},
            # A refused request updates no row, so many refused requests cost little.
            where=log.c.request_count < limit,
        )
        .returning(log.c.request_count)
    )
    return limit > 0 and connection.scalar(counted) is not None


def delete_old_counters(connection: sa.Connection, *, older_than: timedelta) -> int:
    """Delete the counters of past windows. Run it in a nightly job.

    Arguments:
        connection: a connection of the server's role.
        older_than: the age of the deleted windows. It must exceed the longest window.

    Returns:
        The number of deleted counters.
    """
    old = sa.delete(log).where(log.c.window_start < sa.func.now() - older_than)
    return connection.execute(old).rowcount
