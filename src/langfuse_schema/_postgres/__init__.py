"""Generic: read, compare and describe a PostgreSQL catalog. Contains no name of Langfuse."""
