"""The live page over plain HTTP: the server's address is a page for who wants one, and gives away nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin

import pytest

from server.page.route import CONTENT_TYPES, FILES, HEADERS, INDEX, PATHS, STATIC
from tests.server.conftest import ApiFactory
from tests.server.conftest import serve as serve
from tests.source_tree import ROOT

pytestmark = pytest.mark.anyio
KEY = {"api_keys": ("secret",)}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class References(HTMLParser):
    """Everything that a page makes a browser load, and everything inline that a strict policy would stop."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "link"):
            self.loaded.append(values.get("src") or values.get("href") or "")
        self.inline += [f"<{tag} {name}>" for name in values if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in values):
            self.inline.append(f"<{tag}>")


async def test_the_address_of_the_server_is_the_page(serve: ApiFactory) -> None:
    async with serve() as api:
        page = await api.http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")


@pytest.mark.parametrize("path", sorted(PATHS))
async def test_no_file_of_the_page_needs_a_key(serve: ApiFactory, path: str) -> None:
    """A browser sends none with an address that is typed: there would be no page to ask for the key."""
    async with serve(**KEY) as api:
        answer = await api.http.get(path)
        head = await api.http.head(path)
    assert answer.status_code == head.status_code == 200
    assert answer.content
    assert answer.headers["content-type"] == CONTENT_TYPES[PurePosixPath(path).suffix or ".html"]
    for sent in (answer, head):
        assert {name: sent.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/docs", "/page", "/page/", "/page/x.js"])
async def test_all_else_still_needs_one(serve: ApiFactory, path: str) -> None:
    async with serve(**KEY) as api:
        assert (await api.http.get(path)).status_code == 401


@pytest.mark.parametrize(
    "name",
    ["route.py", "index.html", "..%2froute.py", "../route.py", "%2e%2e/route.py", "app.js/", "app.js%00", "APP.JS"],
)
async def test_only_the_files_of_the_page_are_served(serve: ApiFactory, name: str) -> None:
    """Nobody reads the server's other files through it."""
    async with serve() as api:
        assert (await api.http.get(f"/page/{name}")).status_code == 404


async def test_a_server_without_a_page_has_none(serve: ApiFactory) -> None:
    async with serve(page=False) as api:
        assert {(await api.http.get(path)).status_code for path in PATHS} == {404}
    async with serve(page=False, **KEY) as api:
        assert {(await api.http.get(path)).status_code for path in PATHS} == {401}


@pytest.mark.parametrize("path", sorted(PATHS))
async def test_a_browser_that_has_a_file_is_not_sent_it_again(serve: ApiFactory, path: str) -> None:
    async with serve() as api:
        tag = (await api.http.get(path)).headers["etag"]
        for sent in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = await api.http.get(path, headers={"If-None-Match": sent})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert (await api.http.get(path, headers={"If-None-Match": '"other"'})).status_code == 200


async def test_the_policy_lets_the_page_speak_to_its_own_server_alone(serve: ApiFactory) -> None:
    """A model's answer that holds markup or a script must stay text, and no third party may learn of a prompt."""
    async with serve() as api:
        policy = (await api.http.get("/")).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert {rules[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert {rules[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy


def test_everything_is_loaded_by_relative_names_and_nothing_is_inline() -> None:
    """Behind a proxy's prefix an absolute path would lead elsewhere; what is inline the policy stops."""
    references = References((STATIC / INDEX).read_text(encoding="utf-8"))
    assert references.inline == []
    assert {urljoin("/", name) for name in references.loaded} <= PATHS
    assert {urljoin("/prefix/", name) for name in references.loaded} <= {f"/prefix{path}" for path in PATHS}
    for name in FILES:
        text = (STATIC / name).read_text(encoding="utf-8")
        assert not re.search(
            r"https?://(?!www\.w3\.org/2000/svg)|@import|\beval\(|innerHTML|outerHTML|insertAdjacentHTML", text
        )
        assert not re.search(r"""(?:fetch|call|json|chunks)\(\s*["'`]/""", text), f"{name} asks for an absolute path"
        for module in re.findall(r"""from "(.+?)";""", text):
            assert module.removeprefix("./") in FILES


def test_the_list_of_files_is_that_of_the_folder() -> None:
    assert {path.name for path in STATIC.iterdir()} == {INDEX, *FILES}


def test_installed_packages_have_the_files(tmp_path: Path) -> None:
    """Who installs the wheel would get a server whose page is a 500."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["server.page"]
    carried = {path for pattern in patterns for path in STATIC.parent.glob(pattern)}
    assert set(STATIC.iterdir()) <= carried


def test_a_server_reads_none_of_it_before_somebody_asks() -> None:
    """The page costs nothing where nobody opens it."""
    code = (
        "import server.app, server.page.route as route\n"
        "server.app.create_app()\n"
        "print(route._read.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


def themes() -> list[dict[str, str]]:
    """The colours of the page, light and dark: name to #rrggbb."""
    light, dark = (STATIC / "style.css").read_text(encoding="utf-8").split("@media (prefers-color-scheme: dark)")
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", text)) for text in (light, dark.split("\n}\n")[0])]
    return [found[0], {**found[0], **found[1]}]


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_every_text_can_be_read_against_its_ground(theme: dict[str, str]) -> None:
    """The colour of a confidence must not make a word hard to read: 4.5 to 1 is what WCAG's level AA asks for."""
    names = ["ink", "soft", "rejected", *(f"shade-{number}" for number in range(10))]
    for ground in ("paper", "raised"):
        for name in names:
            low, high = sorted((luminance(theme[name]), luminance(theme[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{name} on {ground}"
