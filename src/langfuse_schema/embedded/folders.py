"""The folders of the server, protected against other users, and the account that it runs as.

PostgreSQL refuses to run as root, so for root its programs run as the user `nobody`. This user
cannot enter the usual home of root. Then the files of the server are in a folder below /var/tmp.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import stat
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from langfuse_schema._postgres.findings import SchemaError, finding
from langfuse_schema.embedded import location
from langfuse_schema.embedded.location import STATE, shared_folder
from langfuse_schema.embedded.supervisor import PORT

if sys.platform != "win32":
    import pwd

log = logging.getLogger("langfuse_schema")
_SOCKET_PATH_BYTES = 100  # sun_path ends at 107 on Linux and 103 on macOS


class EmbeddedError(SchemaError):
    """Findings that prevent the use of an embedded database."""


class Account(NamedTuple):
    """The user and group ids of PostgreSQL's programs, if the current user is root."""

    user: int
    group: int


def server_account() -> Account | None:
    """Return the account that PostgreSQL runs as. None is the current user.

    Raises:
        EmbeddedError: the current user is root and there is no user `nobody`, or this is Windows.
    """
    if sys.platform == "win32":
        values = {"expected": "Linux or macOS", "advice": "Run it on one of these systems."}
        windows = finding("embedded-unsupported", "Windows", **values)
        raise EmbeddedError(windows)
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        without_account = finding(
            "embedded-unsupported",
            "the user root",
            found="no user `nobody`",
            expected="a user `nobody` to run PostgreSQL, which refuses to run as root",
            advice="Run the command as a normal user.",
        )
        raise EmbeddedError(without_account) from None
    return Account(entry.pw_uid, entry.pw_gid)


def can_enter(folder: Path, account: Account) -> bool:
    """Return whether an account has search permission on a folder and on all its parents.

    Reads permission bits, not access control lists.
    """
    existing = [part for part in (folder, *folder.parents) if part.exists()]
    return all(is_permitted(part, account, stat.S_IXOTH) for part in existing)


def is_permitted(path: Path, account: Account, bit: int) -> bool:
    """Return whether the permission bits of a path allow an access, given as the bit for others."""
    status = path.stat()
    if status.st_uid == account.user:
        bit <<= 6
    elif status.st_gid == account.group:
        bit <<= 3
    return bool(status.st_mode & bit)


def state_directory(base: Path) -> Path:
    """Return the folder for the state of an embedded database.

    It is `.langfuse-schema` in `base`. If the home of root is closed to other users, the account of
    the server cannot enter it. The folder is then below /var/tmp. `.langfuse-schema` records its
    name, and the first call creates the record.

    Arguments:
        base: the checkout or working directory.

    Raises:
        EmbeddedError: see `server_account`, or the record cannot be written.
    """
    base = base.resolve()
    account = server_account()
    if account is None:
        return (base / STATE).resolve()
    pointed = location.pointed_directory(base)
    if pointed is None and can_enter(base, account):
        return (base / STATE).resolve()
    try:
        return pointed or _new_shared_directory(base)
    except OSError as error:
        values = {"cause": str(error), "expected": "a folder that can be written to"}
        raise unusable(base / STATE, "Use another folder.", **values) from error


def _new_shared_directory(base: Path) -> Path:
    ensure_owned(shared_folder(), 0o711)
    directory = location.create_pointer(base)
    ensure_owned(directory, 0o711)
    location.record_origin(directory, base)
    for orphan in location.orphans(base):
        command = shlex.join(["rm", "-rf", str(orphan)])
        log.warning("a former checkout at this path left a database; to delete it: %s", command)
    return directory


def temporary_directory(name: str) -> Path:
    """Return the path for the state of a server whose files are deleted at its end.

    Arguments:
        name: unpredictable, because the folder can be in /tmp.

    Raises:
        EmbeddedError: see `server_account`.
    """
    if server_account() is None:
        return Path(tempfile.gettempdir()).resolve() / f"langfuse-schema-{name}"
    return shared_folder() / name


def create_directory(directory: Path, account: Account | None) -> None:
    """Create the folder for the state of a server, or check that an existing one is usable.

    Arguments:
        directory: the path of the folder.
        account: of the server. None is the current user.

    Raises:
        EmbeddedError: another user owns it, or the account cannot enter it.
        OSError: it cannot be created.
    """
    mode = 0o700 if account is None else 0o711
    if directory.parent == shared_folder():
        ensure_owned(directory.parent, 0o711)
        with contextlib.suppress(FileNotFoundError):
            # Another process deletes the parent when it is empty, which can be at this moment.
            ensure_owned(directory, mode)
        ensure_owned(directory.parent, 0o711)
    else:
        directory.parent.mkdir(parents=True, exist_ok=True)
    ensure_owned(directory, mode)
    if account is not None and not can_enter(directory, account):
        found = "a folder below one that is closed to other users"
        expected = "a folder that the user `nobody` can enter, because PostgreSQL refuses root"
        raise unusable(directory, "Use another folder.", found=found, expected=expected)
    ignore = directory / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")


def check_version(directory: Path, version: int) -> None:
    """Raise EmbeddedError if a folder has data of another major version of PostgreSQL."""
    with contextlib.suppress(FileNotFoundError):
        found = (directory / "data" / "PG_VERSION").read_text().strip()
        if found != str(version):
            values = {"found": found, "expected": version, "folder": shlex.quote(str(directory))}
            raise EmbeddedError(finding("embedded-version-differs", str(directory), **values))


def check_user(directory: Path) -> None:
    """Raise EmbeddedError if initdb would have to create data for a user without a name."""
    if os.geteuid() == 0 or (directory / "data").exists():
        return
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        nameless = finding("embedded-without-user", str(os.geteuid()), group=os.getegid())
        raise EmbeddedError(nameless) from None


def socket_folder(directory: Path) -> Path:
    """Return the folder of the socket: in the server's folder, or a short one in /tmp.

    The short one is used if the path is too long for the kernel. It is also used if the path has
    separators of a list of hosts or of unix_socket_directories.
    """
    folder = directory / "socket"
    path = str(folder / f".s.PGSQL.{PORT}")
    if (
        len(os.fsencode(path)) <= _SOCKET_PATH_BYTES
        and path.isprintable()
        and not set(path) & set(',:"')
    ):
        return folder
    return location.short_socket_folder(directory, os.geteuid())


def ensure_owned(folder: Path, mode: int) -> None:
    """Create a folder, or check its owner: in /var/tmp another user can have created it.

    Raises:
        EmbeddedError: another user owns it, or it is not a folder.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        found = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "a file"
        raise unusable(folder, "Move it to another place.", found=found, expected="a folder")
    if status.st_uid != os.geteuid():
        found, expected = (f"owned by user {user}" for user in (status.st_uid, os.geteuid()))
        advice = "Run the command as its owner, or remove the folder."
        raise unusable(folder, advice, found=found, expected=expected)
    if stat.S_IMODE(status.st_mode) != mode:
        folder.chmod(mode)


def unusable(folder: Path, advice: str, **values: str) -> EmbeddedError:
    """Return the error of a folder, with an advice and other values of `finding`."""
    return EmbeddedError(finding("embedded-folder-unusable", str(folder), advice=advice, **values))
