"""A real browser on real servers. Without Playwright or Chromium these tests are skipped, and say which is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.processes import ServerProcess, real

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OpenPage = Callable[..., "Page"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEY = "test-key"


# Both below end with the file that uses them: Playwright's event loop runs in this thread until it is stopped, and the
# tests of other files may bring loops of their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, the system's or Playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        found = next((path for name in NAMES if (path := shutil.which(name))), playwright.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip("there is no Chromium: apt-get install chromium, or playwright install chromium")
        # Chromium's own sandbox cannot be set up by root, nor in most containers.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(browser: Browser) -> Iterator[ServerProcess]:
    """A server with the built-in model that wants a key. It is not started where there is no browser."""
    with real("--api-keys", KEY, "--log-level", "warning") as process:
        yield process


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens a URL in a window of its own; the arguments are those of a browser context.

    At the end of the test: the page said nothing to the console but what `expected` names, no script failed, and
    nothing was asked of any other origin.
    """
    contexts = []
    seen: list[tuple[str, str, str, tuple[str, ...]]] = []

    def open_page(url: str, *, key: str | None = None, expected: tuple[str, ...] = (), **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: seen.append(("console", message.text, url, expected)))
        page.on("pageerror", lambda error: seen.append(("error", str(error), url, ())))
        page.on("request", lambda request: seen.append(("request", request.url, url, ())))
        if key is not None:
            page.add_init_script(f"sessionStorage.setItem('lightcone.key', {key!r})")
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    requests = {(what, url) for kind, what, url, _ in seen if kind == "request"}
    assert requests
    assert [what for what, url in requests if not what.startswith(url)] == []
    said = [
        what for kind, what, _, expected in seen if kind != "request" and not any(part in what for part in expected)
    ]
    assert said == []


@pytest.fixture
def page(served: ServerProcess, open_page: OpenPage) -> Page:
    page = open_page(f"{served.url}/", key=KEY)
    page.wait_for_selector("#run:enabled")
    return page
