"""Runs a plan: packs it on the host, runs it on the device, and gives each step group its logits."""

from __future__ import annotations

import torch

from engine.batch import BatchPlan
from engine.kv_cache.pool import KVCachePool
from engine.models.decoder import Decoder
from engine.runner.device_pass import DevicePass
from engine.runner.pack import Packer
from engine.sampling.divided import Logits


class ModelRunner:
    """Joins the host's part of a pass and the device's. It knows nothing of requests' parameters."""

    def __init__(self, device_pass: DevicePass) -> None:
        pool, decoder = device_pass.pool, device_pass.decoder
        canvas = decoder.config.canvas
        self.packer = Packer(
            pool.page_size, pool.host_page_table.shape, decoder.adapter is not None, canvas.length if canvas else 0
        )
        self.device_pass = device_pass

    @property
    def decoder(self) -> Decoder:
        """The model."""
        return self.device_pass.decoder

    @property
    def pool(self) -> KVCachePool:
        """The KV pool."""
        return self.device_pass.pool

    def forward(self, plan: BatchPlan) -> list[Logits | None]:
        """One packed pass. Returns for each group its logits [n, num_logits, V] of the model's dtype, or None if it
        needs none.

        K and V of every query token are written to its pages; nothing else changes, so a pass may be repeated.
        """
        return [*split_logits(plan, self.device_pass.run(self.packer.pack(plan)))]

    def clear(self, pages: list[int]) -> None:
        """Zeroes pages before the next pass, so that non-finite values in them cannot reach their next owner."""
        self.packer.clear(pages)

    def idle(self) -> None:
        """Called instead of `forward` in a step without work."""

    def close(self) -> None:
        """Ends what was started to run the model."""


def split_logits(plan: BatchPlan, logits: torch.Tensor | None) -> list[torch.Tensor | None]:
    """The rows of each group [n, num_logits, V], views; None for a group without any. logits: [R, V]."""
    groups: list[torch.Tensor | None] = []
    at = 0
    for group in plan.groups:
        count = len(group.spans) * group.num_logits
        rows = None if logits is None or not count else logits[at : at + count]
        groups.append(None if rows is None else rows.view(len(group.spans), group.num_logits, -1))
        at += count
    return groups
