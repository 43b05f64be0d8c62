"""`python -m tests.serve_with_fake_engine MODE OPTION...`: the child server with the fake engine process behind it."""

from __future__ import annotations

import sys
from functools import partial

import server.app
from server import child_server
from server.engine_link.client import EngineClient

if __name__ == "__main__":
    argv = [sys.executable, "-P", "-m", "tests.fake_engine_process", sys.argv[1]]
    server.app.EngineClient = partial(EngineClient, argv=argv, backoff=0.01)  # type: ignore[attr-defined, assignment]
    sys.exit(child_server.main(sys.argv[2:]))
