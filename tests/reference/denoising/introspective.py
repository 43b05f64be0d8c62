"""I-DLM's published loop, with the noise that a seed gives instead of drawing anew: one pass verifies and drafts.

The whole text runs in every pass through transformers' own Qwen3, causally, and nothing is kept between two.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.reference.block_loops import BlockReferenceModel
from tests.reference.loops import Run, Task
from tests.reference.sampling import Choice


class CausalModel(BlockReferenceModel):
    """A Qwen3 that sees causally; with an adapter on the rows of masks, if one was put on."""

    def put_on(self, directory: Path) -> None:
        """Adds an adapter's product to the outputs of its matrices, in the rows of masks alone."""
        settings = json.loads((directory / "adapter_config.json").read_text())
        tensors = load_file(directory / "adapter_model.safetensors")
        scale = settings["lora_alpha"] / settings["r"]
        for name, module in self.model.named_modules():
            up = tensors.get(f"base_model.model.{name}.lora_B.weight")
            if up is not None:
                down = tensors[f"base_model.model.{name}.lora_A.weight"]
                delta = scale * up.to(self.model.dtype) @ down.to(self.model.dtype)
                module.register_forward_hook(partial(self._updated, delta))

    def _updated(self, delta: torch.Tensor, module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> Any:
        return output + self._is_mask[:, None] * (inputs[0] @ delta.T)

    def block_causal(self, ids: list[int]) -> np.ndarray:
        """See BlockReferenceModel. Here the mask's id is that of masks alone."""
        self._is_mask = torch.tensor([token == self.mask_id for token in ids]).to(self.model.dtype)
        return super().block_causal(ids)

    def rows(self, text: list[int], masks: int = 0) -> list[list[float]]:
        """Logits after each token of the text, and of as many masks behind it."""
        return list(self.block_causal(text + [self.mask_id] * masks))


def introspective(model: CausalModel, task: Task) -> Run:
    """[pending, drafts, MASK, ...] in one pass: left to right the drafts are verified; if all hold, the masks' rows are
    the next drafts, else the next pass has none. task.block_length: N, the tokens that a pass may bring."""
    run = Run(model, task)
    first = run.choose(model.rows(task.prompt)[-1], len(task.prompt))
    run.record(first.margin)
    run.settle(first.token, first.logprobs)
    drafts: list[int] = []
    while not run.finished:
        text = task.prompt + run.answer
        at = len(text) - 1
        masks = max(0, min(task.block_length, run.remaining - len(drafts) - 1) - 1)
        if run.end_ids & set(drafts):
            masks = 0
        rows = model.rows(text + drafts, masks)
        run.passes += 1
        chosen: list[Choice] = []
        for i in range(len(drafts) + 1):
            chosen.append(run.choose(rows[at + i], at + i + 1, drafts[:i]))
            if i < len(drafts) and drafts[i] != chosen[i].token:
                break
        behind = at + len(drafts) + 1
        ahead = [run.choose(rows[behind + i], behind + i + 1).token for i in range(masks)]
        run.drafted += len(drafts)
        run.accepted += len(chosen) - 1
        drafts = ahead if len(chosen) == len(drafts) + 1 else []
        for choice in chosen:
            run.record(choice.margin)
            run.settle(choice.token, choice.logprobs)
        run.denoising_steps += bool(masks) and not run.finished
    return run
