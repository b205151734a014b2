"""Folders for the databases of tests."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEEDED_BYTES = 1 << 30
"""The free bytes that a cluster with its clones needs. /dev/shm often has 64 MB in containers."""


@contextmanager
def server_folder() -> Iterator[Path]:
    """Yield a folder that the account of a server can enter, in memory if there is space.

    The parent of pytest's `tmp_path` is closed to other accounts.
    """
    memory = Path("/dev/shm")
    has_space = memory.is_dir() and shutil.disk_usage(memory).free > _NEEDED_BYTES
    path = Path(tempfile.mkdtemp(prefix="langfuse-schema-", dir=memory if has_space else None))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)
