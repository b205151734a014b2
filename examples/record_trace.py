"""Record a trace together with the message of the app that it explains.

Message, trace and link are one transaction: either all of them are there, or none.
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

metadata = sa.MetaData()  # the app's own
copy_tables(metadata)  # the foreign key of the link needs langfuse_traces in the same MetaData

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
    """Store what the coach answered, and how it came to be.

    Arguments:
        engine: of the server's own role; users may read traces, not write them.
        user_id: whose conversation it is; deleting the user deletes the trace.
        question: what the model was asked.
        answer: what it said.
        trace_id: Langfuse's, 32 hex digits, as `Langfuse.create_trace_id()` makes them.

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
        # After the trace: the link is a foreign key.
        connection.execute(
            sa.insert(messages).values(
                id=message_id, user_id=user_id, body=answer, langfuse_trace_id=trace
            )
        )
    return message_id
