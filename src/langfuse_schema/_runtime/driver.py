"""A connection of psycopg2 that needs fewer round trips.

psycopg2 sends BEGIN as a separate message, and SQLAlchemy asks a new connection for values that
the server has already sent. Over a distance, each of these messages costs a round trip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg2 import extensions

if TYPE_CHECKING:
    import sqlalchemy as sa

_IDLE = extensions.TRANSACTION_STATUS_IDLE


class _Cursor(extensions.cursor):  # type: ignore[misc] # psycopg2 has no types
    """A cursor whose first statement begins the transaction."""

    def execute(self, query: Any, variables: Any = None) -> None:  # noqa: ANN401 - see above
        if self.connection.begins and self.connection.get_transaction_status() == _IDLE:
            query = f"BEGIN;\n{query}"
        super().execute(query, variables)


class Connection(extensions.connection):  # type: ignore[misc] # psycopg2 has no types
    """A connection that sends BEGIN together with the first statement of a transaction.

    For psycopg2 it is in autocommit mode. `autocommit` is the mode that its user has chosen.

    Attributes:
        begins: whether the first statement begins a transaction.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - of psycopg2
        """Connect."""
        super().__init__(*arguments, **options)
        extensions.connection.autocommit.__set__(self, True)
        self.begins = True
        self.cursor_factory = _Cursor

    @property
    def autocommit(self) -> bool:
        """Whether each statement is a transaction."""
        return not self.begins

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self.begins = not value

    def set_isolation_level(self, level: int | None) -> None:
        """Choose between autocommit mode and transactions of the default level."""
        self.begins = level != extensions.ISOLATION_LEVEL_AUTOCOMMIT

    def commit(self) -> None:
        """End the transaction, if there is one."""
        self._end("COMMIT")

    def rollback(self) -> None:
        """Roll back the transaction, if there is one."""
        self._end("ROLLBACK")

    def _end(self, statement: str) -> None:
        # The driver knows the status without a message, and raises its own error if it is closed.
        if self.closed or self.get_transaction_status() != _IDLE:
            with self.cursor() as cursor:
                cursor.execute(statement)


def skip_handshake(engine: sa.Engine) -> None:
    """Answer SQLAlchemy's questions about a new connection from the messages of the login.

    The engine is of psycopg2. Alembic reads tables without a schema from the default schema, which
    is `public` here, whatever the role's search_path is.
    """
    dialect: Any = engine.dialect

    def version(connection: sa.Connection) -> tuple[int, int]:
        driver_connection: Any = connection.connection.dbapi_connection
        return divmod(int(driver_connection.server_version), 10_000)

    def set_backslash_escapes(connection: sa.Connection) -> None:
        driver_connection: Any = connection.connection.dbapi_connection
        strings = driver_connection.get_parameter_status("standard_conforming_strings")
        dialect._backslash_escapes = strings == "off"  # noqa: SLF001 - a hook of dialects

    dialect._get_server_version_info = version  # noqa: SLF001 - a hook of dialects
    dialect._get_default_schema_name = lambda _: "public"  # noqa: SLF001 - as above
    dialect._set_backslash_escapes = set_backslash_escapes  # noqa: SLF001 - as above
    dialect.get_default_isolation_level = lambda _: "READ COMMITTED"
    # Alembic reads it before each index build, to restore it.
    dialect.get_isolation_level = lambda connection: (
        "AUTOCOMMIT" if connection.autocommit else "READ COMMITTED"
    )
