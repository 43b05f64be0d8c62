"""`python -m tools.docs_commands`: checks and runs every command in the documents, and says which it could not and why.

Without --slow, what takes more than seconds is only checked: that its program, options and files exist.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

from tools.docs_commands.blocks import blocks, documents, inline_commands
from tools.docs_commands.checks import Mistake, check
from tools.docs_commands.plan import Step, steps
from tools.docs_commands.running import Runner
from tools.measured_server import MeasuredServer


def main() -> int:
    """Returns 1 if a document says something that is not so."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs_commands", description=__doc__, allow_abbrev=False)
    parser.add_argument("--slow", action="store_true", help="also run what takes minutes, half an hour in total")
    parser.add_argument("--only", default="", metavar="TEXT", help="only commands whose text or place holds it")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        runner: Runner | None = None
        for step in _all_steps(counts):
            if arguments.only not in step.command.text and arguments.only not in step.command.place:
                continue
            if runner is None:
                server = stack.enter_context(MeasuredServer("--log-level", "warning"))
                runner = stack.enter_context(Runner(server.url))
            counts[_do(step, runner, slow=arguments.slow)] += 1
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return int(counts["wrong"] > 0)


def _all_steps(counts: Counter[str]) -> Iterator[Step]:
    """The steps of all documents; what is wrong with a block itself is told and counted."""
    for file in documents():
        for block in blocks(file):
            try:
                yield from steps(block)
            except ValueError as error:
                _tell("wrong", str(error), "")
                counts["wrong"] += 1
        for command in inline_commands(file):
            yield Step("not run", "within a sentence", "inline", command)


def _do(step: Step, runner: Runner, *, slow: bool) -> str:
    """Does what is to be done with a step, and tells of it. Returns the outcome in a word or two."""
    started = time.monotonic()
    runs = step.how == "run" or (step.how == "slow" and slow)
    try:
        check(step)
        if runs:
            runner.run(step)
    except Mistake as error:
        _tell("wrong", f"{step.command.place}: {_shown(step)}", str(error))
        return "wrong"
    outcome = "run" if runs else "read" if step.how == "read" else "checked"
    why = f"{time.monotonic() - started:.1f} s" if runs else step.why or ("slow" if step.how == "slow" else "")
    if step.language != "inline":
        _tell(outcome, f"{step.command.place}: {_shown(step)}", why)
    return outcome


def _shown(step: Step) -> str:
    """The first line of a step."""
    first = step.command.text.splitlines()[0]
    return first if len(first) <= 100 else f"{first[:99]}…"


def _tell(outcome: str, what: str, why: str) -> None:
    print(f"{outcome:<8} {what}" + (f"\n         {why}" if why else ""), flush=True)


if __name__ == "__main__":
    sys.exit(main())
