"""The options of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from langfuse_schema._postgres.findings import SchemaError, finding

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMES = ("lock_timeout", "lock_deadline", "connect_timeout")

KNOWN = ("url", "embedded", *_TIMES)
"""The names after `-x`."""

# PostgreSQL's range for a timeout, in seconds. Its timeout of 0 is an indefinite wait.
_SHORTEST, _LONGEST = 0.001, 2_147_483.0
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Options:
    """The options of a run, in seconds from 0.001 to 2,147,483.

    Attributes:
        lock_timeout: the longest wait for locks at a time. Other sessions queue that long.
        lock_deadline: how long to retry, and to wait for another runner.
        idle_in_transaction_timeout: the longest pause between two statements of a transaction.
            0 is no limit, and None keeps the limit of the role.
        idle_session_timeout: the longest pause between two transactions, like the former.
        connect_timeout: the longest wait for each host of a URL.

    Raises:
        SchemaError: a value is out of range.
    """

    lock_timeout: float = 0.5
    lock_deadline: float = 600.0
    idle_in_transaction_timeout: float | None = None
    idle_session_timeout: float | None = None
    connect_timeout: float = 10.0

    def __post_init__(self) -> None:
        """Check the range."""
        for name, value in vars(self).items():
            if name.startswith("idle") and value in (None, 0):
                continue
            if not isinstance(value, int | float) or not _SHORTEST <= value <= _LONGEST:
                expected = f"a time in seconds, from {_SHORTEST} to {_LONGEST:,.0f}"
                default = getattr(Options, name)
                if name.startswith("idle"):
                    default, expected = 60, f"{expected}, or 0 or None"
                advice = f"Write it as {name}={default:g}."
                raise invalid_option(name, repr(value), expected, advice)


def parse_options(arguments: Mapping[str, str]) -> Options:
    """Return the options of a command line, from the values of `-x name=value`."""
    for name in arguments:
        if name not in KNOWN:
            nearest = next(iter(get_close_matches(name, KNOWN, 1)), "lock_timeout")
            values = {"known": ", ".join(KNOWN), "nearest": nearest}
            raise SchemaError(finding("option-unknown", f"-x {name}", **values))
    return Options(**{name: _time(name, arguments[name]) for name in _TIMES if name in arguments})


def invalid_option(place: str, found: str, expected: str, advice: str) -> SchemaError:
    """Return the error of an option whose value is not allowed."""
    values = {"found": found, "expected": expected, "advice": advice}
    return SchemaError(finding("option-invalid", place, **values))


def _time(name: str, value: str) -> float:
    matched = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|min|h)", value.strip())
    seconds = float(matched[1]) * _SECONDS[matched[2]] if matched else 0.0
    if seconds < _SHORTEST:
        expected = "a time above zero with its unit: ms, s, min or h"
        advice = f"Write it as -x {name}=500ms."
        raise invalid_option(f"-x {name}", repr(value), expected, advice)
    return seconds
