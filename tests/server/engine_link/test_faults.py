"""What goes wrong in the night, with the real engine: docs/OPERATIONS.md tells operators what these tests prove."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes import BUILTIN
from tests.server.processes import ServerProcess, descendants, gone, real, wait_for

LONG: dict[str, Any] = {
    "prompt": "Once upon a time", "max_tokens": 900, "decoding": "ar", "ignore_eos": True, "temperature": 0,
}  # fmt: skip
STALL = 4.0


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with real("--engine-stall-timeout", str(STALL)) as process:
        yield process


def in_flight(server: ServerProcess, count: int) -> None:
    wait_for(f"{count} requests in flight", lambda: server.metric("requests_running") == count)


class Background:
    """A request in a thread of its own: what it was told, and when."""

    def __init__(self, server: ServerProcess, **body: Any) -> None:
        self.lines: list[str] = []
        self.status = 0
        self.told_at = 0.0
        self.cut_off = False
        self._server, self._body = server, LONG | body
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with httpx.stream("POST", f"{self._server.url}/v1/completions", json=self._body, timeout=60) as response:
                self.status = response.status_code
                for line in response.iter_lines():
                    if line:
                        self.lines.append(line)
        except httpx.TransportError:
            self.cut_off = True
        self.told_at = time.monotonic()

    def join(self) -> None:
        self._thread.join(60)

    def end(self) -> dict[str, Any]:
        """The last thing it was told."""
        self.join()
        last: dict[str, Any] = json.loads(self.lines[-1].removeprefix("data: "))
        return last


@pytest.mark.parametrize(("number", "allowed"), [(signal.SIGKILL, 1.5), (signal.SIGSTOP, STALL + 2.0)])
def test_a_lost_engine_is_told_of_and_replaced(server: ServerProcess, number: int, allowed: float) -> None:
    """Killed by the kernel for memory, or stuck in a driver: nobody may wait for it."""
    before = server.complete(temperature=0).json()["choices"][0]["text"]
    restarts = server.metric("engine_restarts_total")
    streamed, whole = Background(server, stream=True), Background(server)
    in_flight(server, 2)
    wait_for("text in the stream", lambda: bool(streamed.lines))
    lost_at = time.monotonic()
    os.kill(server.engine, number)
    wait_for("unreadiness", lambda: httpx.get(f"{server.url}/ready").status_code == 503, allowed)
    assert httpx.get(f"{server.url}/health").json()["status"] == "restarting"
    assert server.metric("engine_up") == server.metric("requests_running") == 0
    refused = server.complete()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert refused.headers["retry-after"]
    assert streamed.end()["error"]["code"] == whole.end()["error"]["code"] == "engine_failed"
    assert (streamed.status, whole.status) == (200, 500)
    assert max(streamed.told_at, whole.told_at) - lost_at < allowed
    server.wait_until_ready()
    assert server.complete(temperature=0).json()["choices"][0]["text"] == before
    assert server.metric("engine_restarts_total") == restarts + 1
    assert len(descendants(server.process.pid)) == 1, "the old engine is still there"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_gives_back_its_pages(server: ServerProcess, stream: bool) -> None:
    """Users close tabs; what they no longer read must not keep others waiting."""
    aborted = server.metric("requests_total", 'status="499"')
    body = json.dumps(LONG | {"n": 4, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        client.sendall(f"{head}\r\n\r\n".encode() + body)
        in_flight(server, 4)
        assert server.metric("kv_cache_usage_ratio") > 0
    wait_for("its pages to be free", lambda: server.metric("kv_cache_usage_ratio") == 0, 3)
    in_flight(server, 0)
    assert server.metric("requests_total", 'status="499"') == aborted + 1


def test_a_server_told_to_stop_while_loading_stops() -> None:
    """An orchestrator that changed its mind must not have to kill it."""
    with real(ready=False) as loading:
        wait_for("the listener", lambda: httpx.get(f"{loading.url}/health").json()["status"] == "loading")
        wait_for("the engine process", lambda: bool(descendants(loading.process.pid)))
        started = descendants(loading.process.pid)
        assert loading.complete().status_code == 503
        loading.process.send_signal(signal.SIGTERM)
        assert loading.process.wait(8) == 0
        assert all(map(gone, started))


def test_nothing_outlives_a_killed_server() -> None:
    """An orphaned engine would keep the GPU's memory until somebody finds it."""
    with real() as doomed:
        json_mode = {"type": "json_object"}  # starts whatever else the server runs
        httpx.post(f"{doomed.url}/v1/completions", json={"prompt": "x", "response_format": json_mode}, timeout=60)
        background = Background(doomed, stream=True)
        in_flight(doomed, 1)
        started = descendants(doomed.process.pid)
        assert started
        doomed.process.kill()
        background.join()
        assert background.cut_off
        wait_for("every process to leave", lambda: all(map(gone, started)), 3)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with one token whose embedding is infinite, as an overflow would make it."""
    from safetensors.torch import load_file, save_file

    directory = tmp_path_factory.mktemp("poisoned") / "model"
    shutil.copytree(BUILTIN, directory)
    weights = load_file(directory / "model.safetensors")
    weights["encoder.embed_tokens.weight"][POISON] = float("inf")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


POISON = 1500
GOOD = list(range(100, 140))


def test_infinite_logits_end_their_request_alone(poisoned: Path) -> None:
    """They must not become text, nor stay behind in the prefix cache for the next one who asks the same."""
    with real("--model", str(poisoned)) as server:
        ask: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, "seed": 1}
        clean = server.complete(prompt=[*GOOD, 7], **ask).json()["choices"][0]["text"]
        with ThreadPoolExecutor(4) as threads:
            prompts = [[*GOOD, POISON, 7], [*GOOD, 7], [POISON, *GOOD, 7], [*GOOD, 7]]
            answers = list(threads.map(lambda prompt: server.complete(prompt=prompt, **ask), prompts))
        assert [answer.status_code for answer in answers] == [500, 200, 500, 200]
        error = answers[0].json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "generation_failed")
        assert "non-finite" in error["message"]
        assert answers[1].json()["choices"][0]["text"] == answers[3].json()["choices"][0]["text"] == clean
        again = server.complete(prompt=[POISON, *GOOD, *GOOD, 7], **ask)
        once_more = server.complete(prompt=[POISON, *GOOD, *GOOD, 7], **ask)
        assert (again.status_code, once_more.status_code) == (500, 500)
        assert server.complete(prompt=[*GOOD, 7], **ask).json()["choices"][0]["text"] == clean
        assert server.metric("nan_logits_total") >= 4
        assert server.metric("requests_total", 'status="500"') == 4
        assert server.metric("engine_restarts_total") == 0
        wait_for("the pool to be whole", lambda: server.metric("kv_cache_usage_ratio") == 0, 3)


def test_too_few_pages_delay_answers_and_change_none() -> None:
    """Preempted sequences are computed again; their readers see a pause and nothing else."""
    flags = ("--kv-cache-tokens", "224", "--max-model-len", "160", "--no-prefix-caching")
    bodies = [
        LONG | {"prompt": f"Story {n}:", "max_tokens": 100, "decoding": mode, "temperature": 1, "seed": n}
        for n, mode in enumerate(("auto", "speculative", "diffusion", "auto"))
    ]
    with real(*flags) as server:
        alone = [server.complete(**body).json()["choices"][0]["text"] for body in bodies]
        assert server.metric("preemptions_total") == 0
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(lambda body: server.complete(**body), bodies))
        assert [answer.json()["choices"][0]["text"] for answer in together] == alone
        assert all(answer.json()["usage"]["completion_tokens"] == 100 for answer in together)
        assert server.metric("preemptions_total") > 0
        never = server.complete(prompt=[9] * 160, max_tokens=100)
        assert (never.status_code, never.json()["error"]["code"]) == (400, "context_length_exceeded")
