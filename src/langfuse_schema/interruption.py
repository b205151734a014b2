"""Ctrl-C and SIGTERM on the command line: answered at once, also in the middle of a statement.

By itself psycopg2 waits for the statement to end. Waiting in Python instead is a setting of the
whole process, and so are signal handlers: a program that calls us keeps its own.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress
from select import select
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, get_wait_callback, set_wait_callback

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt(signal), whatever is being waited for."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, _interrupt) for number in numbers]
    callback = get_wait_callback()
    set_wait_callback(_wait)
    try:
        yield
    finally:
        set_wait_callback(callback)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def find(error: BaseException | None) -> KeyboardInterrupt | None:
    """Look for an interrupt in the context of an error.

    Arguments:
        error: perhaps of SQLAlchemy, which could not go on after the interrupt.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _wait(connection: Any) -> None:  # noqa: ANN401 - psycopg2 has no types
    try:
        while (state := connection.poll()) != POLL_OK:
            reading = [connection] if state == POLL_READ else []
            select(reading, [] if reading else [connection], [])
    except KeyboardInterrupt:
        # psycopg2 closes the connection; the server would go on with the statement, if it has one.
        with suppress(psycopg2.Error):
            connection.cancel()
        raise
