"""`langfuse-schema dev` opens ports and temporary databases, and deletes the database."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from langfuse_schema import cli, embedded
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema.embedded import binaries, dev, folders, location, removal
from langfuse_schema.embedded.opening import Opening
from tests.helpers.databases import Outcome, environment, run
from tests.helpers.fixes import Terminal, commands, follows
from tests.helpers.npm import QUIET

if TYPE_CHECKING:
    from collections.abc import Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def shared(shared_parent: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the parent of the shared folder, which also contains all temporary files."""
    monkeypatch.setenv("TMPDIR", str(shared_parent))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return shared_parent


@pytest.fixture
def folder(shared: Path) -> Path:
    """Return a folder that `nobody` can enter, in which `dev` runs."""
    path = shared / "my app"
    path.mkdir(mode=0o755)
    return path


def dev_command(folder: Path, *arguments: str) -> Outcome:
    """Run `langfuse-schema dev` in a folder that is no checkout."""
    return run(sys.executable, "-c", MAIN, "dev", *arguments, cwd=folder)


MAIN = """
import sys
from langfuse_schema import cli, migrations
migrations.checkout = lambda _: None
cli.main()
"""


@contextmanager
def running_dev(folder: Path, *arguments: str) -> Iterator[list[str]]:
    """Run `dev` until the end of the block, and yield its first lines."""
    with running(folder, [sys.executable, "-c", MAIN, "dev", *arguments]) as lines:
        yield lines


