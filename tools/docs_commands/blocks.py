"""Code blocks and commands of Markdown documents."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
FOLDERS = ("", "docs", "engine", "server", "loadtest", "bench", "tools", "configs")
"""Where documents lie; the first is the repository's own folder, the others with all that is below them."""

SHELL = frozenset({"console", "sh", "bash", "shell"})
TEXT = frozenset({"", "text"})
"""Languages of blocks that hold nothing to run."""

_NOTE = re.compile(r"<!--\s*(not run|slow):\s*(.+?)\s*-->", re.DOTALL)
_INLINE = re.compile(r"(\.venv/bin/)?(lightcone|make|python -m tools\.\w+)( [^…]*)?")
PROMPT = "$ "


class Note(NamedTuple):
    """What a comment in front of a block says of it."""

    kind: str
    """`not run` or `slow`"""
    text: str
    """Why, or how long it takes."""


class Block(NamedTuple):
    """A code block."""

    file: Path
    line: int
    """Of its first line of code, counted from 1."""
    language: str
    text: str
    note: Note | None

    @property
    def place(self) -> str:
        """File and line, as editors read them."""
        return f"{self.file.relative_to(ROOT)}:{self.line}"


class Command(NamedTuple):
    """A command, and what the document shows that it prints."""

    place: str
    text: str
    shown: str
    """Empty where the document shows nothing."""
    note: Note | None


def documents() -> list[Path]:
    """All documents, in the order of their names."""
    found = {path for folder in FOLDERS for path in (ROOT / folder).glob("**/*.md" if folder else "*.md")}
    return sorted(found)


def blocks(file: Path) -> Iterator[Block]:
    """The code blocks of a document. A note stands directly in front of its block."""
    note: Note | None = None
    for token in MarkdownIt("commonmark").enable("table").parse(file.read_text(encoding="utf-8")):
        if token.type == "html_block":
            found = _NOTE.fullmatch(token.content.strip())
            note = None if found is None else Note(found[1], " ".join(found[2].split()))
            continue
        if token.type == "fence":
            first = 0 if token.map is None else token.map[0] + 2
            yield Block(file, first, token.info.strip(), token.content, note)
        note = None


def commands(block: Block) -> Iterator[Command]:
    """The commands of a shell block. In `console` each begins with a dollar, and what it prints follows.

    A command goes on to where its quotes are closed and no backslash asks for another line.
    """
    asks = block.language == "console"
    text, shown, begun = "", "", 0
    for number, line in enumerate(block.text.splitlines(keepends=True), block.line):
        if text and not _is_whole(text):
            text += line
        elif not asks or line.startswith(PROMPT):
            if text:
                yield Command(_at(block, begun), text.strip(), shown, block.note)
            text, shown, begun = line.removeprefix(PROMPT) if asks else line, "", number
        else:
            shown += line
    if text.strip():
        yield Command(_at(block, begun), text.strip(), shown, block.note)


def inline_commands(file: Path) -> Iterator[Command]:
    """Commands of this repository that stand within sentences and tables."""
    for token in MarkdownIt("commonmark").enable("table").parse(file.read_text(encoding="utf-8")):
        line = 0 if token.map is None else token.map[0] + 1
        for child in token.children or ():
            if child.type == "code_inline" and _INLINE.fullmatch(child.content):
                yield Command(f"{file.relative_to(ROOT)}:{line}", child.content, "", None)


def words_of(text: str) -> list[str]:
    """A command's words, without its comments. Raises ValueError for an open quote."""
    return shlex.split(text.replace("\\\n", " "), comments=True)


def _is_whole(text: str) -> bool:
    if text.rstrip("\n").endswith("\\"):
        return False
    try:
        words_of(text)
    except ValueError:
        return False
    return True


def _at(block: Block, line: int) -> str:
    return f"{block.file.relative_to(ROOT)}:{line}"
