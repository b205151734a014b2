"""Who may do what today, declared once: row level security, policies and grants as values.

The plan's section マイグレーション3 says who sees what. What it leaves to the default privileges
of the database is stated here too, because Supabase has had two sets of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

API_ROLES = ("anon", "authenticated", "service_role")
"""The roles under which Supabase's Data API comes in; each may be absent elsewhere."""


@dataclass(frozen=True)
class Policy:
    """A row level security policy; expressions as PostgreSQL prints them, schemas spelled out."""

    table: str
    name: str
    command: str
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
    columns: tuple[str, ...] = ()


_OWN_TRACE = """(EXISTS ( SELECT 1
   FROM public.langfuse_traces
  WHERE ((langfuse_traces.trace_id = langfuse_scores.trace_id) AND \
(langfuse_traces.user_id = auth.uid()))))"""

ROW_LEVEL_SECURITY = ("langfuse_traces", "langfuse_scores")
"""Tables on which row level security is enabled (not forced: the owner is not subject to it)."""

POLICIES = (
    Policy(
        "langfuse_traces",
        "Users can view their own traces",
        "SELECT",
        using="(auth.uid() = user_id)",
    ),
    Policy(
        "langfuse_scores",
        "Users can view scores for their traces",
        "SELECT",
        using=_OWN_TRACE,
    ),
    Policy(
        "langfuse_scores",
        "Users can insert scores for their traces",
        "INSERT",
        check=_OWN_TRACE,
    ),
)

READ_AND_WRITE = ("DELETE", "INSERT", "SELECT", "UPDATE")

GRANTS = (
    Grant("langfuse_traces", "service_role", READ_AND_WRITE),
    Grant("langfuse_scores", "service_role", READ_AND_WRITE),
    Grant("langfuse_batch_runs", "service_role", READ_AND_WRITE),
    Grant("rate_limit_logs", "service_role", READ_AND_WRITE),
    Grant("langfuse_traces", "authenticated", ("SELECT",)),
    Grant("langfuse_scores", "authenticated", ("INSERT", "SELECT")),
)
"""Everything that anybody but the owner may do; what is not here is nobody's."""

TABLES = ("langfuse_traces", "langfuse_scores", "langfuse_batch_runs", "rate_limit_logs")
"""The tables whose privileges are ours to state."""


def statements(existing_roles: Iterable[str]) -> Iterator[str]:
    """Render the access to SQL, for a database in which the tables have just been made.

    Arguments:
        existing_roles: the roles of the server; a grant to any other is passed over.

    Returns:
        One SQL statement after the other, to be run by the tables' owner.
    """
    present = frozenset(existing_roles)
    for table in TABLES:
        strangers = ", ".join(["PUBLIC", *(role for role in API_ROLES if role in present)])
        yield f"REVOKE ALL ON TABLE public.{table} FROM {strangers}"
    for grant in GRANTS:
        if grant.role in present:
            columns = f" ({', '.join(grant.columns)})" if grant.columns else ""
            privileges = ", ".join(f"{privilege}{columns}" for privilege in grant.privileges)
            yield f"GRANT {privileges} ON TABLE public.{grant.table} TO {grant.role}"
    for table in ROW_LEVEL_SECURITY:
        yield f"ALTER TABLE public.{table} ENABLE ROW LEVEL SECURITY"
    for policy in POLICIES:
        yield _create_policy(policy)


def _create_policy(policy: Policy) -> str:
    using = f" USING {policy.using}" if policy.using else ""
    check = f" WITH CHECK {policy.check}" if policy.check else ""
    kind = "PERMISSIVE" if policy.permissive else "RESTRICTIVE"
    return (
        f'CREATE POLICY "{policy.name}" ON public.{policy.table} AS {kind}'
        f" FOR {policy.command} TO {', '.join(policy.roles)}{using}{check}"
    )
