-- langfuse_traces の RLS 有効化
ALTER TABLE langfuse_traces ENABLE ROW LEVEL SECURITY;

-- 自分のトレースのみ閲覧可能
CREATE POLICY "Users can view their own traces"
ON langfuse_traces FOR SELECT
USING (auth.uid() = user_id);

-- langfuse_scores の RLS 有効化
ALTER TABLE langfuse_scores ENABLE ROW LEVEL SECURITY;

-- 自分のトレースに紐づくスコアのみ閲覧可能
CREATE POLICY "Users can view scores for their traces"
ON langfuse_scores FOR SELECT
USING (
  EXISTS (
    SELECT 1 FROM langfuse_traces
    WHERE langfuse_traces.trace_id = langfuse_scores.trace_id
    AND langfuse_traces.user_id = auth.uid()
  )
);

-- 自分のトレースにスコアを追加可能
CREATE POLICY "Users can insert scores for their traces"
ON langfuse_scores FOR INSERT
WITH CHECK (
  EXISTS (
    SELECT 1 FROM langfuse_traces
    WHERE langfuse_traces.trace_id = langfuse_scores.trace_id
    AND langfuse_traces.user_id = auth.uid()
  )
);
