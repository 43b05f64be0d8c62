"""What the documents tell people to type works as it stands, and prints what they say that it prints.

If one of these fails, somebody copies a command that does not work. `python -m tools.docs_commands --slow` runs those
that take minutes, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.docs.links import broken_links
from tests.server.processes import real
from tools.docs_commands.blocks import ROOT, blocks, documents, inline_commands
from tools.docs_commands.checks import check, check_command
from tools.docs_commands.plan import Step, steps
from tools.docs_commands.running import Runner

BLOCKS = [block for file in documents() for block in blocks(file)]
INLINE = [command for file in documents() for command in inline_commands(file)]


def planned() -> list[Step]:
    """The steps of all blocks that can be planned; those that cannot fail a test of their own."""
    found: list[Step] = []
    for block in BLOCKS:
        try:
            found += steps(block)
        except ValueError:
            continue
    return found


STEPS = planned()
QUICK = [step for step in STEPS if step.how == "run" and step.language != "python"]
PROGRAMS = [step for step in STEPS if step.how == "run" and step.language == "python"]


def name(step: Step) -> str:
    return step.command.place


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """One server for all commands: the one that the documents start."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    with real("--log-level", "warning") as process, Runner(process.url) as made:
        yield made


def test_every_block_is_run_or_says_why_not() -> None:
    """A block of an unknown kind would be a promise that nobody keeps. A note in front of it says what it is."""
    unknown = []
    for block in BLOCKS:
        try:
            steps(block)
        except ValueError as error:
            unknown.append(str(error))
    assert unknown == []
    assert all(step.why for step in STEPS if step.how == "not run")


def test_the_documents_hold_what_these_tests_are_for() -> None:
    """A parser that finds nothing would pass every test."""
    files = {step.command.place.partition(":")[0] for step in STEPS}
    assert {"README.md", "docs/API.md", "docs/QUICKSTART.md", "docs/DEPLOYMENT.md", "docs/FROM_VLLM.md"} <= files
    languages = {step.language for step in STEPS}
    assert {"console", "sh", "python", "json", "yaml"} <= languages
    assert len(INLINE) > 50


@pytest.mark.parametrize("step", STEPS, ids=name)
def test_programs_options_and_files_exist(step: Step) -> None:
    check(step)


def test_so_do_those_of_commands_within_sentences() -> None:
    for command in INLINE:
        check_command(command.text)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("step", QUICK, ids=name)
def test_what_takes_seconds_is_run(step: Step, runner: Runner) -> None:
    runner.run(step)


def test_programs_run(runner: Runner) -> None:
    """Those who paste them into an editor would be met by a traceback."""
    assert PROGRAMS
    assert runner.run_programs(PROGRAMS) == {}


def test_links_lead_somewhere() -> None:
    """Relative links between documents, with the headings that they name."""
    assert [link for file in documents() for link in broken_links(file, ROOT)] == []
