"""Write all generated files: `make generate`.

The snapshots of the revisions come first; the pages are rendered from them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from alembic.config import Config

from langfuse_schema import embedded, environment
from langfuse_schema._history import snapshots
from langfuse_schema._history.chain import History
from tools import chain, pages


def main() -> None:
    """Run the revisions on the embedded PostgreSQL, and write the files."""
    with (
        tempfile.TemporaryDirectory(prefix="langfuse-schema-") as folder,
        embedded.open_default(Path(folder)) as server,
    ):
        measured = chain.run_all(server.url())
    for path, text in snapshot_files(measured).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path, text in pages.pages(measured).items():
        path.write_text(text, encoding="utf-8")


def snapshot_files(measured: dict[str, chain.Measured]) -> dict[Path, str]:
    """Return the content of each snapshot.

    Arguments:
        measured: from `chain.run_all`.
    """
    history = History.of(Config(environment.config_file()))
    return {
        history.snapshot_path(revision): snapshots.render(revision, found.tables)
        for revision, found in measured.items()
    }


if __name__ == "__main__":
    main()
