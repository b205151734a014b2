"""The folders of embedded databases.

It imports only the standard library, because `make clean` runs it without installed packages.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

STATE = ".langfuse-schema"
SOCKET_PARENT = Path("/tmp")  # noqa: S108 - the supervisor checks the owner of the folder in it

_POINTER = "location"  # a file in STATE, if the database is in the shared folder
_ORIGIN = "origin"  # a file in a folder of the shared folder, with the path of the checkout


def shared_folder() -> Path:
    """Return the folder that every user can enter, for root in a closed home.

    `folders.ensure_owned` checks its owner. LANGFUSE_SCHEMA_SHARED_FOLDER replaces the parent
    /var/tmp, which some machines mount without the permission to execute.
    """
    parent = os.environ.get("LANGFUSE_SCHEMA_SHARED_FOLDER", "/var/tmp")  # noqa: S108
    return Path(parent) / "langfuse-schema-root"


def pointed_directory(base: Path) -> Path | None:
    """Return the folder below the shared folder that a checkout's database is in, if recorded.

    The record is in the checkout. So a moved checkout keeps its database, and a new checkout at
    the same path gets a new one.
    """
    try:
        name = (base / STATE / _POINTER).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    # The content must not be able to name any other folder.
    return shared_folder() / f"state-{Path(name).name.removeprefix('state-')}"


def create_pointer(base: Path) -> Path:
    """Record a new folder below the shared folder for a checkout's database, and return it."""
    state = base / STATE
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    (state / ".gitignore").write_text("*\n", encoding="utf-8")
    unfinished = state / f"{_POINTER}.{secrets.token_hex(4)}"
    unfinished.write_text(f"state-{secrets.token_hex(6)}\n", encoding="utf-8")
    try:
        # Unlike rename, link fails if another process was faster.
        os.link(unfinished, state / _POINTER)
    except FileExistsError:
        pass
    finally:
        unfinished.unlink()
    created = pointed_directory(base)
    assert created is not None
    return created


def record_origin(directory: Path, base: Path) -> None:
    """Write the path of the checkout into the folder of its database."""
    (directory / _ORIGIN).write_text(f"{base}\n", encoding="utf-8")


def orphans(base: Path) -> list[Path]:
    """Return the folders that former checkouts at the same path left in the shared folder."""
    current = pointed_directory(base)
    return [
        origin.parent
        for origin in sorted(shared_folder().glob(f"state-*/{_ORIGIN}"))
        if origin.parent != current and origin.read_text(encoding="utf-8").strip() == str(base)
    ]


def short_socket_folder(directory: Path, owner: int) -> Path:
    """Return the folder of a server's socket in /tmp, for a directory with a long path."""
    return SOCKET_PARENT / f"langfuse-schema-{owner}-{digest(directory)}"


def digest(path: Path) -> str:
    """Return a short name that is always the same for a path, and differs for another."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
