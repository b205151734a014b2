-- 1. langfuse_traces (最初に作成)
CREATE TABLE langfuse_traces (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  trace_id UUID NOT NULL UNIQUE,
  entity_type TEXT NOT NULL CHECK (entity_type IN ('ai_coach_message', 'encouragement_message', 'daily_status', 'reflection')),
  entity_id UUID NOT NULL,
  user_id UUID NOT NULL REFERENCES auth.users(id) ON DELETE CASCADE,
  input TEXT NOT NULL,
  output TEXT NOT NULL,
  metadata JSONB,
  tags TEXT[],
  created_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
);

CREATE INDEX idx_langfuse_traces_entity ON langfuse_traces(entity_type, entity_id);
CREATE INDEX idx_langfuse_traces_user_id ON langfuse_traces(user_id);
CREATE INDEX idx_langfuse_traces_created_at ON langfuse_traces(created_at);

-- 2. langfuse_scores (langfuse_tracesを参照)
CREATE TABLE langfuse_scores (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  trace_id UUID NOT NULL REFERENCES langfuse_traces(trace_id) ON DELETE CASCADE,
  score_name TEXT NOT NULL CHECK (score_name IN ('user_feedback', 'mission_completed', 'next_day_activity', 'weekly_completion_rate')),
  value NUMERIC NOT NULL CHECK (value IN (0, 1)),
  comment TEXT,
  metadata JSONB,
  status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'sent', 'failed')),
  sent_at TIMESTAMPTZ,
  created_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
);

CREATE INDEX idx_langfuse_scores_trace_id ON langfuse_scores(trace_id);
CREATE INDEX idx_langfuse_scores_status ON langfuse_scores(status);
CREATE INDEX idx_langfuse_scores_created_at ON langfuse_scores(created_at);

-- 3. langfuse_batch_runs
CREATE TABLE langfuse_batch_runs (
  id UUID PRIMARY KEY,
  batch_name TEXT NOT NULL,
  scores_created INT NOT NULL DEFAULT 0,
  scores_sent INT NOT NULL DEFAULT 0,
  errors JSONB,
  started_at TIMESTAMPTZ NOT NULL,
  completed_at TIMESTAMPTZ,
  created_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
);

CREATE INDEX idx_langfuse_batch_runs_batch_name ON langfuse_batch_runs(batch_name);
CREATE INDEX idx_langfuse_batch_runs_created_at ON langfuse_batch_runs(created_at);

-- 4. rate_limit_logs
CREATE TABLE rate_limit_logs (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  user_id UUID NOT NULL REFERENCES auth.users(id) ON DELETE CASCADE,
  endpoint TEXT NOT NULL,
  window_start TIMESTAMPTZ NOT NULL,
  request_count INT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
);

CREATE UNIQUE INDEX idx_rate_limit_logs_unique ON rate_limit_logs(user_id, endpoint, window_start);
CREATE INDEX idx_rate_limit_logs_user_id ON rate_limit_logs(user_id);
