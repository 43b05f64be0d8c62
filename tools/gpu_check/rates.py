"""Agreement of modes on the built-in model, and speed of every mode on random weights of a given shape."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal

import torch

from bench.passes import pass_figures
from bench.prompts import BUILTIN_PROMPTS, Text, read_prompts
from bench.timing.pass_times import PassKind, make_plan, time_passes, without_graphs
from engine.batch import Phase, Span
from engine.config import EngineConfig
from engine.decoding.acceptance import AcceptanceEstimate
from engine.decoding.costs import CostTable
from engine.decoding.lookup import TextLookup
from engine.decoding.policies.speculation import SelfSpeculation
from engine.decoding.results import HostChoices, StepOutcome
from engine.decoding.width import WidthController
from engine.device.devices import synchronise
from engine.engine import Engine
from engine.events import Finished, TokensSettled
from engine.measure.roofline import DeviceSpeed
from engine.models.files import model_directory
from engine.request import Decoding, DecodingParams, Request, SamplingParams
from engine.sampling.divided import whole
from engine.sequence import Block, Sequence
from tools.gpu_check.report import Bar, Part

Kernels = Literal["torch", "triton"]
DType = Literal["bfloat16", "float32"]
MODES_THAT_AGREE: tuple[Decoding, ...] = ("ar", "speculative")

TOKENS_A_ROUND = {8: 5.78, 16: 8.53, 32: 11.36}
"""Tokens a round of self-speculation by block length, as published for the 8B on a reasoning set.

They are imposed on random weights, which would accept none.
"""
DENOISING_STEPS = {8: 2, 16: 4, 32: 8}
"""Steps of an even schedule by block length: about as many tokens a pass as a threshold of 0.9 gives."""


def run(engine: Engine, requests: list[Request], in_flight: int) -> tuple[dict[str, list[int]], float, int]:
    """Answers by request, seconds and tokens of a closed loop."""
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    queue, running, tokens = deque(requests), 0, 0
    started = time.perf_counter()
    while queue or running:
        while queue and running < in_flight:
            engine.add(queue.popleft())
            running += 1
        for event in engine.step()[0]:
            if isinstance(event, TokensSettled):
                answers[event.request_id] += event.token_ids
            elif isinstance(event, Finished):
                running -= 1
                tokens += event.stats.completion_tokens
                if event.reason == "error":
                    raise RuntimeError(f"request {event.request_id} failed: {event.error}")
    synchronise(engine.device)
    return answers, time.perf_counter() - started, tokens


def agreement(device: torch.device, kernels: Kernels, count: int, bar: float) -> Part:
    """Share of requests of the built-in model that self-speculation answers as AR does, greedy and sampled."""
    part = Part("Self-speculation equals AR")
    dtypes: tuple[DType, ...] = ("bfloat16", "float32")
    for dtype in dtypes:
        engine = _builtin_engine(device, kernels, dtype)
        for batch in (1, 32):
            answers = [run(engine, _requests(engine, count, d, batch), batch)[0] for d in MODES_THAT_AGREE]
            same = _same(*answers)
            part.rows.append({"dtype": dtype, "batch": batch, "requests": count, "same": same})
            if dtype == "bfloat16" and batch == 1:
                part.bars.append(Bar("same answers in bfloat16 at batch 1", same, bar))
    return part


def kernels_agree(device: torch.device, count: int, bar: float) -> Part:
    """Share of requests of the built-in model that both sets of kernels answer alike, in float32."""
    part = Part("Kernels agree")
    engines = [_builtin_engine(device, "torch", "float32"), _builtin_engine(device, "triton", "float32")]
    modes: tuple[Decoding, ...] = ("ar", "diffusion")
    for decoding in modes:
        same = _same(*(run(engine, _requests(engine, count, decoding, 32), 32)[0] for engine in engines))
        part.rows.append({"decoding": decoding, "requests": count, "same": same})
        part.bars.append(Bar(f"same answers of {decoding}", same, bar))
    return part


def _same(left: dict[str, list[int]], right: dict[str, list[int]]) -> float:
    return sum(left[key] == right[key] for key in left) / len(left)


def _builtin_engine(device: torch.device, kernels: Kernels, dtype: DType) -> Engine:
    config = EngineConfig(
        model=str(model_directory("builtin")), device=str(device), dtype=dtype, kernels=kernels,
        calibration_seconds=0.0, kv_cache_tokens=65536,
    )  # fmt: skip
    return Engine.load(config)


def _requests(engine: Engine, count: int, decoding: Decoding, batch: int) -> list[Request]:
    """Requests to the built-in model, one half greedy, one half sampled. No other mode or batch shares their KV."""
    text = Text(model_directory("builtin"), engine.info.bos_token_id)
    prompts = [text.encode(prompt.prompt) for prompt in read_prompts(BUILTIN_PROMPTS)]
    return [
        Request(
            request_id=str(i), prompt_token_ids=prompts[i % len(prompts)], max_tokens=96,
            sampling=SamplingParams(temperature=0.0 if i < count // 2 else 0.8, seed=i),
            decoding=DecodingParams(mode=decoding), cache_salt=f"{decoding} {batch}",
        )
        for i in range(count)
    ]  # fmt: skip


def passes(engine: Engine, kinds: list[tuple[PassKind, float]], speed: DeviceSpeed) -> Part:
    """Passes against their least time on this device; each kind with the most multiples of it that it may take. Where
    passes are captured, also what they take operation by operation, and how far their logits are from that."""
    part = Part("Passes against the floor")
    fitting = [kind for kind, _ in kinds if kind.fits(engine)]
    bars = [bar for kind, bar in kinds if kind.fits(engine)]
    found = time_passes(engine, fitting, repeats=5)
    captured, graphs = [_logits(engine, kind) for kind in fitting], engine.runner.device_pass.graphs
    with without_graphs(engine):
        eager = [_logits(engine, kind) for kind in fitting]
        eager_seconds = time_passes(engine, fitting, repeats=3) if graphs is not None else [[] for _ in fitting]
    rows = pass_figures(engine, fitting, found, speed)
    for i, (row, kind, bar) in enumerate(zip(rows, fitting, bars, strict=True)):
        multiple = 1 / float(str(row["light_share"]))
        apart = float((captured[i] - eager[i]).abs().max())
        apart = apart if math.isfinite(apart) else math.inf
        names = ("phase", "width", "batch", "context", "floor_ms", "median_ms")
        part.rows.append(
            {name: row[name] for name in names}
            | {
                "times the floor": multiple,
                "operation by operation, ms": statistics.median(eager_seconds[i]) * 1e3 if eager_seconds[i] else None,
                "largest difference of logits": apart,
            }
        )
        if bar:
            name = f"{kind.phase} of {kind.batch} x {kind.width} at {kind.context}, times the floor"
            part.bars.append(Bar(name, multiple, bar, at_most=True))
    if graphs is not None:
        worst = max(float(str(row["largest difference of logits"])) for row in part.rows)
        part.bars.append(Bar("largest difference of captured passes' logits", worst, 0.25, at_most=True))
    return part


def _logits(engine: Engine, kind: PassKind) -> torch.Tensor:
    """Logits of the first span of one pass."""
    logits = engine.runner.forward(make_plan(engine, kind))[0]
    return torch.zeros(1) if logits is None else whole(logits)[0].float().cpu()


class WholeBlocks(WidthController):
    """Verifies every drafted token, as if drafts were worth it."""

    def verify_length(self, seq: Sequence, block: Block, num_running: int) -> int:
        return len(block)

    def draft_ahead(self, seq: Sequence, block: Block, next_width: int, num_running: int) -> bool:
        return False


class ForcedAcceptance(SelfSpeculation):
    """Self-speculation that accepts a fixed average of tokens a round, `tokens_a_round`, verified or not.

    For random weights only. No request can ask for it: `force` puts it in place of an engine's own.
    """

    tokens_a_round = 1.0
    rounds = 0

    def conclude(self, span: Span, choices: HostChoices, i: int) -> StepOutcome:
        if span.phase is Phase.VERIFY:
            wanted = int((self.rounds + 1) * self.tokens_a_round) - int(self.rounds * self.tokens_a_round)
            self.rounds += 1
            choices.accepted[i] = max(0, min(wanted, len(span.token_ids)) - 1)
        return super().conclude(span, choices, i)


def force(engine: Engine, tokens_a_round: float) -> None:
    """Makes the engine's self-speculation accept so many tokens a round from now on."""
    controller = WholeBlocks(CostTable.assumed(2), AcceptanceEstimate(engine.config.max_block_length))
    old = engine.policies["speculative"]
    lookup = TextLookup(controller, engine.config.max_block_length)
    policy = ForcedAcceptance(old.sampler, old.mask_token_id, lookup)
    policy.tokens_a_round = tokens_a_round
    engine.policies["speculative"] = policy


