"""The server as a contender: `lightcone serve` as a child process, loaded by `lightcone loadtest` as another one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from engine.errors import EngineError
from server.child_server import ChildServer, ServerStartError

START_SECONDS = 300.0
STOP_SECONDS = 30.0


class Measured(NamedTuple):
    """The figures of one run over HTTP."""

    seconds: float
    """From the first request to the last answer."""
    tokens: int
    """Generated tokens, by the server's usage."""
    api_cpu_seconds: float | None
    """CPU time of the API process; None where the operating system does not report it (Linux does)."""
    client_cpu_seconds: float
    """CPU time of the load generator."""


class ServerUnderTest:
    """A server for the length of a `with` block, on a free port of this machine."""

    def __init__(self, options: list[str], core: int | None) -> None:
        """options: of `lightcone serve`. core: where the engine process runs, and nothing else; None: anywhere."""
        self._options, self._core = options, core
        self._child: ChildServer | None = None
        self.url = ""

    def __enter__(self) -> ServerUnderTest:
        """Raises EngineError if the server does not start."""
        self._child = ChildServer(serve_options(self._options))
        try:
            self._pin(self._child.pid, engine=False)
            self._child.wait_ready(START_SECONDS)
        except ServerStartError as error:
            self._child.stop(STOP_SECONDS)
            raise EngineError(f"the server {error} ({' '.join(self._child.command)})") from None
        except BaseException:
            self._child.stop(STOP_SECONDS)
            raise
        self.url = self._child.url
        for process in _children(self._child.pid):
            self._pin(process, engine=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            if error is not None:
                print(self._child.log_text(), file=sys.stderr, end="")
            self._child.stop(STOP_SECONDS)

    def load(self, prompts: Path, count: int, concurrency: int, fields: dict[str, Any], max_tokens: int) -> Measured:
        """Sends every prompt of a file once, streaming, with `fields` in every body. EngineError if one fails."""
        command = load_command(self.url, prompts, count, concurrency, fields, max_tokens)
        before = self._api_cpu()
        summary = run_loadtest(command, lambda pid: self._pin(pid, engine=False))
        after = self._api_cpu()
        api = None if before is None or after is None else after - before
        client = summary["client_cpu_share"] * summary["wall_s"]
        return Measured(summary["wall_s"], summary["completion_tokens"], api, client)

    def _api_cpu(self) -> float | None:
        """CPU seconds of the API process so far, its children's not included."""
        try:
            stat = Path(f"/proc/{self._child.pid}/stat").read_text() if self._child is not None else ""
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


def run_loadtest(words: list[str], started: Callable[[int], None] = lambda pid: None) -> dict[str, Any]:
    """Runs `lightcone loadtest` in a process of its own and returns its summary. EngineError if a request failed.

    started: is told the process id.
    """
    with tempfile.TemporaryDirectory(prefix="lightcone-bench-") as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "loadtest", *words, "--json", str(report)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        started(process.pid)
        _, said = process.communicate()
        if process.returncode or not report.exists():
            raise EngineError(f"loadtest failed: {said.decode(errors='replace').strip()[-300:]}")
        summary: dict[str, Any] = json.loads(report.read_bytes())["summary"]
    if summary["failed"]:
        raise EngineError(f"{summary['failed']} requests failed: {summary['error_examples']}")
    return summary


def serve_options(options: list[str]) -> list[str]:
    """The words after `lightcone serve`: a log line for each request would be measured, too."""
    return ["--log-level", "error", *options]


def load_command(
    url: str, prompts: Path, count: int, concurrency: int, fields: dict[str, Any], max_tokens: int
) -> list[str]:
    """The words after `lightcone loadtest`: every prompt once, streamed, without a warm-up."""
    return [
        "run", "--base-url", url, "--api", "completions", "--prompts", str(prompts), "--requests", str(count),
        "--concurrency", str(concurrency), "--warmup", "0", "--max-tokens", str(max_tokens),
        "--extra-body", json.dumps(fields), "--no-progress",
    ]  # fmt: skip


def write_prompts(path: Path, prompts: list[str]) -> None:
    """Writes a prompt file that `loadtest` reads."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def _children(pid: int) -> list[int]:
    """The processes started by a process (Linux; elsewhere none are found)."""
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
