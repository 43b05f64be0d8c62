"""`python -m tools.overload`: starts a server and loads it to its capacity, then with three times as much.

Under overload it must still answer as many requests, refuse the others quickly, and answer its probes.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loadtest.http_client import CHAT_TEMPLATE, Client, Target
from loadtest.records import Distribution, Record, distribution
from loadtest.runner import Load, Outcome, run_load
from loadtest.workload import domain_prompts
from tools.measured_server import MeasuredServer

RUNNING, QUEUED = 16, 16
PROBES = ("/health", "/metrics")
PROBE_PAUSE = 0.05
GOODPUT, REFUSAL_SECONDS, PROBE_SECONDS = 0.9, 0.1, 0.05
"""The limits: share of the throughput at capacity, and seconds at the 99th percentile."""


class Prober:
    """Asks the probes in turn over one kept connection, in a thread, and records how long each took."""

    def __init__(self, port: int) -> None:
        self.seconds: dict[str, list[float]] = {path: [] for path in PROBES}
        self._port = port
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Probes while the block runs."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        while not self._stop.is_set():
            for path in PROBES:
                started = time.perf_counter()
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{path} answered {answer.status}")
                self.seconds[path].append(time.perf_counter() - started)
            self._stop.wait(PROBE_PAUSE)
        connection.close()


async def load(url: str, load: Load) -> Outcome:
    """Runs one load of short questions."""
    target = Target(
        base_url=url, api="completions", max_tokens=48, stream=False, prompt_template=CHAT_TEMPLATE,
        fields={"temperature": 0, "decoding": "auto"},
    )  # fmt: skip
    async with Client(target, load.concurrency) as client:
        return await run_load(client, domain_prompts(seed=1), load)


def measured(server: MeasuredServer, work: Load) -> tuple[Outcome, dict[str, Distribution]]:
    """Runs one load while a Prober measures the probes."""
    prober = Prober(server.port)
    with prober.running():
        outcome = asyncio.run(load(server.url, work))
    return outcome, {path: distribution(seconds) for path, seconds in prober.seconds.items()}


def answered(records: list[Record], until: float) -> int:
    return sum(not record.error and record.start_s + record.end_s <= until for record in records)


def show(name: str, outcome: Outcome, probes: dict[str, Distribution], seconds: float) -> float:
    """Prints one load; returns its goodput, answers a second."""
    goodput = answered(outcome.records, seconds) / seconds
    print(f"{name}: {len(outcome.records)} requests, {goodput:.1f} answered a second")
    for path, taken in probes.items():
        print(f"  {path}: p50 {taken.p50 * 1e3:.1f} ms, p99 {taken.p99 * 1e3:.1f} ms, at most {taken.max * 1e3:.1f} ms")
    return goodput


def main() -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of each of the two loads (default 30)")
    parser.add_argument("--times", type=float, default=3.0, help="the overload, in capacities (default 3)")
    parser.add_argument("flags", nargs="*", help="further flags of `lightcone serve`, after --")
    arguments = parser.parse_args()
    limits = ("--max-running", str(RUNNING), "--max-queued-requests", str(QUEUED))
    with MeasuredServer("--threads", "1", *limits, *arguments.flags) as server:
        work = Load(concurrency=RUNNING + QUEUED // 2, duration_s=arguments.seconds, warmup=RUNNING)
        peak = show("at capacity", *measured(server, work), arguments.seconds)
        work = Load(concurrency=1024, duration_s=arguments.seconds, rate=peak * arguments.times)
        outcome, probes = measured(server, work)
        goodput = show(f"at {arguments.times:g} times that", outcome, probes, arguments.seconds)
        refused = [record for record in outcome.records if record.error == "http_429"]
        refusals = distribution([record.end_s - record.lag_s for record in refused])
        other = {record.error for record in outcome.records} - {"", "http_429"}
        print(f"  429: {refusals.count}, p50 {refusals.p50 * 1e3:.1f} ms, p99 {refusals.p99 * 1e3:.1f} ms")
        print(f"  other errors: {sorted(other) or 'none'}; goodput {goodput / peak:.2f} of the peak")
        print(f"  the load generator used {outcome.cpu_s / outcome.wall_s:.2f} cores of the same machine")
    fast = all(taken.p99 <= PROBE_SECONDS for taken in probes.values()) and refusals.p99 <= REFUSAL_SECONDS
    good = fast and goodput >= GOODPUT * peak and not other
    print("as it must be" if good else "NOT as it must be")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
