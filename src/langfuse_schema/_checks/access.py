"""Effective access: the abilities of the API roles beyond the grants on the tables.

Row level security protects rows from a role without BYPASSRLS that does not own the table. It also
applies to views and functions that run with the rights of such a role.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langfuse_schema._checks import uid_function
from langfuse_schema._checks.access_query import USER_ROLES
from langfuse_schema._postgres import ddl
from langfuse_schema._postgres.findings import finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.findings import Finding

SERVICE_ROLE = "service_role"

LOGIN_ROLE = "authenticator"
"""The role with which the Data API connects, before it becomes an API role."""


@dataclass(frozen=True)
class Access:
    """The result of `QUERY`.

    Attributes:
        values: its JSON.
        returned: the results of calls of `auth.uid()`, by the claims; see `uid_function`.
    """

    values: dict[str, Any]
    returned: dict[str, str]

    @property
    def may_call(self) -> bool:
        """Whether the connected role may call `auth.uid()` as a signed-in user."""
        function = self.values["uid"]
        return bool(function and function["callable"] and function["volatility"] != "v")

    def findings(self, expected: Tables) -> Iterator[Finding]:
        """Yield how the access of the API roles differs from the one that a schema needs.

        Views and functions that bypass row level security are warnings.
        """
        granted = {grant.role for table in expected.values() for grant in table.grants}
        needing = sorted(granted & (self.values["roles"] or {}).keys())
        secured = any(table.row_security for table in expected.values())
        policies = [policy for table in expected.values() for policy in table.policies]
        yield from self._schema(needing)
        if policies:
            yield from self._user_id(needing)
        if secured and SERVICE_ROLE in needing:
            yield from self._service_role()
        yield from self._user_roles()
        yield from self._memberships()
        yield from self._ways()

    def missing_function(self, expected: Tables) -> Iterator[Finding]:
        """Yield that `auth.uid()` does not exist, if the policies of a schema call it."""
        if self.values["uid"] is None and any(table.policies for table in expected.values()):
            yield finding(
                "uid-function-missing",
                uid_function.NAME,
                found="no such function with the result uuid",
                advice="As the owner of the schema auth, or as a superuser, run:",
                fix=(uid_function.REPAIR,),
            )

    def _schema(self, needing: Iterable[str]) -> Iterator[Finding]:
        roles = [role for role in needing if self.values["roles"][role]["enters"] is False]
        if roles:
            fix = f"GRANT USAGE ON SCHEMA public TO {_listed(roles)};"
            yield _missing("public", roles, "USAGE", _who(self.values["public"]), fix)

    def _user_id(self, needing: Iterable[str]) -> Iterator[Finding]:
        function = self.values["uid"]
        if function is None:
            return
        who = _who(function)
        roles = [role for role in needing if self._must_call(role)]
        if roles:
            fix = f"GRANT EXECUTE ON FUNCTION {uid_function.NAME} TO {_listed(roles)};"
            yield _missing(uid_function.NAME, roles, "EXECUTE", who, fix)
        yield from uid_function.findings(function["volatility"], self.returned, who)

    def _must_call(self, role: str) -> bool:
        of_role = self.values["roles"][role]
        return not (of_role["calls"] or of_role["bypasses"] or of_role["superuser"])

    def _service_role(self) -> Iterator[Finding]:
        role = self.values["roles"][SERVICE_ROLE]
        if not (role["bypasses"] or role["superuser"]):
            yield self._attribute(SERVICE_ROLE, "without BYPASSRLS", "BYPASSRLS", "BYPASSRLS")

    def _user_roles(self) -> Iterator[Finding]:
        for name in USER_ROLES:
            role = (self.values["roles"] or {}).get(name, {"superuser": False, "bypasses": False})
            has = {"SUPERUSER": role["superuser"], "BYPASSRLS": role["bypasses"]}
            found = [attribute for attribute, given in has.items() if given]
            if found:
                removed = " ".join(f"NO{attribute}" for attribute in found)
                yield self._attribute(name, ", ".join(found), "no SUPERUSER, no BYPASSRLS", removed)

    def _attribute(self, role: str, found: str, expected: str, change: str) -> Finding:
        values, administered = self.values, self.values["roles"][role]["administered"]
        # https://www.postgresql.org/docs/16/sql-alterrole.html
        may = values["creates_roles"] and values["bypasses"] and administered
        may = may and values["version"] >= _ADMINISTERED_SINCE and "SUPERUSER" not in found
        return finding(
            "role-differs",
            role,
            found=f"{role}: {found}",
            expected=f"{role}: {expected}",
            advice="Run:" if values["superuser"] or may else "As a superuser, run:",
            fix=(f"ALTER ROLE {ddl.quoted(role)} {change};",),
        )

    def _memberships(self) -> Iterator[Finding]:
        by_grantor = self.values["version"] >= _ADMINISTERED_SINCE
        for one in self.values["memberships"] or ():
            role, granted, grantor = (ddl.quoted(one[n]) for n in ("role", "granted", "grantor"))
            may = one["administered"] and (one["as_grantor"] or not by_grantor)
            by = f" GRANTED BY {grantor}" if by_grantor else ""
            other = f"As {grantor}, or as a superuser, run:"
            yield finding(
                "role-differs",
                one["role"],
                found=f"{role}: a member of {granted}, which has more privileges",
                expected=f"{role}: not a member of it",
                advice="Run:" if may or self.values["superuser"] else other,
                fix=(f"REVOKE {granted} FROM {role}{by};",),
            )

    def _ways(self) -> Iterator[Finding]:
        for one in self.values["ways"] or ():
            name, kind = one["name"], one["kind"]
            if one["itself"] and self.values["version"] >= _INVOKER_SINCE:
                fix = f"ALTER VIEW {name} SET (security_invoker = true);"
            else:
                target = f"ROUTINE {name}" if kind == "function" else name
                existing = [role for role in USER_ROLES if role in self.values["roles"]]
                fix = f"REVOKE ALL ON {target} FROM {', '.join(['PUBLIC', *existing])};"
            yield finding(
                "row-level-security-bypassed",
                name,
                kind=kind,
                cause=f"{', '.join(one['roles'])} can use it, and its owner {one['owner']} bypasses"
                " row level security",
                advice=f"If users must not see all rows: {_who(one)}",
                fix=(fix,),
            )


_ADMINISTERED_SINCE, _INVOKER_SINCE = 16, 15
"""The PostgreSQL versions of ADMIN OPTION for attributes, and of views with security_invoker."""


def _missing(place: str, roles: list[str], privilege: str, who: str, fix: str) -> Finding:
    named = ", ".join(roles)
    values = {"found": f"{named}: nothing", "expected": f"{named}: {privilege}"}
    return finding("access-missing", place, **values, advice=who, fix=(fix,))


def _who(item: dict[str, Any]) -> str:
    """Return the beginning of a fix that the owner of an object can run."""
    return "Run:" if item["owned"] else f"As {item['owner']}, or as a superuser, run:"


def _listed(roles: Iterable[str]) -> str:
    return ", ".join(map(ddl.quoted, roles))


def observe(connection: Connection, text: str) -> Access:
    """Return the access from the result of `QUERY`. Call `auth.uid()` if it can be called."""
    access = Access(json.loads(text), {})
    if access.may_call:
        uid_function.call(connection)
        query = f"SELECT {uid_function.RETURNED}"
        returned = connection.exec_driver_sql(query).scalar_one()
        return Access(access.values, uid_function.parse(returned))
    return access
