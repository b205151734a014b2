"""Create a revision with an id of 14 digits that follows the head: `make revision`."""

from __future__ import annotations

import sys
from datetime import date

from alembic import command
from alembic.config import Config

from langfuse_schema._history.chain import History, config_file


def next_id(head: str, today: date) -> str:
    """Return the id of a new revision: the date and a number, greater than the head.

    The Supabase CLI runs files in the order of these ids.

    Arguments:
        head: the newest revision.
        today: the date of the new revision.
    """
    return str(max(int(f"{today:%Y%m%d}000001"), int(head) + 1))


def main(arguments: list[str]) -> None:
    """Write the file of a new revision from the template."""
    if len(arguments) != 1 or not arguments[0].strip():
        sys.exit('usage: make revision MESSAGE="add a table"')
    config = Config(config_file())
    revision = next_id(History.of(config).head, date.today())  # noqa: DTZ011 - the local date of the author
    command.revision(config, arguments[0], rev_id=revision)


if __name__ == "__main__":
    main(sys.argv[1:])
