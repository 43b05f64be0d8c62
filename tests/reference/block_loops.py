"""The published loops of the families whose context is encoded by blocks: one sequence, no cache, nothing clever.

Every pass runs the whole text so far through transformers' own module, under a mask by which a token sees to the end of
its own block. Two things differ from the published loops and change no text: an answer ends as soon as an end token, or
its last token, has no mask to its left; and tokens that can never be meant (mask, padding) are not chosen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.reference.block_checkpoints import MIXTURES, backbone
from tests.reference.checkpoints import EOS, MASK, PAD
from tests.reference.loops import Canvas, Run, Task, _record_unmasking, _settle_left_of_masks
from tests.reference.mixtures.names import module_state
from tests.reference.sampling import Choice
from tests.reference.transformer import ReferenceModel


class BlockReferenceModel(ReferenceModel):
    """transformers' module with a checkpoint's weights. It remembers nothing between two passes."""

    def __init__(self, directory: Path, family: str, block_length: int, dtype: torch.dtype = torch.float64) -> None:
        values = json.loads((directory / "config.json").read_text())
        self.family, self.block_length = family, block_length
        self.mask_id, self.end_ids, self.banned_ids = MASK, frozenset({EOS}), frozenset({MASK, PAD})
        self.model: Any = backbone(family, values, dtype)
        stored = load_file(directory / "model.safetensors")
        if family in MIXTURES:
            stored = module_state(stored, llada2=family == "llada2")
        missing, unexpected = self.model.load_state_dict(stored, strict=False)
        assert missing == (["lm_head.weight"] if values["tie_word_embeddings"] else []), missing
        assert not unexpected, unexpected

    def reset(self) -> None:
        """Nothing is kept."""

    @torch.no_grad()
    def block_causal(self, ids: list[int]) -> np.ndarray:
        """Logits [len(ids), V]: every token sees to the end of its own block, or of the text."""
        count = len(ids)
        ends = [min((p // self.block_length + 1) * self.block_length, count) for p in range(count)]
        mask = torch.zeros(1, 1, count, count, dtype=self.model.dtype)
        for p, end in enumerate(ends):
            mask[0, 0, p, end:] = -math.inf
        output = self.model(
            torch.tensor([ids]), attention_mask=mask, position_ids=torch.arange(count)[None], use_cache=False
        )
        rows: np.ndarray = output.logits[0].double().numpy()
        return rows


class BlockCanvas(Canvas):
    """A block that begins with known tokens."""

    def __init__(self, start: int, length: int, known: list[int]) -> None:
        super().__init__(start, length)
        self.tokens[: len(known)] = known
        self.settled = self.known = len(known)


Pick = Callable[[Run, BlockCanvas, dict[int, Choice]], set[int]]
"""Which of the positions with a choice take it in this step."""


def sdar(model: BlockReferenceModel, task: Task) -> Run:
    """SDAR: whole blocks, of which the first begins with what the prompt has past its last boundary."""
    length, steps = model.block_length, task.max_denoising_steps or model.block_length

    def pick(run: Run, canvas: BlockCanvas, choices: dict[int, Choice]) -> set[int]:
        wanted = length // steps + (canvas.steps < length % steps)
        if task.remasking == "sequential":
            return set(sorted(choices)[:wanted])
        best = sorted(choices, key=lambda j: -choices[j].logprob)
        sure = {j for j in choices if task.threshold is not None and math.exp(choices[j].logprob) > task.threshold}
        _record_unmasking(run, choices, best, wanted, sure)
        return sure if len(sure) >= wanted else set(best[:wanted])

    return _block_after_block(model, task, pick, ragged=False)


def llada2(model: BlockReferenceModel, task: Task) -> Run:
    """LLaDA2.0: step i takes all above the threshold if they are its share of the block, else its share of the best."""
    length, steps = model.block_length, task.max_denoising_steps or model.block_length
    shares = [length // steps + (step < length % steps) for step in range(steps)]

    def pick(run: Run, canvas: BlockCanvas, choices: dict[int, Choice]) -> set[int]:
        best = sorted(choices, key=lambda j: -choices[j].logprob)
        share = min(shares[canvas.steps], len(best))
        high = [j for j in best if task.threshold is not None and math.exp(choices[j].logprob) > task.threshold]
        _record_unmasking(run, choices, best, share, set(high))
        return set(high) if len(high) >= shares[canvas.steps] else set(best[:share])

    return _block_after_block(model, task, pick, ragged=False)


def stable_diffcoder(model: BlockReferenceModel, task: Task) -> Run:
    """Stable-DiffCoder: the last block ends with the answer; LLaDA's even split of a block's masks, or a threshold."""
    steps = task.max_denoising_steps or model.block_length

    def pick(run: Run, canvas: BlockCanvas, choices: dict[int, Choice]) -> set[int]:
        best = sorted(choices, key=lambda j: -choices[j].logprob)
        if task.threshold is not None:
            sure = {j for j in choices if math.exp(choices[j].logprob) >= task.threshold}
            _record_unmasking(run, choices, best, 1, sure)
            return sure | {best[0]}
        masks = len(canvas.tokens) - canvas.known
        wanted = masks // steps + (canvas.steps < masks % steps)
        _record_unmasking(run, choices, best, wanted, set())
        return set(best[:wanted])

    return _block_after_block(model, task, pick, ragged=True)


def _block_after_block(model: BlockReferenceModel, task: Task, pick: Pick, *, ragged: bool) -> Run:
    run = Run(model, task)
    length = model.block_length
    start = len(task.prompt) // length * length
    while True:
        end = min(start + length, len(task.prompt) + task.max_tokens) if ragged else start + length
        canvas = BlockCanvas(start, end - start, task.prompt[start:])
        while not canvas.finished:
            logits = model.block_causal(_text(run, canvas))[start:]
            _step(run, canvas, {j: logits[j] for j, token in enumerate(canvas.tokens) if token is None}, pick)
            if run.finished:
                return run
        run.passes += 1  # stores the finished block
        start = end


def fast_dllm_v2(model: BlockReferenceModel, task: Task, *, sub_block: int = 8) -> Run:
    """Fast-dLLM v2: shifted logits, a block's first token from the block before it, sub-blocks from left to right."""

    def pick(run: Run, canvas: BlockCanvas, choices: dict[int, Choice]) -> set[int]:
        best = sorted(choices, key=lambda j: -choices[j].logprob)
        sure = {j for j in choices if task.threshold is not None and math.exp(choices[j].logprob) > task.threshold}
        _record_unmasking(run, choices, best, 1, sure)
        return sure | {best[0]}

    run = Run(model, task)
    length = model.block_length
    if len(task.prompt) % length == 0:
        _next_token(run, task.prompt)
    while not run.finished:
        text = task.prompt + run.answer
        start = len(text) // length * length
        canvas = BlockCanvas(start, length, text[start:])
        for first in range(0, length, sub_block):
            while None in canvas.tokens[first : first + sub_block]:
                logits = model.block_causal(_text(run, canvas))[start:]
                masked = [j for j in range(first, first + sub_block) if canvas.tokens[j] is None]
                _step(run, canvas, {j: logits[j - 1] for j in masked}, pick)
                if run.finished:
                    return run
        run.passes += 1
        _next_token(run, task.prompt + run.answer)
    return run


def _text(run: Run, canvas: BlockCanvas) -> list[int]:
    """Everything up to the canvas's end, as the model reads it."""
    before = (run.task.prompt + run.answer)[: canvas.start]
    return before + [run.model.mask_id if token is None else token for token in canvas.tokens]


def _step(run: Run, canvas: BlockCanvas, logits: dict[int, np.ndarray], pick: Pick) -> None:
    """One denoising step. logits: by masked position, those that choose its token."""
    unsettled = [token for token in canvas.tokens[canvas.settled :] if token is not None]
    choices = {j: run.choose(row, canvas.start + j, unsettled) for j, row in logits.items()}
    for choice in choices.values():
        run.record(choice.margin)
    for j in pick(run, canvas, choices):
        canvas.tokens[j], canvas.logprobs[j] = choices[j].token, choices[j].logprobs
    canvas.steps += 1
    run.passes += 1
    run.denoising_steps += 1
    _settle_left_of_masks(run, canvas)


def _next_token(run: Run, text: list[int]) -> None:
    """The last row of a pass over whole blocks chooses the token after them."""
    choice = run.choose(run.model.block_causal(text)[-1], len(text))
    run.record(choice.margin)
    run.settle(choice.token, choice.logprobs)
