"""Traces as a collector receives them: whoever looks for a slow or failed request finds it there, and what it cost."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest

from engine.errors import ConfigError
from engine.events import Finished, GenerationEvent, GenerationStats
from engine.request import Request
from server.app import create_app
from server.operation.config import Config, ServerConfig, load_config
from server.tracing.tracer import traces_url
from tests.fakes import FakeEngine
from tests.http_helpers import ROOT
from tests.server.conftest import serving
from tests.server.processes import fake, real
from tests.server.tracing.collector import Collector, collecting

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
"""The example of W3C's Trace Context."""
ERROR = 2


def traceparent(sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{CALLER[0]}-{CALLER[1]}-{'01' if sampled else '00'}"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the tracing extra is not installed")
    with collecting() as collector:
        yield collector


@pytest.mark.anyio
async def test_a_request_is_a_span_of_its_callers_trace(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """Else a slow answer cannot be told from a slow gateway, and nobody finds the log line that belongs to a trace."""
    with caplog.at_level(logging.INFO, "lightcone.request"):
        async with serving(otlp_traces_endpoint=collector.url) as api:
            body = {"prompt": "Hello", "n": 2, "temperature": 0.5, "max_tokens": 7, "seed": 3, "decoding": "diffusion"}
            headers = {**traceparent(), "x-request-id": "ticket-1"}
            answer = (await api.http.post("/v1/completions", json=body, headers=headers)).json()
    assert collector.paths == {"/v1/traces"}
    [span] = collector.requests
    assert (span.trace_id, span.parent_id) == CALLER
    assert span.name == f"text_completion {answer['model']}"
    assert span.status != ERROR
    assert span.resource["service.name"] == "lightcone"
    usage = answer["usage"]
    told = {name: value for name, value in span.attributes.items() if not isinstance(value, float)}
    assert told.items() >= {
        "gen_ai.operation.name": "text_completion", "gen_ai.request.model": answer["model"],
        "gen_ai.request.choice.count": 2, "gen_ai.request.max_tokens": 7, "gen_ai.request.seed": 3,
        "gen_ai.response.id": answer["id"], "gen_ai.response.finish_reasons": ["length", "length"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"], "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "lightcone.decoding": "diffusion", "lightcone.request_id": "ticket-1", "lightcone.passes": 6,
        "http.request.method": "POST", "http.route": "/v1/completions", "http.response.status_code": 200,
    }.items()  # fmt: skip
    assert span.attributes["gen_ai.request.temperature"] == 0.5
    assert span.attributes["lightcone.tokens_per_pass"] == usage["completion_tokens"] / 6
    first = span.events["first_text"] - span.start
    assert 0 < span.attributes["gen_ai.response.time_to_first_chunk"] * 1e9 <= first + 1e6 < span.end - span.start + 1e6
    [line] = [record.fields for record in caplog.records if record.message == "request"]
    assert (line["trace_id"], line["span_id"]) == (span.trace_id, span.span_id)


@pytest.mark.anyio
async def test_a_stream_is_traced_to_its_end_without_its_text(collector: Collector) -> None:
    """A span that ended with the headers would call every long stream fast; one with texts would leak them."""
    async with serving(otlp_traces_endpoint=collector.url) as api:
        await api.chat(stream=True)
    [span] = collector.requests
    assert span.name.startswith("chat ")
    assert span.attributes["gen_ai.request.stream"] is True
    assert span.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert span.events["first_text"] < span.end
    shown = json.dumps([span.attributes, list(span.events)])
    assert "Hello" not in shown
    assert "Once upon" not in shown


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code", "name"),
    [
        ("/v1/completions", {"prompt": 3}, {}, 400, "invalid_value", "POST /v1/completions"),
        ("/v1/completions", {"prompt": "x"}, {"authorization": "Bearer no"}, 401, "invalid_api_key", "POST"),
        ("/v1/nowhere", {}, {}, 404, "unknown_url", "POST"),
    ],
)
async def test_a_refusal_is_a_span_that_names_it(
    collector: Collector,
    caplog: pytest.LogCaptureFixture,
    path: str,
    body: dict[str, object],
    headers: dict[str, str],
    status: int,
    code: str,
    name: str,
) -> None:
    """Else a caller sees its trace break off, with no word of why; but a client's mistake is not the server's error."""
    with caplog.at_level(logging.INFO, "lightcone.server"):
        async with serving(otlp_traces_endpoint=collector.url, api_keys=("yes",)) as api:
            headers = {"authorization": "Bearer yes", **traceparent(), **headers}
            assert (await api.http.post(path, json=body, headers=headers)).status_code == status
    [span] = collector.requests
    assert (span.name, span.trace_id) == (name, CALLER[0])
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (status, code)
    assert span.status != ERROR
    assert collector.parts(span) == []
    [line] = [record.fields for record in caplog.records if record.message == "refused"]
    assert line["trace_id"] == CALLER[0]


def failing(request: Request) -> Iterator[GenerationEvent]:
    yield Finished(request_id=request.request_id, reason="error", stats=GenerationStats(), error="It broke.")


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_of_the_engine_is_an_error(collector: Collector, stream: bool) -> None:
    """Error rates made of traces would be 0 while every answer fails."""
    async with serving(FakeEngine(failing), otlp_traces_endpoint=collector.url) as api:
        assert (await api.complete(stream=stream)).status_code == 500
    [span] = collector.requests
    assert (span.status, span.attributes["error.type"]) == (ERROR, "generation_failed")
    assert span.attributes["gen_ai.response.finish_reasons"] == ["error"]


@pytest.mark.anyio
async def test_what_is_not_to_be_traced_is_not(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """Probes and scrapes would fill the collector; a caller that samples one request in a thousand pays for all."""
    with caplog.at_level(logging.INFO, "lightcone.request"):
        async with serving(otlp_traces_endpoint=collector.url) as api:
            for path in ("/health", "/ready", "/metrics", "/v1/models"):
                assert (await api.http.get(path, headers=traceparent())).status_code == 200
            body = {"prompt": "Hello", "max_tokens": 3}
            await api.http.post("/v1/completions", json=body, headers=traceparent(sampled=False))
            await api.http.post("/v1/completions", json=body, headers={"traceparent": "00-nonsense"})
    [span] = collector.requests
    assert span.parent_id == ""
    lines = [record.fields for record in caplog.records if record.message == "request"]
    assert [line["trace_id"] for line in lines] == [CALLER[0], span.trace_id], "logs are found by it all the same"


def test_the_phases_of_an_answer_are_spans_and_the_last_arrive_before_the_server_is_gone(collector: Collector) -> None:
    """Else nobody sees whether a request waited, read its prompt or decoded, and a rollout loses its last seconds."""
    variables = {"OTEL_SERVICE_NAME": "replica-7", "OTEL_EXPORTER_OTLP_HEADERS": "x-team=blue"}
    with real("--otlp-traces-endpoint", f"{collector.url}/other", env=variables) as server:
        for mode in ("ar", "speculative", "diffusion"):
            assert server.complete(decoding=mode, max_tokens=12, ignore_eos=True).status_code == 200
        assert server.complete(prompt=[9], decoding="ar", max_tokens=1).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        server.errors()
        assert server.process.returncode == 0
    assert collector.paths == {"/other"}
    assert collector.headers[0]["x-team"] == "blue"
    *long, short = collector.requests
    assert [span.attributes["lightcone.decoding"] for span in long] == ["ar", "speculative", "diffusion"]
    for span in long:
        assert span.resource["service.name"] == "replica-7"
        parts = collector.parts(span)
        assert [part.name for part in parts] == ["queue", "prefill", "decode"]
        moments = [span.start, *(moment for part in parts for moment in (part.start, part.end)), span.end]
        assert moments == sorted(moments)
        assert all(one.end == next_one.start for one, next_one in pairwise(parts))
        assert parts[0].end - parts[0].start == pytest.approx(span.attributes["lightcone.queue_seconds"] * 1e9, abs=1e4)
        assert parts[2].attributes["lightcone.passes"] == span.attributes["lightcone.passes"] > 0
    assert [part.name for part in collector.parts(short)] == ["queue", "prefill"]


def test_a_collector_that_is_down_fails_no_request_and_is_told_once() -> None:
    """Else the loss of a tool for looking takes the service with it, or fills its log."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the tracing extra is not installed")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # not listening
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with fake("echo", "--otlp-traces-endpoint", endpoint, env={"OTEL_BSP_SCHEDULE_DELAY": "20"}) as server:
            for _ in range(20):
                assert server.complete().status_code == 200
            server.process.send_signal(signal.SIGTERM)
            lines = [json.loads(line) for line in server.errors().splitlines()]
            assert server.process.returncode == 0
    told = [line["message"] for line in lines if line["logger"] == "lightcone.tracing"]
    assert 1 <= len(told) <= 2, told
    assert {line["level"] for line in lines} == {"info", "warning"}


def test_without_the_extra_the_option_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ignores it would be found out only when its traces are needed."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"otlp_traces_endpoint needs the tracing extra \(pip install .*\): ") as told:
        create_app(Config(ServerConfig(otlp_traces_endpoint="http://localhost:4318")), FakeEngine())
    assert "\n" not in str(told.value)


def test_untraced_servers_do_not_even_import_the_sdk() -> None:
    """Everybody's start would take longer and hold more memory, for what few use."""
    code = (
        "import sys; from server.app import create_app; create_app(); "
        "print([n for n in sys.modules if n.startswith(('opentelemetry.sdk', 'opentelemetry.exporter', 'google.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "endpoint", ["localhost:4318", "grpc://localhost:4317", "http://", "http://host:seven", "http://[::1", ""]
)
def test_a_url_that_is_none_is_refused_at_the_start(endpoint: str) -> None:
    """Else traces go nowhere, and the log says so only once there are some."""
    with pytest.raises(ConfigError, match=r"^--otlp-traces-endpoint: .* is not valid: ") as told:
        load_config({"otlp_traces_endpoint": endpoint}, {})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/traces"),
        ("https://collector.example/", "https://collector.example/v1/traces"),
        ("http://collector:4318/otel/v1/traces?tenant=a", "http://collector:4318/otel/v1/traces?tenant=a"),
    ],
)
def test_a_collectors_address_is_enough(endpoint: str, url: str) -> None:
    """Else spans are posted to a path that no collector serves."""
    assert traces_url(endpoint) == url
