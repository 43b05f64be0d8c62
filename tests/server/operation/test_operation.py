"""Probes, keys, request ids, overload, draining, metrics, logs: what an operator relies on."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from server.engine_link.link import EngineState
from server.operation.logs import JsonFormatter
from server.operation.service import loaded_text
from tests.fakes import INFO, FakeEngine, hanging, saying
from tests.server.conftest import Api, ApiFactory, events_of, until

pytestmark = pytest.mark.anyio


async def test_a_loading_server_is_alive_but_not_ready(serve: ApiFactory) -> None:
    engine = FakeEngine()
    engine.load.clear()
    async with serve(engine, wait=False) as api:
        assert (await api.http.get("/health")).json()["status"] == "loading"
        for path in ("/ready", "/v1/models"):
            response = await api.http.get(path)
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
        assert (await api.complete()).status_code == 503
        engine.load.set()
        await asyncio.wait_for(api.service.loaded.wait(), 10)
        assert (await api.http.get("/ready")).status_code == 200


async def test_models_lists_one_alias_a_mode(api: Api) -> None:
    models = (await api.http.get("/v1/models")).json()
    names = [model["id"] for model in models["data"]]
    assert names == ["builtin", "builtin:ar", "builtin:diffusion", "builtin:speculative"]
    assert all(model["object"] == "model" and model["max_model_len"] == 256 for model in models["data"])
    assert (await api.http.get("/v1/models/builtin:ar")).json()["id"] == "builtin:ar"
    response = await api.http.get("/v1/models/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_a_restarting_engine_is_unready_but_alive(api: Api) -> None:
    """Were /health to fail, an orchestrator would kill the process that is repairing things."""
    api.engine.state = EngineState.RESTARTING
    assert (await api.http.get("/health")).status_code == 200
    assert (await api.http.get("/ready")).status_code == 503
    response = await api.complete()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    api.engine.state = EngineState.FAILED
    assert (await api.http.get("/health")).status_code == 503


KEY = {"Authorization": "Bearer secret"}


async def test_without_a_key_nothing_is_answered_but_probes(serve: ApiFactory) -> None:
    async with serve(api_keys=("secret", "other")) as api:
        for path in ("/health", "/ready"):
            assert (await api.http.get(path)).status_code == 200
        for path in (
            "/v1/models",
            "/metrics",
            "/docs",
            "/openapi.json",
            "/version",
            "/nothing",
            "http://test//health",  # "//health" alone would be the host `health`
            "/health/",
        ):
            assert (await api.http.get(path)).status_code == 401, path
        host = {"Host": "localhost/health?"}
        assert (await api.http.get("/v1/models", headers=host)).status_code == 401
        for wrong in ("Bearer wrong", "Bearer ", "secret", "Basic secret", "Bearer secret x"):
            response = await api.http.get("/v1/models", headers={"Authorization": wrong})
            assert response.status_code == 401, wrong
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await api.http.get("/v1/models", headers=KEY)).status_code == 200
        assert (await api.http.get("/v1/models", headers={"Authorization": "bearer other"})).status_code == 200


async def test_metrics_may_be_opened(serve: ApiFactory) -> None:
    async with serve(api_keys=("secret",), public_metrics=True) as api:
        assert (await api.http.get("/metrics")).status_code == 200


@pytest.mark.parametrize(("sent", "kept"), [("abc-1.2_3", True), ("x" * 129, False), ("a b", False), ("", False)])
async def test_every_answer_carries_a_request_id(api: Api, sent: str, kept: bool) -> None:
    for path in ("/health", "/nothing"):
        answer = (await api.http.get(path, headers={"x-request-id": sent})).headers["x-request-id"]
        assert (answer == sent) == kept
        assert answer


async def test_unknown_routes_and_methods_are_openais_errors(api: Api) -> None:
    response = await api.http.get("/v1/nothing")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url")
    response = await api.http.get("/v1/completions")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({"content-type": "text/plain"}, b"{}", 400, "invalid_content_type"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"a=b", 400, "invalid_content_type"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, b"x", 400, "invalid_content_encoding"),
        ({"content-type": "application/json"}, b"{", 400, "invalid_json"),
        ({"content-type": "application/json"}, b"", 400, "invalid_json"),
        ({"content-type": "application/json"}, b"[]", 400, "invalid_type"),
        ({"content-type": "application/json"}, b'{"prompt": "x", "prompt": "y"}', 400, "invalid_json"),
        (
            {"content-type": "application/json; charset=utf-8"},
            b'{"prompt": "' + b"x" * 2000 + b'"}',
            413,
            "body_too_large",
        ),
    ],
)
async def test_bodies_that_are_no_request(
    serve: ApiFactory, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    async with serve(max_body_bytes=1000) as api:
        response = await api.http.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


async def test_a_body_that_comes_without_a_length_is_bounded_too(serve: ApiFactory) -> None:
    async def parts() -> Any:
        for _ in range(100):
            yield b"x" * 100

    async with serve(max_body_bytes=1000) as api:
        response = await api.http.post("/v1/completions", content=parts(), headers={"content-type": "application/json"})
    assert response.status_code == 413


async def test_a_body_that_comes_too_slowly_is_given_up(serve: ApiFactory) -> None:
    async def parts() -> Any:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async with serve(body_timeout=0.05) as api:
        response = await api.http.post("/v1/completions", content=parts(), headers={"content-type": "application/json"})
    assert response.json()["error"]["code"] == "body_timeout"


async def test_a_full_queue_is_a_429_that_says_when_to_come_back(serve: ApiFactory) -> None:
    async with serve(FakeEngine(hanging), max_running=2, max_queued_requests=1) as api:
        waiting = [asyncio.create_task(api.complete()) for _ in range(3)]
        await until(lambda: len(api.engine.in_flight) == 3)
        response = await api.complete()
        for task in waiting:
            task.cancel()
        assert response.status_code == 429
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert (
            b'lightcone_requests_rejected_total{model="builtin",reason="queue_full"} 1.0'
            in api.service.metrics.render()
        )


async def test_draining_finishes_what_is_in_flight_and_takes_nothing_new(serve: ApiFactory) -> None:
    async with serve(FakeEngine(saying()), drain_timeout=5.0, drain_delay=0.1) as api:
        drain = asyncio.create_task(api.service.drain())
        await asyncio.sleep(0.01)
        assert (await api.http.get("/ready")).status_code == 503
        assert (await api.complete()).status_code == 200, "a load balancer may not have noticed yet"
        await asyncio.sleep(0.12)
        response = await api.complete()
        assert response.status_code == 503
        assert response.headers["connection"] == "close"
        assert response.headers["retry-after"]
        assert (await api.http.get("/health")).json()["status"] == "draining"
        await asyncio.wait_for(drain, 5)


async def test_what_cannot_finish_in_time_is_told_so(serve: ApiFactory) -> None:
    async with serve(FakeEngine(hanging), drain_timeout=0.1) as api:
        stream = asyncio.create_task(api.complete(stream=True))
        await until(lambda: len(api.engine.in_flight) == 1)
        await asyncio.wait_for(api.service.drain(), 5)
        assert events_of(await stream)[-1]["error"]["code"] == "shutting_down"


async def test_metrics_count_what_happened(api: Api) -> None:
    await api.complete(max_tokens=8, decoding="ar")
    await api.chat(stream=True)
    text = (await api.http.get("/metrics")).text
    assert (
        'lightcone_requests_total{decoding="ar",endpoint="completions",finish_reason="length",model="builtin",'
        'status="200"} 1.0' in text
    )
    for name in (
        "requests_running", "requests_waiting", "kv_cache_usage_ratio", "step_batch_sequences", "step_batch_tokens",
        "engine_up", "cache_config_info", "prompt_tokens_total", "prompt_tokens_cached_total",
        "generation_tokens_total", "denoising_steps_total", "draft_tokens_total", "accepted_draft_tokens_total",
        "edited_tokens_total", "preemptions_total", "engine_restarts_total", "nan_logits_total",
        "time_to_first_token_seconds_count", "time_to_first_draft_seconds_count", "inter_chunk_seconds_count",
        "request_time_per_output_token_seconds_count", "e2e_request_latency_seconds_count", "queue_time_seconds_count",
        "tokens_per_pass_count", "denoising_steps_per_block_count",
        "accepted_draft_length_count", "prompt_tokens_count", "generation_tokens_count",
    ):  # fmt: skip
        assert f'lightcone_{name}{{model="builtin"' in text, name
    for name in ("passes_total", "step_duration_seconds", "requests_rejected_total"):
        assert f"# TYPE lightcone_{name}" in text


async def test_a_request_is_one_line_of_json_without_its_text(api: Api) -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonFormatter().format(record))

    logger, handler = logging.getLogger("lightcone.request"), Keep()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel("INFO")
    try:
        await api.http.post(
            "/v1/completions", json={"prompt": "Private words", "max_tokens": 4}, headers={"x-request-id": "me-1"}
        )
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    line = json.loads(lines[0])
    assert (line["request_id"], line["status"], line["completion_tokens"]) == ("me-1", 200, 4)
    assert "Private" not in lines[0]
    assert "Once" not in lines[0]


async def test_the_docs_page_loads_nothing_from_elsewhere(api: Api) -> None:
    page = (await api.http.get("/docs")).text
    assert "/v1/chat/completions" in page
    assert "max_denoising_steps" in page
    assert "http://" not in page
    assert "https://" not in page
    assert (await api.http.get("/openapi.json")).status_code == 200
    assert (await api.http.get("/version")).json()["version"]


async def test_tokens_there_and_back(api: Api) -> None:
    tokens = (await api.http.post("/tokenize", json={"prompt": "Add 1 <|mask|>", "add_special_tokens": False})).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert 5 not in tokens["tokens"]
    back = await api.http.post("/detokenize", json={"tokens": tokens["tokens"]})
    assert back.json() == {"prompt": "Add 1 <|mask|>"}
    chat = (await api.http.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]})).json()
    assert chat["tokens"][0] == 1
    for body in ({}, {"prompt": "x", "messages": []}, {"prompt": "x", "promt": "y"}):
        assert (await api.http.post("/tokenize", json=body)).status_code == 400
    assert (await api.http.post("/detokenize", json={"tokens": [10**9]})).status_code == 400
    assert (await api.http.post("/detokenize", json={"tokens": [1], "model": "nope"})).status_code == 404


def test_the_server_never_imports_torch() -> None:
    """It would cost the API process a gigabyte and seconds of start-up."""
    code = "import sys, server.app, server.serve, server.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_start_up_line_says_that_answers_are_approximate() -> None:
    """An operator who inherits a configuration would take them for the model's own."""
    assert "approximate" not in loaded_text("m", INFO)
    line = loaded_text("m", msgspec.structs.replace(INFO, context_cache="dual"))
    assert "answers are approximate: context cache 'dual'" in line
