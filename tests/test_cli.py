"""The commands behave like the commands of Alembic, and read-only commands write nothing."""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest

from langfuse_schema import migrations
from langfuse_schema._history.chain import VERSION_TABLE
from langfuse_schema.cli import arguments
from tests.helpers.databases import (
    CHECKOUT,
    CORE,
    POLICIES,
    REVISIONS,
    Database,
    Outcome,
    alembic,
    langfuse_schema,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Command = Callable[..., Outcome]

HEAD = migrations.revisions()[-1]

MAX_NAME_COLUMNS = 24
"""The width for the names of an argument. The description of longer names is on the next line."""

both_command_lines = pytest.mark.parametrize(
    "command", [pytest.param(alembic, marks=pytest.mark.slow), langfuse_schema]
)


@pytest.mark.slow
@both_command_lines
def test_current_prints_revision_after_upgrade_and_downgrade(
    database: Database, command: Command
) -> None:
    assert command(database, "upgrade", "head").code == 0
    assert command(database, "current").stdout == f"{HEAD} (head)\n"
    assert command(database, "downgrade", "-1").code == 0
    assert command(database, "current").stdout == f"{migrations.revisions()[-2]}\n"
    assert command(database, "downgrade", "base").code == 0
    assert command(database, "current").stdout == ""


def test_history_of_more_than_two_revisions_is_refused_without_traceback() -> None:
    outcome = langfuse_schema(None, "history", "-r", "1:2:3")
    assert outcome.code == 2
    assert "write it as FROM:TO" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_downgrade_reports_tables_without_recorded_revision(database: Database) -> None:
    migrations.upgrade(database.url)
    database.execute(f"DELETE FROM {VERSION_TABLE}")
    outcome = langfuse_schema(database, "downgrade", "base")
    assert outcome.code == 1
    assert "revision-missing" in outcome.stderr
    assert f"langfuse-schema stamp {HEAD}" in outcome.stderr


@both_command_lines
def test_command_that_writes_ends_with_its_result(database: Database, command: Command) -> None:
    first, second = REVISIONS[-2:]
    all_revisions = rf"\({len(REVISIONS)} revisions, \d+\.\d s\)\."
    for given, result in (
        ("upgrade head", rf"Upgraded from base to {second} {all_revisions}"),
        ("upgrade head", rf"Already at {second} \(head\)\. Nothing to do\."),
        ("downgrade -1", rf"Downgraded from {second} to {first} \(1 revision, \d+\.\d s\)\."),
        ("upgrade head", rf"Upgraded from {first} to {second} \(1 revision, \d+\.\d s\)\."),
        (f"stamp {first}", rf"Recorded {first} instead of {second}\. No revision was run\."),
        ("stamp head", rf"Recorded {second} instead of {first}\. No revision was run\."),
        ("stamp head", rf"Already at {second} \(head\)\. Nothing to do\."),
        ("downgrade base", rf"Downgraded from {second} to base {all_revisions}"),
        ("downgrade base", r"Already at base\. Nothing to do\."),
        ("current", r"No revision is recorded\."),
    ):
        outcome = command(database, *given.split())
        assert outcome.code == 0, outcome.stderr
        last = outcome.stderr.splitlines()[-1]
        assert re.fullmatch(rf"INFO    \[langfuse_schema\] {result}", last), last


@both_command_lines
def test_upgrade_at_head_exits_0_and_changes_nothing(database: Database, command: Command) -> None:
    migrations.upgrade(database.url)
    before = database.catalog()
    outcome = command(database, "upgrade", "head")
    assert outcome.code == 0
    assert "Running" not in outcome.stderr
    assert database.catalog() == before


@both_command_lines
@pytest.mark.parametrize(
    "arguments",
    [
        ("current",),
        ("history",),
        ("history", "--indicate-current"),
        ("heads",),
        ("show", CORE),
        ("upgrade", "head", "--sql"),
        ("downgrade", f"{HEAD}:base", "--sql"),
    ],
    ids=" ".join,
)
def test_read_only_command_writes_nothing_before_first_upgrade(
    database: Database, command: Command, arguments: tuple[str, ...]
) -> None:
    before = database.catalog()
    outcome = command(database, *arguments)
    assert outcome.code == 0, outcome.stderr
    assert database.catalog() == before


@both_command_lines
def test_check_before_first_upgrade_fails_and_writes_nothing(
    database: Database, command: Command
) -> None:
    before = database.catalog()
    outcome = command(database, "check")
    assert outcome.code != 0
    assert "Traceback" not in outcome.stderr
    assert database.catalog() == before


@both_command_lines
def test_downgrade_before_first_upgrade_changes_nothing(
    database: Database, command: Command
) -> None:
    before = database.catalog()
    assert command(database, "downgrade", "base").code == 0
    assert database.catalog() == before


@both_command_lines
def test_command_prints_results_to_stdout_and_status_to_stderr(
    database: Database, command: Command
) -> None:
    outcome = command(database, "upgrade", "head")
    assert outcome.stdout == ""
    assert str(database.url.database) in outcome.stderr
    outcome = command(database, "history")
    assert outcome.stdout.count("->") == len(migrations.revisions())


@both_command_lines
def test_current_never_prints_password(
    database: Database, command: Command, password_role: str
) -> None:
    url = database.url.set(username=password_role, password="right")
    outcome = command(None, "current", DATABASE_URL=url.render_as_string(hide_password=False))
    assert outcome.code == 0
    assert password_role in outcome.stderr
    assert "right" not in outcome.stderr.replace("copyright", "")


class TestCheck:
    def test_check_ignores_other_objects_of_app(self, database: Database) -> None:
        database.execute(
            "CREATE TABLE public.alembic_version (version_num varchar(32) PRIMARY KEY);"
            "INSERT INTO public.alembic_version VALUES ('app_42');"
            "CREATE TABLE profiles (id uuid PRIMARY KEY, name text UNIQUE CHECK (name <> ''));"
            "CREATE INDEX profiles_lower ON profiles (lower(name));"
            "CREATE SCHEMA billing;"
            "CREATE TABLE billing.langfuse_traces (id bigint);"
            "ALTER TABLE reflections ADD profile_id uuid REFERENCES profiles (id);"
            "CREATE INDEX ON reflections (profile_id);"
        )
        assert alembic(database, "upgrade", "head").code == 0
        outcome = alembic(database, "check")
        assert outcome.code == 0, outcome.stdout
        assert outcome.stdout == "No new upgrade operations detected.\n"
        assert database.execute("SELECT version_num FROM public.alembic_version") == [("app_42",)]

    def test_check_reports_dropped_langfuse_column(self, database: Database) -> None:
        migrations.upgrade(database.url)
        database.execute("ALTER TABLE langfuse_traces DROP COLUMN tags")
        outcome = alembic(database, "check")
        assert outcome.code != 0
        assert "tags" in outcome.stdout

    def test_check_reports_dropped_link_column(self, database: Database) -> None:
        migrations.upgrade(database.url)
        database.execute("ALTER TABLE reflections DROP COLUMN langfuse_trace_id")
        assert "langfuse_trace_id" in alembic(database, "check").stdout


class TestCommandLine:
    @pytest.mark.slow
    def test_command_line_omits_commands_that_write_into_package(self) -> None:
        text = langfuse_schema(None, "--help").stdout
        for name in ("upgrade", "downgrade", "stamp", "preflight", "dev"):
            assert f"\n    {name} " in text
        for name in ("init", "revision", "merge", "edit"):
            assert f"\n    {name} " not in text
            assert langfuse_schema(None, name).code == 2

    @pytest.mark.parametrize(
        "command",
        [
            ("upgrade", ""),
            *(
                pytest.param(command, marks=pytest.mark.slow)
                for command in (("downgrade", ""), ("stamp", ""), ("show", ""))
            ),
            ("verify", "--revision", ""),
            ("export", "directory", "--after", ""),
        ],
    )
    def test_empty_revision_exits_2_without_traceback(self, command: tuple[str, ...]) -> None:
        outcome = langfuse_schema(None, *command)
        assert outcome.code == 2
        assert "the revision is empty" in outcome.stderr
        assert "Traceback" not in outcome.stderr

    def test_empty_directory_exits_2_and_writes_nothing(self, tmp_path: Path) -> None:
        outcome = run(sys.executable, "-m", "langfuse_schema", "export", "", cwd=tmp_path)
        assert outcome.code == 2
        assert "the directory is empty; name one, such as supabase/migrations" in outcome.stderr
        assert list(tmp_path.iterdir()) == []

    def test_version_option_prints_package_version(self) -> None:
        assert (
            langfuse_schema(None, "--version").stdout
            == f"langfuse-schema {version('langfuse-schema')}\n"
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("name", arguments.EXAMPLES_OF)
    def test_help_examples_of_every_command_exit_0(
        self, database: Database, tmp_path: Path, name: str
    ) -> None:
        shown = langfuse_schema(None, name, "--help").stdout
        for example in arguments.EXAMPLES_OF[name]:
            assert f"\n  langfuse-schema {example}\n" in shown
            given = shlex.split(example.replace("REVISION", POLICIES))
            if name == "dev":
                continue  # tests/embedded runs it
            if name in ("check", "downgrade", "verify"):
                revision = POLICIES if POLICIES in given else "head"
                migrations.downgrade(database.url, "base")
                migrations.upgrade(database.url, revision)
            outcome = run(
                sys.executable, "-m", "langfuse_schema", *given,
                cwd=tmp_path, DATABASE_URL=database.text,
            )  # fmt: skip
            assert outcome.code == 0, outcome.stderr

    @pytest.mark.parametrize("command", arguments.EXAMPLES_OF)
    def test_help_of_command_describes_arguments_and_exit_codes(self, command: str) -> None:
        functions: dict[str, Any] = dict.fromkeys(arguments.EXAMPLES_OF)
        with pytest.raises(SystemExit) as ended, redirect_stdout(StringIO()) as printed:
            arguments.parser(functions).parse([command, "--help"])
        assert ended.value.code == 0
        text = printed.getvalue()
        assert "\nexit codes:\n  0 " in text
        assert "\nexamples:\n  langfuse-schema " in text
        described, _, _ = text.partition("\nexit codes:")
        # Without a description, the next line is another argument.
        lines = [line for line in described.splitlines() if re.match(r"  (-|[A-Z{])", line)]
        assert lines
        assert all(re.search(r"\S  +\w", line) for line in lines if len(line) < MAX_NAME_COLUMNS), (
            lines
        )

    @pytest.mark.parametrize(
        ("given", "nearest"),
        [
            (("upgrad", "head"), "upgrade"),
            (("verfy",), "verify"),
            *(
                pytest.param(given, nearest, marks=pytest.mark.slow)
                for given, nearest in (
                    (("--quite", "history"), "--quiet"),
                    (("export", "directory", "--on-transaction"), "--one-transaction"),
                    (("verify", "--format", "jsn"), "json"),
                )
            ),
        ],
    )
    def test_unknown_name_exits_2_and_suggests_nearest(
        self, given: tuple[str, ...], nearest: str
    ) -> None:
        outcome = langfuse_schema(None, *given)
        assert (outcome.code, outcome.stdout) == (2, "")
        assert outcome.stderr.splitlines()[-1] == f"Did you mean {nearest}?"
        assert outcome.stderr.count("Did you mean") == 1

    def test_name_that_resembles_no_other_gets_no_suggestion(self) -> None:
        outcome = langfuse_schema(None, "xyz")
        assert outcome.code == 2
        assert "Did you mean" not in outcome.stderr

    @pytest.mark.parametrize("command", ["upgrade head --sql", "history"])
    def test_command_with_closed_output_pipe_prints_no_traceback(
        self, database: Database, command: str
    ) -> None:
        piped = f"{shlex.quote(sys.executable)} -m langfuse_schema {command} | true"
        outcome = run("sh", "-c", piped, DATABASE_URL=database.text)
        assert "Traceback" not in outcome.stderr
        assert "BrokenPipe" not in outcome.stderr

    @pytest.mark.skipif(
        not str(CHECKOUT).isascii(),
        reason="Python does not start in the C locale if an editable install has a non-ASCII path",
    )
    def test_history_and_help_exit_0_under_c_locale(self) -> None:
        c_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        assert langfuse_schema(None, "history", **c_locale).code == 0
        assert langfuse_schema(None, "--help", PYTHONIOENCODING="ascii").code == 0

    @pytest.mark.parametrize(
        ("option", "order"),
        [
            (("-x", "lock_timeout=2s"), "langfuse-schema -x NAME=VALUE COMMAND"),
            (("--quiet",), "langfuse-schema --quiet COMMAND"),
        ],
    )
    def test_global_option_after_command_exits_2_and_prints_correct_order(
        self, option: tuple[str, ...], order: str
    ) -> None:
        outcome = langfuse_schema(None, "upgrade", "head", *option)
        assert outcome.code == 2
        assert order in outcome.stderr

    def test_missing_command_exits_2_and_refers_to_help(self) -> None:
        outcome = langfuse_schema(None)
        assert outcome.code == 2
        assert "--help lists them" in outcome.stderr


class TestPreflight:
    def test_preflight_json_of_correct_database_has_no_findings(self, database: Database) -> None:
        before = database.catalog()
        outcome = langfuse_schema(database, "preflight", "--format", "json")
        report = json.loads(outcome.stdout)
        assert outcome.code == 0
        assert (report["ok"], report["revision"], report["findings"]) == (True, None, [])
        assert report["facts"]["role"] == "postgres"
        assert report["facts"]["tables"]["public.reflections"]["bytes"] > 0
        assert database.catalog() == before

    def test_preflight_json_contains_error_as_finding_and_exits_1(self, database: Database) -> None:
        database.execute("DROP TABLE reflections")
        outcome = langfuse_schema(database, "preflight", "--format", "json")
        (finding,) = json.loads(outcome.stdout)["findings"]
        assert outcome.code == 1
        assert set(finding) == {
            "code", "severity", "object", "message", "found", "expected", "cause", "state",
            "advice", "fix", "docs", "sqlstate",
        }  # fmt: skip
        assert (finding["code"], finding["object"]) == ("app-table-missing", "public.reflections")

    def test_preflight_exits_2_when_server_is_unreachable(self) -> None:
        outcome = langfuse_schema(None, "preflight", DATABASE_URL="postgresql://x@127.0.0.1:1/x")
        assert outcome.code == 2
        assert "server-unreachable" in outcome.stderr

    @pytest.mark.parametrize("command", ["preflight", "verify"])
    def test_json_format_prints_report_when_server_is_unreachable(self, command: str) -> None:
        url = "postgresql://x@127.0.0.1:1/x"
        outcome = langfuse_schema(None, command, "--format", "json", DATABASE_URL=url)
        assert outcome.code == 2
        report = json.loads(outcome.stdout)
        assert report["ok"] is False
        assert [finding["code"] for finding in report["findings"]] == ["server-unreachable"]

    @pytest.mark.parametrize("command", ["preflight", "check", "verify"])
    def test_command_names_session_that_locks_a_table(
        self, database: Database, command: str
    ) -> None:
        migrations.upgrade(database.url)
        with database.connect() as holder:
            holder.exec_driver_sql("BEGIN; LOCK TABLE langfuse_scores")
            pid = holder.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
            outcome = langfuse_schema(database, "-x", "lock_timeout=50ms", command)
            holder.exec_driver_sql("ROLLBACK")
        assert outcome.code == 2
        busy = "error[database-busy]: could not read public.langfuse_scores within lock_timeout"
        assert busy in outcome.stderr
        assert "public.langfuse_scores is locked by another session:\n" in outcome.stderr
        assert f" pid {pid} (postgres, " in outcome.stderr
        assert f"SELECT pg_terminate_backend({pid});" in outcome.stderr
