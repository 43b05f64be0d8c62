import logging
from collections.abc import Iterator

import pytest

from tests.loadtest.fake import FakeServer, serve


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # connections dropped on purpose are no news
    with serve(FakeServer()) as server:
        yield server
