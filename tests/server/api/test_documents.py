"""docs/OPERATIONS.md against the code: an operator who follows it must not be misled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.operation.metrics import Metrics
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
