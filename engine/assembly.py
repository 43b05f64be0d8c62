"""Assembles an engine from its configuration: model, KV pool, kernels, captured passes, scheduler and policies.

Read `load_parts`, then `assemble`: every step is a function of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.attention.base import CapturableAttention
from engine.config import EngineConfig, EngineInfo, check_config
from engine.decoding.acceptance import AcceptanceEstimate
from engine.decoding.contract import DecodingPolicy
from engine.decoding.costs import CostTable
from engine.decoding.policies.prefill import Prefill
from engine.decoding.policies.registry import make_policies
from engine.decoding.width import OnePassWidthController, WidthController
from engine.device import huge_pages
from engine.device.devices import resolve_device, set_up
from engine.errors import ConfigError
from engine.gpu.graphs import CudaCapturer, PassGraphs
from engine.kv_cache.pages import PageAllocator
from engine.kv_cache.pool import KVCachePool
from engine.measure.calibration import measure_costs
from engine.measure.device_speed import measure_device_speed
from engine.measure.roofline import DeviceSpeed, WorkCounter
from engine.models.families.overrides import Overrides
from engine.models.files import model_directory
from engine.models.linear.storages import FLOAT_STORAGES
from engine.models.load_progress import ReportWeights
from engine.models.loader import DTYPES, LoadedModel, load_model
from engine.models.spec import ModelSpec
from engine.runner.device_pass import DevicePass
from engine.runner.kernels import KERNELS, Kernels, make_kernels
from engine.runner.model_runner import ModelRunner
from engine.runner.pool_size import PoolSize, choose_pool_size
from engine.sampling.history import TokenHistory
from engine.sampling.picker import TokenPicker
from engine.sampling.sampler import Sampler
from engine.scheduling.scheduler import PREFILL_SHARE, Scheduler

UNMEASURED = DeviceSpeed(0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class EngineParts:
    """The parts of an Engine."""

    config: EngineConfig
    info: EngineInfo
    device: torch.device
    runner: ModelRunner
    sampler: Sampler
    scheduler: Scheduler
    policies: dict[str, DecodingPolicy]
    """By mode."""
    prefill: Prefill
    work: WorkCounter
    widths: WidthController
    """Of speculation."""


def load_parts(config: EngineConfig, report: ReportWeights = lambda *progress: None) -> EngineParts:
    """Loads the model that the configuration names; report: told how far its weights are.

    Raises ModelLoadError or ConfigError, one line each.
    """
    check_config(config)
    device = resolve_device(config.device)
    set_up(device, config.threads)
    model = load_model(
        model_directory(config.model),
        load_format=config.load_format,
        dtype=DTYPES.get(config.dtype),
        device=device,
        max_positions=config.max_model_len,
        overrides=Overrides(
            family=config.model_family,
            block_length=config.block_length,
            mask_token_id=config.mask_token_id,
            draft_adapter=None if config.draft_adapter is None else Path(config.draft_adapter),
        ),
        quantization=config.quantization,
        draft_quantization=config.draft_quantization,
        report=report,
    )
    return assemble(config, model, device)


def assemble(config: EngineConfig, model: LoadedModel, device: torch.device) -> EngineParts:
    """Everything around a loaded model. Raises ConfigError for what the model or the machine cannot do."""
    check_blocks(config, model.spec)
    size = choose_pool_size(config, model.config, model.decoder.dtype, device, model.spec.context_block)
    if device.type == "cpu":
        huge_pages.use_for_large_memory()  # the weights
    speed = measure_speed(config, model, device)  # before the pool takes the memory
    pool = make_pool(config, model, size, device, padding_page=captures(config, device))
    kernels = make_kernels(config.kernels, pool, model.decoder, model.spec.banned_token_ids)
    graphs = warm_up(config, model, pool, kernels)
    runner = ModelRunner(DevicePass(model.decoder, pool, kernels, graphs))
    return parts_around(config, model, size, runner, kernels.picker, speed)


def parts_around(
    config: EngineConfig,
    model: LoadedModel,
    size: PoolSize,
    runner: ModelRunner,
    picker: TokenPicker | None = None,
    speed: DeviceSpeed = UNMEASURED,
) -> EngineParts:
    """The rest of an engine, around a model that can run. picker: None: torch chooses tokens. speed: the device's."""
    spec, pool = model.spec, runner.pool
    history = TokenHistory(config.max_running, model.config.vocab_size, pool.device)
    sampler = Sampler(spec.banned_token_ids, history, pool.device, picker)
    group = math.lcm(config.page_size, spec.context_block) // config.page_size
    allocator = PageAllocator(pool.num_pages, config.page_size, config.prefix_caching, group)
    costs = measure_or_assume_costs(config, model, size, runner)
    controllers = OnePassWidthController if spec.drafts_causally else WidthController
    controller = controllers(costs, AcceptanceEstimate(config.max_block_length))
    policies = make_policies(config, spec, sampler, controller)
    prefill = Prefill(sampler, policies, spec.context_block)
    return EngineParts(
        config=config,
        info=make_info(config, model, size, runner, speed),
        device=pool.device,
        runner=runner,
        sampler=sampler,
        scheduler=Scheduler(config, allocator, policies, prefill, runner.clear),
        policies=policies,
        prefill=prefill,
        work=WorkCounter(model.decoder, pool.dtype.itemsize),
        widths=controller,
    )


