"""Which database, and how: URLs of any spelling, and the options of a run."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import psycopg2
from psycopg2.extensions import parse_dsn
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from langfuse_schema._postgres.findings import Finding, SchemaError

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("langfuse_schema")

DRIVER = "postgresql+psycopg2"

_DIALECTS = ("postgres", "postgresql")

URL_EXAMPLE = "postgresql://user:password@host:5432/database"


_SHORTEST, _LONGEST = 0.001, 2_147_483.0
"""What PostgreSQL takes for a timeout, in seconds; to it, 0 means to wait for ever."""


@dataclass(frozen=True)
class Options:
    """Options of a run; both in seconds, from 0.001 to 2,147,483.

    `lock_timeout` is the longest wait for locks at a time: everybody else queues behind it that
    long. `lock_deadline` is how long to go on retrying, and to wait for another runner.

    Raises:
        SchemaError: a value is no such time.
    """

    lock_timeout: float = 0.5
    lock_deadline: float = 600.0

    def __post_init__(self) -> None:
        """Refuse what would be no limit, or none that PostgreSQL takes."""
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or not _SHORTEST <= value <= _LONGEST:
                finding = Finding(
                    "option-invalid",
                    name,
                    repr(value),
                    f"a time in seconds, from {_SHORTEST} to {_LONGEST:,.0f}",
                    f"write it like this: {name}=0.5; on the command line -x {name}=500ms",
                )
                raise SchemaError([finding])


@dataclass(frozen=True)
class Source:
    """Where the database of a command comes from; no URL means the embedded one."""

    url: URL | None
    origin: str


_KNOWN = ("url", "embedded", "lock_timeout", "lock_deadline")
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_options(arguments: Mapping[str, str]) -> Options:
    """Read the options of a run.

    Arguments:
        arguments: what `-x name=value` gave.

    Raises:
        SchemaError: an unknown name, or a value that is no time.
    """
    for name in arguments:
        if name not in _KNOWN:
            raise SchemaError(
                [
                    Finding(
                        "option-unknown",
                        f"-x {name}",
                        name,
                        "one of " + ", ".join(_KNOWN),
                        "correct the name, as in: -x lock_timeout=500ms",
                    )
                ]
            )
    given = {
        name: _seconds(name, arguments[name])
        for name in ("lock_timeout", "lock_deadline")
        if name in arguments
    }
    return Options(**given)


def _seconds(name: str, value: str) -> float:
    matched = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|min|h)", value.strip())
    if not matched or float(matched[1]) * _SECONDS[matched[2]] < _SECONDS["ms"]:
        raise SchemaError(
            [
                Finding(
                    "option-invalid",
                    f"-x {name}",
                    repr(value),
                    "a time above zero with its unit: ms, s, min or h",
                    f"write it like this: -x {name}=500ms",
                )
            ]
        )
    return float(matched[1]) * _SECONDS[matched[2]]


def find_source(
    arguments: Mapping[str, str],
    configured_url: str | None,
    environment: Mapping[str, str] = os.environ,
    *,
    checkout: bool = False,
) -> Source:
    """Decide which database a command works on; the first that is set.

    Arguments:
        arguments: what `-x name=value` gave; `url`, and `embedded=true`, which also passes
            over the ini and the environment.
        configured_url: `sqlalchemy.url` of the ini or the configuration.
        environment: where DATABASE_URL is looked up.
        checkout: whether the embedded database may be used unasked.

    Raises:
        SchemaError: there is none, or what there is is no URL of a PostgreSQL database.
    """
    embedded = arguments.get("embedded", "false").lower()
    if embedded not in ("true", "false"):
        found = Finding(
            "option-invalid", "-x embedded", embedded, "true or false", "type: -x embedded=true"
        )
        raise SchemaError([found])
    if embedded == "true" and "url" in arguments:
        found = Finding(
            "option-invalid",
            "-x url, -x embedded",
            "both a URL and the embedded database",
            "one of them",
            "leave one out",
        )
        raise SchemaError([found])
    if "url" in arguments:
        return Source(parse_url(arguments["url"], "-x url"), "-x url")
    if embedded == "true":
        return Source(None, "-x embedded=true")
    if configured_url:
        return Source(parse_url(configured_url, "sqlalchemy.url"), "sqlalchemy.url")
    if "DATABASE_URL" in environment:
        return Source(parse_url(environment["DATABASE_URL"], "DATABASE_URL"), "DATABASE_URL")
    if checkout:
        return Source(None, "nothing configured")
    raise SchemaError(
        [
            Finding(
                "url-missing",
                "DATABASE_URL",
                "not set, and neither -x url nor sqlalchemy.url",
                f"the URL of a database, like {URL_EXAMPLE}",
                f"type: export DATABASE_URL={URL_EXAMPLE}\n"
                "or, for a throw-away database on this machine: -x embedded=true",
            )
        ]
    )


def parse_url(url: str | URL, origin: str) -> URL:
    """Make a URL of any common spelling usable with psycopg2.

    Supabase, Heroku and Prisma hand out `postgres://`, `postgresql://` and parameters of their
    own clients (`pgbouncer`, `connection_limit`, `schema`, …), which libpq rejects.

    Arguments:
        url: as somebody configured it.
        origin: where it was configured, for the message.

    Returns:
        A URL of the psycopg2 driver without foreign parameters.

    Raises:
        SchemaError: it is no URL, or one of another kind of database.
    """
    try:
        parsed = make_url(url.strip() if isinstance(url, str) else url)
        dialect = parsed.drivername.partition("+")[0].lower()
    except (ArgumentError, ValueError):
        # The text may hold a password, and nobody knows where: show none of it.
        found = "an empty text" if not url else "a text that is no URL"
        raise SchemaError([_url_invalid(origin, found)]) from None
    if "@" in (parsed.host or ""):
        # What follows the first @ of a password would be shown as the host.
        raise SchemaError([_url_invalid(origin, "a password with an @ in it")])
    if dialect not in _DIALECTS:
        expected = f"a URL like {URL_EXAMPLE}"
        remedy = "give the URL of the app's PostgreSQL database"
        found = f"a {dialect} URL"
        raise SchemaError([Finding("url-not-postgresql", origin, found, expected, remedy)])
    host = unquote(parsed.host) if parsed.host else parsed.host
    query = {_parameter(name): value for name, value in parsed.query.items()}
    known = {name: value for name, value in query.items() if _known_to_libpq(name)}
    ignored = [name for name in query if name not in known]
    if ignored:
        log.info("parameters that libpq does not know are ignored: %s", ", ".join(ignored))
    return parsed.set(drivername=DRIVER, host=host, query=known)


def _parameter(name: str) -> str:
    # asyncpg's name; dropping it would turn encryption off.
    return "sslmode" if name == "ssl" else name


def _known_to_libpq(name: str) -> bool:
    try:
        parse_dsn(f"{name}=1")
    except psycopg2.ProgrammingError:
        return False
    return True


def shown(url: URL) -> str:
    """Write a URL for people: without passwords, those among its parameters included.

    Arguments:
        url: any.
    """
    query = {name: "***" if "password" in name else value for name, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True)


def _url_invalid(origin: str, found: str) -> Finding:
    return Finding(
        "url-invalid",
        origin,
        found,
        f"a URL like {URL_EXAMPLE}",
        "correct it; characters like @ : / in a password are written %40 %3A %2F",
    )
