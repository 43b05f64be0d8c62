"""`python -m tools.soak`: minutes of mixed load on a server, with clients that leave and one engine killed.

Afterwards every request must have been answered or refused with a reason, all pages be free, and memory flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from loadtest.questions.categories import questions
from loadtest.stream_reader import EventLines
from tools.measured_server import MeasuredServer, children, rss_bytes

KILL_AT = 0.25
"""Share of the run after which the engine is killed."""
WARM = 0.5
"""Share of the run after which memory is expected to be flat."""
MODES = ("ar", "diffusion", "speculative", "auto")
MEBIBYTE = 2**20


@dataclass
class Result:
    """How the requests ended, and the memory of both processes meanwhile."""

    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    """Requests that ended with neither an answer nor an error message; there must be none."""
    told: Counter[str] = field(default_factory=Counter)
    """Error codes that the server gave, by how often."""
    memory: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: {"server": [], "engine": []})
    """(seconds, bytes) of each process."""
    restart_seconds: float = 0.0


class Left(Exception):
    """This client chose to leave."""


def body_of(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A random path and request body."""
    question = next(questions(rng.randrange(10**6))).text
    body: dict[str, Any] = {
        "decoding": rng.choice(MODES), "max_tokens": rng.choice((8, 32, 64, 160)), "seed": rng.randrange(1000),
        "temperature": rng.choice((0, 0.8, 1.0)), "stream": rng.random() < 0.6, "n": rng.choice((1, 1, 1, 3)),
    }  # fmt: skip
    if body["stream"] and rng.random() < 0.3:
        body["stream_options"] = {"include_drafts": True, "include_usage": True}
    if rng.random() < 0.1:
        body["stop"] = [". ", "e"]
    if rng.random() < 0.05:
        body["temperature"] = 7  # a mistake
    if rng.random() < 0.5:
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": question}]}
    return "/v1/completions", {**body, "prompt": f"<|user|>{question}<|assistant|>"}


