"""The behaviour of `auth.uid()`: the policies compare its result with the owner of a row."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from langfuse_schema._postgres.findings import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from langfuse_schema._postgres.findings import Finding

NAME = "auth.uid()"

_USER_ID = "5c0ffee5-0000-4000-8000-000000000001"

_CLAIMS = {
    "without claims": "",
    "with a sub in the claims": json.dumps({"sub": _USER_ID, "role": "authenticated"}),
}
_EXPECTED = {"without claims": "NULL", "with a sub in the claims": _USER_ID}
"""The result of the function of Supabase, by the claims."""

REPAIR = """CREATE OR REPLACE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
  SELECT coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
  )::uuid
$$;"""
"""The statement that creates the function of Supabase, or replaces another one."""

# Each call runs as a user of the Data API, and is rolled back by its exception: the role, the
# claims, and all that the function does. Only its result is kept, until the transaction ends.
_CALL = """
  BEGIN
    PERFORM pg_catalog.set_config('role', 'authenticated', true),
            pg_catalog.set_config('request.jwt.claim.sub', '', true),
            pg_catalog.set_config('request.jwt.claims', '{claims}', true);
    SELECT auth.uid() INTO returned;
    RAISE EXCEPTION USING ERRCODE = 'LF001', MESSAGE = coalesce(returned, 'NULL');
  EXCEPTION WHEN OTHERS THEN
    results := results || CASE WHEN SQLSTATE = 'LF001' THEN SQLERRM
                               WHEN SQLSTATE IN ('42501', '42725') THEN ''
                               ELSE 'error: ' || SQLERRM END;
  END;"""

_CALLS = f"""DO $calls$
DECLARE
  returned text;
  results text[] := '{{}}';
BEGIN{"".join(_CALL.format(claims=claims) for claims in _CLAIMS.values())}
  PERFORM pg_catalog.set_config('langfuse_schema.returned',
                                pg_catalog.array_to_json(results)::text, true);
END $calls$"""


RETURNED = "pg_catalog.current_setting('langfuse_schema.returned', true)"
"""The results of `call` in the same transaction, as an SQL expression."""


def call(connection: Connection) -> None:
    """Call the function as a signed-in user, and keep the results for `RETURNED`.

    Nothing is changed. The connected role must have USAGE on plpgsql.
    """
    connection.exec_driver_sql(_CALLS)


def parse(returned: str | None) -> dict[str, str]:
    """Return the results of `RETURNED` by the claims, without those that could not be called."""
    results = json.loads(returned) if returned else [""] * len(_CLAIMS)
    return {claims: found for claims, found in zip(_CLAIMS, results, strict=True) if found}


def findings(volatility: str, returned: dict[str, str], who: str) -> Iterator[Finding]:
    """Yield how the function differs from the one of Supabase.

    Arguments:
        volatility: of pg_proc: i, s or v.
        returned: the result of `parse`.
        who: the beginning of the fix.
    """
    different = [
        f"{claims}, it returns {found}"
        for claims, found in returned.items()
        if found != _EXPECTED[claims]
    ]
    fix: tuple[str, ...] = (REPAIR,)
    if not different and volatility != "s":
        different = [{"i": "an IMMUTABLE function", "v": "a VOLATILE function"}[volatility]]
        fix = (f"ALTER FUNCTION {NAME} STABLE;",)
    if different:
        values = {"found": "\n".join(different), "advice": who, "fix": fix}
        yield finding("uid-function-differs", NAME, **values)
