"""The attention backends by name."""

from __future__ import annotations

import os
from importlib.util import find_spec

from engine.attention.base import AttentionBackend
from engine.attention.sdpa import SdpaAttention
from engine.errors import ConfigError
from engine.kv_cache.pool import KVCachePool


def make_attention(name: str, pool: KVCachePool, num_heads: int) -> AttentionBackend:
    """The backend `EngineConfig.kernels` names. Raises ConfigError where it cannot run this model on this device."""
    if name == "torch":
        return SdpaAttention(pool, num_heads)
    if name != "triton":
        raise ConfigError(f"kernels must be torch or triton, not {name!r}.")
    # Triton's interpreter runs kernels on a CPU, thousands of times slower: for tests.
    if pool.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(f"kernels 'triton' run on NVIDIA GPUs, not on {pool.device}: choose torch.")
    if find_spec("triton") is None:
        raise ConfigError("kernels 'triton' need the triton package: install lightcone[triton], or choose torch.")
    from engine.gpu.attention import TritonAttention

    try:
        return TritonAttention(pool, num_heads)
    except ValueError as error:
        raise ConfigError(f"kernels 'triton' cannot run this model: {error}; choose torch.") from error
