"""The process that owns an embedded server: starts it, and stops it when nobody uses it.

`server` runs this file by its path with `python -I -S`: the standard library is all it needs,
and it starts in the time that takes. Three lock files in the server's directory say who is there;
they are `flock` locks because the kernel releases those however a process ends:

- `users.lock`, shared: everybody who uses the server. Once the supervisor holds it exclusively,
  nobody does, and nobody can begin to until the server has stopped.
- `supervisor.lock`: held by the supervisor until nothing of the server is left.
- `server.lock`: inherited by every process of PostgreSQL. If it is free, none of them lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PORT = 5432  # names the socket file only: the server listens to no network

_STOP_SECONDS = 60.0  # a fast shutdown writes a checkpoint first
_POLL_SECONDS = 0.005
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Orders(NamedTuple):
    """What the starter tells the supervisor, as one JSON argument."""

    directory: str
    binaries: str  # the folder with initdb and postgres
    socket_folder: str
    account: tuple[int, int] | None  # user and group id for PostgreSQL, which refuses root
    locale: Sequence[str]  # options of initdb
    settings: Mapping[str, str]
    host_based_authentication: Sequence[str]


class SupervisorError(Exception):
    """Why there is no server; the starter shows it to the user."""


def open_lock(path: Path) -> int:
    """Return a descriptor to lock `path` with, which no program that we start inherits."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(descriptor: int, operation: int) -> bool:
    """Take a lock without waiting; False if somebody else has it."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def run(orders: Orders, lock: int) -> None:
    """Own one server from its start to its end.

    Args:
        orders: what to run, and where.
        lock: the descriptor that holds supervisor.lock; inherited, so that it is never free
            between starter and supervisor.

    Raises:
        SupervisorError: the server did not start.
        OSError: a folder or a program is not accessible.
    """
    os.set_inheritable(lock, False)
    directory = Path(orders.directory)
    data = directory / "data"
    server_lock = open_lock(directory / "server.lock")
    _wait_for_former_server(orders, data, server_lock)
    if not data.exists():
        _create_data(orders, data, server_lock)
    # The processes of the last server are gone, so the number in this file may belong to any
    # program by now; PostgreSQL would take that for a server and refuse to start.
    (data / "postmaster.pid").unlink(missing_ok=True)
    _own_folder(Path(orders.socket_folder), orders.account)
    server = _start(orders, data, server_lock)
    os.close(server_lock)
    try:
        _serve(orders, data, server)
    finally:
        _clean_up(orders, directory, data)


def _wait_for_former_server(orders: Orders, data: Path, server_lock: int) -> None:
    """Take server.lock; stop what is left of a server whose supervisor was killed."""
    if try_lock(server_lock, fcntl.LOCK_EX):
        return
    # Only pg_ctl, run as the server's own account, may act on a process id from a file that this
    # account can write to.
    command = [f"{orders.binaries}/pg_ctl", "stop", "-s", "-W", "-m", "fast", "-D", str(data)]
    _run(orders, command, signal.SIGTERM, server_lock).wait()
    if not wait_until(lambda: try_lock(server_lock, fcntl.LOCK_EX), _STOP_SECONDS):
        raise SupervisorError(
            f"found a PostgreSQL that still uses {data} and does not stop; end it and try again"
        )


def _create_data(orders: Orders, data: Path, server_lock: int) -> None:
    """Run initdb beside its place and rename: half a data folder is never taken for a whole."""
    unfinished = data.with_name("data.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    _own_folder(unfinished, orders.account)
    command = [
        f"{orders.binaries}/initdb",
        *("-D", str(unfinished), "-U", "supabase_admin", "--auth=trust", "-E", "UTF8"),
        *("--no-sync", "--no-instructions", *orders.locale),
    ]
    exit_code = _run(orders, command, signal.SIGTERM, server_lock).wait()
    if exit_code != 0:
        raise SupervisorError(f"initdb failed with exit code {exit_code}")
    unfinished.rename(data)


def _start(orders: Orders, data: Path, server_lock: int) -> subprocess.Popen[bytes]:
    # Outside of the data folder, where root must not write: its owner could put a link there.
    authentication = Path(orders.directory, "pg_hba.conf")
    lines = [*orders.host_based_authentication, "local all,replication all trust"]
    authentication.write_text("\n".join([*lines, ""]), encoding="utf-8")
    authentication.chmod(0o644)
    settings = {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": f'"{orders.socket_folder}"',
        "unix_socket_permissions": "0700",
        "hba_file": str(authentication),
        **orders.settings,
    }
    command = [f"{orders.binaries}/postgres", "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    # SIGINT is PostgreSQL's fast shutdown.
    return _run(orders, command, signal.SIGINT, server_lock)


def _serve(orders: Orders, data: Path, server: subprocess.Popen[bytes]) -> None:
    """Announce the server when it is ready, and return when it has ended."""
    directory = Path(orders.directory)

    def stop(*_: object) -> None:
        (directory / "server.json").unlink(missing_ok=True)
        server.send_signal(signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    threading.Thread(target=_stop_when_unused, args=(directory, server), daemon=True).start()
    wait_until(lambda: server.poll() is not None or _is_ready(data, server.pid), None)
    if server.returncode is None:
        _announce(orders, directory)
    elif server.returncode != 0:
        raise SupervisorError(f"PostgreSQL ended with exit code {server.returncode}")
    server.wait()


def _stop_when_unused(directory: Path, server: subprocess.Popen[bytes]) -> None:
    # Never released: the end of this process does that, when nothing of the server is left.
    fcntl.flock(open_lock(directory / "users.lock"), fcntl.LOCK_EX)
    server.send_signal(signal.SIGINT)
    try:
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.send_signal(signal.SIGQUIT)


def _is_ready(data: Path, process: int) -> bool:
    """Read what pg_ctl reads: the first line of postmaster.pid and the eighth, the state."""
    try:
        lines = (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return lines[:1] == [str(process)] and [line.strip() for line in lines[7:8]] == ["ready"]


def _announce(orders: Orders, directory: Path) -> None:
    announcement = {"host": orders.socket_folder, "port": PORT, "supervisor": os.getpid()}
    unfinished = directory / "server.json.new"
    unfinished.write_text(json.dumps(announcement))
    unfinished.rename(directory / "server.json")


def _clean_up(orders: Orders, directory: Path, data: Path) -> None:
    (directory / "server.json").unlink(missing_ok=True)
    shutil.rmtree(orders.socket_folder, ignore_errors=True)
    # After a kill -9 of the postmaster its children need a moment to notice.
    server_lock = open_lock(directory / "server.lock")
    if not wait_until(lambda: try_lock(server_lock, fcntl.LOCK_EX), _STOP_SECONDS):
        return
    remains = data / "postmaster.pid"
    if remains.exists():
        # It was killed. Recover now, for that also frees its shared memory, which would stay
        # behind for ever if nobody started a server in this directory again.
        remains.unlink()
        command = [f"{orders.binaries}/postgres", "--single", "-D", str(data), "postgres"]
        _run(orders, command, signal.SIGTERM, server_lock).wait()


def _run(
    orders: Orders, command: Sequence[str], death_signal: int, server_lock: int
) -> subprocess.Popen[bytes]:
    """Run a program of PostgreSQL as its account, in a clean environment, until our own end."""
    user, group = orders.account or (None, None)
    return subprocess.Popen(  # noqa: S603 (the programs of the wheel)
        command,
        stdin=subprocess.DEVNULL,
        cwd="/",
        # TZ: without it initdb reads every time zone file to find the machine's.
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        umask=0o077,
        user=user,
        group=group,
        # Without it the program would keep the groups of root.
        extra_groups=None if user is None else [],
        # Safe here: the only other thread starts after the last child.
        preexec_fn=_die_with_this_process(death_signal),  # noqa: PLW1509
        pass_fds=[server_lock],
    )


def _die_with_this_process(death_signal: int) -> Callable[[], None] | None:
    """Return what makes Linux end a child with us, even if we are killed with SIGKILL.

    Elsewhere such an orphan lives until the next start in its directory.
    """
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def die_with_parent() -> None:
        # Runs after the change of user, which would clear the setting.
        prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            os._exit(1)

    return die_with_parent


def _own_folder(folder: Path, account: tuple[int, int] | None) -> None:
    """Make a folder that only the server's account can enter, or check that it is one."""
    user, group = account or (os.geteuid(), os.getegid())
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (user, os.geteuid()):
        raise SupervisorError(
            f"found {folder} owned by user {status.st_uid}, expected a folder of user {user}; "
            "remove it and try again"
        )
    # Not one that is the account's already: in /tmp it could put something else in its place.
    if status.st_uid != user:
        os.chown(folder, user, group, follow_symlinks=False)


def wait_until(condition: Callable[[], bool], seconds: float | None) -> bool:
    """Ask until `condition` holds; False if it does not within `seconds` (None: for ever)."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while not condition():
        if deadline is not None and time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


if __name__ == "__main__":
    try:
        run(Orders(**json.loads(sys.argv[1])), int(sys.argv[2]))
    except (SupervisorError, OSError) as error:
        sys.exit(f"langfuse-schema: {error}")
