"""Loops that answer one request after another with transformers: what the engine is compared with.

A *seed* is a token already chosen whose KV is not yet written.

Sources: greedy decoding with a cache as in transformers' documentation; block diffusion with a confidence threshold and
linear self-speculation as in the Nemotron-Labs-Diffusion model cards and paper (arXiv 2607.05722).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.loops.transformers_model import Limits, TransformersModel

Loop = Callable[[TransformersModel, list[int], Limits], list[int]]
"""(model, prompt, limits) -> the answer's tokens, an end token included."""


@torch.inference_mode()
def autoregressive(model: TransformersModel, prompt: list[int], limits: Limits) -> list[int]:
    """Greedy decoding with a KV cache, one token a pass."""
    cache, ids = model.new_cache(), model.tensor(prompt)
    answer: list[int] = []
    while not answer or not model.ends(answer, limits):
        ids = model.causal(ids, cache, keep=1).argmax(dim=-1)
        answer.append(int(ids))
    return answer


@torch.inference_mode()
def diffusion(model: TransformersModel, prompt: list[int], limits: Limits) -> list[int]:
    """Block diffusion: refine [seed, MASK, ...] until nothing is masked, then encode it causally for its KV."""
    cache = model.new_cache()
    answer = [int(model.causal(model.tensor(prompt), cache, keep=1).argmax(dim=-1))]
    while not model.ends(answer, limits):
        length = min(limits.block_length, limits.max_tokens - len(answer) + 1)
        block = model.tensor([answer[-1]] + [model.info.mask_token_id] * (length - 1))
        masked = block == model.info.mask_token_id
        masked[:, 0] = False
        while bool(masked.any()):
            block, masked = refine(model.canvas(block, cache), block, masked, limits.threshold)
            settled = block[0, : int(masked[0].int().argmax())] if bool(masked.any()) else block[0]
            if any(token in model.info.end_token_ids for token in settled[1:].tolist()):
                return model.cut(answer + settled[1:].tolist(), limits)
        answer += block[0, 1:].tolist()
        if model.ends(answer, limits):
            break
        answer.append(int(model.causal(block, cache, keep=1).argmax(dim=-1)))
    return answer


def refine(
    logits: torch.Tensor, block: torch.Tensor, masked: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One denoising step: unmasks the confident, and always the most confident. logits: [n, q, V]; others [n, q]."""
    confidence, choice = logits.softmax(dim=-1).max(dim=-1)
    confidence = confidence.masked_fill(~masked, -1.0)
    unmask = confidence >= threshold
    unmask.scatter_(1, confidence.argmax(dim=-1, keepdim=True), True)
    unmask &= masked
    return torch.where(unmask, choice, block), masked & ~unmask


@torch.inference_mode()
def speculative(model: TransformersModel, prompt: list[int], limits: Limits) -> list[int]:
    """Linear self-speculation: a bidirectional pass drafts, a causal one verifies: greedy AR's own text."""
    cache = model.new_cache()
    answer = [int(model.causal(model.tensor(prompt), cache, keep=1).argmax(dim=-1))]
    while not model.ends(answer, limits):
        width = min(limits.block_length, limits.max_tokens - len(answer))
        block = model.tensor([answer[-1]] + [model.info.mask_token_id] * (width - 1))
        if width > 1:
            block[:, 1:] = model.canvas(block, cache, drafting=True)[:, 1:].argmax(dim=-1)
        verified = model.causal(block, cache).argmax(dim=-1)
        accepted = int((block[0, 1:] == verified[0, :-1]).long().cumprod(dim=0).sum())
        cache.crop(accepted + 1 - width)
        answer = model.cut(answer + verified[0, : accepted + 1].tolist(), limits)
    return answer


LOOPS: dict[str, Loop] = {"ar": autoregressive, "diffusion": diffusion, "speculative": speculative}
"""By the engine's name of the mode. `auto` has none: it is not a loop that a user would write."""
