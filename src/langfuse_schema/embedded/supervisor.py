"""The process that runs one embedded server: it starts the server, and stops an unused one.

`server` runs this file by its path with `python -I -S`. It imports only the standard library, so
it starts fast. Three lock files in the folder of the server record the running processes. They are
`flock` locks, because the kernel releases these however a process ends:

- `users.lock`, shared: every process that uses the server holds it. Once the supervisor holds it
  exclusively, the server is unused, and it gets no new user until it has stopped.
- `supervisor.lock`: the supervisor holds it until all processes of the server have ended.
- `server.lock`: every process of PostgreSQL inherits it. If it is free, none of them runs.
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

PORT = 5432  # part of the socket's file name; by default the server does not listen on a network
POLL_SECONDS = 0.005

_STOP_SECONDS = 60.0  # a fast shutdown first writes a checkpoint
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ServerOptions(NamedTuple):
    """The server to run, passed to the supervisor as one JSON argument."""

    directory: str
    binaries: str  # the folder with initdb and postgres
    socket_folder: str
    account: tuple[int, int] | None  # user and group id of PostgreSQL, which refuses root
    locale: Sequence[str]  # options of initdb
    settings: Mapping[str, str]
    host_based_authentication: Sequence[str]
    temporary: bool  # whether the directory is deleted at the end


class SupervisorError(Exception):
    """The reason why the server did not start. It is written to server.log."""


def open_lock(path: Path) -> int:
    """Return a descriptor of a lock file that child processes do not inherit."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(descriptor: int, operation: int) -> bool:
    """Take a lock without waiting. Return False if another process holds it."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def run(options: ServerOptions, lock: int) -> None:
    """Run one server from its start to its end.

    Arguments:
        options: of the server.
        lock: the inherited descriptor that holds supervisor.lock. So the lock is never free
            between the parent process and the supervisor.

    Raises:
        SupervisorError: the server did not start.
        OSError: a folder or a program is not accessible.
    """
    os.set_inheritable(lock, False)
    directory = Path(options.directory)
    data = directory / "data"
    server_lock = open_lock(directory / "server.lock")
    _stop_previous_server(options, data, server_lock)
    if not data.exists():
        _create_data(options, data, server_lock)
    # The previous server has ended, so the process id in this file can belong to any program.
    # PostgreSQL would take this program for a server and refuse to start.
    (data / "postmaster.pid").unlink(missing_ok=True)
    _ensure_owned(Path(options.socket_folder), options.account)
    server = _start(options, data, server_lock)
    os.close(server_lock)
    try:
        _serve(options, data, server)
    finally:
        _clean_up(options, directory, data)
    if options.temporary:
        # Renamed first: a process that waits could create a file in it while it is deleted.
        removed = directory.rename(directory.with_name(f"{directory.name}.removed"))
        shutil.rmtree(removed, ignore_errors=True)
        if directory.parent.name == "langfuse-schema-root":
            with contextlib.suppress(OSError):
                directory.parent.rmdir()  # if nothing else is in it


def _stop_previous_server(options: ServerOptions, data: Path, server_lock: int) -> None:
    """Take server.lock. Stop the processes of a server whose supervisor was killed."""
    if try_lock(server_lock, fcntl.LOCK_EX):
        return
    # The process id is in a file that the server's account can write. So only pg_ctl uses it, run
    # as this account.
    command = [f"{options.binaries}/pg_ctl", "stop", "-s", "-W", "-m", "fast", "-D", str(data)]
    _run(options, command, signal.SIGTERM, server_lock).wait()
    if not wait_until(lambda: try_lock(server_lock, fcntl.LOCK_EX), _STOP_SECONDS):
        raise SupervisorError(
            f"a PostgreSQL still uses {data} and does not stop; end it, then try again"
        )


def _create_data(options: ServerOptions, data: Path, server_lock: int) -> None:
    """Run initdb in another folder and rename it, so that an incomplete one is never used."""
    unfinished = data.with_name("data.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    _ensure_owned(unfinished, options.account)
    command = [
        f"{options.binaries}/initdb",
        *("-D", str(unfinished), "-U", "supabase_admin", "--auth=trust", "-E", "UTF8"),
        *("--no-sync", "--no-instructions", *options.locale),
    ]
    exit_code = _run(options, command, signal.SIGTERM, server_lock).wait()
    if exit_code != 0:
        raise SupervisorError(f"initdb failed with exit code {exit_code}")
    unfinished.rename(data)


def _start(options: ServerOptions, data: Path, server_lock: int) -> subprocess.Popen[bytes]:
    # Root must not write in the data folder, because its owner could put a link there.
    authentication = Path(options.directory, "pg_hba.conf")
    lines = [*options.host_based_authentication, "local all,replication all trust"]
    authentication.write_text("\n".join([*lines, ""]), encoding="utf-8")
    authentication.chmod(0o644)
    settings = {
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": f'"{options.socket_folder}"',
        "unix_socket_permissions": "0700",
        "hba_file": str(authentication),
        **options.settings,
    }
    command = [f"{options.binaries}/postgres", "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    # SIGINT is PostgreSQL's fast shutdown.
    return _run(options, command, signal.SIGINT, server_lock)


def _serve(options: ServerOptions, data: Path, server: subprocess.Popen[bytes]) -> None:
    """Write server.json when the server is ready, and return when it has ended."""
    directory = Path(options.directory)

    def stop(*_: object) -> None:
        (directory / "server.json").unlink(missing_ok=True)
        server.send_signal(signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    threading.Thread(target=_stop_when_unused, args=(directory, server), daemon=True).start()
    wait_until(lambda: server.poll() is not None or _is_ready(data, server.pid), None)
    if server.returncode is None:
        _announce(options, directory)
    elif server.returncode != 0:
        raise SupervisorError(f"PostgreSQL failed with exit code {server.returncode}")
    server.wait()


def _stop_when_unused(directory: Path, server: subprocess.Popen[bytes]) -> None:
    # The lock is released by the end of this process, when all processes of the server have ended.
    fcntl.flock(open_lock(directory / "users.lock"), fcntl.LOCK_EX)
    server.send_signal(signal.SIGINT)
    try:
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.send_signal(signal.SIGQUIT)


def _is_ready(data: Path, process: int) -> bool:
    """Return whether lines 1 and 8 of postmaster.pid, which pg_ctl reads, report "ready"."""
    try:
        lines = (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return lines[:1] == [str(process)] and [line.strip() for line in lines[7:8]] == ["ready"]


def _announce(options: ServerOptions, directory: Path) -> None:
    port = int(options.settings.get("port", PORT))
    listens = bool(options.settings.get("listen_addresses"))
    announcement = {"host": options.socket_folder, "port": port, "supervisor": os.getpid()}
    announcement["listens"] = listens
    unfinished = directory / "server.json.new"
    unfinished.write_text(json.dumps(announcement))
    unfinished.rename(directory / "server.json")


def _clean_up(options: ServerOptions, directory: Path, data: Path) -> None:
    (directory / "server.json").unlink(missing_ok=True)
    shutil.rmtree(options.socket_folder, ignore_errors=True)
    # After a kill -9 of the postmaster, its children end a moment later.
    server_lock = open_lock(directory / "server.lock")
    if not wait_until(lambda: try_lock(server_lock, fcntl.LOCK_EX), _STOP_SECONDS):
        return
    process_file = data / "postmaster.pid"
    if process_file.exists():
        # The server was killed. Recovery also frees its shared memory. Without it, the memory would
        # stay allocated until the next start in this directory.
        process_file.unlink()
        command = [f"{options.binaries}/postgres", "--single", "-D", str(data), "postgres"]
        _run(options, command, signal.SIGTERM, server_lock).wait()


def _run(
    options: ServerOptions, command: Sequence[str], death_signal: int, server_lock: int
) -> subprocess.Popen[bytes]:
    """Run a program of PostgreSQL as its account, and end it with this process."""
    user, group = options.account or (None, None)
    return subprocess.Popen(  # noqa: S603 - a program of the wheel
        command,
        stdin=subprocess.DEVNULL,
        cwd="/",
        # Without TZ, initdb reads every time zone file to find the zone of the machine.
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        umask=0o077,
        user=user,
        group=group,
        # Without this, the program would keep the groups of root.
        extra_groups=None if user is None else [],
        # This is safe, because the only other thread starts after the last child.
        preexec_fn=_die_with_this_process(death_signal),  # noqa: PLW1509
        pass_fds=[server_lock],
    )


def _die_with_this_process(death_signal: int) -> Callable[[], None] | None:
    """Return a function that makes Linux end a child with this process, even after SIGKILL.

    On other systems such a child runs until the next start in its directory.
    """
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def die_with_parent() -> None:
        # This runs after the change of user, which would clear the setting.
        prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            os._exit(1)

    return die_with_parent


def _ensure_owned(folder: Path, account: tuple[int, int] | None) -> None:
    """Create a folder that only the server's account can enter, or check its owner."""
    user, group = account or (os.geteuid(), os.getegid())
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (user, os.geteuid()):
        raise SupervisorError(
            f"found {folder} owned by user {status.st_uid}, expected a folder of user {user}; "
            "remove it, then try again"
        )
    # A folder of the account stays as it is: in /tmp the account could replace it at this moment.
    if status.st_uid != user:
        os.chown(folder, user, group, follow_symlinks=False)


def wait_until(condition: Callable[[], bool], seconds: float | None) -> bool:
    """Wait until a condition holds. Return False if it does not within `seconds`, if given."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while not condition():
        if deadline is not None and time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


if __name__ == "__main__":
    try:
        run(ServerOptions(**json.loads(sys.argv[1])), int(sys.argv[2]))
    except (SupervisorError, OSError) as error:
        sys.exit(f"langfuse-schema: {error}")
