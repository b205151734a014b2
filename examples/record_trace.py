"""Record a trace together with the app's message.

One transaction stores the trace, the message and the link. If one of them fails, none is stored.
"""

from __future__ import annotations

from uuid import UUID, uuid4

import sqlalchemy as sa

from langfuse_schema import (
    EntityType,
    copy_tables,
    langfuse_trace_id_column,
    langfuse_traces,
)

metadata = sa.MetaData()
copy_tables(metadata)  # The foreign key of the link needs langfuse_traces in the same MetaData.

messages = sa.Table(
    "ai_coach_messages",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    langfuse_trace_id_column(),
)


def record_answer(
    engine: sa.Engine, *, user_id: UUID, question: str, answer: str, trace_id: str
) -> UUID:
    """Store an answer of the coach, with its trace.

    Arguments:
        engine: an engine of the server's role. Users can read traces, but not write them.
        user_id: the user of the conversation. If the user is deleted, the trace is deleted.
        question: the input of the model.
        answer: the output of the model.
        trace_id: the 32 hex digits that `Langfuse.create_trace_id()` returns.

    Returns:
        The id of the message.
    """
    message_id = uuid4()
    trace = UUID(hex=trace_id)
    with engine.begin() as connection:
        connection.execute(
            sa.insert(langfuse_traces).values(
                trace_id=trace,
                entity_type=EntityType.AI_COACH_MESSAGE.value,
                entity_id=message_id,
                user_id=user_id,
                input=question,
                output=answer,
            )
        )
        # The link is a foreign key, so the trace comes first.
        connection.execute(
            sa.insert(messages).values(
                id=message_id, user_id=user_id, body=answer, langfuse_trace_id=trace
            )
        )
    return message_id