def check_blocks(config: EngineConfig, spec: ModelSpec) -> None:
    """Raises ConfigError where the configuration has no room for a block of a model that knows one length alone."""
    length = spec.context_block
    if length > config.max_block_length:
        raise ConfigError(
            f"max_block_length ({config.max_block_length}) is less than this model's block length ({length})."
        )
    if length > config.max_batch_tokens // PREFILL_SHARE:
        raise ConfigError(
            f"max_batch_tokens ({config.max_batch_tokens}) must be at least {PREFILL_SHARE * length}, so that prompts "
            f"always have room for a block of {length}."
        )


def measure_speed(config: EngineConfig, model: LoadedModel, device: torch.device) -> DeviceSpeed:
    """The device's speed over as much memory as a pass reads of the weights; zeros where nothing is to be measured."""
    if not config.calibration_seconds:
        return UNMEASURED
    decoder = model.decoder
    counter = WorkCounter(decoder, decoder.dtype.itemsize)
    return measure_device_speed(device, decoder.dtype, counter.weight_bytes, decoder.storage.layers)


def captures(config: EngineConfig, device: torch.device) -> bool:
    """Whether passes are captured: on a GPU, with kernels that can be, unless the configuration forbids it."""
    return device.type == "cuda" and KERNELS[config.kernels].capturable and not config.enforce_eager


def make_pool(
    config: EngineConfig, model: LoadedModel, size: PoolSize, device: torch.device, *, padding_page: bool
) -> KVCachePool:
    """The KV pool of that size. padding_page: see KVCachePool."""
    shape = model.config
    return KVCachePool(
        num_layers=shape.num_layers,
        num_pages=size.num_pages,
        page_size=config.page_size,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_rows=config.max_running,
        max_pages_per_row=-(-size.max_model_len // config.page_size),
        dtype=model.decoder.dtype,
        device=device,
        padding_page=padding_page,
    )


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


def measure_or_assume_costs(config: EngineConfig, model: LoadedModel, size: PoolSize, runner: ModelRunner) -> CostTable:
    """The cost of passes: measured if the model has a mode that asks and the configuration gives time for it."""
    if "auto" not in model.spec.decodings or not config.calibration_seconds:
        return CostTable.assumed(config.max_block_length)
    return measure_costs(runner, config, size.max_model_len)


def make_info(
    config: EngineConfig, model: LoadedModel, size: PoolSize, runner: ModelRunner, speed: DeviceSpeed
) -> EngineInfo:
    """The facts that the API process is told."""
    spec, pool = model.spec, runner.pool
    # Where every pass holds the whole text, it holds any block and any gap.
    whole = min(size.max_model_len, config.max_batch_tokens) if spec.sees_whole_text else None
    return EngineInfo(
        family=spec.family,
        vocab_size=model.config.vocab_size,
        max_model_len=size.max_model_len,
        mask_token_id=spec.mask_token_id,
        banned_token_ids=spec.banned_token_ids,
        bos_token_id=spec.bos_token_id,
        end_token_ids=spec.end_token_ids,
        decodings=spec.decodings,
        default_decoding=spec.default_decoding,
        block_length=min(spec.block_length, whole or config.max_block_length),
        fixed_block_length=spec.fixed_block_length,
        default_threshold=spec.default_threshold,
        remaskings=spec.remaskings,
        edit_settings=spec.edit_settings,
        limits_steps=spec.limits_steps,
        sees_whole_text=spec.sees_whole_text,
        context_cache=config.context_cache,
        max_pass_tokens=config.max_batch_tokens,
        max_block_length=whole or config.max_block_length,
        max_infill_window=(whole or config.max_infill_window) if spec.can_infill else 0,
        page_size=config.page_size,
        num_pages=pool.num_pages,
        dtype=str(pool.dtype).removeprefix("torch."),
        device=str(pool.device),
        num_parameters=model.decoder.num_parameters,
        quantization="none" if model.decoder.storage.layers in FLOAT_STORAGES else model.decoder.storage.layers,
        draft_quantization=config.draft_quantization,
        storage=model.decoder.storage.layers,
        weight_bytes=model.decoder.num_bytes,
        published=model.published,
        device_bandwidth=speed.bandwidth,
        device_rate=speed.rate,
    )
