"""Configure Sphinx for the documentation site, which `make site` builds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pygments.lexers import PostgresLexer

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]

project = html_title = "langfuse-schema"
extensions = ["myst_parser", "sphinxcontrib.mermaid"]

# The source folder is the root of the checkout, so that links to README and examples work.
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = ["*.md", "docs/**"]
# Folders that Sphinx would search, and that can be large.
exclude_patterns = [".*", "build", "dist", "tests", "src"]

html_theme = "furo"
html_copy_source = False

# Anchors as on GitHub, for the headings of three levels.
myst_heading_anchors = 3
# GitHub draws these blocks by itself.
myst_fence_as_directive = ["mermaid"]
# `make site` copies the files from the npm package. Without it, readers would load them from a CDN.
mermaid_use_local = "mermaid/mermaid.esm.min.mjs"
mermaid_version = ""
mermaid_fullscreen = False
mermaid_height = "auto"


def add_navigation(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn the lists of links in the index into the navigation of the site."""
    if docname != root_doc:
        return
    sections = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", source[0], re.MULTILINE | re.DOTALL)
    link = re.compile(r"^- \[.*?\]\((.*?)\.md\)", re.MULTILINE)
    pages = {title: [f"/docs/{name}" for name in link.findall(text)] for title, text in sections}
    others = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.ja.md"))]
    pages["Project"] = [f"/{path.relative_to(ROOT).with_suffix('')}" for path in others]
    for title, names in pages.items():
        if names:
            options = f":hidden:\n:caption: {title}\n\n"
            source[0] += "\n```{toctree}\n" + options + "\n".join(names) + "\n```\n"


def setup(app: Sphinx) -> None:
    """Register the navigation, and PostgreSQL as the language of SQL blocks."""
    app.add_lexer("sql", PostgresLexer)
    app.connect("source-read", add_navigation)
