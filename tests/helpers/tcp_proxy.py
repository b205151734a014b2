"""A proxy between a client and PostgreSQL that interrupts the client at a chosen statement.

The proxy reads the protocol, so that the package needs no hook for tests. It counts the statements
of the first connection, which is the migrating connection.
https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers.databases import RUNNER_SESSIONS, Database, wait_until
from tests.helpers.projects import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HEADER = 5  # type and length of a message
_QUERY = b"Q"
_PORT = 5432  # part of the name of the socket file

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["tests.helpers.tcp_proxy", "langfuse_schema._runtime.runner", "psycopg2.extras"]
)


@dataclass
class TcpProxy:
    """A proxy that forwards bytes, and records the statements of the first connection.

    It calls `on_stop` at statement number `stop_at`, before it forwards the statement if `before`,
    otherwise after. It then closes all connections if `cut`. While it is `silent`, it accepts new
    connections and never answers them.
    """

    server: str
    folder: Path
    stop_at: int | None = None
    before: bool = True
    cut: bool = True
    silent: bool = False
    on_stop: Callable[[], object] = lambda: None
    statements: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / f".s.PGSQL.{_PORT}"))
        self._listener.listen()
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        first = True
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.silent:
                    self._sockets.append(client)
                    continue
                server = socket.socket(socket.AF_UNIX)
                self._sockets += [client, server]
                server.connect(self.server)
                self._start(self._forward_statements if first else self._forward, client, server)
                self._start(self._forward, server, client)
                first = False

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while received := source.recv(65536):
                target.sendall(received)
        disconnect(source, target)

    def _forward_statements(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            length = receive(client, 4)
            server.sendall(length + receive(client, int.from_bytes(length, "big") - 4))
            while True:
                kind, message = receive_message(client)
                stopping = False
                if kind == _QUERY:
                    self.statements.append(message[_HEADER:-1].decode())
                    stopping = len(self.statements) == self.stop_at
                if stopping and self.before:
                    self._stop()
                server.sendall(message)
                if stopping and not self.before:
                    self._stop()
        disconnect(client, server)

    def _stop(self) -> None:
        self.on_stop()
        self.stopped.set()
        if self.cut:
            disconnect(*self._sockets)
            raise EOFError

    def close(self) -> None:
        """Close all connections, and wait for the threads."""
        disconnect(self._listener, *self._sockets)
        for thread in self._threads:
            thread.join(10)
        for opened in (self._listener, *self._sockets):
            opened.close()


def disconnect(*sockets: socket.socket) -> None:
    for opened in sockets:
        with contextlib.suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)


def receive(source: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = source.recv(size - len(received))
        if not part:
            raise EOFError
        received += part
    return received


def receive_message(source: socket.socket) -> tuple[bytes, bytes]:
    header = receive(source, _HEADER)
    return header[:1], header + receive(source, int.from_bytes(header[1:], "big") - 4)


@contextlib.contextmanager
def proxied(
    database: Database, stop_at: int | None = None, *, before: bool = True
) -> Iterator[tuple[TcpProxy, Database]]:
    """Yield a proxy of a database, and the database through it."""
    query = database.url.query
    folder = Path(tempfile.mkdtemp(prefix="proxy-"))
    proxy = TcpProxy(f"{query['host']}/.s.PGSQL.{query['port']}", folder, stop_at, before)
    try:
        yield proxy, Database(database.url.set(query={"host": str(folder), "port": str(_PORT)}))
    finally:
        proxy.close()
        shutil.rmtree(folder)


def start(
    name: str, database: Database, revision: str, project: Project | None = None
) -> multiprocessing.process.BaseProcess:
    """Start an upgrade or a downgrade in a forked process, within milliseconds."""
    run = (project or Project()).migrate
    downgrade = {"downgrade": name == "downgrade"}
    process = _forks.Process(target=run, args=(database, revision), kwargs=downgrade)
    process.start()
    return process


def kill_at(
    name: str,
    database: Database,
    revision: str,
    statement: int,
    *,
    before: bool,
    project: Project | None = None,
) -> str | None:
    """Run a command, and kill it with SIGKILL at a statement.

    Returns:
        The statement, or None if the command ended before it.
    """
    with proxied(database, statement, before=before) as (proxy, through):
        process: list[multiprocessing.process.BaseProcess] = []
        started, reached = threading.Event(), threading.Event()

        def kill() -> None:
            started.wait()
            assert process[0].pid
            # After the kill, the main thread could read the event before this thread sets it.
            reached.set()
            os.kill(process[0].pid, signal.SIGKILL)

        proxy.on_stop = kill
        process.append(start(name, through, revision, project))
        started.set()
        process[0].join()
    killed_at = proxy.statements[statement - 1] if reached.is_set() else None
    if killed_at == "COMMIT" and not before:
        # The server can still be committing. The next run would read the state before it.
        wait_until(database, f"SELECT NOT EXISTS ({RUNNER_SESSIONS})")
    return killed_at
