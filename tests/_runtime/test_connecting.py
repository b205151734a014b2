"""Connections to hosts that do not answer, and to servers that reject them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from langfuse_schema import migrations
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema._postgres.urls import parse_url, shown
from tests.helpers.databases import SUPERUSER, Database, langfuse_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.databases import Outcome

MOST_SECONDS = 15.0

COMMANDS = (
    ("upgrade", "head"),
    ("downgrade", "base"),
    ("current",),
    ("check",),
    ("stamp", "head"),
    ("preflight",),
    ("verify",),
)

SSL_REQUESTS = (80877103, 80877104)
JAPANESE_MESSAGE = "データベースシステムは起動しています"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Yield a port that accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def rejecting_server(*fields: str) -> Iterator[int]:
    """Yield the port of a server that answers a login with an error."""
    body = b"".join(field.encode() + b"\0" for field in fields) + b"\0"
    answer = b"E" + struct.pack(">I", len(body) + 4) + body

    def serve() -> None:
        with contextlib.suppress(OSError, struct.error):
            while True:
                client, _ = listener.accept()
                client.settimeout(1)
                with client:
                    while struct.unpack(">II", client.recv(8))[1] in SSL_REQUESTS:
                        client.sendall(b"N")
                    client.recv(65536)
                    client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def refusal(url: str) -> migrations.Finding:
    """Return the finding of preflight, which cannot connect."""
    with pytest.raises(SchemaError) as error:
        migrations.preflight(url)
    (finding,) = error.value.findings
    return finding


def run_at(port: int, *arguments: str) -> tuple[Outcome, float]:
    """Run a command, and return its outcome and its duration in seconds."""
    began = time.monotonic()
    url = f"postgresql://postgres@127.0.0.1:{port}/app"
    outcome = langfuse_schema(None, *arguments, DATABASE_URL=url)
    return outcome, time.monotonic() - began


def test_command_reports_host_that_never_answers(silent_port: int) -> None:
    outcome, took = run_at(silent_port, "-x", "connect_timeout=2s", "current")
    assert "server-unreachable" in outcome.stderr
    assert "timeout expired" in outcome.stderr
    assert outcome.code == 2
    assert took < MOST_SECONDS / 2


@pytest.mark.slow
def test_every_command_ends_when_host_never_answers(silent_port: int) -> None:
    with ThreadPoolExecutor(len(COMMANDS)) as threads:
        ended = list(threads.map(lambda command: run_at(silent_port, *command), COMMANDS))
    for command, (outcome, took) in zip(COMMANDS, ended, strict=True):
        assert "server-unreachable" in outcome.stderr, command
        assert took <= MOST_SECONDS, command


@pytest.mark.parametrize(
    "command_line",
    [pytest.param(False, marks=pytest.mark.slow, id="program"), pytest.param(True, id="command")],
)
def test_upgrade_continues_with_next_host(
    database: Database, silent_port: int, command_line: bool
) -> None:
    socket_folder = quote(str(database.url.query["host"]), safe="")
    port = database.url.query["port"]
    hosts = f"127.0.0.1:{silent_port},{socket_folder}:{port}"
    url = f"postgresql://postgres@{hosts}/{database.url.database}?connect_timeout=2"
    if command_line:
        assert langfuse_schema(None, "upgrade", "head", DATABASE_URL=url).code == 0
    else:
        migrations.upgrade(url)
    assert "public.langfuse_traces" in database.catalog().tables


def test_url_with_other_number_of_ports_than_hosts_is_refused() -> None:
    with pytest.raises(SchemaError, match="3 ports for 2 hosts"):
        parse_url("postgresql:///db?host=h1,h2&port=1,2,3", "the URL")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:secret@h1:1,h2:2/db", "postgresql://u:***@h1:1,h2:2/db"),
        ("postgres://h1,h2/db", "postgresql://h1,h2/db"),
        ("postgres://[::1]:1,h2:2/db", "postgresql://[::1]:1,h2:2/db"),
        ("postgres:///db?host=h1,h2&port=5", "postgresql://h1:5,h2:5/db"),
    ],
)
def test_url_with_several_hosts_is_shown_as_written(url: str, expected: str) -> None:
    assert shown(parse_url(url, "the URL")) == expected


def test_server_error_in_any_language_is_reported() -> None:
    with rejecting_server("S致命的エラー", "VFATAL", "C57P03", f"M{JAPANESE_MESSAGE}") as port:
        finding = refusal(f"postgresql://postgres@127.0.0.1:{port}/app")
    assert finding.code == "connection-rejected"
    assert JAPANESE_MESSAGE in str(finding.cause)


def test_missing_encryption_of_server_is_reported() -> None:
    with rejecting_server("SFATAL", "C57P03", "Mnever sent") as port:
        finding = refusal(f"postgresql://postgres@127.0.0.1:{port}/app?sslmode=require")
    assert finding.code == "connection-rejected"
    assert "SSL" in str(finding.cause)


def test_full_connection_slots_are_reported(database: Database) -> None:
    limit = f'ALTER DATABASE "{database.url.database}" CONNECTION LIMIT {{}}'
    database.execute(limit.format(0), SUPERUSER)
    try:
        assert refusal(database.text).code == "connections-exhausted"
    finally:
        database.execute(limit.format(-1), SUPERUSER)
