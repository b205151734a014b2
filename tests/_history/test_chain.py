"""The order of revisions is the order of the chain, and does not depend on their ids."""

from __future__ import annotations

import datetime as dt
import shutil
from typing import TYPE_CHECKING

import pytest
from alembic import command

from langfuse_schema import migrations, verify
from langfuse_schema._history.chain import History, config_file
from langfuse_schema._postgres.findings import SchemaError
from tests.helpers.databases import CHECKOUT, REVISIONS, Database
from tools import release, revision

if TYPE_CHECKING:
    from pathlib import Path

    from alembic.config import Config

DECREASING = [f"{90 - position}000000000000" for position in range(len(REVISIONS))]


@pytest.fixture
def history(tmp_path: Path, database: Database) -> Config:
    """Return a configuration of the same revisions with ids that decrease along the chain."""
    folder = tmp_path / "alembic"
    shutil.copytree(config_file().parent / "alembic", folder)
    new_ids = dict(zip(REVISIONS, DECREASING, strict=True))
    for path in [*folder.glob("versions/*.py"), *folder.glob("snapshots/*.json")]:
        name, text = path.name, path.read_text(encoding="utf-8")
        path.unlink()
        for old, new in new_ids.items():
            name, text = name.replace(old, new), text.replace(old, new)
        path.with_name(name).write_text(text, encoding="utf-8")
    config = migrations.config_for(database.url)
    config.set_main_option("script_location", str(folder))
    return config


def test_every_command_follows_the_chain_when_ids_decrease(history: Config) -> None:
    for position, target in enumerate(DECREASING):
        command.upgrade(history, target)
        report = verify.report(migrations.target_of(history), History.of(history), target)
        assert (report.revision, report.findings) == (target, ())
        for other in DECREASING:
            (*_, last) = verify.report(
                migrations.target_of(history), History.of(history), other
            ).findings or [None]
            behind = DECREASING.index(other) > position
            expected = None if other == target else "behind" if behind else "ahead"
            assert (last and last.code) == (expected and f"revision-{expected}")
        assert migrations.preflight_report(history).findings == ()
    command.downgrade(history, DECREASING[0])
    command.downgrade(history, "base")


def test_upgrade_reports_schema_after_recorded_revision_when_ids_decrease(
    history: Config, database: Database
) -> None:
    command.upgrade(history, "head")
    database.execute(
        f"UPDATE langfuse_migrations.alembic_version SET version_num = '{DECREASING[1]}'"
    )
    with pytest.raises(SchemaError, match=f"stamp --purge {DECREASING[-1]}"):
        command.upgrade(history, "head")


def test_upgrade_refuses_revision_without_snapshot(history: Config, database: Database) -> None:
    before = database.catalog()
    folder = history.get_main_option("script_location")
    shutil.rmtree(f"{folder}/snapshots")
    with pytest.raises(SchemaError, match="snapshot-missing"):
        command.upgrade(history, "head")
    assert database.catalog() == before


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("20260101000002", "20270105000001"),
        ("20270105000001", "20270105000002"),
        ("20300101000009", "20300101000010"),
    ],
)
def test_next_id_follows_the_head_and_the_date(head: str, expected: str) -> None:
    assert revision.next_id(head, dt.date(2027, 1, 5)) == expected


class TestReleaseCheck:
    def test_no_released_revision_snapshot_or_helper_has_changed(self) -> None:
        assert release.changed(CHECKOUT) == []

    @pytest.mark.parametrize(
        ("path", "before", "after"),
        [
            (f"alembic/snapshots/{REVISIONS[0]}.json", "uuid", "text"),
            ("alembic/versions/*core.py", "service_role", "anon"),
            ("src/langfuse_schema/operations/_locks.py", "CONTINUE WHEN", "EXIT WHEN"),
            (
                "src/langfuse_schema/operations/_indexes.py",
                "def _keep_setting(",
                "def _keep_setting (",
            ),
        ],
    )
    def test_release_check_reports_change_after_release(
        self, tmp_path: Path, path: str, before: str, after: str
    ) -> None:
        for part in ("alembic", "src/langfuse_schema"):
            shutil.copytree(CHECKOUT / part, tmp_path / part)
        release.main(tmp_path)
        assert release.changed(tmp_path) == []
        (changed,) = tmp_path.glob(path)
        text = changed.read_text(encoding="utf-8")
        assert before in text
        changed.write_text(text.replace(before, after), encoding="utf-8")
        assert len(release.changed(tmp_path)) == 1
        with pytest.raises(SystemExit, match="changed since"):
            release.main(tmp_path)

    def test_release_check_ignores_new_helper_that_no_revision_calls(self, tmp_path: Path) -> None:
        for part in ("alembic", "src/langfuse_schema"):
            shutil.copytree(CHECKOUT / part, tmp_path / part)
        release.main(tmp_path)
        operations = tmp_path / "src" / "langfuse_schema" / "operations" / "__init__.py"
        text = operations.read_text(encoding="utf-8")
        operations.write_text(f"{text}\n\ndef new_helper() -> None:\n    pass\n", encoding="utf-8")
        assert release.changed(tmp_path) == []