@contextmanager
def running(folder: Path, command: list[str]) -> Iterator[list[str]]:
    """Run a command until the end of the block, and yield its first lines."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith("Press Ctrl-C"):
            break
    try:
        yield lines
    finally:
        process.send_signal(signal.SIGINT)
        printed = process.communicate()[0]
    assert (printed, process.returncode) == ("Stopped.\n", 0)


@pytest.fixture
def terminal(folder: Path, tmp_path: Path) -> Terminal:
    """Return a shell in the folder, in which langfuse-schema does not run in a checkout."""
    program = tmp_path / "langfuse-schema"
    program.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c '{MAIN}' \"$@\"\n")
    program.chmod(0o755)
    return Terminal(folder, (tmp_path,))


@contextmanager
def running_in_shell(terminal: Terminal, command: str) -> Iterator[list[str]]:
    """Run a printed command in a shell until the end of the block, and yield its first lines."""
    path = f"{terminal.programs[0]}{os.pathsep}{os.environ['PATH']}"
    shell = ["env", f"PATH={path}", "bash", "-c", f"exec {command}"]
    with running(terminal.folder, shell) as lines:
        yield lines


def query(url: str | sa.URL, statement: str) -> list[object]:
    """Return the first column of the rows of a query."""
    engine = sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg2"), poolclass=sa.NullPool
    )
    with engine.connect() as connection:
        return list(connection.exec_driver_sql(statement).scalars())


def test_dev_port_accepts_printed_url_and_refuses_every_other_login(folder: Path) -> None:
    with running_dev(folder, "--port", "0", "--fresh") as lines:
        url = sa.make_url(lines[0])
        assert (url.host, url.username, url.database) == ("127.0.0.1", "postgres", "postgres")
        assert query(url, "SELECT count(*) FROM reflections") == [3]
        assert lines[0] in lines[1]
        jdbc = f"jdbc:postgresql://127.0.0.1:{url.port}/postgres?user=postgres&password="
        assert lines[2] == f"{jdbc}{url.password}"
        for refused in (
            url._replace(password=None),
            url.set(password="wrong"),
            url.set(username="supabase_admin"),
            url._replace(username="supabase_admin", password=None),
            url.set(username="anon"),
        ):
            with pytest.raises(OperationalError, match=r"password|pg_hba"):
                query(refused, "SELECT 1")
        # Only this machine can connect.
        listening = query(url.set(username="authenticator"), "SHOW listen_addresses")
        assert listening == ["127.0.0.1"]


@pytest.mark.slow
def test_fresh_dev_deletes_its_files_and_ignores_database_of_folder(folder: Path) -> None:
    with embedded.open_default(folder) as server:
        query(server.url(), "SELECT 1")
        with running_dev(folder, "--fresh", "--without-app-tables") as lines:
            files = re.fullmatch(r"Files: (.*), deleted at the end\.", lines[-2])
            assert files is not None
            assert Path(files[1]).is_dir()
            tables = "SELECT tablename FROM pg_tables WHERE schemaname IN ('public', 'auth')"
            assert query(lines[0], tables) == ["users"]
            assert query(lines[0], "SELECT count(*) FROM auth.users") == [0]
        assert not Path(files[1]).exists()
        assert query(server.url(), "SELECT count(*) FROM reflections") == [3]


@pytest.mark.slow
def test_dev_keeps_password_and_joins_server_with_same_port(folder: Path) -> None:
    with embedded.open_default(folder, Opening(port=0)) as first:
        url = first.connection_string()
        with embedded.open_default(folder, Opening(port=0)) as second:
            assert second.connection_string() == url
        with pytest.raises(SchemaError, match=rf"listens on port {first.port}"):
            embedded.open_default(folder, Opening(port=1024 + (first.port == 1024)))
        secret = first.directory / "password"
        assert secret.stat().st_mode & 0o777 == 0o600
    with embedded.open_default(folder) as third:
        with pytest.raises(SchemaError, match="it does not listen"):
            embedded.open_default(folder, Opening(port=0))
        assert third.connection_string().startswith("postgresql://postgres@/")


def test_dev_refuses_port_that_another_program_uses(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SchemaError, match=f"cannot listen on port {port}") as error:
            embedded.open_default(folder, Opening(port))
    assert error.value.findings[0].code == "embedded-port-taken"
    assert not (folder / ".langfuse-schema").exists()


@pytest.mark.slow
@follows("embedded-port-taken", "embedded-port-differs")
def test_printed_command_uses_available_port(folder: Path, terminal: Terminal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SchemaError) as error:
            embedded.open_default(folder, Opening(port))
        (command,) = commands(error.value.findings[0])
        with running_in_shell(terminal, command) as lines:
            assert sa.make_url(lines[0]).port not in (None, port)
            with pytest.raises(SchemaError) as error:
                embedded.open_default(folder, Opening(port))
            (command,) = commands(error.value.findings[0])
            with running_in_shell(terminal, command) as other:
                assert sa.make_url(other[0]).port not in (None, sa.make_url(lines[0]).port)
                assert query(other[0], "SELECT 1") == [1]


@pytest.mark.parametrize("port", ["x", "-1", "80", "65536"])
def test_dev_refuses_port_that_cannot_be_used(
    port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["dev", f"--port={port}"])
    assert "expected 0, or 1024 to 65535" in capsys.readouterr().err


@pytest.mark.slow
def test_dev_passes_database_to_command(folder: Path) -> None:
    show = (
        "import os, psycopg; print(psycopg.connect('').execute('SELECT inet_server_port()')"
        ".fetchone()[0], os.environ['DATABASE_URL'])"
    )
    outcome = dev_command(folder, "--fresh", "--port", "0", "--", sys.executable, "-c", show)
    assert outcome.code == 0, outcome.stderr
    port, url = outcome.stdout.split()
    assert f"@127.0.0.1:{port}/" in url
    assert re.search(r"^Files: .*, deleted at the end\.$", outcome.stderr, re.MULTILINE)


@pytest.mark.slow
@follows("embedded-app-tables")
def test_without_app_tables_refuses_database_that_has_them(
    folder: Path, terminal: Terminal
) -> None:
    no_app_tables = Opening(app_tables=False)
    with embedded.open_default(folder, no_app_tables) as server:
        query(server.url(), "SELECT 1")
    # A table of the app with this name does not turn the database into one with built-in tables.
    with embedded.open_default(folder) as server:
        engine = sa.create_engine(server.url(), poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE reflections (id int)")
    embedded.open_default(folder, no_app_tables).close()
    removal.remove(folder)
    embedded.open_default(folder).close()
    with pytest.raises(SchemaError, match="has the built-in app tables") as error:
        embedded.open_default(folder, no_app_tables)
    fresh, remove = commands(error.value.findings[0])
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    with running_in_shell(terminal, fresh) as lines:
        assert query(lines[0], tables) == [0]
    assert terminal.type(remove).code == 0
    with embedded.open_default(folder, no_app_tables) as server:
        assert query(server.url(), tables) == [0]


# --remove


@pytest.mark.slow
def test_remove_deletes_database_and_second_run_does_nothing(folder: Path) -> None:
    embedded.open_default(folder).close()
    printed: list[str] = []
    dev.remove(folder, printed.append)
    assert printed == [f"Deleted {folder / '.langfuse-schema'}"]
    assert list(folder.iterdir()) == []
    dev.remove(folder, printed.append)
    assert printed[1].endswith("Nothing to do.")


@pytest.mark.slow
def test_remove_refuses_database_in_use_and_other_options(folder: Path) -> None:
    with embedded.open_default(folder) as server:
        outcome = dev_command(folder, "--remove")
        assert outcome.code == 2
        assert "error[embedded-in-use]" in outcome.stderr
        assert query(server.url(), "SELECT count(*) FROM reflections") == [3]
    assert dev_command(folder, "--remove", "--fresh").code == 2
    assert (folder / ".langfuse-schema").exists()


@pytest.mark.slow
@follows("embedded-not-removed")
def test_printed_command_removes_database_of_another_user(
    folder: Path, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database belongs to the current user, so this test replaces `sudo`."""
    embedded.open_default(folder).close()

    def refuse(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(removal, "remove", refuse)
    with pytest.raises(SchemaError) as error:
        dev.remove(folder, lambda _: None)
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    sudo.chmod(0o755)
    no_checkout = MAIN.replace("cli.main()", "")
    (tmp_path / "sitecustomize.py").write_text(no_checkout)
    outcome = terminal.type(*commands(error.value.findings[0]), PYTHONPATH=str(tmp_path))
    assert outcome.code == 0, outcome.stderr
    assert not (folder / ".langfuse-schema").exists()


@pytest.mark.slow
@as_root
def test_remove_in_closed_home_deletes_shared_folder_and_copied_programs(
    folder: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.chmod(0o700)
    monkeypatch.setattr(binaries, "_is_usable", lambda *_: False)
    server = embedded.open_default(folder)
    server.close()
    other = shared / "other"
    other.mkdir(mode=0o700)
    embedded.open_default(other).close()
    root = shared / "langfuse-schema-root"
    assert server.bin.is_relative_to(root)
    dev.remove(folder, lambda _: None)
    assert not server.directory.exists()
    assert server.bin.exists()
    dev.remove(other, lambda _: None)
    assert not root.exists()
    assert list(folder.iterdir()) == list(other.iterdir()) == []


@as_root
def test_new_clone_at_old_path_in_closed_home_gets_new_database_and_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.chmod(0o700)
    directory = embedded.state_directory(folder)
    assert embedded.state_directory(folder) == directory
    assert directory.is_dir()
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    assert embedded.state_directory(folder) != directory
    assert f"to delete it: rm -rf {directory}" in caplog.text
    dev.remove(folder, lambda _: None)
    assert not directory.exists()


@as_root
def test_moved_checkout_in_closed_home_keeps_database(folder: Path, shared: Path) -> None:
    folder.chmod(0o700)
    directory = embedded.state_directory(folder)
    folder.rename(shared / "moved")
    assert embedded.state_directory(shared / "moved") == directory


@as_root
def test_state_directory_is_in_shared_folder_if_record_points_outside(
    folder: Path, shared: Path
) -> None:
    folder.chmod(0o700)
    (folder / location.STATE).mkdir()
    (folder / location.STATE / "location").write_text("../../../etc\n")
    assert embedded.state_directory(folder) == shared / "langfuse-schema-root" / "state-etc"


@pytest.mark.slow
@as_root
def test_remove_by_normal_user_refuses_database_of_root(folder: Path) -> None:
    embedded.open_default(folder).close()
    remove = (
        "import os, sys; os.setuid(65534); from pathlib import Path;"
        "from langfuse_schema.embedded import removal; removal.remove(Path(sys.argv[1]))"
    )
    # Root loads the module, because a normal user cannot enter the home of root.
    loaded = f"from langfuse_schema.embedded import removal; {remove}"
    outcome = run(sys.executable, "-c", loaded, str(folder))
    assert "belongs to user 0" in outcome.stderr
    assert (folder / ".langfuse-schema").exists()


@follows("embedded-without-user")
def test_check_user_reports_passwd_line_for_unknown_user(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwd = folder / "passwd"
    passwd.write_text("root:x:0:0::/:/bin/sh\n")

    def entry(user: int) -> list[str]:
        entries = [line.split(":") for line in passwd.read_text().splitlines()]
        return {int(one[2]): one for one in entries}[user]

    monkeypatch.setattr(folders.pwd, "getpwuid", entry)
    monkeypatch.setattr(folders.os, "geteuid", lambda: 54321)
    with pytest.raises(SchemaError, match="for the user 54321") as error:
        folders.check_user(folder)
    (finding,) = error.value.findings
    assert finding.code == "embedded-without-user"
    (command,) = commands(finding)
    assert run("bash", "-ec", command.replace("/etc/passwd", f"'{passwd}'")).code == 0
    folders.check_user(folder)
    name, _, user, group, _, home, shell = entry(54321)
    assert (name, user, group) == ("app", "54321", str(os.getegid()))
    assert (home, shell) == ("/tmp", "/bin/sh")


# Real clients

POSTGRES_JS = """
import postgres from "postgres";
const sql = postgres(process.argv[2]);
console.log((await sql`SELECT count(*)::int AS number FROM reflections`)[0].number);
await sql.end();
"""


@pytest.mark.slow
def test_real_clients_connect_with_printed_url_and_not_with_wrong_password(
    folder: Path, clients: Path
) -> None:
    script = clients.parent / "count.mjs"
    script.write_text(POSTGRES_JS)
    try:
        with running_dev(folder, "--port", "0", "--fresh") as (url, psql, *_):
            password = sa.make_url(url).password
            assert password
            for text, code in ((url, 0), (url.replace(f":{password}", ":wrong"), 1)):
                commands = {
                    "postgres.js": ["node", str(script), text],
                    "psql": ["sh", "-c", f"{psql.replace(url, text)} -Atc 'SELECT 3'"],
                    "Supabase CLI": [
                        str(clients / ".bin" / "supabase"), "migration", "list",
                        f"--remote={text}",
                    ],
                }  # fmt: skip
                for client, command in commands.items():
                    outcome = run(
                        *command, cwd=folder, HOME=str(folder), TMPDIR=str(folder), **QUIET
                    )
                    assert bool(outcome.code) == bool(code), (client, outcome)
    finally:
        script.unlink()


@pytest.mark.slow
def test_killed_fresh_dev_leaves_no_files(folder: Path, shared: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "dev", "--fresh"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("postgresql://")
    process.kill()
    process.communicate()

    def remaining_files() -> list[Path]:
        return [*shared.glob("*fresh*"), *shared.glob("*/*fresh*")]

    deadline = time.monotonic() + 60
    while remaining_files() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert remaining_files() == []
