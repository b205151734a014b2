"""Alembic's private and undocumented interfaces, all in this module.

`tests/_runtime/test_alembic_internals.py` is their contract test.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any

import alembic.command
import alembic.context
import alembic.op
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.util import to_tuple
from alembic.util.langhelpers import ModuleClsProxy
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import Connection, CursorResult, Executable


@dataclass
class Steps:
    """The remaining steps of a command.

    Attributes:
        heads: the recorded revisions before the first step.
        purge: whether the version table is emptied first.
    """

    heads: tuple[str, ...] = ()
    steps: list[Any] = field(default_factory=list)
    purge: bool = False

    def __bool__(self) -> bool:
        """Return whether the command changes anything."""
        return bool(self.steps or self.purge)

    @property
    def only_upgrades(self) -> bool:
        """Return whether no step is a downgrade or a stamp."""
        return all(isinstance(step, RevisionStep) and step.is_upgrade for step in self.steps)

    @property
    def kind(self) -> str:
        """Return the kind of the steps, as the past of their verb."""
        if not (self.steps and all(isinstance(step, RevisionStep) for step in self.steps)):
            return "Recorded"
        return "Upgraded" if self.only_upgrades else "Downgraded"

    @property
    def revisions(self) -> tuple[str, ...]:
        """Return the revisions of the steps."""
        return tuple(step.revision.revision for step in self.steps)

    def remaining(self) -> Iterator[Any]:
        """Yield each step, and remove it when the next one is requested."""
        while self.steps:
            yield self.steps[0]
            del self.steps[0]


def steps_after(context: EnvironmentContext, heads: tuple[str, ...]) -> Steps:
    """Choose the steps of a configured command from the recorded revisions."""
    purge = purges(context)
    choose = context.get_context().opts["fn"]
    steps = choose(() if purge else heads, context.get_context())
    return Steps(heads, with_discards(steps, context.script), purge)


def recorded_heads(context: EnvironmentContext) -> tuple[str, ...]:
    """Read the recorded revisions; none before the first upgrade."""
    return tuple(sorted(context.get_context().get_current_heads()))


def heads_reader(context: EnvironmentContext) -> Callable[[Connection], tuple[str, ...]]:
    """Return a function that reads the recorded revisions with another connection."""
    names = ("version_table", "version_table_schema", "version_table_pk")
    options = context.get_context().opts
    kept = {name: options[name] for name in names if name in options}
    return lambda connection: tuple(
        sorted(MigrationContext.configure(connection, opts=kept).get_current_heads())
    )


@contextmanager
def options_restored(context: EnvironmentContext) -> Iterator[None]:
    """Restore the options of a configured command: env.py can run it on several databases."""
    options = context.get_context().opts
    before = dict(options)
    try:
        yield
    finally:
        options.clear()
        options.update(before)


def collect_statements(
    context: EnvironmentContext, collect: Callable[[Executable], CursorResult[Any] | None]
) -> None:
    """Pass the statements of Alembic's operations without parameters to `collect`.

    It lasts until the context is configured again.
    """
    impl = context.get_context().impl
    execute = impl._exec  # noqa: SLF001 - all operations call it

    def collected(construct: Executable | str, *more: Any, **options: Any) -> Any:  # noqa: ANN401 - passed on
        if any(more) or any(options.values()):
            return execute(construct, *more, **options)
        return collect(text(construct) if isinstance(construct, str) else construct)

    impl._exec = collected  # type: ignore[method-assign] # noqa: SLF001 - of this object only


def purges(context: EnvironmentContext) -> bool:
    """Return whether a configured command empties the version table first."""
    return bool(context.get_context().opts.get("purge"))


def destinations(context: EnvironmentContext) -> tuple[str, ...] | None:
    """Return the target revisions of a configured command; None if it does not write."""
    options = context.get_context().opts
    if "destination_rev" not in options:
        return None
    return to_tuple(options["destination_rev"], default=())


def has_destination(context: EnvironmentContext) -> bool:
    """Return whether a command writes, before it is configured."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def is_current(context: EnvironmentContext) -> bool:
    """Return whether the command line runs `current`."""
    function, *_ = getattr(context.config.cmd_opts, "cmd", (None,))
    return function is alembic.command.current


