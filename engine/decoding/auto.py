"""Auto: self-speculation whose width is chosen anew for every block, from measured costs and recent acceptance."""

from __future__ import annotations

from engine.decoding.self_speculation import SelfSpeculation
from engine.sequence import Sequence


class Auto(SelfSpeculation):
    """Self-speculation of adaptive width, plain AR included. The request's block length is the widest it may take."""

    name = "auto"

    def width(self, seq: Sequence, num_running: int) -> int:
        return self.controller.draft_width(num_running, seq.request.decoding.block_length, seq.num_cached)
