"""What is to be done with each block and command: run it at once, run it when there is time, or not, and why."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from itertools import pairwise
from typing import Literal, NamedTuple

from tools.docs_commands.blocks import SHELL, TEXT, Block, Command, commands, words_of

How = Literal["run", "slow", "not run", "read"]
"""`read`: the data of a block is read by its parser; `not run` is only checked."""

DATA = frozenset({"json", "toml", "yaml"})

_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]{2,}")
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")

FRAGMENTS = {"haproxy": "a part of a load balancer's configuration"}
"""Languages whose blocks are no whole: why they are not run."""

NOT_HERE = {
    "docker": "needs docker and its images",
    "kubectl": "needs a cluster",
    "helm": "needs a cluster",
    "apt-get": "changes the machine",
    "pip": "installs packages",
    "git": "needs a place to clone from",
    "for": "a loop over replicas",
}
"""Programs that no test may assume or start: why."""

MODULES_NOT_HERE = {
    "venv": "makes an environment",
    "pip": "installs packages",
    "vllm.entrypoints.openai.api_server": "needs vLLM",
}


class Step(NamedTuple):
    """A piece of a document, and what is to be done with it."""

    how: How
    why: str
    """Why it is not run or slow; else empty."""
    language: str
    command: Command
    """Of a program or of data: the whole block."""


def steps(block: Block) -> list[Step]:
    """What is to be done with a block. Raises ValueError for one that nobody knows how to run."""
    if block.language in SHELL:
        return [_shell_step(block.language, command) for command in commands(block)]
    whole = Command(block.place, block.text, "", block.note)
    if block.language in TEXT:
        if any(line.startswith("$ ") for line in block.text.splitlines()):
            raise ValueError(f"{block.place}: a block with commands needs the language `console`")
        return []
    if block.language in DATA:
        return [Step("read", "", block.language, whole)]
    if block.language in FRAGMENTS:
        return [Step("not run", FRAGMENTS[block.language], block.language, whole)]
    if block.language != "python":
        raise ValueError(f"{block.place}: nobody knows how to run a block of {block.language!r}")
    how, why = _noted(whole) or ("run", "")
    return [Step(how, why, "python", whole)]


def _shell_step(language: str, command: Command) -> Step:
    how, why = _noted(command) or _by_program(command)
    return Step(how, why, language, command)


def _noted(command: Command) -> tuple[How, str] | None:
    """What the comment in front of the block says."""
    if command.note is None:
        return None
    return ("not run" if command.note.kind == "not run" else "slow"), command.note.text


def _by_program(command: Command) -> tuple[How, str]:
    """How a command is run if nothing is said of it. Raises ValueError for a program that nobody knows."""
    words = without_assignments(words_of(command.text))
    program = words[0].rpartition("/")[2]
    if program in NOT_HERE:
        return "not run", NOT_HERE[program]
    if placeholder := next((word for word in words if _PLACEHOLDER.fullmatch(word)), None):
        return "not run", f"{placeholder} stands for something of the reader's"
    if absent := next((name for name in _piped(words) if shutil.which(name) is None), None):
        return "not run", f"{absent} is not installed"
    if program == "make":
        return "not run", "sets this checkout up, or runs what CI runs"
    if program == "curl":
        return "run", ""
    if program == "lightcone" and len(words) > 1:
        return _lightcone(words[1:])
    if program == "python" and words[1:2] == ["-m"]:
        return _module(words[2])
    raise ValueError(f"{command.place}: nobody knows how to run {program!r}: say so in front of the block")


def _lightcone(words: list[str]) -> tuple[How, str]:
    if words[0] == "serve" and not {"--help", "--print-config"} & set(words):
        return "not run", "serves until it is stopped; its options are checked"
    if words[0] in ("bench", "loadtest", "doctor") and "--help" not in words:
        return "slow", ""
    return "run", ""


def _module(name: str) -> tuple[How, str]:
    if name in MODULES_NOT_HERE:
        return "not run", MODULES_NOT_HERE[name]
    if name == "tools.compiled_kernels" and find_spec("triton") is None:
        return "not run", "needs the triton extra"
    return "slow", ""


def _piped(words: list[str]) -> list[str]:
    """The programs that a command's output goes to."""
    return [after for before, after in pairwise(words) if before == "|"]


def without_assignments(words: list[str]) -> list[str]:
    """A command's words from its program on."""
    for number, word in enumerate(words):
        if not _ASSIGNMENT.fullmatch(word):
            return words[number:]
    return words
