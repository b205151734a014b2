-- A stub of the part of a Supabase database that the revisions use. It has roles, ownership, grants,
-- default privileges, auth.users, auth.uid(), and the three app tables.
--
-- Run it once for each database, as the superuser supabase_admin and in one transaction, on
-- PostgreSQL 14 to 18. Roles belong to the whole cluster, so existing roles are kept unchanged.
-- Set these two settings before you run this file:
--   langfuse_schema.default_privileges   'restricted' (the default; new Supabase projects since
--                                        2026-05-30) or 'legacy' (projects before that)
--   langfuse_schema.example_rows         'on' (the default) or 'off'

-- Roles ------------------------------------------------------------------------------------------

DO $$
DECLARE
  missing record;
BEGIN
  FOR missing IN
    SELECT *
    FROM (VALUES
      -- Migrations run as postgres, which is not a superuser.
      ('postgres', 'LOGIN CREATEDB CREATEROLE BYPASSRLS REPLICATION'),
      ('anon', 'NOLOGIN'),
      ('authenticated', 'NOLOGIN'),
      ('service_role', 'NOLOGIN BYPASSRLS'),
      -- NOINHERIT: PostgREST logs in as authenticator, which has no privileges before SET ROLE.
      ('authenticator', 'LOGIN NOINHERIT'),
      ('supabase_auth_admin', 'LOGIN NOINHERIT CREATEROLE')
    ) AS roles (name, options)
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = roles.name)
  LOOP
    EXECUTE format('CREATE ROLE %I %s', missing.name, missing.options);
  END LOOP;
END
$$;

DO $$
BEGIN
  -- Before PostgreSQL 16, CREATEROLE includes the administration of other roles.
  IF current_setting('server_version_num')::int >= 160000 THEN
    GRANT anon, authenticated, service_role, authenticator TO postgres WITH ADMIN OPTION;
  ELSE
    GRANT anon, authenticated, service_role, authenticator TO postgres;
  END IF;
END
$$;
GRANT pg_monitor, pg_read_all_data, pg_signal_backend TO postgres;
GRANT anon, authenticated, service_role TO authenticator;
-- Supabase sets this timeout for all roles in the configuration of the server.
ALTER ROLE postgres SET statement_timeout = '2min';
ALTER ROLE anon SET statement_timeout = '3s';
ALTER ROLE authenticated SET statement_timeout = '8s';
ALTER ROLE authenticator SET statement_timeout = '8s';
ALTER ROLE authenticator SET lock_timeout = '8s';

-- Ownership --------------------------------------------------------------------------------------

DO $$
BEGIN
  EXECUTE format('ALTER DATABASE %I OWNER TO postgres', current_database());
END
$$;

-- Through pg_database_owner, the owner of the database owns public, and only that owner can create
-- objects in it. This is the default from PostgreSQL 15 on.
ALTER SCHEMA public OWNER TO pg_database_owner;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO postgres, anon, authenticated, service_role;

-- Default privileges -----------------------------------------------------------------------------

ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
  GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
  GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
  GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;

DO $$
DECLARE
  default_privileges text := coalesce(
    nullif(current_setting('langfuse_schema.default_privileges', true), ''), 'restricted');
BEGIN
  IF default_privileges NOT IN ('legacy', 'restricted') THEN
    RAISE EXCEPTION 'langfuse_schema.default_privileges is %, expected legacy or restricted',
      default_privileges;
  END IF;
  IF default_privileges = 'restricted' THEN
    -- Supabase revokes these privileges from all three roles, service_role included. The roles keep
    -- TRUNCATE, REFERENCES, TRIGGER and, since PostgreSQL 17, MAINTAIN.
    ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
      REVOKE SELECT, INSERT, UPDATE, DELETE ON TABLES FROM anon, authenticated, service_role;
    ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
      REVOKE USAGE, SELECT ON SEQUENCES FROM anon, authenticated, service_role;
    ALTER DEFAULT PRIVILEGES FOR ROLE postgres IN SCHEMA public
      REVOKE EXECUTE ON FUNCTIONS FROM anon, authenticated, service_role;
  END IF;
END
$$;

-- Schema auth ------------------------------------------------------------------------------------

CREATE SCHEMA auth AUTHORIZATION supabase_admin;
-- USAGE without CREATE: postgres cannot create objects in auth.
GRANT USAGE ON SCHEMA auth TO postgres, anon, authenticated, service_role;
GRANT ALL ON SCHEMA auth TO supabase_auth_admin;

CREATE TABLE auth.users (
  id uuid PRIMARY KEY,
  email text,
  raw_user_meta_data jsonb,
  created_at timestamptz DEFAULT now(),
  updated_at timestamptz DEFAULT now()
);
ALTER TABLE auth.users OWNER TO supabase_auth_admin;
ALTER TABLE auth.users ENABLE ROW LEVEL SECURITY;
GRANT ALL ON TABLE auth.users TO postgres;

-- PostgREST 12 sets request.jwt.claims only, older versions set request.jwt.claim.sub. As in
-- Supabase, an identity that is not a uuid raises an error.
CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
  SELECT coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
  )::uuid
$$;
ALTER FUNCTION auth.uid() OWNER TO supabase_auth_admin;

