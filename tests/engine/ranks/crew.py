"""Crew: ranks that are started once and run many engines, one after the other. Rank 0 is the process of the tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import torch

from engine.assembly import assemble
from engine.config import EngineConfig, check_config
from engine.engine import Engine
from engine.models.loader import LoadedModel
from engine.ranks.processes import RankProcesses
from engine.runner.rank_parts import load_share
from engine.runner.ranked import Leave
from tests.engine.ranks.worker import CPU, RankState

COMMAND = (sys.executable, "-P", "-m", "tests.engine.ranks.worker")
SETTINGS: dict[str, Any] = {
    "device": "cpu", "threads": 1, "calibration_seconds": 0, "kv_cache_tokens": 2048, "max_running": 8,
    "max_batch_tokens": 256, "max_infill_window": 64,
}  # fmt: skip


class Crew:
    """Some ranks. Only the engine that was made last may be stepped."""

    def __init__(self, size: int) -> None:
        torch.set_num_threads(1)
        self.size = size
        self.failures: list[str] = []
        config = EngineConfig(tensor_parallel_size=size)
        self.ranks = RankProcesses(config, on_lost=self.failures.append, command=COMMAND)
        self.ranks.join(CPU)
        self._models: dict[tuple[Path, str, str], LoadedModel] = {}
        self._engine: Engine | None = None

    def make(self, directory: Path, dtype: str = "float64", quantization: str = "auto", **overrides: Any) -> Engine:
        """A fresh engine of a checkpoint; by default a small one that measures nothing. Ends the one before."""
        self.end()
        config = EngineConfig(
            **(SETTINGS | overrides), model=str(directory), dtype=dtype, quantization=quantization,  # type: ignore[arg-type]
            tensor_parallel_size=self.size,
        )  # fmt: skip
        check_config(config)
        self.ranks.send(msgspec.json.encode(config))
        key = (directory, dtype, quantization)
        if key not in self._models:
            self._models[key] = load_share(config, CPU, self.ranks.group)
        self._engine = Engine(assemble(config, self._models[key], CPU, self.ranks))
        return self._engine

    def end(self) -> list[RankState]:
        """Ends the engine. Returns what every rank's pool looks like, rank 0's first; nothing if there is no engine."""
        engine, self._engine = self._engine, None
        if engine is None:
            return []
        self.ranks.send(msgspec.msgpack.encode(Leave()))
        found = [RankState.of(engine.runner.device_pass, self.ranks.group)]
        for frame in self.ranks.receive():
            assert frame is not None, self.failures
            found.append(msgspec.json.decode(frame, type=RankState))
        return found

    def close(self) -> None:
        self.ranks.close()
