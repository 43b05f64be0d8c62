"""Loops for models whose context is encoded by blocks: one request after another, with a KV cache of whole blocks.

Sources: SDAR's `generate.py`, the loops in the modeling files of Stable-DiffCoder and of Fast-dLLM v2 (arXiv
2509.26328), greedy, with a confidence threshold. Answers are cut at an end token once its block is finished, as there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bench.loops.one_request import Loop, refine
from bench.loops.transformers_model import Limits, TransformersModel

SUB_BLOCK = 8
"""Fast-dLLM v2's `small_block_size`."""


@torch.inference_mode()
def whole_blocks(model: TransformersModel, prompt: list[int], limits: Limits) -> list[int]:
    """SDAR: the first block begins with the prompt's tail; a finished block is run once more, for its KV."""
    return _block_after_block(model, prompt, limits, ragged=False)


@torch.inference_mode()
def blocks_to_the_end(model: TransformersModel, prompt: list[int], limits: Limits) -> list[int]:
    """Stable-DiffCoder: the same, but the last block ends with the answer."""
    return _block_after_block(model, prompt, limits, ragged=True)


def _block_after_block(model: TransformersModel, prompt: list[int], limits: Limits, *, ragged: bool) -> list[int]:
    length, text, cache = model.info.block_length, list(prompt), model.new_cache()
    cached = len(text) // length * length
    if cached:
        model.encode(model.tensor(text[:cached]), cache, length)
    while True:
        end = min(cached + length, len(prompt) + limits.max_tokens) if ragged else cached + length
        block, masked = _canvas(model, text[cached:], end - cached)
        while bool(masked.any()):
            block, masked = refine(model.canvas(block, cache), block, masked, limits.threshold)
        text[cached:] = block[0].tolist()
        answer = model.cut(text[len(prompt) :], limits)
        if model.ends(answer, limits):
            return answer
        model.encode(block, cache, length)
        cached = end


@torch.inference_mode()
def shifted_sub_blocks(model: TransformersModel, prompt: list[int], limits: Limits) -> list[int]:
    """Fast-dLLM v2: each row predicts the next position; a block's first token is chosen by the block before it."""
    length, text, cache = model.info.block_length, list(prompt), model.new_cache()
    cached = len(text) // length * length
    if cached:
        row = model.encode(model.tensor(text[:cached]), cache, length)
        if cached == len(text):
            text.append(int(row.argmax(dim=-1)))
    while not (len(text) > len(prompt) and model.ends(model.cut(text[len(prompt) :], limits), limits)):
        block, masked = _canvas(model, text[cached:], length)
        for first in range(0, length, SUB_BLOCK):
            part = slice(first, first + SUB_BLOCK)
            while bool(masked[:, part].any()):
                logits = model.canvas(block, cache)
                shifted = torch.cat((logits[:, :1], logits[:, :-1]), dim=1)[:, part]
                block[:, part], masked[:, part] = refine(shifted, block[:, part], masked[:, part], limits.threshold)
        text[cached:] = block[0].tolist()
        if model.ends(model.cut(text[len(prompt) :], limits), limits):
            break
        text.append(int(model.encode(block, cache, length).argmax(dim=-1)))
        cached += length
    return model.cut(text[len(prompt) :], limits)


def _canvas(model: TransformersModel, known: list[int], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A block that begins with known tokens, and which of its positions are masked: both [1, length]."""
    masks = length - len(known)
    block = model.tensor(known + [model.info.mask_token_id] * masks)
    return block, model.tensor([0] * len(known) + [1] * masks).bool()


BLOCK_LOOPS: Mapping[str, Loop] = {
    "sdar": whole_blocks,
    "stable_diffcoder": blocks_to_the_end,
    "fast_dllm_v2": shifted_sub_blocks,
}
"""By family: a user writes the loop that comes with the model."""
