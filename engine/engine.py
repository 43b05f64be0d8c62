"""Engine: takes requests, returns events, one step at a time. Called in process or through engine.process."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import torch

from engine.batch import BatchPlan
from engine.config import EngineConfig, EngineInfo
from engine.decoding.contract import decode
from engine.decoding.prefill import Prefill
from engine.decoding.registry import make_policies
from engine.decoding.results import STEP_FAILED, StepOutcome
from engine.decoding.width import AcceptanceEstimate, CostTable, WidthController
from engine.errors import ConfigError, RequestError
from engine.events import GenerationEvent, StepStats
from engine.grammar.compiler import GrammarCompiler, load_vocabulary
from engine.grammar.queue import GrammarQueue
from engine.grammar.state import GrammarState, GrammarVocabulary
from engine.kv_cache.pages import PageAllocator
from engine.kv_cache.pool import KVCachePool
from engine.kv_cache.sizing import choose_pool_size
from engine.measure.calibration import measure_costs
from engine.measure.device_speed import measure_device_speed
from engine.measure.roofline import DeviceSpeed, PassShape, WorkCounter
from engine.models.files import model_directory
from engine.models.loader import DTYPES, LoadedModel, load_model, resolve_device
from engine.request import Request
from engine.runner.kernels import make_kernels
from engine.runner.model_runner import ModelRunner
from engine.sampling.history import TokenHistory
from engine.sampling.sampler import Sampler
from engine.scheduling.outcome import finish_event
from engine.scheduling.scheduler import Scheduler
from engine.sequence import Sequence
from engine.validate import check_request

if TYPE_CHECKING:
    from engine.gpu.graphs import PassGraphs

log = logging.getLogger("lightcone.engine")


class Engine:
    """One model, one KV pool, one scheduler. Not thread-safe: one thread adds, aborts and steps."""

    def __init__(self, config: EngineConfig, model: LoadedModel, device: torch.device) -> None:
        """Raises ConfigError if the configuration contradicts itself or the machine."""
        self.config = config
        self.device = device
        spec, shape = model.spec, model.config
        dtype = model.decoder.dtype
        size = choose_pool_size(config, shape, dtype, device)
        adapter = model.decoder.adapter
        self._work = WorkCounter(shape, dtype.itemsize, adapter.rank if adapter else 0)
        speed = DeviceSpeed(0.0, 0.0)
        if config.calibration_seconds:
            speed = measure_device_speed(device, dtype, self._work.weight_bytes)
        self.info = EngineInfo(
            family=spec.family,
            vocab_size=shape.vocab_size,
            max_model_len=size.max_model_len,
            mask_token_id=spec.mask_token_id,
            banned_token_ids=spec.banned_token_ids,
            bos_token_id=spec.bos_token_id,
            end_token_ids=spec.end_token_ids,
            decodings=spec.decodings,
            default_decoding=spec.default_decoding,
            block_length=min(spec.block_length, config.max_block_length),
            max_block_length=config.max_block_length,
            max_infill_window=config.max_infill_window if spec.can_infill else 0,
            page_size=config.page_size,
            num_pages=size.num_pages,
            dtype=str(dtype).removeprefix("torch."),
            device=str(device),
            num_parameters=model.decoder.num_parameters,
            device_bandwidth=speed.bandwidth,
            device_rate=speed.rate,
        )
        captured = device.type == "cuda" and config.kernels == "triton" and not config.enforce_eager
        pool = KVCachePool(
            num_layers=shape.num_layers,
            num_pages=size.num_pages,
            page_size=config.page_size,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            max_rows=config.max_running,
            max_pages_per_row=-(-size.max_model_len // config.page_size),
            dtype=dtype,
            device=device,
            padding_page=captured,
        )
        kernels = make_kernels(config.kernels, pool, model.decoder, spec.banned_token_ids)
        self.runner = ModelRunner(model.decoder, pool, kernels, device)
        if device.type == "cuda":
            kernels.warm_up(shape.vocab_size, dtype)
        if captured:
            self.runner.graphs = capture_passes(self.runner, config.max_batch_tokens)
        history = TokenHistory(config.max_running, shape.vocab_size, device)
        self.sampler = Sampler(spec.banned_token_ids, history, device, kernels.choice)
        costs = self._measure_costs(config, "auto" in spec.decodings)
        self.controller = WidthController(costs, AcceptanceEstimate(config.max_block_length))
        self.policies = make_policies(config, spec, self.sampler, self.controller)
        self.prefill = Prefill(self.sampler, self.policies)
        allocator = PageAllocator(size.num_pages, config.page_size, config.prefix_caching)
        self.scheduler = Scheduler(config, allocator, self.policies, self.prefill, pool.clear)
        self._end_token_ids = frozenset(spec.end_token_ids)
        self._arrivals = 0
        self._compiling: GrammarQueue[Sequence] = GrammarQueue(GrammarCompiler(self._load_vocabulary))

    def _measure_costs(self, config: EngineConfig, wanted: bool) -> CostTable:
        if not wanted or not config.calibration_seconds:
            return CostTable.assumed(config.max_block_length)
        return measure_costs(self.runner, config, self.info.max_model_len)

    @classmethod
    def load(cls, config: EngineConfig) -> Engine:
        """Loads the model that the configuration names. Raises ModelLoadError or ConfigError, one line each."""
        check_config(config)
        device = resolve_device(config.device)
        if device.type == "cpu":
            torch.set_num_threads(config.threads or default_threads())
        if device.type == "cuda":
            torch.cuda.set_device(device)  # kernels of Triton start on the current device
        model = load_model(
            model_directory(config.model),
            load_format=config.load_format,
            dtype=DTYPES.get(config.dtype),
            device=device,
            max_positions=config.max_model_len,
        )
        return cls(config, model, device)

    def add(self, request: Request) -> None:
        """Queues a request; it joins before the next pass it fits into. RequestError if it can never be served.

        One with a grammar queues once that has been compiled, beside the passes; if that fails it ends with an error.
        """
        check_request(request, self.info)
        ends = frozenset(request.stop_token_ids)
        if not request.ignore_eos:
            ends |= self._end_token_ids
        seq = Sequence(request, ends, self._arrivals, received_at=time.monotonic())
        self._arrivals += 1
        seq.stats.prompt_tokens = seq.num_prompt
        self.policies[seq.mode].begin(seq)
        try:
            self._enqueue(seq)
        except KeyError as error:
            raise RequestError(str(error.args[0]), "request_id") from None

    def _enqueue(self, seq: Sequence) -> None:
        """Raises KeyError if the sequence's request id is in use."""
        request = seq.request
        if request.request_id in self._compiling:
            raise KeyError(f"request id {request.request_id!r} is in use")
        if request.grammar is not None and seq.grammar is None:
            self._compiling.add(request.request_id, seq, request.grammar)
        else:
            self.scheduler.add(seq)

    def _enqueue_compiled(self) -> list[GenerationEvent]:
        """Queues the sequences whose grammars are ready. Returns the Finished events of those that never will be."""
        events: list[GenerationEvent] = []
        for done in self._compiling.take(idle=not self.scheduler.has_work):
            seq, error = done.item, done.error
            if done.grammar is not None:
                seq.grammar = GrammarState(done.grammar, seq.end_token_ids, seq.num_prompt)
                try:
                    self._enqueue(seq)
                except KeyError as taken:
                    error = str(taken.args[0])
            if error:
                events.append(finish_event(seq, "error", error=error))
        return events

    def _load_vocabulary(self) -> GrammarVocabulary:
        path = model_directory(self.config.model) / "tokenizer.json"
        return load_vocabulary(path, self.info.vocab_size, self.info.end_token_ids, self.info.mask_token_id)

    def abort(self, request_id: str) -> list[GenerationEvent]:
        """Drops a request; its pages are free before the next pass. Returns its Finished event, if it was there."""
        seq = self._compiling.remove(request_id)
        return self.scheduler.abort(request_id) if seq is None else [finish_event(seq, "abort")]

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return self.scheduler.has_work or bool(self._compiling)

    def step(self) -> tuple[list[GenerationEvent], StepStats]:
        """Runs one pass. Returns the events of requests and the pass's figures. Without work it only returns those."""
        started = time.monotonic()
        refused = self._enqueue_compiled()
        plan = self.scheduler.schedule()
        outcomes, forward_seconds = self._run(plan)
        events, stats = self.scheduler.apply(plan, outcomes)
        stats.bytes, stats.operations = self._work.count(PassShape.of(plan)).total
        stats.duration, stats.forward_duration = time.monotonic() - started, forward_seconds
        return refused + events, stats

    def _run(self, plan: BatchPlan) -> tuple[list[StepOutcome], float]:
        """The outcomes of a plan and the seconds its forward took.

        If the pass fails, each of its sequences is run alone, so that an error ends only the request at fault.
        """
        if not plan.groups:
            return [], 0.0
        try:
            return self._forward_and_decode(plan)
        except Exception:
            log.exception("a pass of %d tokens failed; running its sequences one by one", plan.num_tokens)
        return self._run_alone(plan)

    def _run_alone(self, plan: BatchPlan) -> tuple[list[StepOutcome], float]:
        outcomes: list[StepOutcome] = []
        seconds = 0.0
        for seq in dict.fromkeys(span.seq for span in plan.spans):
            alone = plan.only(seq)
            try:
                decoded, took = self._forward_and_decode(alone)
                outcomes += decoded
                seconds += took
            except Exception:
                log.exception("request %s failed", seq.request.request_id)
                outcomes += [StepOutcome(span, error=STEP_FAILED) for span in alone.spans]
        return outcomes, seconds

    def _forward_and_decode(self, plan: BatchPlan) -> tuple[list[StepOutcome], float]:
        started = time.monotonic()
        logits = self.runner.forward(plan)
        seconds = time.monotonic() - started
        return decode(plan, logits, self.policies, self.prefill), seconds


