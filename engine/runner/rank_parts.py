"""What one rank runs passes with: its device, its share of the model, the KV of its heads, kernels, captured passes.

An engine of one process has one rank. `engine.assembly` puts scheduler and policies around that of rank 0.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from engine.attention.base import CapturableAttention
from engine.batch import CANVAS_SLOTS
from engine.config import EngineConfig
from engine.device import huge_pages
from engine.device.devices import rank_device, resolve_device, set_up
from engine.gpu.graphs import CudaCapturer, PassGraphs
from engine.kv_cache.pool import KVCachePool
from engine.models.families.overrides import Overrides
from engine.models.files import model_directory
from engine.models.load_progress import ReportWeights
from engine.models.loader import DTYPES, LoadedModel, load_model
from engine.models.refining.decoder import CanvasDecoder
from engine.ranks.group import ALONE, RankGroup
from engine.runner.canvas_memory import CanvasMemory
from engine.runner.device_pass import DevicePass
from engine.runner.kernels import KERNELS, Kernels, make_kernels
from engine.runner.pool_size import PoolSize, choose_pool_size
from engine.sampling.picker import TokenPicker


def find_device(config: EngineConfig, group: RankGroup) -> torch.device:
    """The device of a rank, made ready. Raises ModelLoadError or ConfigError where there is none."""
    device = rank_device(resolve_device(config.device), group.rank, group.size)
    set_up(device, config.threads, group.size)
    return device


def load_share(
    config: EngineConfig,
    device: torch.device,
    group: RankGroup = ALONE,
    report: ReportWeights = lambda *progress: None,
) -> LoadedModel:
    """A rank's share of the model that the configuration names; by default all of it. report: see `load_model`."""
    model = load_model(
        model_directory(config.model),
        load_format=config.load_format,
        dtype=DTYPES.get(config.dtype),
        device=device,
        max_positions=config.max_model_len,
        overrides=overrides_of(config),
        quantization=config.quantization,
        draft_quantization=config.draft_quantization,
        report=report,
        group=group,
    )
    if device.type == "cpu":
        huge_pages.use_for_large_memory()  # the weights
    return model


class MadePass(NamedTuple):
    """What a rank needs to run passes, and what is known of it."""

    device_pass: DevicePass
    size: PoolSize
    picker: TokenPicker | None
    weight_bytes: int
    """Of all ranks."""


def make_device_pass(config: EngineConfig, model: LoadedModel, device: torch.device) -> MadePass:
    """What runs passes on a rank's device: pool, kernels and captured passes around its share of the model."""
    decoder = model.decoder
    spec, dtype = model.spec, decoder.dtype
    size = choose_pool_size(config, decoder.config, dtype, device, spec.context_block, decoder.group, spec.overhang)
    pool = make_pool(config, model, size, device, padding_page=captures(config, device))
    kernels = make_kernels(config.kernels, pool, decoder, model.spec.banned_token_ids)
    graphs = warm_up(config, model, pool, kernels)
    return MadePass(
        DevicePass(decoder, pool, kernels, graphs, make_memory(config, model)),
        size,
        kernels.picker,
        decoder.group.total(decoder.num_bytes),
    )


def captures(config: EngineConfig, device: torch.device) -> bool:
    """Whether passes are captured: on a GPU, with kernels that can be, unless the configuration forbids it.

    Those of several ranks are not: sums over ranks would be captured with them, which has never been tried.
    """
    eager = config.enforce_eager or config.tensor_parallel_size > 1
    return device.type == "cuda" and KERNELS[config.kernels].capturable and not eager


def make_pool(
    config: EngineConfig, model: LoadedModel, size: PoolSize, device: torch.device, *, padding_page: bool
) -> KVCachePool:
    """The KV pool of that size. padding_page: see KVCachePool."""
    make = partial(
        KVCachePool,
        num_pages=size.num_pages,
        page_size=config.page_size,
        max_rows=config.max_running,
        max_pages_per_row=-(-(size.max_model_len + model.spec.overhang) // config.page_size),
        dtype=model.decoder.dtype,
        device=device,
        padding_page=padding_page,
    )
    pools: tuple[KVCachePool, ...] = ()
    for kind in reversed(model.decoder.config.attention_kinds):  # the first one holds the others
        pool = make(num_layers=len(kind.layers), num_kv_heads=kind.num_kv_heads, head_dim=kind.head_dim, others=pools)
        pools = (pool, *pools)
    return pools[0]


def make_memory(config: EngineConfig, model: LoadedModel) -> CanvasMemory | None:
    """Where a model's canvases are remembered from step to step; None for a model that has none."""
    if not isinstance(model.decoder, CanvasDecoder):
        return None
    return CanvasMemory(model.decoder, CANVAS_SLOTS * config.max_running)


def warm_up(config: EngineConfig, model: LoadedModel, pool: KVCachePool, kernels: Kernels) -> PassGraphs | None:
    """On a GPU: compiles the kernels and captures passes, where that is wanted."""
    if pool.device.type == "cuda":
        kernels.warm_up(model.config.vocab_size, pool.dtype)
    if not captures(config, pool.device):
        return None
    if not isinstance(kernels.attention, CapturableAttention):
        raise TypeError(f"kernels {config.kernels} say that they can be captured, but their attention cannot")
    graphs = PassGraphs(model.decoder, kernels.attention, kernels.elementwise, pool, CudaCapturer())
    graphs.warm_up(config.max_batch_tokens)
    return graphs


def overrides_of(config: EngineConfig) -> Overrides:
    """What the operator says of the model."""
    return Overrides(
        family=config.model_family,
        block_length=config.block_length,
        mask_token_id=config.mask_token_id,
        draft_adapter=None if config.draft_adapter is None else Path(config.draft_adapter),
    )
