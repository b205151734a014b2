"""Open the embedded database of a folder, or a temporary one: started and prepared."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import NullPool, create_engine, text

from langfuse_schema._postgres.findings import finding
from langfuse_schema.embedded import removal
from langfuse_schema.embedded.folders import EmbeddedError, state_directory, temporary_directory
from langfuse_schema.embedded.preparation import SUPERUSER, prepare, without_libpq_variables
from langfuse_schema.embedded.server import Server, start

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK = "127.0.0.1"

_LISTENING_ROLES = ("postgres", "authenticator")
"""The roles that can log in over TCP. The superuser can use the Unix socket only."""


@dataclass(frozen=True)
class Opening:
    """How to open an embedded database.

    Attributes:
        port: the TCP port on 127.0.0.1, 0 for a free one, or None for the Unix socket only.
        app_tables: whether a new database gets the tables of the app, with example rows.
    """

    port: int | None = None
    app_tables: bool = True


def open_default(base: Path, opening: Opening | None = None) -> Server:
    """Return the server of a folder, started and prepared.

    Until the server is closed, the PG… variables of libpq are hidden from this process. Otherwise
    they could redirect a connection (PGHOSTADDR, PGSERVICE, PGOPTIONS, PGREQUIREAUTH …).

    Arguments:
        base: the checkout or working directory.
        opening: how to open it.

    Raises:
        EmbeddedError: see `state_directory`, `start` and `prepare`, or the port is not available.
    """
    return _open(state_directory(base), opening or Opening(), temporary=False)


def open_temporary(opening: Opening | None = None) -> Server:
    """Return the server of a new, empty database, whose files are deleted at its end.

    Raises:
        EmbeddedError: see `open_default`.
    """
    directory = temporary_directory(f"fresh-{secrets.token_hex(6)}")
    try:
        return _open(directory, opening or Opening(), temporary=True)
    except BaseException:
        if directory.exists():
            removal.remove_directory(directory)
        raise


def _open(directory: Path, opening: Opening, *, temporary: bool) -> Server:
    settings: dict[str, str] = {}
    authentication = []
    if opening.port is not None:
        settings |= {"listen_addresses": LOOPBACK, "port": str(_free_port(directory, opening.port))}
        roles = ",".join(_LISTENING_ROLES)
        authentication = [f"host all {roles} {LOOPBACK}/32 scram-sha-256"]
    server = start(
        directory,
        settings=settings,
        host_based_authentication=authentication,
        temporary=temporary,
    )
    try:
        if opening.port is not None:
            _check_port(server, opening.port)
        prepare(server.url(), app_tables=opening.app_tables)
        server.on_close.enter_context(without_libpq_variables())
        if opening.port is not None:
            server.password = _password(server)
    except BaseException:
        server.close()
        raise
    return server


def _free_port(directory: Path, port: int) -> int:
    """Return a port that is free on 127.0.0.1, or the given one.

    Raises:
        EmbeddedError: another program listens on it.
    """
    if port != 0 and (directory / "server.json").exists():
        return port  # the running server keeps its own, which can be this one
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # PostgreSQL sets it, too: a port whose last connection was closed a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            taken = finding("embedded-port-taken", f"port {port}", cause=str(error))
            raise EmbeddedError(taken) from error
        return int(probe.getsockname()[1])


def _check_port(server: Server, port: int) -> None:
    """Raise EmbeddedError if another program started the server without this port."""
    if not server.listens or port not in (0, server.port):
        found = f"it listens on port {server.port}" if server.listens else "it does not listen"
        raise EmbeddedError(finding("embedded-port-differs", str(server.directory), found=found))


def _password(server: Server) -> str:
    """Return the password of the roles that can log in over TCP, which is set once."""
    path = server.directory / "password"
    engine = create_engine(server.url(user=SUPERUSER), poolclass=NullPool)
    with engine.begin() as connection:
        # Two programs can start at the same moment.
        connection.execute(text("LOCK TABLE pg_catalog.pg_authid IN SHARE ROW EXCLUSIVE MODE"))
        if not (path.exists() and path.read_text(encoding="utf-8")):
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(16), encoding="utf-8")
        password = path.read_text(encoding="utf-8")
        for role in _LISTENING_ROLES:
            connection.execute(text(f"ALTER ROLE {role} PASSWORD '{password}'"))
    return password