def capture_passes(runner: ModelRunner, max_tokens: int) -> PassGraphs:
    """Captures a runner's passes of up to `max_tokens` query tokens on a GPU. Only with the triton kernels."""
    from engine.gpu.attention import TritonAttention  # these need Triton, and nothing else does
    from engine.gpu.graphs import CudaCapturer, PassGraphs

    if not isinstance(runner.attention, TritonAttention):
        raise TypeError("only passes of the triton backend can be captured")
    graphs = PassGraphs(runner.decoder, runner.attention, runner.elementwise, runner.pool, CudaCapturer())
    graphs.warm_up(max_tokens)
    return graphs


def default_threads() -> int:
    """torch threads on a CPU: all cores but one, which the API process needs. A pass whose threads wait for a core that
    another process holds is many times slower than one with a thread less."""
    return max(1, len(os.sched_getaffinity(0)) - 1) if hasattr(os, "sched_getaffinity") else 1


def check_config(config: EngineConfig) -> None:
    """Raises ConfigError naming the field and what is valid."""
    size = config.page_size
    if size < 1 or size & (size - 1):
        raise ConfigError(f"page_size must be a power of two, not {size}.")
    for name in ("max_running", "max_batch_tokens", "max_block_length"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(config, name)}.")
    if not 2 <= config.max_block_length <= 1024:
        raise ConfigError(f"max_block_length must be between 2 and 1024, not {config.max_block_length}.")
    widest = max(2 * config.max_block_length, config.max_infill_window)
    # A quarter of the budget is kept for prompts while any wait; what remains must hold the widest single span pair.
    if config.max_batch_tokens - config.max_batch_tokens // 4 < widest:
        needed = 4 * (widest - 1) // 3 + 1
        raise ConfigError(
            f"max_batch_tokens ({config.max_batch_tokens}) cannot hold two blocks of max_block_length "
            f"({config.max_block_length}) or one max_infill_window ({config.max_infill_window}): "
            f"at least {needed} is needed."
        )
    if config.max_infill_window < 0:
        raise ConfigError(f"max_infill_window must be at least 0, not {config.max_infill_window}.")
    for name in ("max_model_len", "kv_cache_tokens", "threads"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.")
    if not 0 < config.gpu_memory_utilization <= 1:
        raise ConfigError(f"gpu_memory_utilization must be in (0, 1], not {config.gpu_memory_utilization}.")
