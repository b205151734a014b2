"""A relay between clients and PostgreSQL that counts, delays and freezes round trips."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from tests.helpers.databases import Database
from tests.helpers.tcp_proxy import disconnect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PORT = 5432  # part of the name of the socket file
_PART = 65536


@dataclass
class Relay:
    """A relay that forwards bytes. Each direction takes half of `round_trip` seconds.

    A round trip starts with the first message of a client after an answer of the server. After a
    message for which `freezes_after` is true, the relay keeps all connections open, and forwards
    no more bytes.
    """

    server: str
    folder: Path
    round_trip: float = 0.0
    freezes_after: Callable[[bytes], bool] = lambda _: False
    frozen_at: float | None = None
    sent: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._running = threading.Event()
        self._running.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / f".s.PGSQL.{_PORT}"))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def round_trips(self) -> int:
        return len(self.sent)

    def freeze(self) -> None:
        """Stop forwarding, and keep all connections open."""
        self.frozen_at = time.monotonic()
        self._running.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self._sockets += [client, server]
                server.connect(self.server)
                answered = threading.Event()
                answered.set()
                self._start(client, server, answered, from_client=True)
                self._start(server, client, answered, from_client=False)

    def _start(
        self,
        source: socket.socket,
        target: socket.socket,
        answered: threading.Event,
        *,
        from_client: bool,
    ) -> None:
        parts: SimpleQueue[tuple[float, bytes]] = SimpleQueue()

        def receive() -> None:
            with contextlib.suppress(OSError):
                while received := source.recv(_PART):
                    if not from_client:
                        answered.set()
                    elif answered.is_set() and received[:1] != b"X":
                        answered.clear()
                        self.sent.append(received)
                    parts.put((time.monotonic() + self.round_trip / 2, received))
            parts.put((time.monotonic(), b""))

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    due, part = parts.get()
                    time.sleep(max(0.0, due - time.monotonic()))
                    self._running.wait()
                    if not part:
                        break
                    target.sendall(part)
                    if from_client and self.frozen_at is None and self.freezes_after(part):
                        self.freeze()
            disconnect(source, target)

        for function in (receive, send):
            threading.Thread(target=function, daemon=True).start()

    def close(self) -> None:
        """Close all connections."""
        self._running.set()
        disconnect(self._listener, *self._sockets)
        for opened in (self._listener, *self._sockets):
            opened.close()


@contextlib.contextmanager
def relayed(database: Database, round_trip: float = 0.0) -> Iterator[tuple[Relay, Database]]:
    """Yield a relay of a database, and the database through it."""
    query = database.url.query
    folder = Path(tempfile.mkdtemp(prefix="relay-"))
    relay = Relay(f"{query['host']}/.s.PGSQL.{query['port']}", folder, round_trip)
    try:
        yield relay, Database(database.url.set(query={"host": str(folder), "port": str(_PORT)}))
    finally:
        relay.close()
        shutil.rmtree(folder)
