"""Write all generated files: `make generate`.

The snapshots are written first, because the pages are rendered from them.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alembic.config import Config

from langfuse_schema import embedded
from langfuse_schema._history import snapshots
from langfuse_schema._history.chain import History, config_file
from tools import chain, pages

if TYPE_CHECKING:
    from langfuse_schema._history.snapshots import Tables


def main() -> None:
    """Run the revisions on the embedded PostgreSQL, and write the files."""
    # The downgrades would print warnings about dropped rows.
    logging.getLogger("langfuse_schema").setLevel(logging.ERROR)
    with embedded.open_temporary() as server:
        measured = chain.run_all(server.url())
    for found in measured.values():
        refuse_unsupported(found.tables)
    write(snapshot_files(measured))
    write(pages.pages(measured))


def refuse_unsupported(tables: Tables) -> None:
    """Exit if a table has a feature that a snapshot cannot contain."""
    for name, table in tables.items():
        unsupported = [
            *(["a relation that is no table"] if table.kind != "r" else []),
            *(["an unlogged table"] if table.persistence != "p" else []),
            *(["FORCE ROW LEVEL SECURITY"] if table.force_row_security else []),
            *(["a trigger or a rule"] if table.triggers or table.rules else []),
            *(["inheritance or partitions"] if table.parents or table.children else []),
            *(["a serial column"] if "nextval(" in str(table.columns) else []),
        ]
        if unsupported:
            sys.exit(f"{name}: a snapshot cannot contain {', '.join(unsupported)}")


def write(files: dict[Path, str]) -> None:
    """Write the files whose content differs, and print their paths."""
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(Path(__file__).parents[1]))


def snapshot_files(measured: dict[str, chain.Measured]) -> dict[Path, str]:
    """Return the content of each snapshot.

    Arguments:
        measured: the results of `chain.run_all`.
    """
    history = History.of(Config(config_file()))
    return {
        history.snapshot_path(revision): snapshots.render(revision, found.tables)
        for revision, found in measured.items()
    }


if __name__ == "__main__":
    main()
