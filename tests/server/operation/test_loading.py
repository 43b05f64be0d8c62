"""How far a model is, while one is loaded. Without it a load of minutes and one that hangs look alike."""

from __future__ import annotations

import asyncio
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engine.messages import EngineLoading
from server.child_server import MODULE
from server.engine_link.link import EngineState
from server.operation import loading
from server.operation.loading import Loading, LoadProgress, described
from tests.fakes import BUILTIN, FakeEngine
from tests.server.conftest import Api, ApiFactory, until
from tests.server.processes import ServerProcess, fake, server, wait_for
from tests.server.text.hub import hub

GIGA = 10**9


async def told(api: Api) -> Any:
    """What /health and /ready say of a model that is loaded; they must agree."""
    health, ready = [(await api.http.get(path)).json() for path in ("/health", "/ready")]
    for body in (health, ready):
        body.get("loading", {}).pop("seconds", None)
    assert health.get("loading") == ready.get("loading")
    return health.get("loading")


@pytest.mark.anyio
async def test_health_and_ready_say_how_far_the_model_is(serve: ApiFactory) -> None:
    """An operator cannot tell whether to wait or to restart; orchestrators cannot show it."""
    engine = FakeEngine()
    engine.load.clear()
    nothing = {"bytes": 0, "total_bytes": 0, "files": 0, "total_files": 0}
    async with serve(engine, wait=False) as api:
        await asyncio.sleep(0)
        assert await told(api) == {"stage": "starting", **nothing}
        engine.on_loading(EngineLoading(3 * GIGA, 16 * GIGA, 1, 4))
        assert await told(api) == {
            "stage": "reading",
            "bytes": 3 * GIGA,
            "total_bytes": 16 * GIGA,
            "files": 1,
            "total_files": 4,
        }
        engine.on_loading(EngineLoading(16 * GIGA, 16 * GIGA, 4, 4))
        assert await told(api) == {"stage": "preparing", **nothing}
        assert (await api.http.get("/ready")).status_code == 503
        assert (await api.http.get("/health")).status_code == 200
        engine.load.set()
        await asyncio.wait_for(api.service.loaded.wait(), 10)
        assert await told(api) is None
        assert (await api.http.get("/ready")).json() == {"status": "ready"}
        engine.state = EngineState.RESTARTING
        engine.on_ready(False)
        assert await told(api) == {"stage": "starting", **nothing}
        engine.state = EngineState.RUNNING
        engine.on_ready(True)
        assert await told(api) is None


@pytest.mark.anyio
async def test_the_log_says_it_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where there is no terminal, a log that is silent for ten minutes is all there is."""
    monkeypatch.setattr(loading, "LOG_SECONDS", 0.02)
    changes: list[LoadProgress | None] = []
    followed = Loading("org/name")
    followed.on_change = changes.append
    with caplog.at_level(logging.INFO, "lightcone.server"):
        followed.enter("starting")
        followed.tell_reading(EngineLoading(1, 10, 0, 2))
        await until(lambda: len(caplog.records) >= 2)
        followed.end()
        count = len(caplog.records)
        await asyncio.sleep(0.1)
    assert len(caplog.records) == count, "a model that is loaded is not loading"
    fields = caplog.records[0].fields  # type: ignore[attr-defined]
    assert (
        fields.items()
        >= {"model": "org/name", "stage": "reading", "bytes": 1, "total_bytes": 10, "total_files": 2}.items()
    )
    assert fields["seconds"] >= 0
    assert changes == [LoadProgress("starting"), LoadProgress("reading", 1, 10, 0, 2), None]
    followed.end()
    assert changes[-1] is None
    assert len(changes) == 3, "an end is told once"


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (LoadProgress("starting"), "starting the engine"),
        (LoadProgress("preparing"), "preparing passes"),
        (LoadProgress("fetching", 0, 0, 0, 3), "fetching, 0 of 3 files"),
        (LoadProgress("fetching", 5_000_000, 12_340_000, 0, 1), "fetching 5.0 of 12.3 MB"),
        (LoadProgress("reading", 3_100_000_000, 16_400_000_000, 1, 4), "reading 3.1 of 16.4 GB, 1 of 4 files"),
    ],
)
def test_people_read_it_in_words(progress: LoadProgress, words: str) -> None:
    assert described(progress) == words


def on_a_terminal(*flags: str, env: dict[str, str], end: str) -> str:
    """What a server shows on a terminal until some text has come, and what it shows after that as it leaves."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tests.serve_with_fake_engine", "reading", "--port", "0", *flags]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, **env}
    )
    os.close(theirs)
    text, deadline = "", time.monotonic() + 60
    try:
        while end not in text and time.monotonic() < deadline:
            text += os.read(ours, 65536).decode()
    finally:
        process.terminate()
        process.communicate(timeout=20)
        os.close(ours)
    return text


