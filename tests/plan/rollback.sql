-- マイグレーション3のロールバック
DROP POLICY "Users can insert scores for their traces" ON langfuse_scores;
DROP POLICY "Users can view scores for their traces" ON langfuse_scores;
DROP POLICY "Users can view their own traces" ON langfuse_traces;
ALTER TABLE langfuse_scores DISABLE ROW LEVEL SECURITY;
ALTER TABLE langfuse_traces DISABLE ROW LEVEL SECURITY;

-- マイグレーション2のロールバック
ALTER TABLE reflections DROP COLUMN langfuse_trace_id;
ALTER TABLE encouragement_messages DROP COLUMN langfuse_trace_id;
ALTER TABLE ai_coach_messages DROP COLUMN langfuse_trace_id;

-- マイグレーション1のロールバック
DROP TABLE rate_limit_logs;
DROP TABLE langfuse_batch_runs;
DROP TABLE langfuse_scores;
DROP TABLE langfuse_traces;