-- The tables of the app --------------------------------------------------------------------------

-- The app's migrations run as postgres, so that role gives the right owner and default privileges.
SET LOCAL ROLE postgres;

CREATE TABLE public.ai_coach_messages (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
  role text NOT NULL DEFAULT 'coach' CHECK (role IN ('coach', 'user')),
  body text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ai_coach_messages_user_id_created_at_idx
  ON public.ai_coach_messages (user_id, created_at);

CREATE TABLE public.encouragement_messages (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
  body text NOT NULL,
  read_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX encouragement_messages_user_id_created_at_idx
  ON public.encouragement_messages (user_id, created_at);

CREATE TABLE public.reflections (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
  body text NOT NULL,
  mood smallint CHECK (mood BETWEEN 1 AND 5),
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX reflections_user_id_created_at_idx ON public.reflections (user_id, created_at);

ALTER TABLE public.ai_coach_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.encouragement_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.reflections ENABLE ROW LEVEL SECURITY;

CREATE POLICY "Users manage their own coach messages" ON public.ai_coach_messages
  TO authenticated
  USING ((SELECT auth.uid()) = user_id) WITH CHECK ((SELECT auth.uid()) = user_id);
CREATE POLICY "Users manage their own encouragement messages" ON public.encouragement_messages
  TO authenticated
  USING ((SELECT auth.uid()) = user_id) WITH CHECK ((SELECT auth.uid()) = user_id);
CREATE POLICY "Users manage their own reflections" ON public.reflections
  TO authenticated
  USING ((SELECT auth.uid()) = user_id) WITH CHECK ((SELECT auth.uid()) = user_id);

-- Under the restricted default privileges, the policies have no effect without these grants.
GRANT SELECT, INSERT, UPDATE, DELETE
  ON public.ai_coach_messages, public.encouragement_messages, public.reflections
  TO authenticated, service_role;

RESET ROLE;

-- Example rows -----------------------------------------------------------------------------------

DO $$
DECLARE
  aoi constant uuid := 'a0000000-0000-4000-8000-000000000001';
  ben constant uuid := 'a0000000-0000-4000-8000-000000000002';
  mio constant uuid := 'a0000000-0000-4000-8000-000000000003';
BEGIN
  IF coalesce(nullif(current_setting('langfuse_schema.example_rows', true), ''), 'on')::boolean
  THEN
    INSERT INTO auth.users (id, email, raw_user_meta_data, created_at, updated_at) VALUES
      (aoi, 'aoi@example.com', '{"name": "葵"}', '2025-10-01 06:58+09', '2025-10-01 06:58+09'),
      (ben, 'ben@example.com', '{"name": "Ben"}', '2025-10-14 18:20+00', '2025-10-14 18:20+00'),
      (mio, 'mio@example.com', '{"name": "澪"}', '2025-11-02 22:05+09', '2025-11-02 22:05+09');

    INSERT INTO public.ai_coach_messages (id, user_id, role, body, created_at) VALUES
      ('c0000000-0000-4000-8000-000000000001', aoi, 'user',
       '今日は仕事で疲れてしまって、座る気になれません。', '2025-11-10 21:14+09'),
      ('c0000000-0000-4000-8000-000000000002', aoi, 'coach',
       '一日おつかれさまでした。三分だけ、息を数えるところから始めてみませんか。',
       '2025-11-10 21:14:06+09'),
      ('c0000000-0000-4000-8000-000000000003', ben, 'user',
       'My mind keeps wandering to tomorrow''s meeting.', '2025-11-11 06:40+00'),
      ('c0000000-0000-4000-8000-000000000004', ben, 'coach',
       'That is the practice: notice "planning", and come back to one breath.',
       '2025-11-11 06:40:05+00'),
      ('c0000000-0000-4000-8000-000000000005', mio, 'coach',
       'はじめまして、澪さん。まずは楽な姿勢を見つけましょう。', '2025-11-02 22:06+09');

    INSERT INTO public.encouragement_messages (id, user_id, body, read_at, created_at) VALUES
      ('e0000000-0000-4000-8000-000000000001', aoi, '七日続きました。その調子です。',
       '2025-11-09 07:10+09', '2025-11-09 07:00+09'),
      ('e0000000-0000-4000-8000-000000000002', ben, 'Ten minutes yesterday: your longest sit yet.',
       NULL, '2025-11-12 06:00+00'),
      ('e0000000-0000-4000-8000-000000000003', mio, '二日ぶりですね。おかえりなさい。',
       NULL, '2025-11-12 07:00+09');

    INSERT INTO public.reflections (id, user_id, body, mood, created_at) VALUES
      ('f0000000-0000-4000-8000-000000000001', aoi,
       '雨の音を聞きながら座った。途中で眠くなったが、終わると頭が軽い。', 4,
       '2025-11-10 21:30+09'),
      ('f0000000-0000-4000-8000-000000000002', ben,
       'Restless for the first half, then it settled. Shoulders less tight.', 3,
       '2025-11-11 06:55+00'),
      ('f0000000-0000-4000-8000-000000000003', mio,
       '初めての瞑想。五分が長かった。', NULL, '2025-11-02 22:20+09');
  END IF;
END
$$;
