"""Runs what the documents show against a server, and compares what it prints with what they say that it prints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tools.docs_commands.blocks import ROOT
from tools.docs_commands.checks import Mistake
from tools.docs_commands.plan import Step

QUICK_SECONDS, SLOW_SECONDS = 60.0, 900.0
"""Longest that a command may take."""

ELISION = "…"
"""Stands in a document for what is left out."""

_ADDRESS = re.compile(r"(?:localhost|127\.0\.0\.1):8000")
_PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
_PRELUDE = """\
set -eo pipefail
curl() { command curl --fail-with-body --show-error --max-time 60 --noproxy '*' "$@"; }
"""
_PROGRAMS = """\
import json, sys, traceback
failed = {}
for place, text in json.load(sys.stdin):
    try:
        exec(compile(text, place, "exec"), {"__name__": "__main__"})
    except BaseException:
        failed[place] = traceback.format_exc()
print()
print(json.dumps(failed))
"""
_LINKED = ("configs", "docs", "Makefile", "docker-compose.yml")


class Runner:
    """A folder in which commands run as in a checkout, with a server where the documents have one.

    As a context manager it is removed at the end, with what the commands wrote.
    """

    def __init__(self, url: str) -> None:
        """url: of the server that stands for http://localhost:8000."""
        self._address = url.removeprefix("http://")
        self._temporary = tempfile.TemporaryDirectory(prefix="docs-commands-")
        self._folder = Path(self._temporary.name)
        for name in _LINKED:
            (self._folder / name).symlink_to(ROOT / name)
        programs = self._folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        _write_program(programs / "lightcone", f'exec "{sys.executable}" -P -m server "$@"')
        _write_program(programs / "python", f'exec "{sys.executable}" "$@"')
        kept = {name: value for name, value in os.environ.items() if name.lower() not in _PROXIES}
        self._environment = {
            **kept,
            "PATH": os.pathsep.join([str(programs), kept.get("PATH", os.defpath)]),
            "PYTHONPATH": str(ROOT),
            "LIGHTCONE_URL": url,
            "NO_COLOR": "1",
            "TERM": "dumb",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._temporary.cleanup()

    def run(self, step: Step) -> None:
        """Runs a step. Raises Mistake if it fails, takes too long or prints something else than the document shows."""
        text = _ADDRESS.sub(self._address, step.command.text)
        if step.language == "python":
            argv = [sys.executable, "-c", text]
        else:
            if " loadtest " in text and "--base-url" not in text:
                text += f" --base-url http://{self._address}"
            argv = ["bash", "-c", _PRELUDE + text]
        seconds = SLOW_SECONDS if step.how == "slow" else QUICK_SECONDS
        try:
            done = subprocess.run(
                argv, cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Mistake(f"was not done within {seconds:g} s") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
            raise Mistake(f"ended with {done.returncode}: {' / '.join(said)}")
        if step.command.shown:
            compare(step.command.shown, done.stdout)

    def run_programs(self, steps: Sequence[Step]) -> dict[str, str]:
        """Runs Python programs in one process, each with names of its own: what they import is imported once.

        Returns how those ended that failed, by their places.
        """
        programs = [(step.command.place, _ADDRESS.sub(self._address, step.command.text)) for step in steps]
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAMS], cwd=self._folder, env=self._environment, input=json.dumps(programs),
            capture_output=True, text=True, timeout=QUICK_SECONDS * len(programs),
        )  # fmt: skip
        if done.returncode:
            return {"all": done.stderr.strip()}
        failed: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
        return failed


def compare(shown: str, printed: str) -> None:
    """Raises Mistake unless a command printed what a document shows; an elision stands for anything."""
    pieces = shown.strip("\n").split(ELISION)
    pattern = ".*".join(re.escape(piece) for piece in pieces)
    if re.fullmatch(pattern, printed.strip("\n"), re.DOTALL) is None:
        raise Mistake(f"printed {printed.strip()[:300]!r}, not {shown.strip()[:300]!r}")


def _write_program(file: Path, line: str) -> None:
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)
