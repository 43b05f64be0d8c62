"""Assembles an engine from its configuration: model, KV pool, kernels, captured passes, scheduler and policies.

Read `load_parts`, then `assemble`: every step is a function of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import EngineConfig, EngineInfo, check_config
from engine.decoding.acceptance import AcceptanceEstimate
from engine.decoding.contract import DecodingPolicy
from engine.decoding.costs import CostTable
from engine.decoding.policies.prefill import Prefill
from engine.decoding.policies.registry import make_policies
from engine.decoding.width import OnePassWidthController, WidthController
from engine.device.devices import rank_device, resolve_device
from engine.errors import ConfigError
from engine.kv_cache.pages import PageAllocator
from engine.measure.calibration import measure_costs
from engine.measure.device_speed import measure_device_speed
from engine.measure.roofline import DeviceSpeed, WorkCounter
from engine.models.linear.storages import FLOAT_STORAGES
from engine.models.load_progress import ReportWeights
from engine.models.loader import LoadedModel
from engine.models.spec import ModelSpec
from engine.ranks.group import ALONE
from engine.ranks.processes import RankProcesses
from engine.runner.model_runner import ModelRunner
from engine.runner.pool_size import PoolSize
from engine.runner.rank_parts import find_device, load_share, make_device_pass
from engine.runner.ranked import RankedRunner, RankShare
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


def load_parts(
    config: EngineConfig,
    report: ReportWeights = lambda *progress: None,
    directory: Path | None = None,
    on_lost: Callable[[str], None] | None = None,
) -> EngineParts:
    """Loads the model that the configuration names, on as many ranks as it says; report: told how far its weights are.

    directory, on_lost: see RankProcesses. Raises ModelLoadError, ConfigError or RankError, one line each.
    """
    check_config(config)
    if config.tensor_parallel_size == 1:
        device = find_device(config, ALONE)
        return assemble(config, load_share(config, device, report=report), device)
    check_together(config)
    ranks = RankProcesses(config, directory=directory, on_lost=on_lost)
    try:
        return join_and_assemble(config, ranks, report)
    except BaseException:
        ranks.close()
        raise


def join_and_assemble(config: EngineConfig, ranks: RankProcesses, report: ReportWeights) -> EngineParts:
    """The parts of an engine around rank 0's share of a model, once the other ranks have loaded theirs."""
    device = find_device(config, ranks.group)
    model = load_share(config, device, ranks.group, report)
    ranks.join(device)
    return assemble(config, model, device, ranks)


def check_together(config: EngineConfig) -> None:
    """Raises ConfigError where the number of ranks is more than the machine's GPUs."""
    rank_device(resolve_device(config.device), 0, config.tensor_parallel_size)


def assemble(
    config: EngineConfig, model: LoadedModel, device: torch.device, ranks: RankProcesses | None = None
) -> EngineParts:
    """Everything around a loaded model. Raises ConfigError for what the model or the machine cannot do.

    ranks: the other ranks, where this is rank 0 of several; these call `make_device_pass`.
    """
    check_blocks(config, model.spec)
    speed = measure_speed(config, model, device)  # before the pool takes the memory
    made = make_device_pass(config, model, device)
    if ranks is None:
        runner = ModelRunner(made.device_pass)
    else:
        runner = RankedRunner(RankShare(made.device_pass, ranks.group, model.spec.banned_token_ids), ranks)
    return parts_around(config, model, made.size, runner, made.picker, speed, made.weight_bytes)


def measure_speed(config: EngineConfig, model: LoadedModel, device: torch.device) -> DeviceSpeed:
    """The device's speed over as much memory as a pass reads of the weights; zeros where nothing is to be measured."""
    decoder = model.decoder
    if not config.calibration_seconds:
        return UNMEASURED
    counter = WorkCounter(decoder, decoder.dtype.itemsize)
    return measure_device_speed(device, decoder.dtype, counter.weight_bytes, decoder.storage.layers)


def check_blocks(config: EngineConfig, spec: ModelSpec) -> None:
    """Raises ConfigError where the configuration has no room for a block of a model that knows one length alone."""
    length = spec.block_length if spec.fixed_block_length else 1
    if length > config.max_block_length:
        raise ConfigError(
            f"max_block_length ({config.max_block_length}) is less than this model's block length ({length})."
        )
    whole = spec.context_block
    if whole > config.max_batch_tokens // PREFILL_SHARE:
        raise ConfigError(
            f"max_batch_tokens ({config.max_batch_tokens}) must be at least {PREFILL_SHARE * whole}, so that prompts "
            f"always have room for a block of {whole}."
        )


def parts_around(
    config: EngineConfig,
    model: LoadedModel,
    size: PoolSize,
    runner: ModelRunner,
    picker: TokenPicker | None = None,
    speed: DeviceSpeed = UNMEASURED,
    weight_bytes: int | None = None,
) -> EngineParts:
    """The rest of an engine, around a model that can run. picker: None: torch chooses tokens. speed: the device's.
    weight_bytes: of all ranks; None: there is one."""
    spec, pool = model.spec, runner.pool
    history = TokenHistory(config.max_running, model.config.vocab_size, pool.device)
    sampler = Sampler(spec.banned_token_ids, history, pool.device, picker)
    group = math.lcm(config.page_size, spec.context_block) // config.page_size
    allocator = PageAllocator(pool.num_pages, config.page_size, config.prefix_caching, group)
    costs = measure_or_assume_costs(config, model, size, runner)
    controllers = OnePassWidthController if spec.drafts_causally else WidthController
    controller = controllers(costs, AcceptanceEstimate(config.max_block_length))
    policies = make_policies(config, spec, sampler, controller, runner.device_pass.memory)
    prefill = Prefill(sampler, policies, spec.context_block)
    return EngineParts(
        config=config,
        info=make_info(config, model, size, runner, speed, weight_bytes),
        device=pool.device,
        runner=runner,
        sampler=sampler,
        scheduler=Scheduler(config, allocator, policies, prefill, runner.clear),
        policies=policies,
        prefill=prefill,
        work=WorkCounter(model.decoder, pool.dtype.itemsize),
        widths=controller,
    )


def measure_or_assume_costs(config: EngineConfig, model: LoadedModel, size: PoolSize, runner: ModelRunner) -> CostTable:
    """The cost of passes: measured if the model has a mode that asks and the configuration gives time for it."""
    if "auto" not in model.spec.decodings or not config.calibration_seconds:
        return CostTable.assumed(config.max_block_length)
    return measure_costs(runner, config, size.max_model_len)


def make_info(
    config: EngineConfig,
    model: LoadedModel,
    size: PoolSize,
    runner: ModelRunner,
    speed: DeviceSpeed,
    weight_bytes: int | None,
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
        refines=spec.refinement is not None,
        default_steps=None if spec.refinement is None else spec.refinement.steps,
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
        tensor_parallel_size=model.decoder.group.size,
        storage=model.decoder.storage.layers,
        weight_bytes=model.decoder.num_bytes if weight_bytes is None else weight_bytes,
        published=model.published,
        device_bandwidth=speed.bandwidth,
        device_rate=speed.rate,
    )