def test_a_terminal_shows_a_bar_that_goes_when_the_model_is_there() -> None:
    """Whoever starts a large model for the first time would press Ctrl-C. A bar that stays would lie above the log."""
    text = on_a_terminal(env={"TERM": "xterm-256color"}, end="/docs")
    assert text.index("Lightcone ") < text.index("loading builtin: starting the engine") < text.index("ready: builtin")
    assert re.search(r"loading builtin: reading [123]\.0 of 4\.0 GB, [123] of 4 files", text)
    assert "loading builtin: preparing passes" in text
    *_, last_bar = re.finditer("loading builtin", text)
    model_loaded = text.index("model loaded: builtin")
    assert last_bar.start() < model_loaded, "a line of the log stands within the bar"
    assert "\x1b[2K" in text[last_bar.start() : model_loaded], "the bar was not taken away"
    assert "\x1b[?25h" in text, "the cursor stays hidden"


@pytest.mark.parametrize(("flags", "term"), [(("--log-format", "json"), "xterm"), ((), "dumb")])
def test_no_bar_where_none_can_be(flags: tuple[str, ...], term: str) -> None:
    """Programs read this log, or the terminal cannot move its cursor."""
    text = on_a_terminal(*flags, env={"TERM": term}, end="/docs")
    assert "loading builtin:" not in text
    assert "\x1b[" not in text


def stage_of(process: ServerProcess) -> Any:
    body = process.http.get(f"{process.url}/ready").json()
    return body.get("loading", {}).get("stage")


def test_a_download_is_told_too(tmp_path: Path) -> None:
    """The longest part of a first start, in which nothing was to be seen but the hub's own bars between log lines."""
    files = {
        path.name: path.read_bytes() for path in BUILTIN.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")
    }
    wanted = sum(len(data) for data in files.values())
    files["pytorch_model.bin"] = b"never fetched"
    go_on = threading.Event()
    with hub("org/name", files, "model.safetensors", go_on) as url:
        env = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
        flags = ("--threads", "1", "--calibration-seconds", "0", "--model", "org/name")
        with server([*MODULE], *flags, ready=False, env=env) as process:
            wait_for("files of the hub", lambda: known(process)["files"] == len(files) - 2, 60)
            state = known(process)
            assert (state["stage"], state["total_bytes"], state["total_files"]) == ("fetching", wanted, len(files) - 1)
            assert 0 < state["bytes"] < wanted
            go_on.set()
            process.wait_until_ready()
            assert stage_of(process) is None
            assert process.complete().status_code == 200
            lines = process.log().splitlines()
    assert all(line.startswith("{") for line in lines), "the hub's own bars stand in the log"


def known(process: ServerProcess) -> dict[str, Any]:
    """What a server says of its loading; nothing that is known is 0."""
    body = process.http.get(f"{process.url}/ready").json()
    return {"files": 0, "total_bytes": 0, **body.get("loading", {})}


def test_a_lost_engine_is_loaded_again_in_sight() -> None:
    """A restart takes as long as a start, and is watched more closely."""
    with fake("crash") as process:
        process.complete()
        wait_for("another engine", lambda: process.http.get(f"{process.url}/ready").status_code == 200, 30)
        assert stage_of(process) is None
