"""The JSON output of preflight and verify is valid under docs/reference/output.schema.json."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from langfuse_schema import migrations, verify
from langfuse_schema._history.chain import History
from langfuse_schema._runtime.target import Target
from tests.helpers.databases import CHECKOUT, LINKS, POLICIES, langfuse_schema, plan_sql

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.databases import Database

SCHEMA = json.loads((CHECKOUT / "docs" / "reference" / "output.schema.json").read_text("utf-8"))


def strict(schema: Any) -> Any:
    """Return a schema that refuses the fields that it does not describe."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(part) for name, part in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def check(printed: str, definition: str) -> dict[str, Any]:
    """Validate an output, and return it."""
    output = json.loads(printed)
    Draft202012Validator(SCHEMA).validate(output)
    rule = {"$ref": f"#/$defs/{definition}", "$defs": strict(SCHEMA["$defs"])}
    Draft202012Validator(rule).validate(output)
    assert isinstance(output, dict)
    return output


def verify_as_json(database: Database) -> str:
    return verify.report(Target.of(database.url), History.packaged(), "head").as_json()


STATES: dict[str, Callable[[Database], object]] = {
    "never migrated": lambda _: None,
    "head": lambda database: migrations.upgrade(database.url),
    "older revision": lambda database: migrations.upgrade(database.url, LINKS),
    "plan run by hand": lambda database: database.execute(plan_sql("20251113000003")),
    "unknown revision": lambda database: (
        migrations.upgrade(database.url),
        database.execute("UPDATE langfuse_migrations.alembic_version SET version_num = 'x'"),
    ),
    "differences": lambda database: (
        migrations.upgrade(database.url),
        database.execute(
            "ALTER TABLE langfuse_traces DROP COLUMN tags, ADD COLUMN extra text;"
            " DROP INDEX idx_langfuse_scores_status; CREATE INDEX mine ON langfuse_scores (value);"
            " CREATE VIEW shown AS SELECT * FROM langfuse_traces; GRANT SELECT ON shown TO anon"
        ),
    ),
}


def test_schema_is_valid() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("state", STATES)
def test_output_is_valid_under_schema(database: Database, state: str) -> None:
    STATES[state](database)
    check(migrations.preflight(database.url).as_json(), "preflight")
    output = check(verify_as_json(database), "verify")
    assert output["ok"] == (state == "head")
    assert bool(output["findings"]) == (state != "head")


@pytest.mark.parametrize("command", ["preflight", "verify"])
def test_output_without_database_is_valid_under_schema(command: str) -> None:
    url = "postgresql://postgres@127.0.0.1:1/postgres"
    outcome = langfuse_schema(None, command, "--format", "json", DATABASE_URL=url)
    assert outcome.code == 2
    check(outcome.stdout, "not_run")


def test_output_with_undocumented_field_is_refused(database: Database) -> None:
    migrations.upgrade(database.url, POLICIES)
    output = json.loads(verify_as_json(database)) | {"extra": True}
    with pytest.raises(Exception, match="'extra' was unexpected"):
        check(json.dumps(output), "verify")


def test_page_describes_every_field() -> None:
    page = (CHECKOUT / "docs" / "reference" / "json.md").read_text("utf-8")
    definitions = SCHEMA["$defs"]
    finding = definitions["findings"]["items"]
    facts = [definitions[name]["properties"]["facts"] for name in ("preflight", "verify")]
    for described in (definitions["verify"], finding, *facts):
        assert [name for name in described["properties"] if f"`{name}`" not in page] == []
