"""`python -m langfuse_schema` is `langfuse-schema`."""

from langfuse_schema.cli import main

main()
