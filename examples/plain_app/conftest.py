"""The fixtures of the tests. Each test has a migrated database.

pip install pytest "langfuse-schema[embedded]"
pytest
"""

pytest_plugins = ["langfuse_schema.testing"]
