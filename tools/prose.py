"""Compare the language of the project with its limits: `python -m tools.prose`.

The pages are README, CONTRIBUTING, SECURITY and docs, without code, tables and headings. The source
is the comments, docstrings and messages of `src` and `alembic`. The other code is tests, tools,
benchmarks and examples. Generated pages, and pages in Japanese, are left out.
"""

from __future__ import annotations

import re
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Texts = dict[str, str]
"""The prose of each file, by its path."""

ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
GENERATED = "revisions.md"
SOURCE = ("src", "alembic")
OTHER_CODE = ("tests", "tools", "benchmarks", "examples")
QUOTING = ("prose.py", "test_prose.py")
"""The files that contain the expressions themselves."""
MOST_README_LINES = 130
MOST_PERCENT_WITH_COLON = 23
FEWEST_YOU = 8


@dataclass(frozen=True)
class Rule:
    """A pattern of expressions, and the limit in 1,000 words of the pages.

    The limit of the source is twice as high, because its texts are short.
    """

    name: str
    pattern: str
    most: float

    def matches(self, text: str) -> Iterator[re.Match[str]]:
        """Return the expressions in a text."""
        return re.finditer(rf"\b(?:{self.pattern})\b", text, re.IGNORECASE)

    def rate(self, texts: Texts) -> float:
        """Return the number of expressions in 1,000 words."""
        words = sum(len(text.split()) for text in texts.values())
        found = sum(1 for text in texts.values() for _ in self.matches(text))
        return 1000 * found / words if words else 0.0

    def quotations(self, texts: Texts) -> list[str]:
        """Return each expression with its file and the words around it."""
        return [
            f"{path}: …{' '.join(text[max(0, match.start() - 30) : match.end() + 30].split())}…"
            for path, text in texts.items()
            for match in self.matches(text)
        ]


AFTER_WHAT = (
    "is was are were has had it they we somebody others goes comes came exists follows stays stands"
    " hangs differs revision revisions there remains each every the"
)

RULES = (
    Rule("anonymous people", "nobody|somebody|everybody|anybody|whoever", 0.3),
    Rule("what-clauses", f"what (?:{AFTER_WHAT.replace(' ', '|')})", 1),
    Rule(
        "of its own",
        r"of (?:ours|theirs|its own|our own|their own)|a \w+ of (?:its|our|their) own",
        0.3,
    ),
    Rule(
        "archaic words",
        r"anew|mend\w*|heal(?:s|ed|ing)?|beforehand|meanwhile|besides|halfway|hence|strangers?",
        0.5,
    ),
    Rule("speaking software", "say|says|said|told|tell|tells", 1),
    Rule("stands for is", "stands?(?!-)", 0.3),
    Rule("we", "we|our|us|ours", 2),
)
YOU = Rule("you", "you(?:r|rs)?", sys.maxsize)


def page_text(markdown: str) -> str:
    """Return the sentences of a page, with X for inline code."""
    text = re.sub(r"```.*?```|<[^>]+>|\]\([^)]*\)", "", markdown, flags=re.DOTALL)
    text = re.sub(r"^(?:\||#+ ).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`", "X", text)


def source_text(path: Path) -> str:
    """Return the comments of a Python file, and its strings that contain a space."""
    strings = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    with tokenize.open(path) as file:
        return "\n".join(
            token.string
            for token in tokenize.generate_tokens(file.readline)
            if token.type == tokenize.COMMENT or (token.type in strings and " " in token.string)
        )


def pages_of(root: Path) -> Texts:
    """Read the pages of a project."""
    written = [root / name for name in ROOT_PAGES]
    documents = sorted((root / "docs").rglob("*.md"))
    written += [path for path in documents if path.name != GENERATED and ".ja" not in path.name]
    return {
        str(path.relative_to(root)): page_text(path.read_text(encoding="utf-8"))
        for path in written
        if path.exists()
    }


def code_of(root: Path, folders: Sequence[str]) -> Texts:
    """Read the Python files of a project in these folders."""
    files = (path for folder in folders for path in sorted((root / folder).rglob("*.py")))
    return {
        str(path.relative_to(root)): source_text(path)
        for path in files
        if path.name not in QUOTING and "node_modules" not in path.parts
    }


def percent_with_colon(pages: Texts) -> float:
    """Return the percentage of the sentences that contain a colon or a semicolon."""
    ends = r"(?<=[.!?])\s+|\n\s*\n|\n\s*[-*\d]+[.)]? "
    parts = (part for text in pages.values() for part in re.split(ends, text))
    sentences = [part for part in parts if len(part.split()) > 2]  # noqa: PLR2004 - a shorter part is a label
    found = sum(1 for sentence in sentences if re.search(r"[;:] ", sentence))
    return 100 * found / len(sentences) if sentences else 0.0


def exceeded(rule: Rule, pages: Texts, *code: Texts) -> list[str]:
    """Return the expressions of a rule from the pages and the code that exceed its limit."""
    limits = [(pages, rule.most), *((one, 2 * rule.most) for one in code)]
    over = (texts for texts, most in limits if rule.rate(texts) > most)
    return [quotation for texts in over for quotation in rule.quotations(texts)]


def figures(pages: Texts, *code: Texts) -> Mapping[str, str]:
    """Return all figures, by name."""
    rates = {
        rule.name: " / ".join(f"{rule.rate(texts):.1f}" for texts in (pages, *code))
        for rule in (*RULES, YOU)
    }
    return rates | {"sentences with : or ;": f"{percent_with_colon(pages):.0f} %"}


def problems(root: Path, pages: Texts, *code: Texts) -> list[str]:
    """Return a line for each limit that is not met, followed by the expressions."""
    found = []
    for rule in RULES:
        quotations = exceeded(rule, pages, *code)
        if quotations:
            found.append(f"{rule.name}: more than {rule.most} in 1,000 words")
            found += [f"  {quotation}" for quotation in quotations]
    if YOU.rate(pages) < FEWEST_YOU:
        found.append(f"you: fewer than {FEWEST_YOU} in 1,000 words: address the reader")
    if percent_with_colon(pages) > MOST_PERCENT_WITH_COLON:
        found.append(f"more than {MOST_PERCENT_WITH_COLON} % of the sentences have : or ;")
    lines = len((root / ROOT_PAGES[0]).read_text(encoding="utf-8").splitlines())
    if lines > MOST_README_LINES:
        found.append(f"{ROOT_PAGES[0]} has {lines} lines, more than {MOST_README_LINES}")
    return found


def main(root: Path) -> int:
    """Print the figures and the exceeded limits, and return the exit code."""
    texts = pages_of(root), code_of(root, SOURCE), code_of(root, OTHER_CODE)
    print("In 1,000 words of the pages / the source / the other code:")
    for name, figure in figures(*texts).items():
        print(f"  {name}: {figure}")
    found = problems(root, *texts)
    print("\n".join(found) if found else "The language is within its limits.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[1]))