async def ask(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[str, str]:
    """Sends one request. Returns an outcome and, where the server refused or failed it, the code it gave."""
    async with http.stream("POST", path, json=body) as response:
        content = await response.aread()
    if response.status_code != 200:
        return "told", f"{response.status_code} {json.loads(content)['error']['code']}"
    if not body["stream"]:
        return "answered", ""
    last = EventLines().feed(content)[-1]
    if last == b"[DONE]":
        return "answered", ""
    return "told", f"in the stream: {json.loads(last)['error']['code']}"


async def worker(http: httpx.AsyncClient, until: float, seed: int, result: Result) -> None:
    """One client after another; one in five leaves before the end of its answer."""
    rng = random.Random(seed)
    while time.monotonic() < until:
        path, body = body_of(rng)
        patience = rng.uniform(0.0, 1.0) if rng.random() < 0.2 else 60.0
        try:
            async with asyncio.timeout(patience):
                outcome, code = await ask(http, path, body)
        except TimeoutError:
            outcome, code = ("left", "") if patience <= 1.0 else ("lost", "no answer within 60 s")
        except (httpx.HTTPError, ValueError, LookupError) as error:
            outcome, code = "lost", f"{type(error).__name__}: {error}"
        result.outcomes[outcome] += 1
        if outcome == "told":
            result.told[code] += 1
        elif outcome == "lost":
            result.lost.append(f"{code} ({path} {json.dumps(body)[:200]})")
        if code.startswith("503"):
            await asyncio.sleep(0.2)


async def watch_memory(server: MeasuredServer, started: float, result: Result) -> None:
    """Samples the memory of both processes once a second, until it is cancelled."""
    while True:
        now = time.monotonic() - started
        result.memory["server"].append((now, rss_bytes(server.pid)))
        engine = server.engine
        if engine is not None:
            result.memory["engine"].append((now, rss_bytes(engine)))
        await asyncio.sleep(1.0)


def replace_engine(server: MeasuredServer) -> float:
    """Kills the engine and waits until there is another; returns the seconds it took. Blocking."""
    killed, started = server.engine, time.monotonic()
    if killed is not None:
        os.kill(killed, signal.SIGKILL)
    while server.engine in (None, killed) or not server.ready:
        time.sleep(0.05)
    return time.monotonic() - started


async def kill_engine(server: MeasuredServer, after: float, result: Result) -> None:
    """Kills the engine once."""
    await asyncio.sleep(after)
    result.restart_seconds = await asyncio.to_thread(replace_engine, server)


async def soak(server: MeasuredServer, seconds: float, workers: int, seed: int) -> Result:
    """Runs the load to its end."""
    result, started = Result(), time.monotonic()
    until = started + seconds
    limits = httpx.Limits(max_connections=workers * 2)
    async with httpx.AsyncClient(base_url=server.url, timeout=None, limits=limits, trust_env=False) as http:
        side = [
            asyncio.create_task(watch_memory(server, started, result)),
            asyncio.create_task(kill_engine(server, seconds * KILL_AT, result)),
        ]
        await asyncio.gather(*(worker(http, until, seed * 1000 + index, result) for index in range(workers)))
        for task in side:
            task.cancel()
        await asyncio.gather(*side, return_exceptions=True)
    return result


def slope(samples: list[tuple[float, int]], since: float) -> float:
    """MiB an hour, by least squares over the samples from `since` on."""
    late = [(at, size) for at, size in samples if at >= since]
    if len(late) < 3:
        return 0.0
    fit = statistics.linear_regression([at for at, _ in late], [size for _, size in late])
    return fit.slope * 3600 / MEBIBYTE


def growth(samples: list[tuple[float, int]], since: float) -> tuple[float, float]:
    """Mean MiB of the first and of the last fifth of the samples from `since` on."""
    late = [size / MEBIBYTE for at, size in samples if at >= since]
    fifth = max(len(late) // 5, 1)
    return statistics.fmean(late[:fifth]), statistics.fmean(late[-fifth:])


def report(server: MeasuredServer, result: Result, seconds: float) -> bool:
    """Prints what was seen; returns whether it is as it must be."""
    print(f"requests: {sum(result.outcomes.values())}, of them {dict(result.outcomes)}")
    print(f"told why: {dict(result.told)}")
    for line in result.lost[:10]:
        print(f"LOST: {line}")
    print(f"the killed engine was replaced in {result.restart_seconds:.1f} s")
    flat = True
    for name, samples in result.memory.items():
        first, last = growth(samples, seconds * WARM)
        flat = flat and last < first * 1.05 + 8
        print(f"{name}: {first:.1f} MiB, at the end {last:.1f} MiB; {slope(samples, seconds * WARM):+.1f} MiB an hour")
    deadline = time.monotonic() + 10
    while server.metric("requests_running") and time.monotonic() < deadline:
        time.sleep(0.1)
    running, used = server.metric("requests_running"), server.metric("kv_cache_usage_ratio")
    restarts = server.metric("engine_restarts_total")
    print(f"at the end: {running:g} running, {used:.1%} of the pages in use, {restarts:g} engine restart")
    started = [server.pid, *children(server.pid)]
    status = server.stop(30)
    left = [pid for pid in started if rss_bytes(pid)]
    print(f"exit status {status}, {len(left)} processes left")
    return flat and not (result.lost or running or used or status or left) and restarts == 1


def main() -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=6, help="clients at a time (default 6)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs="*", help="further flags of `lightcone serve`, after --")
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60
    with MeasuredServer("--threads", "1", "--kv-cache-tokens", "4096", *arguments.flags) as server:
        print(f"server {server.pid}, engine {server.engine}, log {server.log}")
        result = asyncio.run(soak(server, seconds, arguments.workers, arguments.seed))
        good = report(server, result, seconds)
    print("as it must be" if good else "NOT as it must be")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
