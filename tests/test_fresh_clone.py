"""The two commands of README in a fresh clone, with only Python and make."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.databases import CHECKOUT, environment
from tests.helpers.pages import Block, block

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SYSTEM_PYTHON = "/usr/bin/python3"
"""A Python that every user can run. The Python of the tests can be in a closed home."""

CLONE_TESTS = "tests/revisions tests/embedded tests/test_cli.py"


class NewUser:
    """A user with a new home that other users cannot read, and a clone in it."""

    def __init__(self, account: str, home: Path) -> None:
        self.account = pwd.getpwnam(account)
        self.clone = home / "my projects 私の" / "langfuse-schema"
        self.home = home
        # Other tests use databases of other checkouts at the same time.
        self.shared = Path(tempfile.mkdtemp(dir=os.environ["LANGFUSE_SCHEMA_SHARED_FOLDER"]))
        self.shared.chmod(0o755)
        copy_checkout(self.clone)
        for path in (home, *home.rglob("*")):
            os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)
        home.chmod(0o700)

    def make(self, *arguments: str, **variables: str) -> str:
        """Run make, and return its output."""
        ended = subprocess.run(
            ["make", f"PYTHON={SYSTEM_PYTHON}", *arguments],
            cwd=self.clone,
            env=environment(
                HOME=str(self.home), LANGFUSE_SCHEMA_SHARED_FOLDER=str(self.shared), **variables
            ),
            user=self.account.pw_uid,
            group=self.account.pw_gid,
            extra_groups=[],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=1100,
        )
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    def clean(self) -> None:
        """Run `make clean`, and assert that only the files of the clone are left."""
        self.make("clean")
        assert {path.name for path in self.clone.iterdir()} == {
            name.partition("/")[0] for name in listed_files()
        }
        assert not (self.shared / "langfuse-schema-root").exists()
        self.make("clean")

    def processes(self) -> list[str]:
        """Return the command lines of processes that contain the path of the home."""
        running = subprocess.run(
            ["ps", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout
        return [line for line in running.splitlines() if str(self.home) in line]


def listed_files() -> list[str]:
    """Return the files of the checkout that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [name for name in listed.splitlines() if (CHECKOUT / name).is_file()]


def copy_checkout(target: Path) -> None:
    for name in listed_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, target / name)


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="langfuse-schema-home-"))
    yield folder
    shutil.rmtree(folder)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def assert_demo(printed: str) -> None:
    assert "(head)" in printed
    for table in ("langfuse_traces", "langfuse_scores", "langfuse_batch_runs", "rate_limit_logs"):
        assert f" public | {table} " in printed


@needs_root
def test_demo_then_tests_pass_for_root_in_closed_home(home: Path) -> None:
    user = NewUser("root", home)
    printed = user.make("demo", DATABASE_URL="postgresql://nobody@127.0.0.1:1/elsewhere")
    assert_demo(printed)
    # test_docs runs the downgrade and the upgrade at the end of README's output.
    shown = block("README.md", "INFO ").text.partition("(head)\n")
    assert Block("text", shown[0] + shown[1]).is_printed_by(printed)
    began = time.monotonic()
    assert_demo(user.make("demo"))
    print(f"the second demo, with all packages installed: {time.monotonic() - began:.1f} s")
    printed = user.make("test", f"TESTS={CLONE_TESTS}")
    assert " passed" in printed
    assert user.processes() == []
    user.clean()


@needs_root
def test_demo_in_moved_checkout_keeps_database(home: Path) -> None:
    user = NewUser("root", home)
    assert "Collecting" in user.make("demo")
    moved = user.clone.with_name("moved")
    user.clone.rename(moved)
    user.clone = moved
    printed = user.make("demo")
    assert_demo(printed)
    assert "Running upgrade" not in printed
    user.clean()


@needs_root
def test_clean_by_normal_user_after_sudo_prints_sudo_command(home: Path) -> None:
    root, user = NewUser("root", home), NewUser("nobody", home)
    root.make("demo")
    with pytest.raises(AssertionError, match="delete it:  sudo make clean"):
        user.make("demo")
    with pytest.raises(AssertionError, match=r"sudo make PYTHON=.* clean"):
        user.make("clean")
    root.clean()


@needs_root
def test_tests_then_demo_pass_for_normal_user(home: Path) -> None:
    user = NewUser("nobody", home)
    printed = user.make("test", DATABASE_URL="postgresql://nobody@127.0.0.1:1/elsewhere")
    assert " passed" in printed
    assert_demo(user.make("demo"))
    assert user.processes() == []
    user.clean()
