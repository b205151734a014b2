"""Delete embedded databases.

It imports only the standard library, because `make clean` runs it without installed packages.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

from langfuse_schema.embedded.location import (
    STATE,
    orphans,
    pointed_directory,
    shared_folder,
    short_socket_folder,
)
from langfuse_schema.embedded.supervisor import POLL_SECONDS, open_lock, try_lock

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from pathlib import Path

_STOP_SECONDS = 70.0  # more than the limit in the supervisor


class InUseError(Exception):
    """Another program uses the database. The argument is its folder."""


def remove(base: Path) -> list[Path]:
    """Delete the database of a checkout or folder, wherever its files are.

    Returns:
        The deleted folders.

    Raises:
        InUseError: another program uses the database. Nothing was deleted.
        PermissionError: another user owns the files.
    """
    base = base.resolve()
    own = base / STATE
    found = [*filter(None, [pointed_directory(base)]), *orphans(base), own.resolve()]
    found = [directory for directory in found if directory.is_dir()]
    for directory in found:
        remove_directory(directory)
    if own.is_symlink():
        own.unlink()
    if os.geteuid() == 0 and shared_folder().is_dir() and _remove_programs():
        found.append(shared_folder())
    return found


def _remove_programs() -> bool:
    """Delete the shared folder, unless another checkout has its database or programs in it."""
    shared = shared_folder()
    for temporary in (*shared.glob("fresh-*/users.lock"), *shared.glob("tests-*/users.lock")):
        # A crash of the machine left it, unless it is in use.
        with contextlib.suppress(InUseError, FileNotFoundError):
            remove_directory(temporary.parent)
    if not shared.is_dir():
        return True
    lock = open_lock(shared / "binaries.lock")
    try:
        folders = [path.name for path in shared.iterdir() if path.is_dir()]
        unused = all(name.startswith("binaries") for name in folders)
        if unused and try_lock(lock, fcntl.LOCK_EX):
            shutil.rmtree(shared)
            return True
    finally:
        os.close(lock)
    return False


def remove_directory(directory: Path) -> None:
    """Delete the folder of an embedded database, after its server has stopped.

    Raises:
        InUseError: another program uses the database. Nothing was deleted.
        PermissionError: another user owns the files.
    """
    status = directory.stat()
    if os.geteuid() not in (0, status.st_uid):
        raise PermissionError(f"{directory} belongs to user {status.st_uid}")
    locks: list[int] = []
    try:
        if (directory / "users.lock").exists():
            _take_locks(directory, locks)
        # A process that waits for the locks must not create a file in a folder while it is deleted.
        removed = directory.with_name(f"{directory.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        directory.rename(removed)
        shutil.rmtree(removed)
        shutil.rmtree(short_socket_folder(directory, status.st_uid), ignore_errors=True)
        if directory.parent == shared_folder():
            with contextlib.suppress(OSError):
                directory.parent.rmdir()  # if nothing else is in it
    finally:
        for lock in locks:
            os.close(lock)


def _take_locks(directory: Path, locks: list[int]) -> None:
    """Take the locks that `supervisor` describes, in exclusive mode."""
    users = open_lock(directory / "users.lock")
    locks.append(users)
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        if try_lock(users, fcntl.LOCK_EX):
            supervisor = open_lock(directory / "supervisor.lock")
            if try_lock(supervisor, fcntl.LOCK_EX):
                locks.append(supervisor)
                return
            os.close(supervisor)
            # The supervisor of an unused server waits for this lock, then it stops the server.
            fcntl.flock(users, fcntl.LOCK_UN)
        elif try_lock(users, fcntl.LOCK_SH):
            break  # other processes hold it in shared mode
        time.sleep(POLL_SECONDS)
    raise InUseError(directory)
