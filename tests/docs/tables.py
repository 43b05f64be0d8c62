"""Tables of Markdown documents, by their heads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    codes: list[str]
    """What stands in it as code."""


def tables(file: Path) -> Iterator[tuple[list[str], list[list[Cell]]]]:
    """The tables of a document: the texts of the head, and the rows."""
    head: list[str] = []
    rows: list[list[Cell]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(file.read_text(encoding="utf-8")):
        if token.type == "table_open":
            head, rows = [], []
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows is not None and token.level >= 4:
            codes = [child.content for child in token.children or () if child.type == "code_inline"]
            rows[-1].append(Cell(token.content, codes))
        elif token.type == "thead_close":
            head, rows = [cell.text for cell in rows[0]], []
        elif token.type == "table_close":
            yield head, rows


def column(file: Path, *names: str) -> Iterator[Cell]:
    """The cells below one of these heads, in all tables that have one."""
    for head, rows in tables(file):
        for name in names:
            if name in head:
                yield from (row[head.index(name)] for row in rows)
