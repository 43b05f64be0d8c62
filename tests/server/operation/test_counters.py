"""The metrics against what clients saw, under a mixed load on the real engine: a dashboard must not lie."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.events import StepStats
from server.operation.metrics import Metrics
from tests.fakes import INFO
from tests.server.processes import ServerProcess, real, wait_for

Sample = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with real("--calibration-seconds", "0.2") as process:  # measured a little, for the speed of light
        yield process


def scrape(server: ServerProcess) -> dict[Sample, float]:
    page = httpx.get(f"{server.url}/metrics", timeout=10).text
    return {
        (sample.name, frozenset(sample.labels.items()) - {("model", "builtin")}): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


class Tally:
    """What the clients counted."""

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.requests: Counter[tuple[str, int, str, str]] = Counter()

    def add(self, endpoint: str, body: dict[str, Any], usage: dict[str, Any], reasons: set[str], chunks: int) -> None:
        diffusion = usage["diffusion"]
        self.requests[endpoint, 200, "/".join(sorted(reasons)), diffusion["decoding"]] += 1
        self.sums["choices"] += body.get("n", 1)
        self.sums["prompt_tokens"] += usage["prompt_tokens"] * body.get("n", 1)
        self.sums["prompt_tokens_cached"] += usage["prompt_tokens_details"]["cached_tokens"]
        self.sums["generation_tokens"] += usage["completion_tokens"]
        for name in ("draft_tokens", "accepted_draft_tokens", "denoising_steps", "passes"):
            self.sums[name] += diffusion[name]
        self.sums["gaps"] += max(chunks - 1, 0)


def ask(server: ServerProcess, tally: Tally, endpoint: str, body: dict[str, Any]) -> None:
    path = "/v1/completions" if endpoint == "completions" else "/v1/chat/completions"
    if not body.get("stream"):
        answer = httpx.post(server.url + path, json=body, timeout=60).json()
        reasons = {choice["finish_reason"] for choice in answer["choices"]}
        tally.add(endpoint, body, answer["usage"], reasons, 0)
        return
    body = {**body, "stream_options": {"include_usage": True}}
    text = httpx.post(server.url + path, json=body, timeout=60).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    reasons = {choice["finish_reason"] for event in events for choice in event["choices"]} - {None}
    tally.add(endpoint, body, events[-1]["usage"], reasons, len(events) - 1)


def mixed_load() -> list[tuple[str, dict[str, Any]]]:
    modes = ("ar", "diffusion", "speculative", "auto")
    work: list[tuple[str, dict[str, Any]]] = []
    for number in range(24):
        common = {"decoding": modes[number % 4], "seed": number, "stream": number % 3 == 0, "max_tokens": 40}
        if number % 2:
            work.append(("chat", {"messages": [{"role": "user", "content": f"Add {number} and 25."}], **common}))
        else:
            prompt = f"<|user|>Tell me a story about an owl and {number} coins, and tell it slowly.<|assistant|>"
            choices = {} if common["stream"] or number % 4 else {"n": 2}
            work.append(("completions", {"prompt": prompt, **common, **choices}))
    return work


def test_the_counters_are_what_the_clients_counted(server: ServerProcess) -> None:
    tally = Tally()
    before = scrape(server)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda one: ask(server, tally, *one), mixed_load()))
    wait_for("an idle engine", lambda: server.metric("requests_running") == 0)
    after = scrape(server)

    def grown(name: str, **labels: str) -> float:
        key = (f"lightcone_{name}", frozenset(labels.items()))
        return after[key] - before.get(key, 0.0)

    for (endpoint, status, reason, decoding), count in tally.requests.items():
        labels = {"endpoint": endpoint, "status": str(status), "finish_reason": reason, "decoding": decoding}
        assert grown("requests_total", **labels) == count, labels
    sums = tally.sums
    for name in ("prompt_tokens", "generation_tokens", "draft_tokens", "accepted_draft_tokens"):
        assert grown(f"{name}_total") == sums[name], name
    assert grown("prompt_tokens_cached_total") >= sums["prompt_tokens_cached"]  # usage counts a prompt's first choice
    assert grown("denoising_steps_total") >= sums["denoising_steps"] > 0
    phases = ("prefill", "decode", "draft", "verify", "denoise", "commit")
    passes = {phase: grown("passes_total", phase=phase) for phase in phases}
    assert all(passes.values()), passes
    assert sum(passes.values()) - passes["prefill"] >= sums["passes"]
    requests = sum(tally.requests.values())
    for histogram, count in {
        "e2e_request_latency_seconds": requests, "time_to_first_token_seconds": requests,
        "prompt_tokens": sums["choices"], "generation_tokens": sums["choices"], "queue_time_seconds": sums["choices"],
        "tokens_per_pass": sums["choices"], "inter_chunk_seconds": sums["gaps"],
    }.items():  # fmt: skip
        assert grown(f"{histogram}_count") == count, histogram
    assert grown("generation_tokens_sum") == sums["generation_tokens"]
    assert grown("accepted_draft_length_sum") == sums["accepted_draft_tokens"]
    steps = [value for (name, _), value in after.items() if name == "lightcone_step_duration_seconds_count"]
    assert sum(steps) > 0
    assert 0 < after["lightcone_speed_of_light_ratio", frozenset()] <= 1.0


def test_each_request_is_one_line_with_the_clients_own_numbers(server: ServerProcess) -> None:
    """So that one user's complaint can be found among millions of lines."""
    seen = len(server.log_lines("request"))
    headers = {"x-request-id": "ticket-4711"}
    prompt = "Q: Repeat these words: tiger, plan, river.\nA:"
    body = {"prompt": prompt, "max_tokens": 12, "decoding": "diffusion", "ignore_eos": True, "temperature": 0}
    response = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60)
    assert response.headers["x-request-id"] == "ticket-4711"
    wait_for("its line", lambda: len(server.log_lines("request")) > seen)
    line, usage = server.log_lines("request")[-1], response.json()["usage"]
    assert (line["request_id"], line["id"], line["status"]) == ("ticket-4711", response.json()["id"], 200)
    assert (line["model"], line["decoding"], line["finish_reason"]) == ("builtin", "diffusion", "length")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], 12)
    assert line["passes"] == usage["diffusion"]["passes"]
    assert 0 <= line["queue_seconds"] <= line["first_text_seconds"] <= line["total_seconds"]
    assert "tiger" not in server.log()
    assert "tiger" in (text := response.json()["choices"][0]["text"])
    assert text not in server.log()


