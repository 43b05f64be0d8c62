"""`python -m tools.page_picture`: the pictures of the live page in docs/, from a real run of the built-in model.

Needs Playwright, a Chromium, and Pillow (the extra `dev` has both packages). The race is shown as it went: each picture
is the page at a moment of its playback, and the moments lie equally far apart.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from server.child_server import ChildServer

if TYPE_CHECKING:
    from PIL.Image import Image
    from playwright.sync_api import Browser, Page

FOLDER = Path(__file__).parents[1] / "docs"
PROMPT = "Tell me a story about an owl and a coin."
MODES = ("ar", "diffusion")
WIDTH, HEIGHT = 1120, 870
MOMENTS = 24
SHOWN_MS, LAST_SHOWN_MS = 160, 4000
QUALITY = 50


def main() -> int:
    """Writes one animation for light and one for dark surroundings."""
    parser = argparse.ArgumentParser(prog="python -m tools.page_picture", description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go (default: docs)")
    folder: Path = parser.parse_args().folder
    try:
        from PIL import Image
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        print(f"page_picture: error: {error}; install the extra dev", file=sys.stderr)
        return 1
    with ChildServer() as server, sync_playwright() as playwright:
        server.wait_ready(120)
        found = shutil.which("chromium") or shutil.which("google-chrome") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            pictures = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in _shots(browser, server.url, scheme)]
            _write(pictures, folder / f"page-{scheme}.webp")
        browser.close()
    return 0


def _shots(browser: Browser, url: str, scheme: str) -> Iterator[bytes]:
    """PNGs of the page from the first state of the race to the last."""
    context = browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#run:enabled")
    for box in page.locator("#modes input").all():
        box.set_checked(box.get_attribute("value") in MODES, force=True)
    page.locator("#prompt").fill(PROMPT)
    for _ in range(2):  # the first passes of a process are slower than those that follow
        page.locator("#run").click()
        page.wait_for_selector("#run:text('Stop')", state="detached")
        page.wait_for_selector(".toggle:text('Play again')")
    page.mouse.move(0, 0)
    page.locator("footer").evaluate("element => element.remove()")
    for state in _moments(page):
        page.get_by_role("slider").fill(str(state))
        yield page.screenshot()
    context.close()


def _moments(page: Page) -> list[int]:
    """The state at each of some moments that lie equally far apart, from the first state to the last."""
    slider = page.get_by_role("slider")
    times: list[float] = []
    for state in range(int(slider.get_attribute("max") or 0) + 1):
        slider.fill(str(state))
        times.append(_seconds(page.locator(".readout").text_content() or ""))
    begun, ended = times[1], times[-1]
    wanted = [begun + (ended - begun) * moment / (MOMENTS - 1) for moment in range(MOMENTS)]
    return [max(state for state, time in enumerate(times) if time <= moment) for moment in wanted]


def _seconds(readout: str) -> float:
    """The time in a readout such as "3 / 87 · 120 ms"."""
    value, unit = readout.rpartition("· ")[2].split()
    return float(value) / (1000 if unit == "ms" else 1)


def _write(pictures: list[Image], file: Path) -> None:
    """One animation that loops."""
    first, *others = pictures
    durations = [SHOWN_MS] * len(others) + [LAST_SHOWN_MS]
    first.save(file, save_all=True, append_images=others, duration=durations, loop=0, quality=QUALITY, method=6)
    print(f"{file}: {len(pictures)} pictures, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
