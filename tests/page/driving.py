"""The live page as its users drive it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

QUESTION = "Tell me a story about an owl and a coin."


def choose(page: Page, *modes: str) -> None:
    """Decoding modes, and no others."""
    for box in page.locator("#modes input").all():
        box.set_checked(box.get_attribute("value") in modes, force=True)


def fill(page: Page, field: str, text: str) -> None:
    page.locator(f"#field-{field}").fill(text)


def generate(page: Page, prompt: str = QUESTION) -> None:
    """Asks, and waits for the answers to be complete. Playback may still be going on."""
    page.locator("#prompt").fill(prompt)
    page.get_by_role("button", name="Generate").click()
    finished(page)


def finished(page: Page) -> None:
    page.wait_for_selector(".lane[aria-busy=true]", state="detached")
    page.wait_for_selector("#run:text('Generate')")


def states(page: Page) -> int:
    return int(page.get_by_role("slider").get_attribute("max") or 0)


def seek(page: Page, state: int) -> None:
    page.get_by_role("slider").fill(str(state))


def through_all_states(page: Page, expression: str) -> list[Any]:
    """What an expression is worth in each state of the playback, from nothing to the end."""
    return page.evaluate(
        "expression => { const slider = document.querySelector('.player input'); const found = [];"
        " for (let state = 0; state <= Number(slider.max); state += 1) {"
        "   slider.value = state; slider.dispatchEvent(new Event('input')); found.push(expression()); }"
        " return found; }".replace("expression()", expression).replace("expression =>", "() =>")
    )  # type: ignore[no-any-return]


def lane(page: Page, mode: str) -> Locator:
    return page.get_by_role("article", name=mode, exact=True)


def settled(lane: Locator) -> str:
    return "".join(lane.locator(".settled, .fresh").all_text_contents())
