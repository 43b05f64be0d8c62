"""The live page in a browser when things go wrong: keys, stops, lost servers and engines, proxies with a prefix."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.page.conftest import KEY, OpenPage
from tests.server.processes import ServerProcess, fake, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LOST = ("Failed to load resource",)
"""What Chromium itself tells the console of an answer that is no 200, or of none at all."""
PREFIX = "/models/small"


def begin(page: Page) -> None:
    """Asks one mode for a long answer, and waits until some of it is there."""
    page.wait_for_selector("#run:enabled")
    for box in page.locator("#modes input").all():
        box.set_checked(box.get_attribute("value") == "ar", force=True)
    page.locator("#prompt").fill("Hello")
    page.get_by_role("button", name="Generate").click()
    page.wait_for_selector(".settled:not(:empty)")


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


@contextmanager
def proxied(url: str) -> Iterator[str]:
    """The server behind a proxy that takes a prefix from the path; yields the page's address there."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: self.headers[name] for name in ("authorization", "content-type") if name in self.headers}
            if not self.path.startswith(f"{PREFIX}/"):
                self.send_error(404)
                return
            with httpx.stream(
                self.command, url + self.path.removeprefix(PREFIX), content=body, headers=headers, trust_env=False
            ) as answer:
                self.send_response(answer.status_code)
                for name in ("content-type", "content-security-policy"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                self.end_headers()
                for part in answer.iter_raw():
                    self.wfile.write(part)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}{PREFIX}/"
        proxy.shutdown()


def test_a_key_is_asked_for_refused_and_kept_in_the_tab(served: ServerProcess, open_page: OpenPage) -> None:
    """A key must outlive a reload, and neither the tab nor a wrong attempt."""
    page = open_page(f"{served.url}/", expected=LOST)
    field = page.get_by_label("This server wants a key")
    field.wait_for()
    assert page.locator("#run").is_disabled()
    field.fill("wrong")
    field.press("Enter")
    page.wait_for_selector("#key-problem:text('Incorrect API key provided.')")
    assert page.evaluate("sessionStorage.length") == 0
    field.fill(KEY)
    field.press("Enter")
    page.wait_for_selector("#run:enabled")
    assert field.is_hidden()
    page.reload()
    page.wait_for_selector("#run:enabled")
    assert page.evaluate("localStorage.length") == 0
    assert page.context.cookies() == []
    assert KEY not in page.content()
    assert KEY not in page.url
    page.get_by_role("button", name="Forget the key").click()
    field.wait_for()


def test_behind_a_prefix_all_works_as_at_the_root(served: ServerProcess, open_page: OpenPage) -> None:
    with proxied(served.url) as url:
        page = open_page(url, key=KEY)
        begin(page)
        page.wait_for_selector(".state[data-kind=done]")
        page.get_by_role("button", name="As code").click()
        assert f"{url}v1/chat/completions" in (page.locator("#snippet").text_content() or "")
        page.locator("#to-server").click()
        page.locator(".tile dd:first-of-type", has_text=re.compile(r"\d")).first.wait_for()


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_a_stop_stops_the_server_too(browser: Browser, open_page: OpenPage, way: str) -> None:
    """An answer that nobody wants any more would go on costing what it costs."""
    with fake("steady") as server:
        page = open_page(f"{server.url}/")
        begin(page)
        if way == "Escape":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="Stop").click()
        page.wait_for_selector(".state[data-kind=stopped]")
        assert (page.locator(".state").text_content() or "").startswith("Stopped after")
        assert page.locator(".settled").text_content(), "what was there is gone"
        wait_for("the abort", lambda: server.metric("requests_total", 'status="499"') == 1)
        page.wait_for_selector("#run:text('Generate')")


def test_a_lost_engine_is_told_of_and_the_page_goes_on_with_the_next(browser: Browser, open_page: OpenPage) -> None:
    with fake("steady") as server:
        page = open_page(f"{server.url}/", expected=LOST)
        begin(page)
        os.kill(server.engine, signal.SIGKILL)
        page.wait_for_selector(".state[data-kind=error]")
        assert "engine" in (page.locator(".state").text_content() or "").lower()
        assert page.locator(".settled").text_content()
        begin(page)  # waits until the button can be pressed again
        assert page.locator(".state[data-kind=error]").count() == 0


def test_a_lost_server_is_told_of_and_found_again(browser: Browser, open_page: OpenPage) -> None:
    port = free_port()
    with fake("steady", "--port", port) as server:
        page = open_page(f"{server.url}/", expected=LOST)
        begin(page)
        server.close()
        page.wait_for_selector(".state[data-kind=error]")
        assert "connection was lost" in (page.locator(".state").text_content() or "")
        page.wait_for_selector("#server-state[data-kind=waiting]:text('cannot be reached')")
        assert page.locator("#run").is_disabled()
    with fake("steady", "--port", port):
        begin(page)
        assert page.locator("#server-state").get_attribute("data-kind") == "ready"


def test_a_server_that_is_loading_says_so(browser: Browser, open_page: OpenPage) -> None:
    with fake("hang", ready=False) as server:
        page = open_page(f"{server.url}/")
        page.wait_for_selector("#server-state:text('Loading the model')")
        assert page.locator("#run").is_disabled()
