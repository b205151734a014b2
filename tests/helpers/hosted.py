"""The parts of hosted Supabase that conflict with migrations, as options for a test database."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.helpers.databases import SUPERUSER

if TYPE_CHECKING:
    from tests.helpers.databases import Database

# The switch "automatic RLS" of the dashboard creates an event trigger of this kind.
_AUTOMATIC_RLS = """
CREATE FUNCTION public.rls_auto_enable() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path TO pg_catalog AS $$
DECLARE
  created record;
BEGIN
  FOR created IN SELECT * FROM pg_event_trigger_ddl_commands()
    WHERE object_type IN ('table', 'partitioned table') AND schema_name = 'public'
  LOOP
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', created.object_identity);
  END LOOP;
END $$;
CREATE EVENT TRIGGER ensure_rls ON ddl_command_end
  WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO')
  EXECUTE FUNCTION public.rls_auto_enable();
"""

_PLATFORM_TABLES = """
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'supabase_storage_admin') THEN
    CREATE ROLE supabase_storage_admin LOGIN NOINHERIT CREATEROLE;
  END IF;
END $$;
CREATE TABLE auth.identities (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
  provider text NOT NULL
);
CREATE TABLE auth.sessions (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
  created_at timestamptz DEFAULT now()
);
CREATE TABLE auth.refresh_tokens (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  session_id uuid REFERENCES auth.sessions (id) ON DELETE CASCADE,
  token text
);
CREATE SCHEMA storage;
GRANT USAGE ON SCHEMA storage TO postgres, anon, authenticated, service_role;
CREATE TABLE storage.buckets (id text PRIMARY KEY, name text NOT NULL);
CREATE TABLE storage.objects (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  bucket_id text REFERENCES storage.buckets (id),
  name text
);
DO $$
DECLARE
  listed text;
BEGIN
  FOREACH listed IN ARRAY ARRAY['auth.identities', 'auth.sessions', 'auth.refresh_tokens',
                                'storage.buckets', 'storage.objects'] LOOP
    EXECUTE format('ALTER TABLE %s OWNER TO supabase_%s_admin', listed,
                   split_part(listed, '.', 1));
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', listed);
    EXECUTE format('GRANT ALL ON TABLE %s TO postgres', listed);
  END LOOP;
END $$;
"""

PLATFORM_TABLES = (
    "auth.identities",
    "auth.refresh_tokens",
    "auth.sessions",
    "auth.users",
    "storage.buckets",
    "storage.objects",
)
"""The tables of the setting of supautils, in its order."""

# supautils is C code. It locks all tables of the setting of the role that runs the statement.
_PLATFORM_LOCKS = """
CREATE FUNCTION public.lock_platform_tables() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path TO pg_catalog AS $$
DECLARE
  listed text;
BEGIN
  FOR listed IN SELECT name FROM jsonb_array_elements_text(
      current_setting('supautils.policy_grants')::jsonb -> session_user::text) AS name ORDER BY name
  LOOP
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', listed);
  END LOOP;
END $$;
CREATE EVENT TRIGGER lock_platform_tables ON ddl_command_start
  WHEN TAG IN ('CREATE POLICY', 'ALTER POLICY', 'DROP POLICY', 'DROP TRIGGER')
  EXECUTE FUNCTION public.lock_platform_tables();
"""


def enable_automatic_rls(database: Database) -> None:
    """Enable row level security on each new table in public, as the dashboard's switch does."""
    database.execute(_AUTOMATIC_RLS, SUPERUSER)


def add_platform_tables(database: Database) -> None:
    """Create tables of the auth service and of the storage service."""
    database.execute(_PLATFORM_TABLES, SUPERUSER)


def add_platform_locks(database: Database) -> None:
    """Lock the tables of the platform at each policy statement of postgres, as supautils does."""
    add_platform_tables(database)
    listed = json.dumps({"postgres": PLATFORM_TABLES})
    database.execute(
        f"ALTER DATABASE \"{database.url.database}\" SET supautils.policy_grants TO '{listed}'",
        SUPERUSER,
    )
    database.execute(_PLATFORM_LOCKS, SUPERUSER)
