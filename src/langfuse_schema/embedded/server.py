"""Start or join an embedded server, use it, and release it.

A server runs as long as at least one process uses it, however these processes end. The process in
`supervisor` ensures this.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL

from langfuse_schema._postgres.findings import finding
from langfuse_schema.embedded import binaries, folders, supervisor
from langfuse_schema.embedded.folders import EmbeddedError
from langfuse_schema.embedded.supervisor import POLL_SECONDS, open_lock, try_lock, wait_until

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

_START_SECONDS = 120.0  # of initdb on a slow, busy machine; a failure ends the wait at once
_STOP_SECONDS = 70.0  # more than the limit in the supervisor
_ANSWER_SECONDS = 10.0  # only a server with a full queue of connections needs time to answer
_LOG_CHARACTERS = 2000  # the end of the log in a message
_UNSAFE_AND_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class Server:
    """A server that runs at least until `close()`, or until this process ends.

    The default role of its URLs is Supabase's `postgres`, which is not a superuser.

    Attributes:
        host: the folder of the server's Unix socket.
        port: the number in the name of the socket file, and the TCP port of a server that listens.
        listens: whether the server listens on 127.0.0.1, too.
        bin: the folder with psql, pg_dump, pgbench and initdb.
        directory: the folder of the server's state.
        password: of the default role over TCP. With it, URLs are for TCP instead of the socket.
        on_close: callbacks for `close()`.
    """

    def __init__(
        self,
        directory: Path,
        programs: Path,
        users: int,
        announcement: dict[str, object],
        child: subprocess.Popen[bytes] | None,
    ) -> None:
        """Take over the descriptor `users`, which holds users.lock. Only `start` calls this."""
        self.directory = directory
        self.bin = programs
        self.host = str(announcement["host"])
        self.port = int(str(announcement["port"]))
        self.listens = bool(announcement["listens"])
        self.password: str | None = None
        self._users: int | None = users
        self._announcement = announcement  # the content of server.json
        self._child = child  # the supervisor, if this process started it
        self.on_close = contextlib.ExitStack()

    def url(self, database: str = "postgres", user: str = "postgres") -> URL:
        """Return the URL for SQLAlchemy."""
        query = {"host": self.host, "port": str(self.port)}
        return URL.create("postgresql+psycopg2", username=user, database=database, query=query)

    def connection_string(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return the URL for psql and DATABASE_URL."""
        if self.password is not None:
            return f"postgresql://{user}:{self.password}@127.0.0.1:{self.port}/{database}"
        url = self.url(database, user).set(drivername="postgresql")
        # SQLAlchemy writes a space as "+", which libpq reads as a plus.
        return url.render_as_string(hide_password=False).replace("+", "%20")

    def psql_command(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return a shell command: psql from PATH, or the wheel's psql with its full path."""
        psql = "psql" if shutil.which("psql") else str(self.bin / "psql")
        return shlex.join([psql, self.connection_string(database, user)])

    def is_running(self) -> bool:
        """Return whether the server still runs. It ends before `close()` only if it is killed."""
        return _announced(self.directory) == self._announcement

    def close(self) -> bool:
        """Release the server, and wait for its end if no other process uses it.

        Returns:
            True if the server has stopped, False if another process still uses it.
        """
        if self._users is None:
            return not self.is_running()
        users, self._users = self._users, None
        try:
            in_use = _release(users)
            if not in_use:
                wait_until(self._has_stopped, _STOP_SECONDS)
            _detach(self._child)
        finally:
            os.close(users)
            self.on_close.close()
        return not in_use

    def _has_stopped(self) -> bool:
        """Return whether the supervisor has ended, even if a new one has replaced it."""
        announcement = _read_announcement(self.directory)
        if announcement is not None and announcement != self._announcement:
            return True
        if self._child is not None:
            return self._child.poll() is not None
        try:
            lock = open_lock(self.directory / "supervisor.lock")
        except FileNotFoundError:  # the directory was deleted
            return True
        try:
            return try_lock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the server."""
        self.close()


def start(
    directory: Path,
    *,
    version: int = 18,
    settings: Mapping[str, str] | None = None,
    host_based_authentication: Sequence[str] = (),
    temporary: bool = False,
) -> Server:
    """Start the server of a folder, or join the one that runs there.

    The first start creates the data with the superuser `supabase_admin`. A server that already
    runs keeps its settings and its authentication.

    Arguments:
        directory: an absolute path. The folder is created if it does not exist.
        version: the major version of PostgreSQL, 18 or 16. Existing data must have this version.
        settings: added to those of postgresql.conf.
        host_based_authentication: lines of pg_hba.conf before the one that trusts every role.
        temporary: whether the folder is deleted at the end, so that it need not survive a crash.

    Raises:
        EmbeddedError: PostgreSQL is not installed in this version, could not use the folder, or
            did not start.
    """
    account = folders.server_account()
    try:
        programs = binaries.locate(version, account)
        folders.create_directory(directory, account)
        folders.check_version(directory, version)
        folders.check_user(directory)
        options = supervisor.ServerOptions(
            directory=str(directory),
            binaries=str(programs),
            socket_folder=str(folders.socket_folder(directory)),
            account=account,
            locale=binaries.locale_options(version),
            settings={**(_UNSAFE_AND_FAST if temporary else {}), **(settings or {})},
            host_based_authentication=tuple(host_based_authentication),
            temporary=temporary,
        )
        return _use(directory, options)
    except OSError as error:
        values = {"cause": str(error), "expected": "a folder that can be written to"}
        raise folders.unusable(directory, "Use another folder.", **values) from error


def _use(directory: Path, options: supervisor.ServerOptions) -> Server:
    """Register as a user of the server, which keeps it running, and then join or start it."""
    users = open_lock(directory / "users.lock")
    try:
        # The supervisor holds the exclusive lock while the server stops.
        if not wait_until(lambda: try_lock(users, fcntl.LOCK_SH), _STOP_SECONDS):
            raise _failure(directory, f"did not stop within {_STOP_SECONDS:.0f} s")  # noqa: TRY301
        announcement, child = _join_or_start(directory, options)
    except BaseException:
        os.close(users)
        raise
    return Server(directory, Path(options.binaries), users, announcement, child)


def _join_or_start(
    directory: Path, options: supervisor.ServerOptions
) -> tuple[dict[str, object], subprocess.Popen[bytes] | None]:
    """Return the announcement of a server that answers, and the supervisor if it is a child."""
    child = None
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        lock = open_lock(directory / "supervisor.lock")
        try:
            if not try_lock(lock, fcntl.LOCK_EX):
                announcement = _announced(directory)
                if announcement is not None:
                    return announcement, child
            elif child is None:
                (directory / "server.json").unlink(missing_ok=True)
                child = _start_supervisor(directory, options, lock)
            else:
                child.wait()
                raise _failure(directory, "did not start")
        finally:
            # A supervisor that inherited the lock still holds it.
            os.close(lock)
        time.sleep(POLL_SECONDS)
    _detach(child)
    raise _failure(directory, f"was not ready within {_START_SECONDS:.0f} s")


def _start_supervisor(
    directory: Path, options: supervisor.ServerOptions, lock: int
) -> subprocess.Popen[bytes]:
    arguments = [supervisor.__file__, json.dumps(options._asdict()), str(lock)]
    # The log is a file, because the reader of an inherited pipe would wait for the server's end.
    with (directory / "server.log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - the file belongs to this package
            [sys.executable, "-I", "-S", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=[lock],
            start_new_session=True,
        )


def _announced(directory: Path) -> dict[str, object] | None:
    """Return the announcement of the supervisor, if its server answers."""
    announcement = _read_announcement(directory)
    if announcement is None:
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_SECONDS)
        try:
            probe.connect(f"{announcement['host']}/.s.PGSQL.{announcement['port']}")
        except OSError:
            return None
    return announcement


def _read_announcement(directory: Path) -> dict[str, object] | None:
    try:
        announcement = json.loads((directory / "server.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return dict(announcement)


def _release(users: int) -> bool:
    """Unlock users.lock, and return whether another process still holds it."""
    fcntl.flock(users, fcntl.LOCK_UN)
    # If the exclusive lock fails, other processes use the server, or the supervisor holds the
    # exclusive lock already. In the second case the shared lock fails, too.
    in_use = not try_lock(users, fcntl.LOCK_EX) and try_lock(users, fcntl.LOCK_SH)
    fcntl.flock(users, fcntl.LOCK_UN)
    return in_use


def _detach(child: subprocess.Popen[bytes] | None) -> None:
    """Prevent Python's warning about a supervisor that outlives its Popen, as intended."""
    if child is not None and child.poll() is None:
        child.returncode = 0


def _failure(directory: Path, problem: str) -> EmbeddedError:
    log = directory / "server.log"
    try:
        excerpt = log.read_text(encoding="utf-8", errors="replace").strip()[-_LOG_CHARACTERS:]
        cause = f"{log} contains:\n{excerpt}" if excerpt else f"{log} is empty"
    except OSError as error:
        cause = str(error)
    values = {"problem": problem, "cause": cause, "folder": shlex.quote(str(directory))}
    return EmbeddedError(finding("embedded-failed", str(directory), **values))
