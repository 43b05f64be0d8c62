"""transformers' DiffusionGemma and its own generation as a reference: in its own dtype throughout, with given draws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.reference.noise import STEP_PLACES, gumbel, uniform_token


@dataclass(frozen=True, kw_only=True)
class RefiningTask:
    """One request."""

    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0
    """Of the draws, on top of the schedule's. 0: a step draws what is likeliest."""
    seed: int = 0
    max_denoising_steps: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True)
class RefiningRun:
    """One answer."""

    tokens: list[int]
    """Without the end token."""
    reason: str
    end_token: int | None
    steps: list[int]
    """Passes of the decoder, by canvas."""


class Widened:
    """torch, but float32 is float64: what transformers computes in float32 whatever its module's dtype."""

    float32 = torch.float64

    def __init__(self, **replaced: Any) -> None:
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced.get(name) or getattr(torch, name)


@contextmanager
def widened(module: Any, **replaced: Any) -> Iterator[None]:
    """Gives one of transformers' files another torch."""
    own = module.torch
    module.torch = Widened(**replaced)
    try:
        yield
    finally:
        module.torch = own


class _Norm:
    """RMSNorm in the dtype of what it norms."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        scale = torch.pow(hidden.pow(2).mean(-1, keepdim=True) + self.module.eps, -0.5)
        normed: torch.Tensor = hidden * scale
        return normed * self.module.weight if self.module.with_scale else normed


class RefiningReference:
    """transformers' module of a checkpoint, float64 throughout."""

    def __init__(self, directory: Path) -> None:
        import transformers
        from transformers.models.diffusion_gemma import generation_diffusion_gemma, modeling_diffusion_gemma

        self._processors = transformers.LogitsProcessorList
        self._modeling, self._generation = modeling_diffusion_gemma, generation_diffusion_gemma
        loaded = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(
            directory, dtype=torch.float64, attn_implementation="sdpa", experts_implementation="eager"
        )
        self.model: Any = loaded.eval()
        for module in self.model.modules():
            if type(module).__name__ == "DiffusionGemmaRMSNorm":
                module.forward = _Norm(module)
        self.vocab_size: int = self.model.config.text_config.vocab_size
        self.canvas_length: int = self.model.config.canvas_length

    @torch.inference_mode()
    def logits(self, text: list[int], canvases: list[list[int]], told: torch.Tensor | None = None) -> torch.Tensor:
        """[canvas length, V]: of the last canvas, after `text` and the canvases before it have been encoded, one pass
        each. told: the processed logits of the step before."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        with widened(self._modeling):
            for part in (text, *canvases[:-1]):
                at = cache.get_seq_length()
                inputs = torch.tensor([part])
                positions = torch.arange(at, at + len(part))[None]
                masks = self.model.model.encoder.create_masks_for_generate(
                    config=self.model.config,
                    inputs_embeds=torch.empty((1, len(part), 0), dtype=torch.float64),
                    attention_mask=torch.ones((1, at + len(part)), dtype=torch.bool),
                    past_key_values=cache,
                    position_ids=positions,
                )
                self.model.model.encoder(
                    input_ids=inputs, attention_mask=masks, past_key_values=cache, position_ids=positions
                )
            out = self.model(
                decoder_input_ids=torch.tensor([canvases[-1]]),
                self_conditioning_logits=None if told is None else told[None],
                past_key_values=cache,
                decoder_position_ids=torch.arange(cache.get_seq_length(), cache.get_seq_length() + len(canvases[-1]))[
                    None
                ],
            )
        logits: torch.Tensor = out.logits[0]
        return logits

    def generate(self, task: RefiningTask) -> RefiningRun:
        """transformers' own `generate`, which draws what belongs to seed, position and step."""
        draws = _Draws(self, task)
        own = self.model.generation_config
        ends = sorted({*own.eos_token_id, *task.stop_token_ids})
        config = self._generation.DiffusionGemmaGenerationConfig(
            max_new_tokens=task.max_tokens, eos_token_id=ends, pad_token_id=own.pad_token_id,
            max_denoising_steps=task.max_denoising_steps or own.max_denoising_steps, sampler_config=own.sampler_config,
            t_min=own.t_min, t_max=own.t_max, stability_threshold=own.stability_threshold,
            confidence_threshold=own.confidence_threshold,
        )  # fmt: skip
        barred = _Barred([] if not task.ignore_eos else sorted({*own.eos_token_id} - {*task.stop_token_ids}))
        sampler = self._generation.EntropyBoundSampler
        initialize = sampler.initialize_canvas
        sampler.initialize_canvas = lambda _, batch_size, device: draws.canvas()
        try:
            # Of torch's compiler, which takes seconds to import, it wants a call that does nothing here.
            compiler = SimpleNamespace(cudagraph_mark_step_begin=lambda: None)
            with (
                widened(self._modeling),
                widened(self._generation, multinomial=draws.tokens, compiler=compiler),
            ):
                out = self.model.generate(
                    torch.tensor([task.prompt]),
                    generation_config=config,
                    logits_processor=self._processors([barred]),
                )
        finally:
            sampler.initialize_canvas = initialize
        answer: list[int] = out.sequences[0, len(task.prompt) :].tolist()[: task.max_tokens]
        end = next((i for i, token in enumerate(answer) if token in ends), None)
        if end is None:
            return RefiningRun(answer, "length", None, draws.steps)
        return RefiningRun(answer[:end], "stop", answer[end], draws.steps)


class _Barred:
    """A logits processor of transformers: tokens that are never chosen."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, cur_step: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[..., self._token_ids] = -math.inf
        return scores


class _Draws:
    """The draws of one answer, in the order in which `generate` asks for them: a canvas, then the tokens and the fresh
    canvas of each of its steps."""

    def __init__(self, reference: RefiningReference, task: RefiningTask) -> None:
        self._task, self._vocab_size, self._length = task, reference.vocab_size, reference.canvas_length
        self._within_step = False
        self.steps: list[int] = []
        """Of each canvas so far."""

    @property
    def _positions(self) -> range:
        start = len(self._task.prompt) + (len(self.steps) - 1) * self._length
        return range(start, start + self._length)

    def canvas(self) -> torch.Tensor:
        """[1, r]: random tokens, of a new canvas unless a step has just drawn its own tokens."""
        if not self._within_step:
            self.steps.append(0)
        self._within_step = False
        seed, step = self._task.seed, self.steps[-1]
        return torch.tensor([[uniform_token(seed, place, step, self._vocab_size) for place in self._positions]])

    def tokens(self, probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        """[r, 1]: a token for each row of probabilities [r, V]."""
        step = self.steps[-1]
        self.steps[-1], self._within_step = step + 1, True
        if self._task.temperature == 0:
            return probabilities.argmax(dim=-1, keepdim=True)
        noise = np.stack(
            [gumbel(self._task.seed, place + step * STEP_PLACES, self._vocab_size) for place in self._positions]
        )
        scores = probabilities.log() / self._task.temperature + torch.from_numpy(noise)
        return scores.argmax(dim=-1, keepdim=True)
