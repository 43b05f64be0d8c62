"""docs/TROUBLESHOOTING.md is found by the message that somebody sees: a message that no code says is never found."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import NamedTuple

import pytest

from tests.docs.tables import column
from tests.source_tree import ROOT

DOCUMENT = ROOT / "docs" / "TROUBLESHOOTING.md"
MESSAGES = [code for cell in column(DOCUMENT, "message") for code in cell.codes]
CODES = {code for cell in column(DOCUMENT, "status, `code`") for code in cell.codes}
ERRORS = {
    "ApiError", "BadRequest", "BodyTooLarge", "EngineFailure", "MethodNotAllowed", "NotFound", "RequestError",
    "Unauthorized", "Unavailable",
}  # fmt: skip


class Text(NamedTuple):
    """A text of the source that may be a message."""

    parts: list[str | None]
    """None for what is put in while it runs."""

    @property
    def constants(self) -> list[str]:
        return [part for part in self.parts if part is not None]

    def is_message(self, message: str) -> bool:
        """Any text may stand for what is put in; most of the message has to be what is always the same."""
        constant, wanted = sum(map(len, self.constants)), len(message.replace("…", ""))
        if not constant or constant < 0.6 * wanted:
            return False
        if not all(part in message for part in self.constants):
            return False  # much faster than the pattern
        pattern = "".join(".*" if part is None else re.escape(part) for part in self.parts)
        return re.fullmatch(pattern, message, re.DOTALL) is not None


@cache
def trees() -> list[ast.AST]:
    files = sorted(file for package in ("server", "engine") for file in (ROOT / package).rglob("*.py"))
    return [ast.parse(file.read_text(encoding="utf-8")) for file in files]


@cache
def texts() -> list[Text]:
    nodes = (node for tree in trees() for node in ast.walk(tree))
    return [
        Text([text_of(part) for part in (node.values if isinstance(node, ast.JoinedStr) else [node])])
        for node in nodes
        if isinstance(node, ast.JoinedStr | ast.Constant)
    ]


def text_of(node: ast.AST) -> str | None:
    """The text that a node is; None for anything else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def is_said(message: str) -> bool:
    """A text of the source is this message. An ellipsis in it can only stand for what is put in there."""
    return any(text.is_message(message) for text in texts())


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 50
    assert len(CODES) > 20


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_is_one_that_the_code_says(message: str) -> None:
    assert is_said(message)


def test_a_message_that_no_code_says_is_noticed() -> None:
    """Else the test above could not fail."""
    assert not is_said("The model is asleep; try again shortly.")
    assert not is_said("cannot listen in … port …: …")
    assert not is_said("…")


def test_every_code_of_an_error_is_explained() -> None:
    """Programs act on codes; whoever writes one looks here for what they mean."""
    used = set()
    for node in (node for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            place = 1 if node.func.id == "Unavailable" else 2
            used |= {text for argument in node.args[place : place + 1] if (text := text_of(argument)) is not None}
    assert len(used) > 15
    assert used - CODES == set()
    assert CODES - {text_of(node) for tree in trees() for node in ast.walk(tree)} == set()
