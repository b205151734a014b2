"""Colour on a terminal, and findings on stderr."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from langfuse_schema._postgres.findings import Finding

_RED, _GREEN, _YELLOW = 31, 32, 33

_WORDS = {
    r"error(?=\[)|\[ \]|Not ready": _RED,
    r"warning(?=\[)|\[-\]": _YELLOW,
    r"\[x\]|Ready": _GREEN,
}
"""The words at the start of a line that have a colour."""


def coloured(text: str, stream: TextIO) -> str:
    """Return a text with colours, if the stream is a terminal and NO_COLOR is not set.

    https://no-color.org
    """
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    for word, colour in _WORDS.items():
        text = re.sub(f"^(?:{word})", f"\x1b[{colour}m\\g<0>\x1b[0m", text, flags=re.MULTILINE)
    return text


def print_findings(findings: Iterable[Finding]) -> None:
    """Print findings to stderr."""
    for finding in findings:
        sys.stderr.write(f"{coloured(str(finding), sys.stderr)}\n")
