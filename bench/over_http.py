"""The server as a contender: `lightcone serve` as a subprocess, loaded by `loadtest` as another one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from engine.errors import EngineError

START_SECONDS = 300.0


class Measured(NamedTuple):
    """One run over HTTP."""

    seconds: float
    """From the first request to the last answer."""
    tokens: int
    """As the server's usage says."""
    api_cpu_seconds: float | None
    """CPU time of the API process; None where the operating system does not tell (it does on Linux)."""
    client_cpu_seconds: float
    """CPU time of the load generator."""


class Server:
    """A server for the length of a `with` block, on a free port of this machine."""

    def __init__(self, flags: list[str], core: int | None) -> None:
        """flags: of `lightcone serve`. core: where the engine process runs, and nothing else; None: anywhere."""
        self._flags, self._core = flags, core
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Server:
        """Raises EngineError if the server does not come up."""
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "server", *serve_command(port, self._flags)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._pin(self._process.pid, engine=False)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.url + "/ready"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise EngineError(f"the server did not start: {' '.join(command)}")
            time.sleep(0.1)
        for child in _children(self._process.pid):
            self._pin(child, engine=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def load(self, prompts: Path, count: int, concurrency: int, fields: dict[str, Any], max_tokens: int) -> Measured:
        """Sends every prompt of a file once, streaming, with `fields` in every body. EngineError if one fails."""
        with tempfile.TemporaryDirectory(prefix="lightcone-bench-") as folder:
            report = Path(folder) / "report.json"
            command = load_command(self.url, prompts, count, concurrency, fields, max_tokens)
            command = [sys.executable, "-m", "loadtest", *command, "--json", str(report)]
            before = self._api_cpu()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            self._pin(process.pid, engine=False)
            _, said = process.communicate()
            after = self._api_cpu()
            if process.returncode or not report.exists():
                raise EngineError(f"loadtest failed: {said.decode(errors='replace').strip()[-300:]}")
            summary = json.loads(report.read_bytes())["summary"]
        if summary["failed"]:
            raise EngineError(f"{summary['failed']} requests failed: {summary['error_examples']}")
        api = None if before is None or after is None else after - before
        client = summary["client_cpu_share"] * summary["wall_s"]
        return Measured(summary["wall_s"], summary["completion_tokens"], api, client)

    def _api_cpu(self) -> float | None:
        """CPU seconds of the API process so far, its children's not included."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text() if self._process is not None else ""
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else None

    def _pin(self, pid: int, engine: bool) -> None:
        """Puts the engine process on its core and everything else off it, where there are two cores to tell apart."""
        if self._core is None or not hasattr(os, "sched_setaffinity"):
            return
        others = set(range(os.cpu_count() or 1)) - {self._core}
        for task in _tasks(pid):
            os.sched_setaffinity(task, {self._core} if engine or not others else others)


def serve_command(port: int, flags: list[str]) -> list[str]:
    """The words after `lightcone`."""
    return ["serve", "--port", str(port), "--log-level", "error", *flags]


def load_command(
    url: str, prompts: Path, count: int, concurrency: int, fields: dict[str, Any], max_tokens: int
) -> list[str]:
    """The words after `lightcone loadtest`: every prompt once, streamed, nothing before the clock starts."""
    return [
        "run", "--base-url", url, "--api", "completions", "--prompts", str(prompts), "--requests", str(count),
        "--concurrency", str(concurrency), "--warmup", "0", "--max-tokens", str(max_tokens),
        "--extra-body", json.dumps(fields), "--no-progress",
    ]  # fmt: skip


def write_prompts(path: Path, prompts: list[str]) -> None:
    """A prompt file as `loadtest` reads it."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    """Processes started by a process (Linux; elsewhere none are found)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def _tasks(pid: int) -> list[int]:
    """A process's threads (Linux)."""
    return [int(task.name) for task in Path(f"/proc/{pid}/task").glob("*")]
