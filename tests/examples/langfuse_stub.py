"""A stub of Langfuse's API that stores the scores and spans that it receives."""

from __future__ import annotations

import gzip
import json
import threading
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT = "timeout"
DROP = "drop"

PROJECT = {
    "id": "coach",
    "name": "Coach",
    "organization": {"id": "o", "name": "O"},
    "metadata": {},
    "retentionDays": None,
}

BODIES: dict[int, dict[str, Any]] = {
    202: {"message": "Accepted"},
    207: {"accepted": 0, "rejected": 1, "errors": [{"message": "comment is too long"}]},
    400: {"message": "Invalid request data"},
    401: {"message": "Invalid credentials"},
    429: {"message": "Rate limit exceeded"},
    500: {"message": "Internal Server Error"},
}


class LangfuseStub:
    """The received scores and spans, and the configured answer."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.stored: list[dict[str, Any]] = []
        """The scores that Langfuse has, including those whose answer was lost."""
        self.answer: Callable[[dict[str, Any]], int | str] = lambda _: 202
        self.spans: list[bytes] = []
        """The uncompressed bodies of OpenTelemetry exports."""
        self.released = threading.Event()
        self.url = ""
        self._lock = threading.Lock()

    def identities(self) -> set[tuple[str, str, str]]:
        """Return the id, name and UTC date of each stored score, which identify it in Langfuse."""
        return {identity(score) for score in self.stored}

    def receive(self, body: list[dict[str, Any]]) -> int | str:
        (score,) = body
        with self._lock:
            self.received.append(score)
            answer = self.answer(score)
            if answer in (202, TIMEOUT, DROP):
                self.stored.append(score)
        return answer


def identity(score: dict[str, Any]) -> tuple[str, str, str]:
    moment = datetime.fromisoformat(score["timestamp"].replace("Z", "+00:00"))
    return score["id"], score["name"], moment.astimezone(timezone.utc).date().isoformat()


@contextmanager
def langfuse_stub() -> Iterator[LangfuseStub]:
    """Serve a stub on a loopback port, and yield it."""
    stub = LangfuseStub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/public/projects"
            self.reply(200, {"data": [PROJECT]})

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/public/otel/v1/traces":
                compressed = self.headers["Content-Encoding"] == "gzip"
                stub.spans.append(gzip.decompress(content) if compressed else content)
                self.reply(200, {})
                return
            assert self.path == "/api/public/scores"
            answer = stub.receive(json.loads(content))
            if answer == TIMEOUT:
                stub.released.wait(30)
            if isinstance(answer, str):
                self.close_connection = True
                return
            self.reply(answer, BODIES[answer])

        def reply(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stub
    finally:
        stub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
