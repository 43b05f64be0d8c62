"""Two and four ranks, each started once a module: torch's process group is one of the whole process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.ranks.crew import Crew


@pytest.fixture(scope="module", params=[2, 4], ids=["two", "four"])
def crew(request: pytest.FixtureRequest) -> Iterator[Crew]:
    """Two ranks, then four."""
    crew = Crew(request.param)
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[Crew]:
    """Two ranks."""
    crew = Crew(2)
    yield crew
    crew.close()
