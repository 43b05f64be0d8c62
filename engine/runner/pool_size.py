"""The size of the KV pool: its pages, and the longest context that it can hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.kv_cache.pool import KVCachePool
from engine.models.decoder_config import DecoderConfig
from engine.ranks.group import ALONE, RankGroup

CPU_POOL_BYTES = 2 * 1024**3
"""Most memory an automatically sized pool takes on a CPU."""


@dataclass(frozen=True)
class PoolSize:
    """Pages of the pool, and the longest prompt plus answer (tokens) that one sequence may have."""

    num_pages: int
    max_model_len: int


def page_bytes_of(shape: DecoderConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of K and V that one page takes over all layers."""
    return sum(
        KVCachePool.bytes_per_page(
            num_layers=len(kind.layers), page_size=page_size, num_kv_heads=kind.num_kv_heads, head_dim=kind.head_dim,
            dtype=dtype,
        )
        for kind in shape.attention_kinds
    )  # fmt: skip


def choose_pool_size(
    config: EngineConfig,
    shape: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    block_length: int = 1,
    group: RankGroup = ALONE,
    overhang: int = 0,
) -> PoolSize:
    """Sizes the pool from the configuration, or from free memory. Raises ConfigError if a promised length cannot fit.

    On a GPU: what weights already took is gone from its free memory, and `1 - gpu_memory_utilization` of it all is left
    for activations and captured passes. On a CPU: enough for `max_running` sequences of the longest length, within two
    gigabytes.

    block_length: of the blocks that context is encoded by: the longest length is a whole number of them. group: the
    ranks that share the model, each of which keeps KV of its own heads (shape is that of a share): all have as many
    pages as the one with the least room. overhang: positions that a last block may reach beyond the longest text.
    """
    if config.max_model_len is not None and config.max_model_len > shape.max_positions:
        raise ConfigError(
            f"max_model_len ({config.max_model_len}) is beyond what the model was made for ({shape.max_positions})."
        )
    if config.max_model_len is not None and config.max_model_len % block_length:
        raise ConfigError(
            f"max_model_len ({config.max_model_len}) must be a multiple of {block_length}, this model's block length."
        )
    wanted = config.max_model_len or shape.max_positions
    num_pages = group.least(_room(config, shape, dtype, device, wanted + overhang))
    if num_pages < 1:
        raise ConfigError("No memory is left for a single KV page: lower max_model_len or raise kv_cache_tokens.")
    capacity = num_pages * config.page_size - overhang
    if config.max_model_len is not None and capacity < config.max_model_len:
        raise ConfigError(
            f"The KV pool holds {capacity} tokens, fewer than max_model_len ({config.max_model_len}): "
            "raise kv_cache_tokens or lower max_model_len."
        )
    longest = min(wanted, capacity) // block_length * block_length
    if longest < 1:
        raise ConfigError(
            f"The KV pool holds {capacity + overhang} tokens, not one block of {max(block_length, overhang + 1)}"
            ": raise kv_cache_tokens."
        )
    return PoolSize(num_pages, longest)


def _room(config: EngineConfig, shape: DecoderConfig, dtype: torch.dtype, device: torch.device, wanted: int) -> int:
    """Pages that there is room for. wanted: tokens of the longest sequence."""
    page_bytes = page_bytes_of(shape, config.page_size, dtype)
    if config.kv_cache_tokens is not None:
        return config.kv_cache_tokens // config.page_size
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what loading the model has left over is free, too
        free, total = torch.cuda.mem_get_info(device)
        return int(free - (1 - config.gpu_memory_utilization) * total) // page_bytes
    per_sequence = -(-wanted // config.page_size)
    return min(config.max_running * per_sequence, max(CPU_POOL_BYTES // page_bytes, per_sequence))
