"""docs/FROM_VLLM.md tells those who come from another server what is the same here: its names are looked up."""

from __future__ import annotations

import re

import pytest

from server.api.chat.request import ChatRequest
from server.api.completions.request import CompletionRequest
from server.api.documents.openapi import build
from server.api.fields import take_known
from server.http.errors import BadRequest
from server.operation.config import option_types
from server.operation.flags import ALIASES
from tests.docs.tables import column, tables
from tests.source_tree import ROOT

DOCUMENT = ROOT / "docs" / "FROM_VLLM.md"
FLAGS = {f"--{name.replace('_', '-')}" for name in option_types()} | {
    flag for many in ALIASES.values() for flag in many
}
FLAGS |= {f"--no-{name.replace('_', '-')}" for name, (_, kind, _) in option_types().items() if kind is bool}
FIELDS = CompletionRequest.model_fields.keys() | ChatRequest.model_fields.keys()


def of_table(*head: str) -> list[list[list[str]]]:
    """The rows of the table with this head: of each cell, what stands in it as code."""
    [rows] = [rows for names, rows in tables(DOCUMENT) if tuple(names) == head]
    return [[cell.codes for cell in row] for row in rows]


def test_flags_of_this_server_exist() -> None:
    named = {code for row in of_table("here", "vLLM", "SGLang", "") for code in row[0] if code.startswith("--")}
    assert len(named) > 20
    assert named - FLAGS == set()


def test_flags_that_are_not_here_are_not() -> None:
    named = {code for row in of_table("theirs", "here") for code in row[0] if code.startswith("--")}
    assert named & FLAGS == set()


def test_fields_that_are_said_to_be_the_same_exist() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    same = re.findall(r"`(\w+)`", text.partition("Same name, same meaning:")[2].partition("\n\n")[0])
    assert len(same) > 30
    assert set(same) - FIELDS == set()


def test_fields_have_the_names_that_they_have_here() -> None:
    named = {code for row in of_table("theirs", "here", "") for code in row[1] if re.fullmatch(r"\w+", code)}
    assert named
    assert named - FIELDS == set()


@pytest.mark.parametrize("name", sorted({code for row in of_table("theirs", "here", "") for code in row[0]} - FIELDS))
def test_fields_with_another_name_are_refused_and_never_ignored(name: str) -> None:
    """Somebody would believe that theirs works."""
    for kind in (CompletionRequest, ChatRequest):
        with pytest.raises(BadRequest, match=name):
            take_known({name: object()}, kind.endpoint, kind.model_fields)


def test_paths_exist() -> None:
    paths = build(needs_key=False, public_metrics=False)["paths"].keys()
    named = {code for row in of_table("here", "vLLM", "SGLang") for code in row[0] if code.startswith("/")}
    assert len(named) > 10
    assert named - paths == set()


def test_metrics_exist() -> None:
    source = (ROOT / "server" / "operation" / "metrics.py").read_text(encoding="utf-8")
    named = [code for cell in column(DOCUMENT, "here, after `lightcone_`") for code in cell.codes]
    assert named
    assert [name for name in named if name.removesuffix("_total") not in source] == []