def ways(block_lengths: list[int]) -> Iterator[tuple[DecodingParams, float]]:
    """(decoding, forced tokens a round): AR, diffusion by an even schedule, and self-speculation."""
    yield DecodingParams(mode="ar"), 0.0
    for length in block_lengths:
        steps = DENOISING_STEPS[length]
        yield DecodingParams(
            mode="diffusion", block_length=length, threshold=None, max_denoising_steps=steps
        ), 0.0  # fmt: skip
        yield DecodingParams(mode="speculative", block_length=length), TOKENS_A_ROUND[length]


def throughput(
    engine: Engine, in_flight: list[int], block_lengths: list[int], prompt: int, answer: int, bars: dict[int, float]
) -> Part:
    """Tokens a second of random weights. bars: of self-speculation at the best block length, by requests in flight."""
    part = Part("Tokens a second, random weights")
    generator = torch.Generator().manual_seed(0)
    best = dict.fromkeys(bars, 0.0)
    low = max(engine.info.banned_token_ids) + 1
    for count in in_flight:
        for decoding, forced in ways(block_lengths):
            if forced:
                force(engine, forced)
            ids = torch.randint(low, engine.info.vocab_size, (count, prompt), generator=generator).tolist()
            requests = [
                Request(
                    request_id=str(i), prompt_token_ids=ids[i], max_tokens=answer, ignore_eos=True,
                    sampling=SamplingParams(temperature=0.0), decoding=decoding, cache_salt=str(decoding),
                )
                for i in range(count)
            ]  # fmt: skip
            # Prompts first, so that the rate is decoding's alone.
            for request in requests:
                engine.add(request)
            seconds, tokens = _decode(engine)
            rate = tokens / seconds if seconds else 0.0
            if forced and count in best:
                best[count] = max(best[count], rate)
            part.rows.append(
                {
                    "decoding": decoding.mode,
                    "block": None if decoding.mode == "ar" else decoding.block_length,
                    "in flight": count, "tok/s": rate, "tokens a round": forced or None,
                }
            )  # fmt: skip
    part.bars = [Bar(f"self-speculation, {count} in flight, tok/s", best[count], bar) for count, bar in bars.items()]
    return part


def _decode(engine: Engine) -> tuple[float, int]:
    """Runs what the engine holds. Returns the seconds of the passes without prompts, and the tokens they settled."""
    seconds, tokens = 0.0, 0
    while engine.has_work:
        events, stats = engine.step()
        if "prefill" not in stats.phases:
            seconds += stats.duration
            tokens += sum(len(event.token_ids) for event in events if isinstance(event, TokensSettled))
    return seconds, tokens
