"""Ctrl-C and SIGTERM on the command line, also in the middle of a statement.

psycopg2 ignores them until a statement ends. A wait callback and signal handlers change that for
the whole process, so a program that calls `upgrade()` keeps its handlers.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from select import select
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg2.extensions import POLL_OK, POLL_READ, get_wait_callback, set_wait_callback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

# Together with the rest of the exit, below the second within which a command ends.
_SHORT_SECONDS = 0.5

Result = TypeVar("Result")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt(signal) at any time."""
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


def find_interrupt(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interrupt from which an error followed, or None."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def call_briefly(function: Callable[[], Result]) -> Result | None:
    """Call a function that can block on the network, and wait for it for half a second.

    Return its result, or None if it failed or took longer. It can continue in the background.
    """
    results: SimpleQueue[Result] = SimpleQueue()

    def call() -> None:
        with suppress(Exception):
            results.put(function())

    Thread(target=call, daemon=True).start()
    try:
        return results.get(timeout=_SHORT_SECONDS)
    except Empty:
        return None


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _wait(connection: Any) -> None:  # noqa: ANN401 - psycopg2 has no types
    # After an exception psycopg2 closes the connection. The server ends the statement within
    # client_connection_check_interval.
    while (state := connection.poll()) != POLL_OK:
        reading = [connection] if state == POLL_READ else []
        select(reading, [] if reading else [connection], [])
