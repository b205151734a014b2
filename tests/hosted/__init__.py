"""Conflicts of hosted Supabase: automatic RLS, autovacuum, platform locks, dumps."""
