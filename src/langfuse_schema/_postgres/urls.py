"""Accept database URLs of any common spelling, for psycopg2."""

from __future__ import annotations

import logging
import re
from urllib.parse import unquote

import psycopg2
from psycopg2.extensions import parse_dsn
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from langfuse_schema._postgres.findings import Finding, SchemaError, finding

log = logging.getLogger("langfuse_schema")

EXAMPLE = "postgresql://USER:PASSWORD@HOST:5432/DATABASE"

# In the URLs that Supabase's dashboard shows.
_PLACEHOLDER = "[YOUR-PASSWORD]"


def parse_url(url: str | URL, origin: str) -> URL:
    """Return a URL of the psycopg2 driver, without parameters that libpq rejects.

    Supabase, Heroku and Prisma write `postgres://`, `postgresql://` and parameters of their
    clients (`pgbouncer`, `connection_limit`, `schema`). Messages name `origin` as the URL's place.

    Raises:
        SchemaError: it is no URL, or the URL of another kind of database.
    """
    if _PLACEHOLDER in (url if isinstance(url, str) else url.password or ""):
        found = f"the placeholder {_PLACEHOLDER}"
        expected = "the password of the database, as set in the dashboard"
        raise SchemaError(finding("url-invalid", origin, found=found, expected=expected))
    several: dict[str, str] = {}
    if isinstance(url, str):
        url, several = _without_hosts(url.strip())
    try:
        parsed = make_url(url).update_query_dict(several)
        dialect = parsed.drivername.partition("+")[0].lower()
    except (ArgumentError, ValueError):
        # The text can hold a password at an unknown place, so it is not shown.
        raise SchemaError(_invalid(origin, _kind_of_text(str(url)))) from None
    if unusable := _unusable_part(parsed):
        raise SchemaError(_invalid(origin, unusable))
    if dialect not in ("postgres", "postgresql"):
        raise SchemaError(finding("url-not-postgresql", origin, dialect=dialect, example=EXAMPLE))
    schema = parsed.query.get("schema", "public")
    if schema != "public":
        raise SchemaError(finding("url-schema-unsupported", origin, schema=schema))
    host = unquote(parsed.host) if parsed.host else parsed.host
    # `ssl` is asyncpg's name. Without the parameter, the connection would not be encrypted.
    query = {"sslmode" if name == "ssl" else name: value for name, value in parsed.query.items()}
    known = {name: value for name, value in query.items() if _known_to_libpq(name)}
    ignored = [name for name in query if name not in known]
    hosts, ports = (str(known.get(name, "")).split(",") for name in ("host", "port"))
    if len(hosts) > 1 and len(ports) == 1 and ports != [""]:
        # libpq uses one port for all hosts. SQLAlchemy does not.
        known["port"] = ",".join(ports * len(hosts))
    elif len(ports) > 1 and len(ports) != len(hosts):
        raise SchemaError(_invalid(origin, f"{len(ports)} ports for {len(hosts)} hosts"))
    if ignored:
        log.info("ignored parameters that libpq does not have: %s", ", ".join(ignored))
    return parsed.set(drivername="postgresql+psycopg2", host=host, query=known)


def shown(url: URL) -> str:
    """Return a URL as text for psql, without passwords, including those in its parameters."""
    url = url.set(drivername="postgresql")
    query = {name: "***" if "password" in name else value for name, value in url.query.items()}
    host = query.get("host")
    hosts = host.split(",") if isinstance(host, str) else []
    if len(hosts) <= 1 or url.host:
        return url.set(query=query).render_as_string(hide_password=True)
    ports = str(query.pop("port", "")).split(",")
    query.pop("host")
    spelled = [f"[{host}]" if ":" in host else host for host in hosts]
    if ports != [""]:
        ports = ports * len(hosts) if len(ports) == 1 else ports
        spelled = [f"{host}:{port}" for host, port in zip(spelled, ports, strict=False)]
    text = url.set(query=query, host=_PLACE_OF_HOSTS).render_as_string(hide_password=True)
    return text.replace(_PLACE_OF_HOSTS, ",".join(spelled))


