"""docs/OPERATIONS.md against the code: an operator who follows it must not be misled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.openapi.utils import get_openapi

from server.api.documents.openapi import build
from server.app import create_app
from server.operation.metrics import Metrics
from tests.fakes import FakeEngine
from tools.config_table import DOCUMENT, document

TESTS = Path(__file__).parents[1]
TEXT = DOCUMENT.read_text(encoding="utf-8")


def test_the_options_are_those_of_the_configuration() -> None:
    """`python -m tools.config_table` writes them anew."""
    assert document(TEXT) == TEXT


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`(test_\w+\.py::test_\w+)`", TEXT))))
def test_every_promise_names_a_test_that_exists(reference: str) -> None:
    file, _, name = reference.partition("::")
    [path] = TESTS.rglob(file)
    assert f"def {name}(" in path.read_text(encoding="utf-8")


def test_the_table_of_metrics_is_complete() -> None:
    exported = set(re.findall(r"^# TYPE lightcone_(\w+) ", Metrics("x").render().decode(), re.MULTILINE))
    section = TEXT.partition("## Metrics")[2].partition("## Logs")[0]
    documented = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)", row)
    }
    assert exported == documented


@pytest.mark.parametrize("needs_key", [True, False])
@pytest.mark.parametrize("public_metrics", [True, False])
def test_the_document_asks_for_a_key_where_the_server_does(needs_key: bool, public_metrics: bool) -> None:
    """Generated clients would refuse to start without a key that nobody has."""
    found = build(needs_key=needs_key, public_metrics=public_metrics)
    free = {"/health", "/ping", "/ready", *(["/metrics"] if public_metrics else [])}
    assert ("security" in found) is needs_key
    assert ("securitySchemes" in found["components"]) is needs_key
    for path, methods in found["paths"].items():
        for operation in methods.values():
            asks = bool(operation.get("security", found.get("security")))
            assert asks is (needs_key and path not in free), path
            assert ("401" in operation["responses"]) is asks, path


FOR_PEOPLE = ("/", "/page/{name}", "/docs")
"""Pages for a browser: no part of the API."""


@pytest.mark.filterwarnings("ignore:Duplicate Operation ID")  # GET and HEAD of a path have one, in this listing only
def test_every_route_is_in_the_document() -> None:
    """A client generated from the document could not call an endpoint that it leaves out."""
    routes = create_app(engine=FakeEngine()).routes
    served = get_openapi(title="of the routes", version="1", routes=routes)["paths"]
    documented = build(needs_key=False, public_metrics=False)["paths"]
    assert {path: set(methods) - {"head"} for path, methods in served.items() if path not in FOR_PEOPLE} == {
        path: set(methods) for path, methods in documented.items()
    }
