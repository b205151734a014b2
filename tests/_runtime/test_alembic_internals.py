"""The private interfaces of Alembic behave as `alembic_internals` expects."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import alembic.context
import alembic.op
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from langfuse_schema._history.chain import config_file
from langfuse_schema._runtime import alembic_internals as internals
from tests.helpers.databases import CORE, HEAD, LINKS, REVISIONS, run

if TYPE_CHECKING:
    from pathlib import Path

    from alembic.runtime.environment import EnvironmentContext

OLDEST = "1.18.5"


def captured(command_name: str, *arguments: Any, **options: Any) -> EnvironmentContext:
    """Return the context of a command in env.py, configured offline."""
    config = Config(config_file(), output_buffer=io.StringIO())
    seen: list[EnvironmentContext] = []

    def record(context: EnvironmentContext) -> None:
        context.configure(dialect_name="postgresql")
        seen.append(context)

    original = ScriptDirectory.run_env
    try:
        ScriptDirectory.run_env = lambda _: record(  # type: ignore[method-assign] # restored below
            alembic.context._proxy  # type: ignore[attr-defined] # the context behind the module
        )
        getattr(command, command_name)(config, *arguments, **options)
    finally:
        ScriptDirectory.run_env = original  # type: ignore[method-assign]
    return seen[0]


def test_steps_of_upgrade_are_pending_revisions() -> None:
    context = captured("upgrade", "head", sql=True)
    steps = internals.steps_after(context, ())
    assert steps.revisions == REVISIONS
    assert steps.only_upgrades
    assert not steps.purge
    assert internals.steps_after(context, (HEAD,)).revisions == ()


def test_remaining_steps_are_removed_when_next_step_is_requested() -> None:
    steps = internals.steps_after(captured("upgrade", "head", sql=True), ())
    for number, _ in enumerate(steps.remaining()):
        assert len(steps.steps) == len(REVISIONS) - number
    assert not steps


def test_downgrade_runs_discard_of_successor_first() -> None:
    context = captured("downgrade", f"{CORE}:base", sql=True)
    (step,) = internals.steps_after(context, (CORE,)).steps
    assert step.migration_fn.__name__ == "downgrade"
    calls: list[str] = []
    module = context.script.get_revision(LINKS).module
    original = module.discard_partial_upgrade
    module.discard_partial_upgrade = lambda: calls.append("discard")
    step = internals.with_discards(
        context.get_context().opts["fn"]((CORE,), context.get_context()), context.script
    )[0]
    module.discard_partial_upgrade = original
    with pytest.raises(Exception):  # noqa: B017, PT011 - the downgrade fails without a database
        step.migration_fn()
    assert calls == ["discard"]


def test_downgrade_of_two_revisions_lists_successor_first() -> None:
    context = captured("downgrade", f"{LINKS}:base", sql=True)
    steps = internals.steps_after(context, (LINKS,)).steps
    assert [step.revision.revision for step in steps] == [LINKS, CORE]
    successors = [step.revision.nextrev for step in steps]
    assert successors[1] == frozenset([LINKS])


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("upgrade", ("head",), ("head",)),
        ("stamp", ("head",), ("head",)),
        ("current", (), None),
    ],
)
def test_destinations_distinguish_commands_that_write(
    name: str, arguments: tuple[str, ...], expected: tuple[str, ...] | None
) -> None:
    options = {} if name == "current" else {"sql": True}
    context = captured(name, *arguments, **options)
    assert internals.destinations(context) == expected
    assert internals.has_destination(context) == (expected is not None)
    assert not internals.purges(context)


def test_x_arguments_are_read_before_env_py() -> None:
    from argparse import Namespace

    config = Config(config_file(), cmd_opts=Namespace(x=["url=a=b", "embedded=true"]))
    assert internals.x_arguments(config) == {"url": "a=b", "embedded": "true"}
    assert internals.x_arguments(Config(config_file())) == {}


def test_running_environment_and_its_connection_belong_to_running_command() -> None:
    assert internals.running_environment() is None
    seen: list[object] = []

    def record(context: EnvironmentContext) -> None:
        environment = internals.running_environment()
        assert environment is context
        seen.append(internals.connection_of(environment))
        with sa.create_engine("sqlite://").connect() as connection:
            context.configure(connection=connection)
            seen.append(internals.connection_of(environment) is connection)

    with pytest.MonkeyPatch.context() as patch:
        proxy = lambda _: record(alembic.context._proxy)  # type: ignore[attr-defined] # noqa: E731
        patch.setattr(ScriptDirectory, "run_env", proxy)
        command.current(Config(config_file()))
    assert seen == [None, True]


def test_preserved_proxies_restore_globals_after_failed_command() -> None:
    before = [dict(vars(module)) for module in (alembic.context, alembic.op)]
    with internals.preserved_proxies():
        alembic.context._proxy = "changed"  # type: ignore[attr-defined] # a private attribute
        alembic.context.script = "changed"  # type: ignore[assignment] # not a script
    assert [dict(vars(module)) for module in (alembic.context, alembic.op)] == before


@pytest.mark.slow
def test_internals_tests_pass_with_oldest_alembic(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps")
    installed = run(*pip, f"--target={tmp_path}", f"alembic=={OLDEST}")
    assert installed.code == 0, installed.stderr
    version = run(sys.executable, "-c", "import alembic; print(alembic.__version__)",
                  PYTHONPATH=str(tmp_path))  # fmt: skip
    assert version.stdout.strip() == OLDEST
    pytest_command = (sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider")
    outcome = run(*pytest_command, __file__, PYTHONPATH=str(tmp_path))
    assert outcome.code == 0, outcome.stdout
