"""The live page for everybody: by keyboard, by ear, on a phone, enlarged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.page.conftest import KEY, OpenPage
from tests.page.driving import choose, finished, generate
from tests.server.processes import ServerProcess

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_all_can_be_done_with_the_keyboard(page: Page) -> None:
    page.locator("#prompt").focus()
    page.keyboard.type("Add 87 and 25.")
    page.keyboard.press("Control+Enter")
    finished(page)
    page.locator("#prompt").focus()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.textContent.trim() || document.activeElement.type"
            )
        )
    assert {"field-temperature", "run", "All fields", "As code"} <= reached
    assert any("range" in name for name in reached), "the slider is out of reach"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea')].filter(one => "
        "!one.labels?.length && !one.ariaLabel && !one.textContent.trim()).map(one => one.outerHTML)"
    )
    assert unnamed == [], "a screen reader has no name for it"


def test_the_answer_is_said_to_those_who_cannot_see_it(page: Page) -> None:
    choose(page, "auto")
    generate(page, "Add 87 and 25.")
    said = page.get_by_role("log").text_content() or ""
    assert "The answer is" in said
    assert "tokens in" in said
    assert page.locator(".draft").first.get_attribute("aria-hidden") == "true"


@pytest.mark.parametrize(
    "window",
    [
        {"viewport": {"width": 640, "height": 450}, "device_scale_factor": 2},  # what 1280 x 900 is at 200 %
        {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
        {"viewport": {"width": 320, "height": 640}},
    ],
)  # fmt: skip
def test_nothing_is_cut_off_on_a_small_screen(
    served: ServerProcess, open_page: OpenPage, window: dict[str, object]
) -> None:
    page = open_page(f"{served.url}/", key=KEY, **window)
    page.wait_for_selector("#run:enabled")
    choose(page, "ar", "diffusion")
    generate(page)
    page.get_by_role("button", name="All fields").click()
    page.get_by_role("button", name="As code").click()
    for view in ("#to-server", "#to-generate"):
        page.locator(view).click()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{view}: it scrolls sideways"
    outside = page.evaluate(
        "[...document.querySelectorAll('button, input:not(#modes input), select, textarea, .figures dd')]"
        ".filter(one => one.offsetParent && !one.closest('pre'))"
        ".filter(one => { const box = one.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth + 1 })"
        ".map(one => one.id || one.textContent)"
    )
    assert outside == []
