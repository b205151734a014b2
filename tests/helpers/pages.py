"""The blocks of README and docs, and their comparison with a real run."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.helpers.databases import CHECKOUT


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands after the prompts."""
        return re.findall(r"^\$ (.*)$", self.text, re.MULTILINE)

    def is_printed_by(self, output: str) -> bool:
        """Return whether the output contains these lines. A line `…` matches any lines."""
        lines = [
            r"(?:.*\n)*?" if line == "…" else f"{re.escape(line)}\n"
            for line in self.text.splitlines()
        ]
        return re.search(f"^{''.join(lines)}", output, re.MULTILINE) is not None


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, such as `README.md`."""
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(*parts) for parts in found]


def block(page: str, beginning: str) -> Block:
    """Return the one block of a page that begins with this text."""
    (found,) = (block for block in blocks(page) if block.text.startswith(beginning))
    return found
