"""Ctrl-C and SIGTERM on the command line, also in the middle of a statement.

psycopg2 ignores them until a statement ends. A wait callback and signal handlers change that for
the whole process, so a program that calls `upgrade()` keeps its handlers.
"""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from select import select
from threading import Thread, current_thread, main_thread
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg2
from psycopg2.extensions import (
    POLL_OK,
    POLL_READ,
    STATUS_SETUP,
    get_wait_callback,
    parse_dsn,
    set_wait_callback,
)

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


def call_briefly(function: Callable[[], Result], seconds: float = _SHORT_SECONDS) -> Result | None:
    """Call a function that can block on the network, and wait for it for half a second.

    Return its result, or None if it failed or took longer. It can continue in the background.
    """
    results: SimpleQueue[Result] = SimpleQueue()

    def call() -> None:
        with suppress(Exception):
            results.put(function())

    Thread(target=call, daemon=True).start()
    try:
        return results.get(timeout=seconds)
    except Empty:
        return None


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def connect(**parameters: Any) -> Any:  # noqa: ANN401 - of libpq; psycopg2 has no types
    """Connect, and let a signal interrupt it.

    With a wait callback, libpq applies no connect_timeout, and does not continue with the next host
    of several. So in the main thread it connects in another thread, without the callback.
    """
    if get_wait_callback() is not _wait or current_thread() is not main_thread():
        return psycopg2.connect(**parameters)
    results: SimpleQueue[Any] = SimpleQueue()

    def call() -> None:
        try:
            results.put(psycopg2.connect(**parameters))
        except Exception as error:  # noqa: BLE001 - raised in the main thread, whatever it is
            results.put(error)

    set_wait_callback(None)
    try:
        Thread(target=call, daemon=True).start()
        result = results.get()
    finally:
        set_wait_callback(_wait)
    if isinstance(result, Exception):
        raise result
    return result


def _wait(connection: Any) -> None:  # noqa: ANN401 - psycopg2 has no types
    # After an exception psycopg2 closes the connection. The server ends the statement within
    # client_connection_check_interval.
    deadline = None
    if connection.status == STATUS_SETUP:
        limit = float(parse_dsn(connection.dsn).get("connect_timeout", 0))
        deadline = time.monotonic() + limit if limit else None
    while (state := connection.poll()) != POLL_OK:
        reading = [connection] if state == POLL_READ else []
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise psycopg2.OperationalError("timeout expired")
        select(reading, [] if reading else [connection], [], left)
