"""RankGroup: the ranks that run one model together, and the sums and gathers that they make together in a pass."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

JOIN_SECONDS = 1800.0
"""Longest wait for other ranks. A rank that died is noticed long before by other means; one that hangs is the API
process's business, whose stall limit ends all ranks."""
LOOPBACK = "lo"
"""The network device of ranks on a CPU: they are on one machine, and nobody else should reach their ports."""


class RankGroup(ABC):
    """What a rank knows of the others. Every rank calls the same methods in the same order."""

    rank: int
    """0 has the scheduler and the policies."""
    size: int

    @abstractmethod
    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Replaces x, contiguous, by its sum over all ranks, the same bits on each of them. Returns x."""

    @abstractmethod
    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Replaces x, contiguous, by rank 0's. Returns x."""

    @abstractmethod
    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """All ranks' x, of one shape, in the order of ranks; on other ranks than 0 nothing."""

    @abstractmethod
    def least(self, value: int) -> int:
        """The smallest of all ranks' values, on each of them. A barrier, too."""

    @abstractmethod
    def total(self, value: int) -> int:
        """The sum of all ranks' values, on each of them."""

    def part(self, count: int) -> range:
        """This rank's numbers of 0 to count - 1, where every rank has as many; of one that each shares with others
        where there are fewer numbers than ranks."""
        each = max(1, count // self.size)
        first = self.rank * count // self.size
        return range(first, first + each)


class Alone(RankGroup):
    """The one rank of a model that one process runs."""

    rank, size = 0, 1

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See RankGroup."""
        return x

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """See RankGroup."""
        return x

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """See RankGroup."""
        return [x]

    def least(self, value: int) -> int:
        """See RankGroup."""
        return value

    def total(self, value: int) -> int:
        """See RankGroup."""
        return value


ALONE = Alone()


class ProcessGroup(RankGroup):
    """Ranks that are processes of one machine: torch.distributed, by NCCL between GPUs and by gloo between CPUs."""

    def __init__(self, rank: int, size: int) -> None:
        """It can be asked for its numbers at once; the rest needs `join`."""
        self.rank, self.size = rank, size
        self.sent_bytes = 0
        """Bytes of the tensors that this rank has given to sums and gathers."""

    def join(self, store: Path, device: torch.device) -> None:
        """Waits until all ranks are here. store: a file of this group alone, in a directory of all ranks."""
        if os.path.exists(f"/sys/class/net/{LOOPBACK}"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.FileStore(str(store), self.size),  # type: ignore[attr-defined]
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=JOIN_SECONDS),
        )

    def leave(self) -> None:
        """Undoes `join`; the others must be there still, or have left."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """See RankGroup."""
        self.sent_bytes += x.nbytes
        dist.all_reduce(x)
        return x

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """See RankGroup."""
        self.sent_bytes += 0 if self.rank else x.nbytes
        dist.broadcast(x, 0)
        return x

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """See RankGroup."""
        x = x.contiguous()
        if self.rank:
            self.sent_bytes += x.nbytes
            dist.gather(x)
            return []
        found = [torch.empty_like(x) for _ in range(self.size)]
        dist.gather(x, found)
        return found

    def least(self, value: int) -> int:
        """See RankGroup."""
        return self._agreed(value, dist.ReduceOp.MIN)

    def total(self, value: int) -> int:
        """See RankGroup."""
        return self._agreed(value, dist.ReduceOp.SUM)

    @staticmethod
    def _agreed(value: int, operation: dist.ReduceOp.RedOpType) -> int:
        held = torch.tensor(value)
        dist.all_reduce(held, operation)
        return int(held)
