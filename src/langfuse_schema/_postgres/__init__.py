"""Generic: read, compare and describe a PostgreSQL catalog. Knows nothing of Langfuse."""