def test_the_page_is_what_prometheus_expects(server: ServerProcess) -> None:
    """A page with a fault is dropped whole, and the dashboard is empty."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package `prometheus` has it)")
    page = httpx.get(f"{server.url}/metrics").content
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_speed_of_light_is_what_the_device_could_have_done() -> None:
    """The one number that says how much a faster implementation could gain."""
    metrics = Metrics("builtin")
    step = StepStats(running=1, waiting=0, free_pages=1, num_pages=2, phases={"decode": 1}, duration=0.5)
    metrics.record_step(step)
    assert b'speed_of_light_ratio{model="builtin"} 0.0' in metrics.render(), "nothing was measured"
    metrics.set_engine(msgspec.structs.replace(INFO, device_bandwidth=1000.0, device_rate=100.0))
    metrics.record_step(msgspec.structs.replace(step, bytes=100, operations=20))  # 0.1 s to move, 0.2 s to compute
    assert b'speed_of_light_ratio{model="builtin"} 0.4' in metrics.render()
    metrics.record_step(msgspec.structs.replace(step, bytes=250, operations=0))
    assert b'speed_of_light_ratio{model="builtin"} 0.45' in metrics.render()


def test_pages_that_only_cache_a_prefix_are_not_in_use() -> None:
    """A balancer that took them for use would send nothing to the replica with the warmest cache."""
    metrics = Metrics("builtin")
    metrics.record_step(StepStats(running=2, waiting=0, free_pages=12, num_pages=16))
    assert b'kv_cache_usage_ratio{model="builtin"} 0.25' in metrics.render()
