"""One embedded server: started or joined, used, and let go.

A server lives exactly as long as somebody uses it, in whatever way its users end: see
`supervisor`, the process that sees to it.
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

from langfuse_schema.embedded import binaries, folders, supervisor
from langfuse_schema.embedded.folders import EmbeddedError
from langfuse_schema.embedded.supervisor import open_lock, try_lock, wait_until

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

_START_SECONDS = 120.0  # initdb on a slow, busy machine; a failure is seen at once
_STOP_SECONDS = 70.0  # more than the supervisor gives the server
_ANSWER_SECONDS = 10.0  # only a server with a full queue of connections takes any time at all
_POLL_SECONDS = 0.005


class Server:
    """A running server that stays up at least until `close()`, or until this process ends.

    Attributes:
        host: the folder of the server's Unix socket.
        port: the number in the name of the socket file.
        bin: the folder with psql, pg_dump, pgbench, initdb and the others.
        directory: where the server's state is.
        on_close: what to undo when the server is let go.
    """

    def __init__(
        self,
        directory: Path,
        programs: Path,
        users: int,
        announcement: dict[str, object],
        owner: subprocess.Popen[bytes] | None,
    ) -> None:
        """Take over `users`, a descriptor that holds users.lock; made by `start` only."""
        self.directory = directory
        self.bin = programs
        self.host = str(announcement["host"])
        self.port = int(str(announcement["port"]))
        self._users: int | None = users
        self._announcement = announcement
        self._owner = owner
        self.on_close = contextlib.ExitStack()

    def url(self, database: str = "postgres", user: str = "postgres") -> URL:
        """Return how SQLAlchemy connects; the default user is Supabase's, no superuser."""
        query = {"host": self.host, "port": str(self.port)}
        return URL.create("postgresql+psycopg2", username=user, database=database, query=query)

    def connection_string(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return the URL as psql and DATABASE_URL take it."""
        url = self.url(database, user).set(drivername="postgresql")
        # SQLAlchemy writes a space as "+", which libpq reads as a plus.
        return url.render_as_string(hide_password=False).replace("+", "%20")

    def psql_command(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return a shell line to paste: the psql on PATH, else the wheel's by its full path."""
        psql = "psql" if shutil.which("psql") else str(self.bin / "psql")
        return shlex.join([psql, self.connection_string(database, user)])

    def is_running(self) -> bool:
        """Tell whether the server is still there; it ends early only if it is killed."""
        return _announced(self.directory) == self._announcement

    def close(self) -> bool:
        """Let go of the server, and wait for its end if nobody else uses it.

        Returns:
            True if the server has stopped, False if others still use it.
        """
        if self._users is None:
            return not self.is_running()
        users, self._users = self._users, None
        try:
            in_use = _leave(users)
            if not in_use:
                wait_until(self._has_stopped, _STOP_SECONDS)
            _forget(self._owner)
        finally:
            os.close(users)
            self.on_close.close()
        return not in_use

    def _has_stopped(self) -> bool:
        """Tell whether our supervisor is gone, even if another one runs a new server by now."""
        announcement = _read_announcement(self.directory)
        if announcement is not None and announcement != self._announcement:
            return True
        if self._owner is not None:
            return self._owner.poll() is not None
        try:
            lock = open_lock(self.directory / "supervisor.lock")
        except FileNotFoundError:  # somebody has deleted the directory
            return True
        try:
            return try_lock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def __enter__(self) -> Self:
        """Return the server itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def start(
    directory: Path,
    *,
    version: int = 18,
    settings: Mapping[str, str] | None = None,
    host_based_authentication: Sequence[str] = (),
) -> Server:
    """Start the server whose state is in `directory`, or join the one that runs there.

    The first start creates the data; its superuser is `supabase_admin`. Settings and
    authentication hold for this start: who joins a running server gets it as it is.

    Args:
        directory: absolute; created if absent.
        version: PostgreSQL's major version, 18 or 16. Existing data must be of that version.
        settings: more of postgresql.conf.
        host_based_authentication: lines of pg_hba.conf that come before "trust" for all.

    Raises:
        EmbeddedError: not installed, not this version, not allowed, or PostgreSQL's own reason.
    """
    account = folders.server_account()
    try:
        programs = binaries.locate(version, account)
        folders.create_directory(directory, account)
        _check_version(directory, version)
        orders = supervisor.Orders(
            directory=str(directory),
            binaries=str(programs),
            socket_folder=str(folders.socket_folder(directory)),
            account=account,
            locale=binaries.locale_options(version),
            settings=dict(settings or {}),
            host_based_authentication=tuple(host_based_authentication),
        )
        return _use(directory, orders)
    except OSError as error:
        raise EmbeddedError(
            f"the embedded database could not be created: {error}; expected a folder that can be "
            "written to: run elsewhere, or set DATABASE_URL"
        ) from error


def _use(directory: Path, orders: supervisor.Orders) -> Server:
    """Become one of the server's users, and with that keep it up, before looking for it."""
    users = open_lock(directory / "users.lock")
    try:
        # Somebody else has it exclusively while the server stops.
        if not wait_until(lambda: try_lock(users, fcntl.LOCK_SH), _STOP_SECONDS):
            raise _failure(directory, "the former server did not stop")  # noqa: TRY301
        announcement, owner = _join_or_start(directory, orders)
    except BaseException:
        os.close(users)
        raise
    return Server(directory, Path(orders.binaries), users, announcement, owner)


def _check_version(directory: Path, version: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        found = (directory / "data" / "PG_VERSION").read_text().strip()
        if found != str(version):
            raise EmbeddedError(
                f"found data of PostgreSQL {found} in {directory}, expected {version}; delete the "
                "folder to begin anew, or use the other version"
            )


def _join_or_start(
    directory: Path, orders: supervisor.Orders
) -> tuple[dict[str, object], subprocess.Popen[bytes] | None]:
    """Return the announcement of a server that answers, and its supervisor if we started it."""
    owner = None
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        lock = open_lock(directory / "supervisor.lock")
        try:
            if not try_lock(lock, fcntl.LOCK_EX):
                announcement = _announced(directory)
                if announcement is not None:
                    return announcement, owner
            elif owner is None:
                (directory / "server.json").unlink(missing_ok=True)
                owner = _start_supervisor(directory, orders, lock)
            else:
                owner.wait()
                raise _failure(directory, "the server did not start")
        finally:
            # This does not unlock what a supervisor has inherited.
            os.close(lock)
        time.sleep(_POLL_SECONDS)
    _forget(owner)
    raise _failure(directory, f"the server was not ready within {_START_SECONDS:.0f} s")


def _start_supervisor(
    directory: Path, orders: supervisor.Orders, lock: int
) -> subprocess.Popen[bytes]:
    arguments = [supervisor.__file__, json.dumps(orders._asdict()), str(lock)]
    # A file, not a pipe: whoever reads a pipe of ours would wait until the server ends.
    with (directory / "server.log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603 (our own file)
            [sys.executable, "-I", "-S", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=[lock],
            start_new_session=True,
        )


def _announced(directory: Path) -> dict[str, object] | None:
    """Return what the supervisor has written about its server, if the server answers."""
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


def _leave(users: int) -> bool:
    """Unlock users.lock; tell whether others still hold it."""
    fcntl.flock(users, fcntl.LOCK_UN)
    # Without the exclusive lock either others use the server, or the supervisor was faster: then
    # the shared one is not to be had either.
    in_use = not try_lock(users, fcntl.LOCK_EX) and try_lock(users, fcntl.LOCK_SH)
    fcntl.flock(users, fcntl.LOCK_UN)
    return in_use


def _forget(owner: subprocess.Popen[bytes] | None) -> None:
    """Keep Python from warning that a supervisor outlives its Popen: it is meant to."""
    if owner is not None and owner.poll() is None:
        owner.returncode = 0


def _failure(directory: Path, problem: str) -> EmbeddedError:
    log = directory / "server.log"
    try:
        reason = log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
    except OSError as error:
        reason = str(error)
    return EmbeddedError(
        f"the embedded database is not available: {problem}. {log} says:\n{reason}\n"
        f"Try again; delete {directory} to begin anew; or set DATABASE_URL to another database"
    )