_SEVERAL_HOSTS = re.compile(r"([^/]*//(?:[^/?#]*@)?)([^/?#@]*,[^/?#@]*)(.*)", re.DOTALL)
_HOST = re.compile(r"(?:\[([^]]*)\]|([^:]*))(?::(\d*))?")
_PLACE_OF_HOSTS = "several-hosts"
_DEFAULT_PORT = "5432"


def _without_hosts(url: str) -> tuple[str, dict[str, str]]:
    """Return a URL without several hosts, and the parameters of libpq for them.

    SQLAlchemy does not accept the form of libpq, `host:port,host:port`.
    """
    matched = _SEVERAL_HOSTS.fullmatch(url)
    found = matched and [_HOST.fullmatch(host) for host in matched[2].split(",")]
    if not (matched and found and all(found)):
        return url, {}
    parts = [(unquote(host[1] or host[2]), host[3]) for host in found if host]
    parameters = {"host": ",".join(name for name, _ in parts)}
    if any(port for _, port in parts):
        parameters["port"] = ",".join(port or _DEFAULT_PORT for _, port in parts)
    return matched[1] + matched[3], parameters


def _known_to_libpq(name: str) -> bool:
    try:
        parse_dsn(f"{name}=1")
    except psycopg2.ProgrammingError:
        return False
    return True


def _kind_of_text(text: str) -> str:
    if not text:
        return "an empty text"
    return "a text in quotes" if text[0] in "'\"" else "a text that is no URL"


def _unusable_part(url: URL) -> str | None:
    if "\0" in unquote(url.render_as_string(hide_password=False)):
        return "a null character, written as %00"
    # The rest of the password would be shown as the host.
    return "a password with an @ in it" if "@" in (url.host or "") else None


def _invalid(origin: str, found: str) -> Finding:
    return finding("url-invalid", origin, found=found, expected=f"a URL like {EXAMPLE}")


# The drivers give no SQLSTATE for a failed connection. Supabase's pooler sends the last texts.
_LOGIN_REFUSED = (
    r"authentication failed|no password supplied|role \".*\" does not exist|not permitted to log in"
    r"|Tenant or user not found"
)
_CONNECTIONS_EXHAUSTED = (
    r"too many (?:clients|connections)|connection slots are reserved|no more connections allowed"
    r"|[Mm]ax ?[Cc]lient"
)
# libpq writes the severity, in the language of the server, with two spaces after the colon.
_ANSWER = r"(?m)(?:^|failed: |: )[^\s:][^:\n]{0,40}:  \S|server does not support SSL"

_IPV6_ONLY = (
    "Supabase's direct host has an IPv6 address only. Without IPv6, use the session pooler."
    " The dashboard shows its host under Connect:"
)
_SESSION_POOLER = (
    "'postgresql://postgres.{}:PASSWORD@aws-0-REGION.pooler.supabase.com:5432/postgres'"
)


def connection_finding(url: URL, error: DBAPIError) -> Finding:
    """Return the finding of a failed connection."""
    cause, place = str(error.orig).strip(), shown(url)
    if re.search(_LOGIN_REFUSED, cause):
        return finding("login-refused", place, cause=cause)
    if f'database "{url.database or ""}" does not exist' in cause:
        return finding("database-missing", place, cause=cause)
    if re.search(r"invalid \w+ value", cause):
        return finding("url-invalid", place, found=cause, expected="parameters of libpq")
    if re.search(_CONNECTIONS_EXHAUSTED, cause):
        return finding("connections-exhausted", place, cause=cause)
    if re.search(_ANSWER, cause):
        return finding("connection-rejected", place, cause=cause)
    advice = "Check the host and the port in the URL."
    fix: tuple[str, ...] = ()
    project = re.fullmatch(r"db\.(\w+)\.supabase\.co", url.host or "")
    if project:
        advice = _IPV6_ONLY
        fix = (f"export DATABASE_URL={_SESSION_POOLER.format(project[1])}",)
    return finding("server-unreachable", place, cause=cause, advice=advice, fix=fix)