def offline_steps(context: EnvironmentContext) -> Callable[..., list[Any]]:
    """Return the function that chooses the steps of a configured offline command."""
    choose = context.get_context().opts["fn"]
    return lambda *state: with_discards(choose(*state), context.script)


def x_arguments(config: Config) -> dict[str, str]:
    """Return the values of `-x name=value`, which Alembic parses in env.py only."""
    given = getattr(config.cmd_opts, "x", None) or []
    return {name: value for name, _, value in (item.partition("=") for item in given)}


def running_environment() -> EnvironmentContext | None:
    """Return the environment of the command that calls this; None outside of a command.

    Alembic's globals also show a command of another thread, whose connection must not be used here.
    """
    frame = inspect.currentframe()
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith("alembic."):
        frame = frame.f_back
    return getattr(alembic.context, "_proxy", None) if frame is not None else None


def own_environment(context: ModuleType | EnvironmentContext) -> EnvironmentContext | None:
    """Return the environment of `alembic.context`, or the given one; None if it is another's.

    A command of another thread replaces the global one. The own command is found in the stack.
    """
    environment = getattr(context, "_proxy", None) if isinstance(context, ModuleType) else context
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") != "alembic.command":
        frame = frame.f_back
    config = frame.f_locals.get("config") if frame is not None else None
    if environment is None or config not in (None, environment.config):
        return None
    return environment


@contextmanager
def kept_installed(environment: EnvironmentContext) -> Iterator[None]:
    """Install an environment in `alembic.context` again, if a command of another thread removed it.

    Otherwise the end of the own command would fail.
    """
    installed = getattr(alembic.context, "_proxy", None) is environment
    try:
        yield
    finally:
        if installed and getattr(alembic.context, "_proxy", None) is not environment:
            environment._install_proxy()  # noqa: SLF001 - see above


def has_operations(context: EnvironmentContext) -> bool:
    """Return whether `alembic.op` runs on the connection of a configured environment."""
    operations = getattr(alembic.op, "_proxy", None)
    return operations is not None and operations.migration_context is context.get_context()


def connection_of(environment: EnvironmentContext) -> Connection | None:
    """Return the connection of an environment; None if it has none, or is not configured yet."""
    context = environment._migration_context  # noqa: SLF001 - get_context() would raise
    return context.connection if context is not None else None


@contextmanager
def preserved_proxies() -> Iterator[None]:
    """Restore the modules `alembic.context` and `alembic.op` at the end.

    A command installs its objects in them, and removes at its end those of an outer command too.
    """
    modules = [
        (module, ("_proxy", *names))
        for names, installed in ModuleClsProxy._setups.values()  # noqa: SLF001 - see above
        for module, _ in installed
    ]
    before = [{name: module[name] for name in names if name in module} for module, names in modules]
    try:
        yield
    finally:
        for (module, names), values in zip(modules, before, strict=True):
            for name in names:
                module.pop(name, None)
            module.update(values)


def with_discards(steps: Iterable[Any], directory: ScriptDirectory) -> list[Any]:
    """Return the same steps. Each downgrade first discards the leftovers of its successors.

    A revision that is not one transaction defines `discard_partial_upgrade()`. If its upgrade was
    interrupted, parts of it exist while the database is at the revision below.
    """
    steps = list(steps)
    downgrades = [s for s in steps if isinstance(s, RevisionStep) and s.is_downgrade]
    downgraded = {step.revision.revision for step in downgrades}
    for step in downgrades:
        successors = sorted(step.revision.nextrev - downgraded)
        modules = [directory.get_revision(successor).module for successor in successors]
        discards = [getattr(module, "discard_partial_upgrade", None) for module in modules]
        step.migration_fn = _after([one for one in discards if one], step.migration_fn)
    return steps


def _after(discards: list[Callable[[], None]], downgrade: Callable[..., None]) -> Any:  # noqa: ANN401 - a function of a revision
    @wraps(downgrade)
    def run(**keywords: Any) -> None:  # noqa: ANN401 - passed on to the revision
        for discard in discards:
            discard()
        downgrade(**keywords)

    return run
