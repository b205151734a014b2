"""Ctrl-C and SIGTERM on the command line: answered at once, also in the middle of a statement.

By itself psycopg2 waits for the statement to end. Waiting in Python instead is a setting of the
whole process, and so are signal handlers: a program that calls us keeps its own.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from select import select
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg2.extensions import POLL_OK, POLL_READ, get_wait_callback, set_wait_callback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

# Together with what ends a run otherwise they stay below the second in which we answer.
_MOMENT_SECONDS = 0.2
_BRIEFLY_SECONDS = 0.5

_CANCEL_SECONDS = 5  # until the request is given up, in the background
_MOST_FILES = 1024

Result = TypeVar("Result")


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


def briefly(function: Callable[[], Result]) -> Result | None:
    """Call a function that the network may hold up for ever, and wait a moment for it.

    Arguments:
        function: it may go on in the background.

    Returns:
        What it returned; None if it failed or took longer.
    """
    results: SimpleQueue[Result] = SimpleQueue()

    def call() -> None:
        with suppress(Exception):
            results.put(function())

    Thread(target=call, daemon=True).start()
    try:
        return results.get(timeout=_BRIEFLY_SECONDS)
    except Empty:
        return None


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _wait(connection: Any) -> None:  # noqa: ANN401 - psycopg2 has no types
    try:
        while (state := connection.poll()) != POLL_OK:
            reading = [connection] if state == POLL_READ else []
            select(reading, [] if reading else [connection], [])
    except KeyboardInterrupt:
        # psycopg2 closes the connection; the server would go on with the statement, if it has one.
        _cancel(connection)
        raise


def _cancel(connection: Any) -> None:  # noqa: ANN401 - as above
    """Ask the server to cancel, and wait a moment only: if the network stalls, that never ends.

    In a process of its own, since psycopg2 lets no thread run while it waits for the answer. A
    server that does not hear of it finds out that we are gone (client_connection_check_interval).
    """
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            # Neither our output nor the connection is to be kept open by it.
            os.closerange(0, _MOST_FILES)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_CANCEL_SECONDS)
            connection.cancel()
        os._exit(0)
    until = time.monotonic() + _MOMENT_SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < until:
        time.sleep(0.005)
