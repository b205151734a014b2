"""The last line of a command that writes: its result in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from langfuse_schema._postgres.findings import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langfuse_schema._runtime.alembic_internals import Steps


@dataclass(frozen=True)
class Result:
    """The steps of a command, before the first one runs.

    Attributes:
        kind: "Upgraded", "Downgraded", or "Recorded" for a stamp.
        before: the recorded revisions.
        number: of the steps.
    """

    kind: str
    before: tuple[str, ...]
    number: int

    @classmethod
    def of(cls, steps: Steps) -> Result:
        """Return the result that these steps will have."""
        return cls(steps.kind, steps.heads, len(steps.steps))

    def line(self, reached: Sequence[str], seconds: float) -> str:
        """Return the sentence.

        Arguments:
            reached: the recorded revisions after the last step.
            seconds: the duration of the command, its waits included.
        """
        before, after = named(self.before), named(reached)
        if self.kind == "Recorded":
            return f"Recorded {after} instead of {before}. No revision was run."
        steps = counted(self.number, "revision")
        return f"{self.kind} from {before} to {after} ({steps}, {seconds:.1f} s)."


def nothing_to_do(heads: Sequence[str], newest: Sequence[str]) -> str:
    """Return the sentence of a command without steps.

    Arguments:
        heads: the recorded revisions.
        newest: the heads of the scripts.
    """
    at_head = " (head)" if heads and sorted(heads) == sorted(newest) else ""
    return f"Already at {named(heads)}{at_head}. Nothing to do."


def named(heads: Sequence[str]) -> str:
    """Return revisions in words."""
    return ", ".join(heads) or "base"
