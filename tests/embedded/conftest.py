"""Fixtures of the tests of the embedded database."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def shared_parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a parent of the shared folder for one test."""
    path = Path(tempfile.mkdtemp(prefix="langfuse-schema-test-"))
    path.chmod(0o755)
    monkeypatch.setenv("LANGFUSE_SCHEMA_SHARED_FOLDER", str(path))
    yield path
    shutil.rmtree(path)
