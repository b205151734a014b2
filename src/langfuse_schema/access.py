"""Who may do what, declared once: row level security, policies and grants as values.

The plan's section マイグレーション3 says who sees what. What it leaves to the default privileges
of the database is stated here too, because Supabase has had two sets of them. Each value says
since which revision it holds, and until which: a database may stop at any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from langfuse_schema import tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

API_ROLES = ("anon", "authenticated", "service_role")
"""The roles under which Supabase's Data API comes in; each may be absent elsewhere."""

TABLES = ("langfuse_traces", "langfuse_scores", "langfuse_batch_runs", "rate_limit_logs")
"""The tables whose privileges are ours to state."""


@dataclass(frozen=True)
class RowSecurity:
    """Row level security on a table, enabled and not forced: the owner is not subject to it."""

    table: str
    since: str
    until: str | None = None


@dataclass(frozen=True)
class Policy:
    """A row level security policy; expressions as PostgreSQL prints them, schemas spelled out."""

    table: str
    name: str
    command: str
    since: str
    until: str | None = None
    using: str | None = None
    check: str | None = None
    roles: tuple[str, ...] = ("public",)
    permissive: bool = True


@dataclass(frozen=True)
class Grant:
    """Privileges on a table, or on some of its columns, for one role."""

    table: str
    role: str
    privileges: tuple[str, ...]
    since: str
    until: str | None = None
    columns: tuple[str, ...] = ()


_Access = TypeVar("_Access", RowSecurity, Policy, Grant)


def at(revision: str, declared: Iterable[_Access]) -> tuple[_Access, ...]:
    """Choose what holds at a revision.

    Arguments:
        revision: one of our revision ids.
        declared: ROW_SECURITY, POLICIES or GRANTS.
    """
    return tuple(
        value
        for value in declared
        if value.since <= revision and (value.until is None or revision < value.until)
    )


ROW_SECURITY = (
    RowSecurity("langfuse_traces", since=tables.POLICIES),
    RowSecurity("langfuse_scores", since=tables.POLICIES),
    # Without any policy: closed to all but the owner and service_role.
    RowSecurity("langfuse_batch_runs", since=tables.HARDENED),
    RowSecurity("rate_limit_logs", since=tables.HARDENED),
)


def _own_trace(user_id: str) -> str:
    return f"""(EXISTS ( SELECT 1
   FROM public.langfuse_traces
  WHERE ((langfuse_traces.trace_id = langfuse_scores.trace_id) AND \
(langfuse_traces.user_id = {user_id}))))"""


_PER_ROW = "auth.uid()"
_ONCE = "( SELECT auth.uid() AS uid)"

# An array, unlike EXISTS and IN, becomes a condition of the index on langfuse_scores.trace_id.
_AMONG_OWN_TRACES = f"""(trace_id = ANY (ARRAY( SELECT langfuse_traces.trace_id
   FROM public.langfuse_traces
  WHERE (langfuse_traces.user_id = {_ONCE}))))"""

_VIEW_TRACES = ("langfuse_traces", "Users can view their own traces", "SELECT")
_VIEW_SCORES = ("langfuse_scores", "Users can view scores for their traces", "SELECT")
_ADD_SCORES = ("langfuse_scores", "Users can insert scores for their traces", "INSERT")

POLICIES = (
    Policy(*_VIEW_TRACES, tables.POLICIES, tables.HARDENED, using=f"({_PER_ROW} = user_id)"),
    Policy(*_VIEW_SCORES, tables.POLICIES, tables.HARDENED, using=_own_trace(_PER_ROW)),
    Policy(*_ADD_SCORES, tables.POLICIES, tables.HARDENED, check=_own_trace(_PER_ROW)),
    Policy(*_VIEW_TRACES, tables.HARDENED, using=f"({_ONCE} = user_id)"),
    Policy(*_VIEW_SCORES, tables.HARDENED, using=_AMONG_OWN_TRACES),
    Policy(*_ADD_SCORES, tables.HARDENED, check=_own_trace(_ONCE)),
)

READ_AND_WRITE = ("DELETE", "INSERT", "SELECT", "UPDATE")

USER_COLUMNS = ("id", "trace_id", "score_name", "value", "comment", "metadata")
"""What a user says of a score; `status` and the times are the server's to set."""

GRANTS = (
    *(Grant(table, "service_role", READ_AND_WRITE, since=tables.CORE) for table in TABLES),
    # The policies on scores read traces as the user.
    Grant("langfuse_traces", "authenticated", ("SELECT",), since=tables.POLICIES),
    Grant("langfuse_scores", "authenticated", ("SELECT",), since=tables.POLICIES),
    Grant("langfuse_scores", "authenticated", ("INSERT",), tables.POLICIES, tables.HARDENED),
    Grant(
        "langfuse_scores",
        "authenticated",
        ("INSERT",),
        since=tables.HARDENED,
        columns=USER_COLUMNS,
    ),
)
"""Everything that anybody but the owner may do; what is not here is nobody's."""


def statements(existing_roles: Iterable[str], revision: str = tables.NEWEST) -> Iterator[str]:
    """Render the access to SQL, for a database in which the tables have just been made.

    Arguments:
        existing_roles: the roles of the server; a grant to any other is passed over.
        revision: whose access; the newest one's if not said.

    Returns:
        One SQL statement after the other, to be run by the tables' owner.
    """
    present = frozenset(existing_roles)
    for table in TABLES:
        strangers = ", ".join(["PUBLIC", *(role for role in API_ROLES if role in present)])
        yield f"REVOKE ALL ON TABLE public.{table} FROM {strangers}"
    for grant in at(revision, GRANTS):
        if grant.role in present:
            columns = f" ({', '.join(grant.columns)})" if grant.columns else ""
            privileges = ", ".join(f"{privilege}{columns}" for privilege in grant.privileges)
            yield f"GRANT {privileges} ON TABLE public.{grant.table} TO {grant.role}"
    for protected in at(revision, ROW_SECURITY):
        yield f"ALTER TABLE public.{protected.table} ENABLE ROW LEVEL SECURITY"
    for policy in at(revision, POLICIES):
        yield create_policy(policy)


def create_policy(policy: Policy) -> str:
    """Render the statement that makes a policy.

    Arguments:
        policy: one of POLICIES.
    """
    using = f" USING {policy.using}" if policy.using else ""
    check = f" WITH CHECK {policy.check}" if policy.check else ""
    kind = "PERMISSIVE" if policy.permissive else "RESTRICTIVE"
    return (
        f'CREATE POLICY "{policy.name}" ON public.{policy.table} AS {kind}'
        f" FOR {policy.command} TO {', '.join(policy.roles)}{using}{check}"
    )
