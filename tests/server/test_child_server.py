"""A server as a child process: its port, its readiness, its end, and that it never outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.child_server import ChildServer, ServerStartError
from tests.http_helpers import ROOT, wait_for
from tests.server.processes import FAKE, descendants, gone

PARENT = f"""
import sys
from server.child_server import ChildServer
server = ChildServer(module=["{FAKE}", "echo"])
server.wait_ready(60)
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child() -> Iterator[ChildServer]:
    with ChildServer(["--log-level", "error"], module=[FAKE, "echo"]) as server:
        yield server


def test_the_port_is_found_whatever_the_log_level(child: ChildServer) -> None:
    """And nothing else that the level leaves out is logged."""
    assert child.wait_ready(60) > 0
    assert child.url == f"http://127.0.0.1:{child.port}"
    assert [json.loads(line)["port"] for line in child.log_text().splitlines()] == [child.port]


def test_a_stop_is_a_clean_end_with_its_engine(child: ChildServer) -> None:
    child.wait_ready(60)
    engines = descendants(child.pid)
    url = child.url
    assert child.stop(20) == 0
    assert engines
    assert all(map(gone, engines))
    assert not child.ready
    assert child.url == url
    assert child.stop() == 0, "a second stop changes nothing"


def test_one_that_does_not_leave_is_killed() -> None:
    server = ChildServer(["--drain-delay", "60"], module=[FAKE, "echo"])
    server.wait_ready(60)
    assert server.stop(0.2) == -signal.SIGKILL


def test_why_it_does_not_start_is_one_line() -> None:
    with (
        ChildServer(module=[FAKE, "fail"]) as server,
        pytest.raises(ServerStartError, match=r"^did not start: the weights are damaged$"),
    ):
        server.wait_ready(60)
    with (
        ChildServer(["--no-such-flag"]) as server,
        pytest.raises(ServerStartError, match=r"did not start: .*no-such-flag"),
    ):
        assert server.port


def test_patience_ends() -> None:
    with (
        ChildServer(module=[FAKE, "hang"]) as server,
        pytest.raises(ServerStartError, match=r"not ready within 0\.5 s"),
    ):
        server.wait_ready(0.5)


def test_a_log_file_is_added_to_and_read_from_its_own_start(tmp_path: Path) -> None:
    """A server that is started again would otherwise be looked for at its old port."""
    log = tmp_path / "server.log"
    log.write_text('{"port": 1}\n')
    with ChildServer(module=[FAKE, "echo"], log=log) as server:
        server.wait_ready(60)
        assert server.port != 1
    assert log.read_text().startswith('{"port": 1}\n{')


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_its_parent(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        started = [pid, *descendants(pid)]
        assert len(started) == 2, "a server and its engine"
        os.kill(parent.pid, number)
    wait_for("the server and its engine to leave", lambda: all(map(gone, started)))


def test_another_package_of_that_name_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory of a user may hold a package called `server`."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    with ChildServer(module=[FAKE, "echo"]) as server:
        server.wait_ready(60)


def test_importing_it_is_cheap() -> None:
    """The programs that start servers need neither torch nor a web framework for it."""
    code = "import sys, server.child_server; print({'torch', 'fastapi', 'httpx', 'zmq'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"
