"""`python -m tests.engine.ranks.worker`: a rank for many tests, which serves one engine after the other.

What it runs of each engine is the code of `engine.runner.rank`; models stay loaded.
"""

from __future__ import annotations

import hashlib
import socket
import sys
from pathlib import Path

import msgspec
import torch

from engine.config import EngineConfig
from engine.models.loader import LoadedModel
from engine.ranks.group import ProcessGroup
from engine.ranks.lifeline import die_with_parent, leave_with_parent
from engine.ranks.link import RankLink
from engine.ranks.processes import RankStart
from engine.runner.device_pass import DevicePass
from engine.runner.rank_parts import load_share, make_device_pass
from engine.runner.ranked import RankShare, follow

CPU = torch.device("cpu")


class RankState(msgspec.Struct, frozen=True):
    """What a rank looks like after an engine's last pass."""

    num_pages: int
    page_table: str
    finite: bool
    sent_bytes: int
    """Since the rank has been started, to sums and gathers."""

    @classmethod
    def of(cls, device_pass: DevicePass, group: ProcessGroup) -> RankState:
        pool = device_pass.pool
        finite = bool(pool.k.isfinite().all()) and bool(pool.v.isfinite().all())
        table = hashlib.sha256(pool.host_page_table.tobytes()).hexdigest()
        return cls(pool.num_pages, table, finite, group.sent_bytes)

    @property
    def pool(self) -> tuple[int, str, bool]:
        """What must be alike on all ranks."""
        return self.num_pages, self.page_table, self.finite


def main() -> None:
    die_with_parent()
    start = msgspec.json.decode(sys.stdin.buffer.readline(), type=RankStart)
    leave_with_parent()
    torch.set_num_threads(1)
    link = RankLink(socket.socket(fileno=start.link))
    group = ProcessGroup(start.rank, start.config.tensor_parallel_size)
    group.join(Path(start.store), CPU)
    models: dict[tuple[str, str, str], LoadedModel] = {}
    while (frame := link.receive()) is not None:
        config = msgspec.json.decode(frame, type=EngineConfig)
        key = (config.model, config.dtype, config.quantization)
        if key not in models:
            models[key] = load_share(config, CPU, group)
        model = models[key]
        made = make_device_pass(config, model, CPU)
        follow(RankShare(made.device_pass, group, model.spec.banned_token_ids), link.receive)
        link.send(msgspec.json.encode(RankState.of(made.device_pass, group)))


if __name__ == "__main__":
    main()
