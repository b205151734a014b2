"""Discard the leftovers of an interrupted upgrade before a downgrade."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from alembic.runtime.migration import RevisionStep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from alembic.script import ScriptDirectory


def with_discards(steps: Iterable[Any], directory: ScriptDirectory) -> list[Any]:
    """Let each downgrade first discard what its successors can have left behind.

    A revision that is not one transaction defines `discard_partial_upgrade()`. If its upgrade was
    interrupted, its parts exist while the database is at the revision below.

    Arguments:
        steps: of Alembic, in their order.
        directory: with all revisions.

    Returns:
        The same steps.
    """
    steps = list(steps)
    downgraded = {
        step.revision.revision
        for step in steps
        if isinstance(step, RevisionStep) and step.is_downgrade
    }
    for step in steps:
        if isinstance(step, RevisionStep) and step.is_downgrade:
            discards = [
                discard
                for successor in sorted(step.revision.nextrev - downgraded)
                if (discard := _discard_of(directory, successor)) is not None
            ]
            step.migration_fn = _after(discards, step.migration_fn)
    return steps


def _discard_of(directory: ScriptDirectory, revision: str) -> Callable[[], None] | None:
    script = directory.get_revision(revision)
    discard: Callable[[], None] | None = getattr(script.module, "discard_partial_upgrade", None)
    return discard


def _after(discards: list[Callable[[], None]], downgrade: Callable[..., None]) -> Any:  # noqa: ANN401 - a function of a revision
    @wraps(downgrade)
    def run(**keywords: Any) -> None:  # noqa: ANN401 - passed on to the revision as they are
        for discard in discards:
            discard()
        downgrade(**keywords)

    return run
