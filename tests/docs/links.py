"""Links of Markdown documents to files of the repository and to headings in them."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token


def broken_links(file: Path, root: Path) -> list[str]:
    """Links of a document that lead to no file, or to no heading of one."""
    broken = []
    for token in _inline(file):
        target = str(token.attrGet("href") or token.attrGet("src") or "")
        if not target or re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        place = (file.parent / path).resolve() if path else file
        if not place.exists() or (heading and place.suffix == ".md" and heading not in _headings(place)):
            broken.append(f"{file.relative_to(root)}: {target}")
    return broken


def _tokens(file: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(file.read_text(encoding="utf-8"))


def _inline(file: Path) -> list[Token]:
    return [child for token in _tokens(file) for child in token.children or ()]


@cache
def _headings(file: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    tokens = _tokens(file)
    texts = [
        "".join(part.content for part in inside.children or ())
        for opening, inside in pairwise(tokens)
        if opening.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}
