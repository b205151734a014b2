"""Changes to a migrated database, and the objects that each of them changes.

`tests/verify/test_mutations.py` makes one change at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.helpers.databases import HEAD, HISTORY, SUPERUSER
from tests.helpers.databases import LINKS as LINKS_REVISION

TRACES, SCORES = "public.langfuse_traces", "public.langfuse_scores"
RUNS, LIMITS = "public.langfuse_batch_runs", "public.rate_limit_logs"
VERSION = "langfuse_migrations.alembic_version"
ALL_TABLES = (TRACES, SCORES, RUNS, LIMITS, VERSION)


@dataclass(frozen=True)
class Mutation:
    """A change, and the objects that verify must report.

    `undo` reverts the change if the printed fixes cannot repair it. `no_repair_reason` is the
    reason.
    """

    sql: str
    objects: frozenset[str]
    user: str = "postgres"
    since: int = 14
    undo: str | None = None
    no_repair_reason: str = ""
    cleanup: str = ""


def changed(sql: str, *objects: str, **options: str | int) -> Mutation:
    return Mutation(sql, frozenset(objects), **options)  # type: ignore[arg-type] # by name


def constraint(table: str, name: str, definition: str, **options: str | int) -> Mutation:
    """Replace a constraint."""
    return changed(
        f"ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} {definition}",
        f"{table}: {name}",
        **options,
    )


def index(name: str, definition: str, **options: str | int) -> Mutation:
    """Replace an index."""
    kind = "UNIQUE INDEX" if definition.startswith("UNIQUE ") else "INDEX"
    rest = definition.removeprefix("UNIQUE ")
    return changed(
        f"DROP INDEX public.{name}; CREATE {kind} {name} ON {rest}", f"public.{name}", **options
    )


def policy(table: str, name: str, rule: str) -> Mutation:
    """Replace a policy."""
    return changed(
        f'DROP POLICY "{name}" ON {table}; CREATE POLICY "{name}" ON {table} {rule}',
        f"{table}: {name}",
    )


OWN_TRACES = "Users can view their own traces"
OWN_SCORES = "Users can view scores for their traces"
ADD_SCORES = "Users can insert scores for their traces"

REFERENCES_TO_TRACES = tuple(
    f"{name}: {constraint.name}"
    for name, table in HISTORY.schema(HEAD).items()
    for constraint in table.constraints
    if constraint.references == TRACES
)
SCORES_OF_TRACES = f"{SCORES}: langfuse_scores_trace_id_fkey"
LINKS = tuple(
    f"public.{table}: {table}_langfuse_trace_id_fkey"
    for table in ("ai_coach_messages", "encouragement_messages", "reflections")
)

NO_VALUES = "the values of the column are lost, and only a backup contains them"
INDEX_NAMES_TAKEN = "the other table keeps the names of the indexes"
REBUILD = "rebuild"
"""The value of `undo` that drops all objects and upgrades again."""

TABLE_MUTATIONS = (
    changed(f"DROP TABLE {RUNS}", RUNS),
    changed(f"DROP TABLE {LIMITS}", LIMITS),
    changed(f"DROP TABLE {SCORES}", SCORES),
    changed(
        f"DELETE FROM {SCORES}; DROP TABLE {TRACES} CASCADE",
        TRACES,
        *REFERENCES_TO_TRACES,
        f"{SCORES}: {OWN_SCORES}",
        f"{SCORES}: {ADD_SCORES}",
    ),
    changed(f"ALTER TABLE {LIMITS} SET UNLOGGED", LIMITS),
    changed(f"ALTER TABLE {SCORES} SET UNLOGGED", SCORES),
    changed(
        f"ALTER TABLE {RUNS} RENAME TO kept",
        RUNS,
        undo=f"ALTER TABLE public.kept RENAME TO {RUNS.partition('.')[2]}",
        no_repair_reason=INDEX_NAMES_TAKEN,
    ),
    changed(
        f"ALTER TABLE {RUNS} RENAME TO kept; CREATE VIEW {RUNS} AS SELECT * FROM public.kept",
        RUNS,
        undo=f"DROP VIEW {RUNS}; ALTER TABLE public.kept RENAME TO {RUNS.partition('.')[2]}",
        no_repair_reason=INDEX_NAMES_TAKEN,
    ),
    changed(
        "DROP TABLE public.reflections CASCADE",
        "public.reflections",
        undo=REBUILD,
        no_repair_reason="the table belongs to the app",
    ),
    changed(f"ALTER TABLE {TRACES} OWNER TO supabase_admin", TRACES, user=SUPERUSER),
    changed(f"ALTER TABLE {LIMITS} OWNER TO service_role", LIMITS, user=SUPERUSER),
    changed(f"ALTER TABLE {VERSION} OWNER TO supabase_admin", VERSION, user=SUPERUSER),
    changed(
        "ALTER SCHEMA langfuse_migrations OWNER TO supabase_admin",
        "langfuse_migrations",
        user=SUPERUSER,
    ),
    changed(
        "; ".join(f"ALTER TABLE {table} OWNER TO anon" for table in ALL_TABLES),
        *ALL_TABLES,
        user=SUPERUSER,
    ),
)

COLUMN_MUTATIONS = (
    changed(f"ALTER TABLE {SCORES} ALTER comment TYPE varchar(200)", f"{SCORES}.comment"),
    changed(f"ALTER TABLE {TRACES} ALTER metadata TYPE json", f"{TRACES}.metadata"),
    changed(f"ALTER TABLE {TRACES} ALTER tags TYPE varchar[]", f"{TRACES}.tags"),
    changed(f"ALTER TABLE {RUNS} ALTER scores_created TYPE bigint", f"{RUNS}.scores_created"),
    changed(f"ALTER TABLE {SCORES} ALTER sent_at TYPE timestamp", f"{SCORES}.sent_at"),
    changed(f'ALTER TABLE {RUNS} ALTER batch_name TYPE text COLLATE "C"', f"{RUNS}.batch_name"),
    changed(f"ALTER TABLE {TRACES} ALTER input DROP NOT NULL", f"{TRACES}.input"),
    changed(f"ALTER TABLE {SCORES} ALTER value DROP NOT NULL", f"{SCORES}.value"),
    changed(
        f"UPDATE {SCORES} SET comment = ''; ALTER TABLE {SCORES} ALTER comment SET NOT NULL",
        f"{SCORES}.comment",
    ),
    changed(
        f"ALTER TABLE {LIMITS} ALTER endpoint DROP NOT NULL;"
        f" ALTER TABLE {LIMITS} ADD CONSTRAINT later NOT NULL endpoint NOT VALID",
        f"{LIMITS}.endpoint",
        since=18,
    ),
    changed(f"ALTER TABLE {TRACES} ALTER id DROP DEFAULT", f"{TRACES}.id"),
    changed(f"ALTER TABLE {SCORES} ALTER status DROP DEFAULT", f"{SCORES}.status"),
    changed(f"ALTER TABLE {SCORES} ALTER status SET DEFAULT 'sent'", f"{SCORES}.status"),
    changed(
        f"ALTER TABLE {RUNS} ALTER created_at SET DEFAULT clock_timestamp()", f"{RUNS}.created_at"
    ),
    changed(f"ALTER TABLE {RUNS} ALTER id SET DEFAULT gen_random_uuid()", f"{RUNS}.id"),
    changed(f"ALTER TABLE {LIMITS} ALTER request_count SET DEFAULT 0", f"{LIMITS}.request_count"),
    changed(
        f"ALTER TABLE {LIMITS} ALTER request_count DROP DEFAULT,"
        " ALTER request_count ADD GENERATED BY DEFAULT AS IDENTITY",
        f"{LIMITS}.request_count",
    ),
    changed(
        f"ALTER TABLE {RUNS} DROP created_at,"
        " ADD created_at timestamptz NOT NULL GENERATED ALWAYS AS (started_at) STORED;"
        f" CREATE INDEX idx_langfuse_batch_runs_created_at ON {RUNS} (created_at)",
        f"{RUNS}.created_at",
    ),
    changed(
        f"ALTER TABLE {RUNS} DROP created_at,"
        " ADD created_at timestamptz NOT NULL GENERATED ALWAYS AS (started_at) VIRTUAL",
        f"{RUNS}.created_at",
        "public.idx_langfuse_batch_runs_created_at",
        since=18,
    ),
    changed(f"ALTER TABLE {TRACES} ADD note text", f"{TRACES}.note"),
    changed(f'ALTER TABLE {RUNS} ADD "50% done" int', f"{RUNS}.50% done"),
    changed(f'ALTER TABLE {RUNS} ADD "lateral" int', f"{RUNS}.lateral"),
    changed(f'ALTER TABLE {SCORES} ADD "Wide Name" int DEFAULT 0', f"{SCORES}.Wide Name"),
    changed(
        f"ALTER TABLE {RUNS} DROP created_at",
        f"{RUNS}.created_at",
        "public.idx_langfuse_batch_runs_created_at",
    ),
    changed(
        f"ALTER TABLE {SCORES} DROP comment",
        f"{SCORES}.comment",
    ),
    changed(
        f"ALTER TABLE {LIMITS} RENAME endpoint TO path",
        f"{LIMITS}.endpoint",
        f"{LIMITS}.path",
        "public.idx_rate_limit_logs_unique",
        undo=f"ALTER TABLE {LIMITS} RENAME path TO endpoint",
        no_repair_reason=NO_VALUES,
    ),
)

APP_MUTATIONS = (
    changed(
        "ALTER TABLE public.reflections DROP langfuse_trace_id",
        "public.reflections.langfuse_trace_id",
        LINKS[2],
        "public.idx_reflections_langfuse_trace_id",
    ),
    changed(
        "ALTER TABLE public.reflections ALTER langfuse_trace_id SET DEFAULT gen_random_uuid()",
        "public.reflections.langfuse_trace_id",
    ),
    changed(
        "ALTER TABLE public.reflections DROP CONSTRAINT reflections_langfuse_trace_id_fkey",
        LINKS[2],
    ),
    constraint(
        "public.ai_coach_messages",
        "ai_coach_messages_langfuse_trace_id_fkey",
        f"FOREIGN KEY (langfuse_trace_id) REFERENCES {TRACES} (trace_id) ON DELETE CASCADE",
    ),
    constraint(
        "public.encouragement_messages",
        "encouragement_messages_langfuse_trace_id_fkey",
        f"FOREIGN KEY (langfuse_trace_id) REFERENCES {TRACES} (trace_id) ON DELETE SET NULL"
        " NOT VALID",
    ),
    changed(
        "DROP INDEX public.idx_reflections_langfuse_trace_id",
        "public.idx_reflections_langfuse_trace_id",
    ),
    index(
        "idx_reflections_langfuse_trace_id",
        "public.reflections (langfuse_trace_id) WHERE langfuse_trace_id IS NOT NULL",
    ),
)

CONSTRAINT_MUTATIONS = (
    changed(
        f"ALTER TABLE {RUNS} DROP CONSTRAINT langfuse_batch_runs_pkey",
        f"{RUNS}: langfuse_batch_runs_pkey",
    ),
    constraint(RUNS, "langfuse_batch_runs_pkey", "PRIMARY KEY (id, batch_name)"),
    constraint(LIMITS, "rate_limit_logs_pkey", "UNIQUE (id)"),
    changed(
        f"ALTER TABLE {TRACES} DROP CONSTRAINT langfuse_traces_trace_id_key CASCADE",
        f"{TRACES}: langfuse_traces_trace_id_key",
        *REFERENCES_TO_TRACES,
    ),
    changed(f"ALTER TABLE {RUNS} ADD UNIQUE (started_at)", f"{RUNS}: {RUNS[7:]}_started_at_key"),
    changed(
        f"ALTER TABLE {RUNS} ADD CONSTRAINT apart EXCLUDE USING btree (started_at WITH =)",
        f"{RUNS}: apart",
    ),
    constraint(
        SCORES,
        "langfuse_scores_trace_id_fkey",
        f"FOREIGN KEY (trace_id) REFERENCES {TRACES} (trace_id) ON DELETE CASCADE NOT VALID",
    ),
    constraint(
        SCORES,
        "langfuse_scores_trace_id_fkey",
        f"FOREIGN KEY (trace_id) REFERENCES {TRACES} (trace_id) ON DELETE RESTRICT",
    ),
    constraint(
        SCORES,
        "langfuse_scores_trace_id_fkey",
        f"FOREIGN KEY (trace_id) REFERENCES {TRACES} (trace_id) ON DELETE CASCADE"
        " ON UPDATE CASCADE",
    ),
    constraint(
        SCORES,
        "langfuse_scores_trace_id_fkey",
        f"FOREIGN KEY (trace_id) REFERENCES {TRACES} (trace_id) ON DELETE CASCADE"
        " DEFERRABLE INITIALLY DEFERRED",
    ),
    constraint(
        SCORES,
        "langfuse_scores_trace_id_fkey",
        f"FOREIGN KEY (trace_id) REFERENCES {TRACES} (id) ON DELETE CASCADE NOT VALID",
    ),
    changed(
        f"ALTER TABLE {TRACES} DROP CONSTRAINT langfuse_traces_user_id_fkey",
        f"{TRACES}: langfuse_traces_user_id_fkey",
    ),
    constraint(
        LIMITS,
        "rate_limit_logs_user_id_fkey",
        "FOREIGN KEY (user_id) REFERENCES auth.users (id)",
    ),
    changed(
        f"ALTER TABLE {LIMITS} ADD CONSTRAINT again FOREIGN KEY (user_id)"
        " REFERENCES auth.users (id)",
        f"{LIMITS}: again",
    ),
    changed(f"ALTER TABLE {SCORES} DISABLE TRIGGER ALL", SCORES_OF_TRACES, user=SUPERUSER),
    constraint(
        SCORES,
        "langfuse_scores_status_check",
        "CHECK (status IN ('pending', 'sent', 'failed', 'lost'))",
    ),
    constraint(SCORES, "langfuse_scores_status_check", "CHECK (status IN ('pending', 'sent'))"),
    constraint(SCORES, "langfuse_scores_value_check", "CHECK (value IN (0, 1, 2))"),
    constraint(SCORES, "langfuse_scores_value_check", "CHECK (value IN (0, 1)) NOT VALID"),
    constraint(SCORES, "langfuse_scores_value_check", "CHECK (value IN (0, 1)) NO INHERIT"),
    constraint(
        SCORES, "langfuse_scores_value_check", "CHECK (value IN (0, 1)) NOT ENFORCED", since=18
    ),
    changed(
        f"ALTER TABLE {TRACES} DROP CONSTRAINT langfuse_traces_entity_type_check",
        f"{TRACES}: langfuse_traces_entity_type_check",
    ),
    changed(
        f"ALTER TABLE {TRACES} RENAME CONSTRAINT langfuse_traces_entity_type_check TO kinds",
        f"{TRACES}: langfuse_traces_entity_type_check",
        f"{TRACES}: kinds",
    ),
    changed(
        f"ALTER TABLE {TRACES} ADD CONSTRAINT brief CHECK (length(input) < 9)", f"{TRACES}: brief"
    ),
    changed(
        "ALTER TABLE public.reflections ADD CONSTRAINT again FOREIGN KEY (langfuse_trace_id)"
        f" REFERENCES {TRACES} (trace_id) ON DELETE CASCADE",
        "public.reflections: again",
    ),
    changed(
        "ALTER TABLE public.reflections ADD CONSTRAINT unlinked"
        " CHECK (langfuse_trace_id IS NULL) NOT VALID",
        "public.reflections: unlinked",
    ),
)

INDEX_MUTATIONS = (
    changed("DROP INDEX public.idx_langfuse_traces_entity", "public.idx_langfuse_traces_entity"),
    changed(
        "ALTER INDEX public.idx_langfuse_scores_status RENAME TO other",
        "public.idx_langfuse_scores_status",
        cleanup="DROP INDEX public.other",
    ),
    changed(
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'public.idx_langfuse_traces_user_id'::regclass",
        "public.idx_langfuse_traces_user_id",
        user=SUPERUSER,
    ),
    changed(
        "UPDATE pg_index SET indisready = false"
        " WHERE indexrelid = 'public.idx_langfuse_traces_created_at'::regclass",
        "public.idx_langfuse_traces_created_at",
        user=SUPERUSER,
    ),
    changed(
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'public.langfuse_scores_pkey'::regclass",
        "public.langfuse_scores_pkey",
        user=SUPERUSER,
    ),
    index("idx_langfuse_scores_pending", f"{SCORES} (created_at, id) WHERE status = 'failed'"),
    index("idx_langfuse_scores_pending", f"{SCORES} (created_at, id)"),
    index("idx_langfuse_scores_status", f"{SCORES} (status) WHERE sent_at IS NULL"),
    index("idx_langfuse_scores_status", f"{SCORES} USING hash (status)"),
    index("idx_langfuse_scores_status", f"{SCORES} (lower(status))"),
    index("idx_langfuse_scores_status", f"{SCORES} (status text_pattern_ops)"),
    index("idx_langfuse_scores_trace_id", f"{SCORES} (id)"),
    index("idx_langfuse_traces_entity", f"{TRACES} (entity_id, entity_type)"),
    index("idx_langfuse_traces_created_at", f"{TRACES} (created_at DESC)"),
    index("idx_langfuse_traces_created_at", f"{TRACES} (created_at) INCLUDE (user_id)"),
    index("idx_langfuse_traces_created_at", f"{TRACES} (created_at) WITH (fillfactor=70)"),
    index("idx_langfuse_traces_created_at", f"UNIQUE {TRACES} (created_at, id)"),
    index("idx_rate_limit_logs_unique", f"{LIMITS} (user_id, endpoint, window_start)"),
    index(
        "idx_rate_limit_logs_unique",
        f"UNIQUE {LIMITS} (user_id, endpoint, window_start) NULLS NOT DISTINCT",
        since=15,
    ),
)

POLICY_MUTATIONS = (
    changed(f"ALTER TABLE {TRACES} DISABLE ROW LEVEL SECURITY", TRACES),
    changed(f"ALTER TABLE {SCORES} DISABLE ROW LEVEL SECURITY", SCORES),
    changed(f"ALTER TABLE {LIMITS} DISABLE ROW LEVEL SECURITY", LIMITS),
    changed(f"ALTER TABLE {TRACES} FORCE ROW LEVEL SECURITY", TRACES),
    changed(f"ALTER TABLE {RUNS} FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY", RUNS),
    changed(f'CREATE POLICY "open" ON {TRACES} USING (true)', f"{TRACES}: open"),
    changed(f'CREATE POLICY "Read it" ON {RUNS} FOR SELECT USING (true)', f"{RUNS}: Read it"),
    changed(f"CREATE POLICY no ON {SCORES} AS RESTRICTIVE USING (false)", f"{SCORES}: no"),
    changed(f'DROP POLICY "{ADD_SCORES}" ON {SCORES}', f"{SCORES}: {ADD_SCORES}"),
    changed(
        f'ALTER POLICY "{OWN_TRACES}" ON {TRACES} RENAME TO mine',
        f"{TRACES}: {OWN_TRACES}",
        f"{TRACES}: mine",
    ),
    changed(f'ALTER POLICY "{OWN_TRACES}" ON {TRACES} TO authenticated', f"{TRACES}: {OWN_TRACES}"),
    changed(
        f'ALTER POLICY "{OWN_SCORES}" ON {SCORES} TO anon, authenticated',
        f"{SCORES}: {OWN_SCORES}",
    ),
    changed(
        f'ALTER POLICY "{OWN_TRACES}" ON {TRACES} USING (auth.uid() = user_id)',
        f"{TRACES}: {OWN_TRACES}",
    ),
    changed(f'ALTER POLICY "{OWN_SCORES}" ON {SCORES} USING (true)', f"{SCORES}: {OWN_SCORES}"),
    changed(
        f'ALTER POLICY "{ADD_SCORES}" ON {SCORES} WITH CHECK (value = 1)',
        f"{SCORES}: {ADD_SCORES}",
    ),
    policy(TRACES, OWN_TRACES, "FOR ALL USING ((SELECT auth.uid()) = user_id)"),
    policy(TRACES, OWN_TRACES, "AS RESTRICTIVE FOR SELECT USING ((SELECT auth.uid()) = user_id)"),
)

GRANT_MUTATIONS = (
    changed(f"GRANT SELECT ON {TRACES} TO anon", TRACES),
    changed(f"GRANT SELECT ON {RUNS} TO PUBLIC", RUNS),
    changed(f"GRANT ALL ON {LIMITS} TO authenticated", LIMITS),
    changed(f"GRANT ALL ON {SCORES} TO authenticated", SCORES),
    changed(f"GRANT TRUNCATE ON {TRACES} TO service_role", TRACES),
    changed(f"GRANT MAINTAIN ON {TRACES} TO authenticated", TRACES, since=17),
    changed(f"GRANT INSERT ON {SCORES} TO authenticated", SCORES),
    changed(f"GRANT UPDATE (status) ON {SCORES} TO authenticated", f"{SCORES}.status"),
    changed(f"GRANT INSERT (status) ON {SCORES} TO authenticated", f"{SCORES}.status"),
    changed(f"GRANT SELECT (input) ON {TRACES} TO anon", f"{TRACES}.input"),
    changed(f"GRANT SELECT (endpoint) ON {LIMITS} TO PUBLIC", f"{LIMITS}.endpoint"),
    changed(f"GRANT SELECT ON {TRACES} TO authenticated WITH GRANT OPTION", TRACES),
    changed(
        f"GRANT INSERT (value) ON {SCORES} TO authenticated WITH GRANT OPTION", f"{SCORES}.value"
    ),
    changed(f"REVOKE SELECT ON {TRACES} FROM authenticated", TRACES),
    changed(f"REVOKE INSERT (comment) ON {SCORES} FROM authenticated", f"{SCORES}.comment"),
    changed(f"REVOKE DELETE ON {SCORES} FROM service_role", SCORES),
    changed(f"REVOKE ALL ON {RUNS} FROM service_role", RUNS),
    changed(
        f"REVOKE UPDATE ON {RUNS} FROM service_role; GRANT TRIGGER ON {RUNS} TO service_role", RUNS
    ),
    changed(f"GRANT SELECT ON {VERSION} TO anon", VERSION),
    changed("GRANT USAGE ON SCHEMA langfuse_migrations TO anon", "langfuse_migrations"),
    changed("GRANT ALL ON SCHEMA langfuse_migrations TO PUBLIC", "langfuse_migrations"),
)

ATTACHED_MUTATIONS = (
    changed(
        f"CREATE TRIGGER watch BEFORE UPDATE ON {TRACES} FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        f"{TRACES}: watch",
    ),
    changed(
        f"CREATE TRIGGER watch BEFORE UPDATE ON {SCORES} FOR EACH ROW"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger();"
        f" ALTER TABLE {SCORES} DISABLE TRIGGER watch",
        f"{SCORES}: watch",
    ),
    changed(f"CREATE RULE keep AS ON DELETE TO {RUNS} DO INSTEAD NOTHING", f"{RUNS}: keep"),
    changed(
        f"CREATE TABLE public.child () INHERITS ({TRACES})",
        TRACES,
        cleanup="DROP TABLE public.child",
    ),
    changed(
        f'CREATE TABLE public."Kid ""2" () INHERITS ({TRACES})',
        TRACES,
        cleanup='DROP TABLE public."Kid ""2"',
    ),
    changed(
        f"CREATE TABLE public.parent (id uuid NOT NULL); ALTER TABLE {RUNS} INHERIT public.parent",
        RUNS,
        cleanup="DROP TABLE public.parent",
    ),
    changed(
        f"CREATE TABLE public.parent (LIKE {LIMITS}) PARTITION BY RANGE (created_at);"
        f" ALTER TABLE public.parent ATTACH PARTITION {LIMITS} DEFAULT",
        LIMITS,
        cleanup="DROP TABLE public.parent",
    ),
)

REVISION_MUTATIONS = (
    changed(f"DROP TABLE {VERSION}", VERSION),
    changed("DROP SCHEMA langfuse_migrations CASCADE", VERSION),
    changed(f"DELETE FROM {VERSION}", VERSION),
    changed(f"UPDATE {VERSION} SET version_num = '{LINKS_REVISION}'", VERSION),
    changed(f"UPDATE {VERSION} SET version_num = '20991231000000'", VERSION),
    changed(f"INSERT INTO {VERSION} VALUES ('{LINKS_REVISION}')", VERSION),
    changed(f"ALTER TABLE {VERSION} ALTER version_num TYPE text", f"{VERSION}.version_num"),
    changed(
        f"ALTER TABLE {VERSION} DROP CONSTRAINT alembic_version_pkc",
        f"{VERSION}: alembic_version_pkc",
    ),
    changed(f"ALTER TABLE {VERSION} SET UNLOGGED", VERSION),
)

UID = "CREATE OR REPLACE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS"
USER = "a0000000-0000-4000-8000-000000000001"
ALL_TRACES = f"SELECT trace_id, input FROM {TRACES}"
COUNT = "FUNCTION public.count_traces() RETURNS bigint LANGUAGE"
GRANT_VIEW = "GRANT SELECT ON public.all_traces TO authenticated"

ACCESS_MUTATIONS = (
    changed(
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC, anon, authenticated, service_role",
        "public",
        cleanup="GRANT USAGE ON SCHEMA public TO PUBLIC, anon",
    ),
    changed("ALTER ROLE service_role NOBYPASSRLS", "service_role", user=SUPERUSER),
    changed("ALTER ROLE authenticated BYPASSRLS", "authenticated", user=SUPERUSER),
    changed("ALTER ROLE anon BYPASSRLS SUPERUSER", "anon", user=SUPERUSER),
    changed("GRANT service_role TO authenticated", "authenticated"),
    changed("GRANT service_role TO anon", "anon", user=SUPERUSER),
    changed("GRANT pg_read_all_data TO authenticated", "authenticated", user=SUPERUSER),
    changed("GRANT pg_read_server_files TO anon", "anon", user=SUPERUSER),
    changed("GRANT supabase_admin TO anon", "anon", user=SUPERUSER),
    changed(
        f"CREATE ROLE staff; GRANT UPDATE (endpoint) ON {LIMITS} TO staff;"
        " CREATE ROLE team; GRANT staff TO team; GRANT team TO authenticated",
        "authenticated",
        user=SUPERUSER,
        cleanup="DROP OWNED BY staff; DROP ROLE staff, team",
    ),
    changed(
        "REVOKE EXECUTE ON FUNCTION auth.uid() FROM PUBLIC",
        "auth.uid()",
        user=SUPERUSER,
        cleanup="GRANT EXECUTE ON FUNCTION auth.uid() TO PUBLIC;"
        " REVOKE EXECUTE ON FUNCTION auth.uid() FROM authenticated",
    ),
    changed(f"{UID} $$ SELECT '{USER}'::uuid $$", "auth.uid()", user=SUPERUSER),
    changed(f"{UID} 'SELECT NULL::uuid'", "auth.uid()", user=SUPERUSER),
    changed(
        f"{UID} $$ SELECT coalesce(nullif(current_setting('request.jwt.claims', true), '')::json"
        f" ->> 'sub', '{USER}')::uuid $$",
        "auth.uid()",
        user=SUPERUSER,
    ),
    changed(
        f"{UID} $$ SELECT (current_setting('request.jwt.claims', true)::json ->> 'id')::uuid $$",
        "auth.uid()",
        user=SUPERUSER,
    ),
    changed("ALTER FUNCTION auth.uid() VOLATILE", "auth.uid()", user=SUPERUSER),
    changed("ALTER FUNCTION auth.uid() IMMUTABLE", "auth.uid()", user=SUPERUSER),
    changed(f"CREATE UNIQUE INDEX mine ON {TRACES} (trace_id, input)", "public.mine"),
    changed(
        "CREATE UNIQUE INDEX mine ON public.reflections (langfuse_trace_id, body)", "public.mine"
    ),
    changed(
        f"CREATE VIEW public.all_traces AS {ALL_TRACES}; {GRANT_VIEW}",
        "public.all_traces",
        cleanup="DROP VIEW public.all_traces",
    ),
    changed(
        f"CREATE VIEW public.all_traces AS {ALL_TRACES};"
        " REVOKE ALL ON public.all_traces FROM anon, authenticated;"
        " GRANT DELETE ON public.all_traces TO anon",
        "public.all_traces",
        cleanup="DROP VIEW public.all_traces",
    ),
    changed(
        f"CREATE VIEW public.all_traces AS {ALL_TRACES};"
        " REVOKE ALL ON public.all_traces FROM anon, authenticated;"
        ' CREATE VIEW public."Outer" WITH (security_invoker = on) AS TABLE public.all_traces;'
        ' GRANT SELECT ON public."Outer" TO authenticated',
        'public."Outer"',
        since=15,
        cleanup='DROP VIEW public."Outer", public.all_traces',
    ),
    changed(
        f"CREATE VIEW public.mine WITH (security_invoker = on) AS {ALL_TRACES};"
        f" CREATE VIEW public.all_traces AS TABLE public.mine; {GRANT_VIEW}",
        "public.all_traces",
        since=15,
        cleanup="DROP VIEW public.all_traces, public.mine",
    ),
    changed(
        f"CREATE MATERIALIZED VIEW public.all_traces AS {ALL_TRACES}; {GRANT_VIEW}",
        "public.all_traces",
        cleanup="DROP MATERIALIZED VIEW public.all_traces",
    ),
    changed(
        f"CREATE {COUNT} sql SECURITY DEFINER AS 'SELECT count(*) FROM {TRACES}'",
        "public.count_traces()",
        cleanup="DROP FUNCTION public.count_traces()",
    ),
    changed(
        f"CREATE {COUNT.replace('()', '(day date)')} plpgsql SECURITY DEFINER AS"
        f" $$ BEGIN RETURN (SELECT count(*) FROM {TRACES}); END $$",
        "public.count_traces(day date)",
        cleanup="DROP FUNCTION public.count_traces(date)",
    ),
    changed(
        "; ".join(f"ALTER TABLE {table} OWNER TO authenticator" for table in ALL_TABLES),
        *ALL_TABLES,
        user=SUPERUSER,
    ),
)

HARMLESS = f"""
    CREATE FUNCTION public.handle_new_user() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    AS $$ BEGIN RETURN new; END $$;
    CREATE FUNCTION public.log_trace() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    AS $$ BEGIN INSERT INTO {TRACES} DEFAULT VALUES; RETURN new; END $$;
    CREATE FUNCTION public.is_coach() RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER
    AS 'SELECT EXISTS (SELECT FROM public.ai_coach_messages)';
    CREATE FUNCTION public.own_traces() RETURNS bigint LANGUAGE sql STABLE
    AS 'SELECT count(*) FROM {TRACES}';
    CREATE FUNCTION public.for_the_job() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
    AS 'SELECT count(*) FROM {TRACES}';
    REVOKE ALL ON FUNCTION public.for_the_job() FROM PUBLIC, anon, authenticated;
    CREATE VIEW public.messages AS SELECT id, body FROM public.ai_coach_messages;
    GRANT SELECT ON public.messages TO anon, authenticated;
    CREATE VIEW public.checked WITH (security_barrier, check_option = local)
    AS SELECT id, body FROM public.ai_coach_messages;
    CREATE VIEW public.dashboard AS {ALL_TRACES};
    REVOKE ALL ON public.dashboard FROM anon, authenticated;
    GRANT SELECT ON public.dashboard TO service_role;
    CREATE SCHEMA reporting;
    CREATE VIEW reporting.traces AS {ALL_TRACES};
    GRANT SELECT ON reporting.traces TO authenticated;
    CREATE ROLE app_users;
    GRANT SELECT, INSERT ON public.reflections TO app_users;
    GRANT app_users TO authenticated;
    CREATE INDEX mine ON {TRACES} (tags);
    CREATE UNIQUE INDEX theirs ON public.reflections (user_id, id);
"""
"""Objects that an app can add, and that verify must not report."""

MUTATIONS = (
    *TABLE_MUTATIONS,
    *COLUMN_MUTATIONS,
    *APP_MUTATIONS,
    *CONSTRAINT_MUTATIONS,
    *INDEX_MUTATIONS,
    *POLICY_MUTATIONS,
    *GRANT_MUTATIONS,
    *ATTACHED_MUTATIONS,
    *REVISION_MUTATIONS,
    *ACCESS_MUTATIONS,
)
