-- ai_coach_messages に langfuse_trace_id カラム追加
ALTER TABLE ai_coach_messages
ADD COLUMN langfuse_trace_id UUID REFERENCES langfuse_traces(trace_id) ON DELETE SET NULL;

CREATE INDEX idx_ai_coach_messages_langfuse_trace_id ON ai_coach_messages(langfuse_trace_id);

-- encouragement_messages に langfuse_trace_id カラム追加
ALTER TABLE encouragement_messages
ADD COLUMN langfuse_trace_id UUID REFERENCES langfuse_traces(trace_id) ON DELETE SET NULL;

CREATE INDEX idx_encouragement_messages_langfuse_trace_id ON encouragement_messages(langfuse_trace_id);

-- reflections に langfuse_trace_id カラム追加
ALTER TABLE reflections
ADD COLUMN langfuse_trace_id UUID REFERENCES langfuse_traces(trace_id) ON DELETE SET NULL;

CREATE INDEX idx_reflections_langfuse_trace_id ON reflections(langfuse_trace_id);
