"""Folders that the server can reach and strangers cannot prepare, and whom the server runs as.

PostgreSQL refuses to run as root, so for root its programs run as `nobody`, who cannot enter the
usual home of root. What `nobody` needs then goes into a folder of ours below /var/tmp.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
from pathlib import Path
from typing import NamedTuple

from langfuse_schema.embedded.supervisor import PORT

if sys.platform != "win32":
    import pwd

SOCKET_PARENT = Path("/tmp")  # noqa: S108 (the supervisor checks whose the folder below it is)

_SOCKET_PATH_BYTES = 100  # sun_path ends at 107 on Linux and 103 on macOS


class EmbeddedError(Exception):
    """Why there is no embedded database: what was found, what was expected, what to do."""


class Account(NamedTuple):
    """The user and group ids that PostgreSQL's programs run with when we are root."""

    user: int
    group: int


def server_account() -> Account | None:
    """Return whom PostgreSQL runs as, None if that is the user who runs us.

    Raises:
        EmbeddedError: we are root and the machine has no `nobody`, or this is Windows.
    """
    if sys.platform == "win32":
        raise EmbeddedError(
            "the embedded database was not found for Windows, expected Linux or macOS; "
            "set DATABASE_URL to a database of your own"
        )
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError(
            "PostgreSQL refuses to run as root, and the user `nobody`, as whom it would run, "
            "was not found; run as a normal user, or set DATABASE_URL"
        ) from None
    return Account(entry.pw_uid, entry.pw_gid)


def may_enter(folder: Path, account: Account) -> bool:
    """Tell whether `account` can reach `folder`: search permission on it and all above it.

    Reads permission bits, not access control lists.
    """
    existing = [part for part in (folder, *folder.parents) if part.exists()]
    return all(may(part, account, stat.S_IXOTH) for part in existing)


def may(path: Path, account: Account, bit: int) -> bool:
    """Tell whether the permission bits of `path` let `account`; `bit` is that for others."""
    status = path.stat()
    if status.st_uid == account.user:
        bit <<= 6
    elif status.st_gid == account.group:
        bit <<= 3
    return bool(status.st_mode & bit)


def shared_folder() -> Path:
    """Return the folder of ours that everybody may enter, for root below a closed home.

    Whose it is, `own` checks. LANGFUSE_SCHEMA_SHARED_FOLDER names another parent than /var/tmp,
    which some machines mount without the right to execute.
    """
    parent = os.environ.get("LANGFUSE_SCHEMA_SHARED_FOLDER", "/var/tmp")  # noqa: S108
    return Path(parent) / "langfuse-schema-root"


def state_directory(base: Path) -> Path:
    """Return where the embedded database of `base` lives.

    That is `.langfuse-schema` in `base`. For root below a home that is closed to others, it is a
    folder below /var/tmp: PostgreSQL refuses to run as root and could not enter the home.

    Raises:
        EmbeddedError: as `server_account`.
    """
    base = base.resolve()
    account = server_account()
    if account is None or may_enter(base, account):
        return (base / ".langfuse-schema").resolve()
    return shared_folder() / f"state-{digest(base)}"


def create_directory(directory: Path, account: Account | None) -> None:
    """Create the directory of a server, or make sure that it is ours and within its reach.

    Raises:
        EmbeddedError: it is somebody else's, or closed to the account that the server runs as.
        OSError: it cannot be created.
    """
    if directory.parent == shared_folder():
        own(directory.parent, 0o711)
    else:
        directory.parent.mkdir(parents=True, exist_ok=True)
    own(directory, 0o700 if account is None else 0o711)
    if account is not None and not may_enter(directory, account):
        raise EmbeddedError(
            f"found {directory} below a folder that is closed to others, expected one that the "
            "user `nobody` can enter, as whom PostgreSQL runs for root; choose another folder"
        )
    ignore = directory / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")


def socket_folder(directory: Path) -> Path:
    """Return where the socket goes: a short folder of ours where the usual path does not fit.

    It does not if it is too long for the kernel, or has what separates the parts of a list of
    hosts or of unix_socket_directories.
    """
    folder = directory / "socket"
    path = str(folder / f".s.PGSQL.{PORT}")
    if (
        len(os.fsencode(path)) <= _SOCKET_PATH_BYTES
        and path.isprintable()
        and not set(path) & set(',:"')
    ):
        return folder
    return SOCKET_PARENT / f"langfuse-schema-{os.geteuid()}-{digest(directory)}"


def own(folder: Path, mode: int) -> None:
    """Create `folder`, or make sure that it is ours: in /var/tmp a stranger may have been first.

    Raises:
        EmbeddedError: it belongs to somebody else, or is no folder.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise EmbeddedError(f"found {folder}, which is no folder, expected one; move it away")
    if status.st_uid != os.geteuid():
        raise EmbeddedError(
            f"found {folder} owned by user {status.st_uid}, expected a folder of user "
            f"{os.geteuid()}; run as its owner, or remove it"
        )
    if stat.S_IMODE(status.st_mode) != mode:
        folder.chmod(mode)


def digest(path: Path) -> str:
    """Return a short name that is always the same for `path`, and different for another."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
