"""Loops for models that see the whole text: nothing is cached, prompt and answer run in every pass.

Sources: the parallel decoding of Fast-dLLM (arXiv 2505.22618) without its caches, which is the loop of LLaDA (arXiv
2502.09992) and of Dream (arXiv 2508.15487) with a confidence threshold. Greedy; every block of the answer is refined,
and the answer is cut at its first end token, as there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bench.loops.one_request import Loop, refine
from bench.loops.transformers_model import Limits, TransformersModel


@torch.inference_mode()
def own_rows(model: TransformersModel, prompt: list[int], limits: Limits) -> list[int]:
    """LLaDA: the row of a position chooses its token."""
    return _whole_text(model, prompt, limits, shift=0)


@torch.inference_mode()
def shifted_rows(model: TransformersModel, prompt: list[int], limits: Limits) -> list[int]:
    """Dream: the row before a position chooses its token."""
    return _whole_text(model, prompt, limits, shift=1)


def _whole_text(model: TransformersModel, prompt: list[int], limits: Limits, *, shift: int) -> list[int]:
    length = limits.block_length or limits.max_tokens  # 0: the answer is one block
    size = -(-limits.max_tokens // length) * length
    text = model.tensor(prompt + [model.info.mask_token_id] * size)
    for first in range(len(prompt), len(prompt) + size, length):
        block = slice(first, first + length)
        rows = torch.arange(first - shift, first + length - shift, device=text.device)
        masked = torch.ones((1, length), dtype=torch.bool, device=text.device)
        while bool(masked.any()):
            text[:, block], masked = refine(model.whole(text, rows), text[:, block], masked, limits.threshold)
    return model.cut(text[0, len(prompt) :].tolist(), limits)


WHOLE_LOOPS: Mapping[str, Loop] = {"llada": own_rows, "dream": shifted_rows}
"""By family: a user writes the loop that comes with the model."""
