"""The documentation site works in a browser, and requests nothing from other hosts."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from langfuse_schema._postgres.findings import catalogue
from langfuse_schema.tables import declared_metadata
from tests.helpers.databases import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

PROGRAMS = {
    "chromium": "apt-get install chromium",
    "npm": "apt-get install npm",
}
MODULES = ("sphinx", "furo", "myst_parser", "playwright", "sphinxcontrib.mermaid")


def require_tools() -> None:
    """Skip if a tool is missing. In CI, fail instead."""
    missing = [
        f"{name} is not installed: {command}"
        for name, command in PROGRAMS.items()
        if shutil.which(name) is None
    ]
    if not all(is_installed(name) for name in MODULES):
        missing.append("the extra docs is not installed: pip install '.[docs]'")
    if missing and os.environ.get("CI") == "true":
        pytest.fail("; ".join(missing))
    if missing:
        pytest.skip("; ".join(missing))


def is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the parent package
        return False


class QuietHandler(SimpleHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site, which is built without warnings."""
    require_tools()
    from tools import site

    return site.build(tmp_path_factory.mktemp("build"))


@pytest.fixture
def origin(site: Path) -> Iterator[str]:
    """Serve the site on a loopback port, and yield its URL."""
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(QuietHandler, directory=str(site))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def requested() -> list[str]:
    """Return the list of the URLs that the page requests."""
    return []


@pytest.fixture
def page(origin: str, requested: list[str]) -> Iterator[Page]:
    """Yield an empty page of Chromium, with the site as its base URL."""
    from playwright.sync_api import sync_playwright

    # Root cannot use the sandbox, and the shared memory of a container can be small.
    options = ["--no-sandbox", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=options, timeout=120_000
        )
        page = browser.new_page(base_url=origin)
        page.set_default_timeout(60_000)
        page.on("request", lambda request: requested.append(request.url))
        yield page
        browser.close()


def assert_only_loopback(requested: list[str]) -> None:
    hosts = {urlsplit(url).hostname for url in requested if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}


def test_first_page_lists_pages_of_documentation(page: Page, requested: list[str]) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.goto("/")
    page.wait_for_url("**/docs/")
    assert page.locator("h1").inner_text().startswith("langfuse-schema documentation")
    names = page.locator(".sidebar-tree a").all_text_contents()
    assert {"Deploy to a database in use", "Errors", "The plan", "Changelog"} <= {*names}
    assert problems == []
    assert_only_loopback(requested)


def test_schema_page_draws_diagram_with_every_table(page: Page, requested: list[str]) -> None:
    page.goto("/docs/reference/schema.html")
    drawn = page.locator(".mermaid svg")
    for table in sorted(table.name for table in declared_metadata().tables.values()):
        drawn.get_by_text(table, exact=True).first.wait_for()
    box = drawn.bounding_box()
    assert box is not None
    assert box["width"] > 300
    assert box["height"] > 300
    assert any("/mermaid/" in url for url in requested)
    assert_only_loopback(requested)


def test_search_finds_page_with_word(page: Page, requested: list[str]) -> None:
    page.goto("/docs/")
    page.locator("input[name=q]").first.fill("autovacuum")
    page.locator("input[name=q]").first.press("Enter")
    page.wait_for_url("**/search.html*")
    result = page.locator("#search-results a").filter(has_text=re.compile("Locks and retries"))
    result.first.click()
    page.wait_for_url("**/explanation/locks.html*")
    assert "PostgreSQL cancels it" in page.locator("article").inner_text()
    assert_only_loopback(requested)


def test_site_has_anchor_of_every_error_code(site: Path) -> None:
    html = (site / "docs" / "reference" / "errors.html").read_text("utf-8")
    assert [code for code in catalogue() if f'id="{code}"' not in html] == []


def test_site_has_every_page_of_documentation(site: Path) -> None:
    pages = [path.relative_to(CHECKOUT) for path in CHECKOUT.glob("docs/**/*.md")]
    assert [page for page in pages if not (site / page.with_suffix(".html")).exists()] == []
