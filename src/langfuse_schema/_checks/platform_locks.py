"""The tables that supautils locks when the role of a session runs a policy statement.

On hosted Supabase, supautils has a list of tables for each role. At CREATE, ALTER and DROP POLICY,
and at DROP TRIGGER, it locks these tables one by one with ACCESS EXCLUSIVE.
https://github.com/supabase/supautils
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from langfuse_schema.operations import _locks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from langfuse_schema._postgres.findings import Finding

LISTED = f"ARRAY(SELECT {_locks.LISTED})"
"""The listed tables of the connected role, as an SQL expression of type text[]."""

_POLICY_STATEMENT = re.compile(
    r"""(?:(?:CREATE|ALTER|DROP)\ POLICY|DROP\ TRIGGER)\s+(?:"(?:[^"]|"")*"|\w+)\s+ON\s+([\w.]+)""",
    re.VERBOSE,
)


def with_locks(findings: Iterable[Finding], listed: Sequence[str]) -> Iterator[Finding]:
    """Add to the policy statements of fixes the locks that a revision takes first.

    Arguments:
        findings: with statements to paste.
        listed: the tables of the platform; without any, the findings are unchanged.
    """
    if not listed:
        yield from findings
        return
    for one in findings:
        fix = [part for statement in one.fix for part in _locked(statement)]
        yield replace(one, fix=tuple(fix))


def _locked(statement: str) -> tuple[str, ...]:
    on_table = _POLICY_STATEMENT.match(statement)
    if on_table is None:
        return (statement,)
    locks = _locks.locking({on_table[1]: "ACCESS EXCLUSIVE"}, policies=True).strip()
    return ("BEGIN;", "SET LOCAL lock_timeout TO '500ms';", f"{locks};", statement, "COMMIT;")
