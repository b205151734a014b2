"""Delete the embedded database and all created files of this checkout: `make clean`.

This file needs only the standard library, because `.venv` can be missing or broken.
"""

import os
import shlex
import shutil
import sys
import types
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

CREATED = (
    ".langfuse-schema.removed",
    ".venv",
    ".tox",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "build",
    "dist",
    "uv.lock",
    "tests/clients/node_modules",
)


def main() -> None:
    """Delete the embedded database and the created files."""
    removal = load_removal()
    try:
        removed = removal.remove(CHECKOUT)
        found = [CHECKOUT / name for name in CREATED]
        found += [*CHECKOUT.glob("*.egg-info"), *CHECKOUT.glob("src/*.egg-info")]
        folders = ("src", "tests", "tools", "alembic", "benchmarks", "examples", "docs")
        found += [cache for name in folders for cache in CHECKOUT.glob(f"{name}/**/__pycache__")]
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
                removed.append(path)
            elif path.exists():
                path.unlink()
                removed.append(path)
    except removal.InUseError as error:
        sys.exit(f"Another program uses the database in {error}. End it, then try again.")
    except PermissionError as error:
        # PYTHON is an absolute path, because sudo has another PATH.
        command = shlex.join(["sudo", "make", f"PYTHON={sys.executable}", "clean"])
        sys.exit(
            f"{error}\nAnother user, such as root, created these files. Delete them:  {command}"
        )
    for path in removed:
        if "__pycache__" not in path.parts:
            print(f"Deleted {os.path.relpath(path) if CHECKOUT in path.parents else path}")


def load_removal() -> types.ModuleType:
    """Import `langfuse_schema.embedded.removal` without its packages, which need SQLAlchemy."""
    sys.dont_write_bytecode = True
    for name in ("langfuse_schema", "langfuse_schema.embedded"):
        package = types.ModuleType(name)
        package.__path__ = [str(CHECKOUT / "src" / name.replace(".", "/"))]
        sys.modules[name] = package
    from langfuse_schema.embedded import removal

    return removal


if __name__ == "__main__":
    main()
