"""Which kernels run a model: torch's own, on any device, or those written in Triton, on NVIDIA GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from engine.attention.base import AttentionBackend
from engine.attention.registry import make_attention
from engine.kv_cache.pool import KVCachePool
from engine.models.decoder import Decoder
from engine.models.elementwise import Elementwise

if TYPE_CHECKING:
    from engine.gpu.choice import TritonChoice


class Kernels(NamedTuple):
    """Who computes what a step does beside matrix products and edits of logits."""

    attention: AttentionBackend
    elementwise: Elementwise
    choice: TritonChoice | None
    """None: engine.sampling does it with torch's own operations."""

    @torch.inference_mode()
    def warm_up(self, vocab_size: int, dtype: torch.dtype) -> None:
        """Compiles what is compiled at its first use, before any request is served: it scribbles on the pool."""
        self.attention.warm_up()
        if self.choice is not None:
            self.choice.warm_up(dtype, vocab_size)


def make_kernels(name: str, pool: KVCachePool, decoder: Decoder, banned_token_ids: tuple[int, ...]) -> Kernels:
    """The kernels that `EngineConfig.kernels` names. Raises ConfigError where they cannot run this model here."""
    attention = make_attention(name, pool, decoder.config.num_heads)
    if name == "torch":
        return Kernels(attention, decoder.elementwise, None)
    from engine.gpu.choice import TritonChoice
    from engine.gpu.elementwise import TritonElementwise  # these need Triton, and nothing else does

    elementwise = TritonElementwise(decoder.config.rms_norm_eps, pool.dtype, pool.device)
    return Kernels(attention, elementwise, TritonChoice(banned_token_ids, pool.device))
