"""Freeze the revisions of a release: `make release`.

alembic/frozen.txt contains the hashes of the revisions, of their snapshots, and of the helpers that
they call. A test fails if one of them changes.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def current(root: Path) -> dict[str, str]:
    """Return the hash of each file and helper that a release freezes, by name.

    Arguments:
        root: the folder of the checkout.
    """
    revisions = sorted((root / "alembic" / "versions").glob("*.py"))
    files = [*revisions, *sorted((root / "alembic" / "snapshots").glob("*.json"))]
    texts = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in files}
    modules = sorted((root / "src" / "langfuse_schema" / "operations").glob("*.py"))
    helpers = _helpers("\n".join(path.read_text("utf-8") for path in modules))
    called = {name for path in revisions for name in _called(path.read_text("utf-8"))}
    texts |= {f"operations.{name}": helpers[name] for name in _closure(called, helpers)}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _called(source: str) -> set[str]:
    """Return the helpers in `operations` that a revision uses."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "operations"
    }


def _helpers(source: str) -> dict[str, str]:
    """Return the source of each function, class and constant of `operations`, by name."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = ast.get_source_segment(source, node) or ""
        elif isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = ast.get_source_segment(source, node) or ""
    return found


def _closure(called: set[str], helpers: dict[str, str]) -> list[str]:
    """Return the called helpers, and all helpers that they use."""
    reached: set[str] = set()
    added = called & helpers.keys()
    while added:
        reached |= added
        used = {
            node.id
            for name in added
            for node in ast.walk(ast.parse(helpers[name]))
            if isinstance(node, ast.Name)
        }
        added = (used & helpers.keys()) - reached
    return sorted(reached)


def frozen(root: Path) -> dict[str, str]:
    """Return the hashes of the last release. Before the first release, there are none.

    Arguments:
        root: the folder of the checkout.
    """
    path = root / "alembic" / "frozen.txt"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def changed(root: Path) -> list[str]:
    """Return the released names that have changed or were deleted since.

    Arguments:
        root: the folder of the checkout.
    """
    now = current(root)
    return [name for name, digest in frozen(root).items() if now.get(name) != digest]


def main(root: Path = ROOT) -> None:
    """Write the hashes, unless a released file or helper has changed."""
    differing = changed(root)
    if differing:
        sys.exit("changed since the release: " + ", ".join(differing))
    lines = [f"{digest}  {name}\n" for name, digest in current(root).items()]
    (root / "alembic" / "frozen.txt").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
