"""The live page in a browser, with the built-in model: what people see of an answer, and what they can do with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.page.conftest import KEY, OpenPage
from tests.page.driving import QUESTION, choose, fill, generate, lane, seek, settled, states, through_all_states
from tests.server.processes import ServerProcess

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_the_text_resolves_to_what_the_api_answers(page: Page, served: ServerProcess) -> None:
    """Masks first, then drafts, then text: and at the end, what any other client is told."""
    choose(page, "diffusion", "speculative")
    fill(page, "temperature", "0.7")
    fill(page, "seed", "11")
    generate(page)
    count = "document.querySelectorAll('[data-decoding={}] .draft {}').length"
    masks = through_all_states(page, count.format("diffusion", ".mask"))
    assert max(masks) > 3, "no masks were shown"
    assert masks[-1] == 0
    assert max(through_all_states(page, count.format("speculative", "[class*=shade-]"))) > 3, "no draft in colour"
    for mode in ("diffusion", "speculative"):
        body = {"messages": [{"role": "user", "content": QUESTION}], "decoding": mode, "seed": 11}
        answer = httpx.post(
            f"{served.url}/v1/chat/completions",
            json={**body, "temperature": 0.7, "max_tokens": 200},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=60,
            trust_env=False,
        ).json()
        assert settled(lane(page, mode)) == answer["choices"][0]["message"]["content"]
        assert lane(page, mode).locator(".mask, [class*=shade-], .rejected").count() == 0
        passes = lane(page, mode).locator("[data-figure=passes] dd").text_content()
        assert passes == str(answer["usage"]["diffusion"]["passes"])


def test_what_verification_rejects_is_struck_out(page: Page) -> None:
    """At a high temperature much of a draft is wrong, and people see which part."""
    choose(page, "speculative")
    fill(page, "temperature", "1.5")
    fill(page, "seed", "5")
    generate(page)
    rejected = through_all_states(page, "document.querySelector('.draft .rejected')?.textContent ?? ''")
    assert any(text.strip() for text in rejected)
    assert rejected[-1] == ""


def test_playback_pauses_steps_and_goes_on(page: Page) -> None:
    choose(page, "diffusion")
    generate(page)
    seek(page, 2)
    toggle, slider = page.locator(".player .toggle"), page.get_by_role("slider")
    assert toggle.text_content() == "Play"
    first = page.locator(".text").text_content()
    page.keyboard.press(".")
    assert slider.input_value() == "3"
    page.get_by_role("button", name="One state back").click()
    assert (slider.input_value(), page.locator(".text").text_content()) == ("2", first)
    page.get_by_label("Pace").select_option("1")
    toggle.click()
    page.wait_for_selector(".toggle:text('Play again')")
    assert slider.input_value() == str(states(page))
    assert "state" in (slider.get_attribute("aria-valuetext") or "")


def test_those_who_want_no_motion_get_no_replay(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    choose(page, "auto")
    generate(page, "Add 87 and 25.")
    page.wait_for_selector(".toggle:text('Play again')")
    assert page.get_by_label("Pace").input_value() == "1"
    assert page.locator(".fresh").first.evaluate("element => getComputedStyle(element).animationName") == "none"


def test_a_race_asks_every_mode_for_the_same(page: Page) -> None:
    """The modes that are exact give one text at any temperature: the same seed was drawn for all."""
    choose(page, "ar", "speculative", "auto")
    fill(page, "temperature", "1")
    generate(page)
    seek(page, states(page))
    texts = {settled(lane(page, mode)) for mode in ("ar", "speculative", "auto")}
    assert len(texts) == 1
    assert len(texts.pop()) > 20
    for mode in ("ar", "speculative", "auto"):
        figures = lane(page, mode).locator(".figures dd").all_text_contents()
        assert all(re.match(r"[\d.,]+", figure) for figure in figures), figures


def test_the_fields_are_those_of_the_mode_with_their_ranges(page: Page) -> None:
    page.get_by_role("button", name="All fields").click()
    choose(page, "ar")
    assert page.locator("#field-threshold").is_disabled()
    choose(page, "ar", "diffusion")
    assert page.locator("#field-threshold").is_enabled()
    assert "only diffusion" in (page.locator("[data-field=threshold]").text_content() or "")
    assert "0 to 2" in (page.locator("[data-field=temperature] .range").text_content() or "")
    fill(page, "threshold", "0.5")
    fill(page, "max_tokens", "20")
    generate(page)  # the threshold goes to the one that knows it: ar would refuse it
    assert page.locator(".state[data-kind=error]").count() == 0
    fill(page, "min_p", "3")
    page.get_by_role("button", name="Generate").click()
    assert "min_p: it must be a number 0 to 1" in (page.locator("#request-problem").text_content() or "")
    assert page.locator("#field-min_p").get_attribute("aria-invalid") == "true"


def test_the_first_press_of_generate_shows_something(page: Page) -> None:
    """A newcomer presses the button before writing anything, and would be told to write."""
    generate(page, "")
    assert page.locator("#prompt").input_value() == page.locator("#suggestions button").first.text_content()
    seek(page, states(page))
    assert "owl" in (page.locator(".text").first.text_content() or "")
    generate(page, "")
    assert page.locator("#request-problem").text_content() == "Write a prompt first."


def test_what_the_server_refuses_is_said_at_the_field(served: ServerProcess, open_page: OpenPage) -> None:
    """The range of some fields depends on the model: only the server knows it."""
    page = open_page(f"{served.url}/", key=KEY, expected=("status of 400",))
    page.wait_for_selector("#run:enabled")
    choose(page, "diffusion")
    page.get_by_role("button", name="All fields").click()
    fill(page, "block_length", "4000")
    generate(page)
    message = page.locator(".state[data-kind=error]").text_content() or ""
    assert "block_length" in message
    assert page.locator("[data-field=block_length] .problem").text_content() == message
    assert not page.locator(".figures").is_visible(), "there is nothing to count"
    assert not page.locator(".player").is_visible(), "nor to play: the message would stand below it, out of sight"
    choose(page, "ar")
    generate(page)
    assert page.locator(".figures").is_visible()
    assert page.locator(".player").is_visible()


def test_a_gap_is_filled_where_it_is(page: Page) -> None:
    page.get_by_role("button", name="All fields").click()
    page.get_by_role("radio", name="Completion").check()
    choose(page, "diffusion")
    fill(page, "suffix", " One evening, Clara went to the forest and found a key.")
    fill(page, "max_tokens", "5")
    generate(page, "Once upon a time there was a")
    seek(page, states(page))
    text = page.locator(".text").text_content() or ""
    assert text.startswith("Once upon a time there was a ")
    assert text.endswith(" One evening, Clara went to the forest and found a key.")


def test_markup_stays_text(page: Page) -> None:
    """A prompt, or an answer, that holds a script must not run it with the key at hand."""
    page.get_by_role("button", name="All fields").click()
    page.get_by_role("radio", name="Completion").check()
    attack = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    choose(page, "ar")
    fill(page, "max_tokens", "3")
    generate(page, attack)
    assert (page.locator(".text").text_content() or "").startswith(attack)
    assert page.locator("#lanes img, #lanes script").count() == 0
    assert page.title() == "Lightcone"


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_the_code_that_is_shown_runs(page: Page, language: str) -> None:
    """People paste it into a terminal: quotes, keys and line ends must be right, and no key may be in it."""
    choose(page, "diffusion")
    page.locator("#prompt").fill('It\'s "so": add 87 and $HOME, 25 \\ é.')
    page.get_by_role("button", name="As code").click()
    page.get_by_role("button", name=language, exact=True).click()
    fill(page, "max_tokens", "8")
    code = page.locator("#snippet").text_content() or ""
    assert KEY not in code
    command = [sys.executable, "-c", code] if language == "Python" else ["bash", "-c", code]
    env = {**os.environ, "LIGHTCONE_API_KEY": KEY, "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), done.stderr
    assert language == "Python" or done.stdout.rstrip().endswith("data: [DONE]")


def test_the_server_is_seen_at_work(page: Page, served: ServerProcess) -> None:
    page.locator("#to-server").click()
    assert page.locator("#server-view").is_visible()
    httpx.post(
        f"{served.url}/v1/completions",
        json={"prompt": "Once", "max_tokens": 60, "ignore_eos": True, "decoding": "speculative"},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
        trust_env=False,
    ).raise_for_status()
    for label in ("Tokens a pass", "Acceptance", "First text"):
        tile = page.locator(".tile", has_text=label)
        tile.locator("dd:first-of-type", has_text=re.compile(r"\d")).wait_for()
        assert tile.locator("path").last.get_attribute("d")
