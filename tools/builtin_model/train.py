"""Training: first causally, until the model copies, then jointly by causal and masked prediction.

Progress is kept every few hundred steps; the same command goes on from there. The batch of a step depends on the seed
and the step alone, so an interrupted run and an uninterrupted one train on the same text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

from tools.builtin_model.export import load_network, weights_digest
from tools.builtin_model.network import Network, Shape
from tools.builtin_model.windows import Batch, Shares, make_batch


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the machine's rounding."""

    seed: int = 1
    rows: int = 16
    """Windows of each step."""
    length: int = 256
    """Clean tokens of a window; the noised half has as many again."""
    causal_steps: int = 700
    joint_steps: int = 2600
    learning_rate: float = 0.015
    """Learning rate of Muon, for the matrices."""
    embedding_learning_rate: float = 0.004
    """Learning rate of AdamW, for embedding and norms."""
    warm_up_steps: int = 100
    decay_share: float = 0.4
    """Share of all steps, at the end, in which the learning rates fall to zero."""
    diffusion_weight: float = 1.5
    """Weight of the masked loss; the causal loss has weight 1."""
    first_questions: float = 0.0
    """Share of documents about the questions that newcomers type first."""
    difficult: float = 0.0
    """Share of those of the first questions that are learnt last."""
    tool_chats: float = 0.0
    """Share of documents that are chats with tools; the other shares are of the rest."""
    start: str = ""
    """SHA-256 of the exported weights that training goes on from; empty where it starts from random ones."""

    @property
    def steps(self) -> int:
        return self.causal_steps + self.joint_steps

    def factor(self, step: int) -> float:
        """Factor on the learning rates in `step`: a linear warm-up, a plateau, a linear decay."""
        left = (self.steps - step) / max(1.0, self.steps * self.decay_share)
        return min(1.0, (step + 1) / self.warm_up_steps, left)


SECOND_STAGE = Recipe(
    seed=2, causal_steps=0, joint_steps=680, learning_rate=0.008, embedding_learning_rate=0.002, warm_up_steps=40,
    decay_share=0.7, first_questions=0.4,
)  # fmt: skip
"""Teaches exported weights the questions that newcomers type first, without forgetting the others."""
THIRD_STAGE = replace(
    SECOND_STAGE, seed=3, joint_steps=600, learning_rate=0.006, embedding_learning_rate=0.0015, warm_up_steps=20,
    decay_share=0.8, first_questions=0.2, difficult=0.5,
)  # fmt: skip
"""Repeats what the second stage has not learnt well: short questions, counts, small sums, numbers too large."""
FOURTH_STAGE = replace(
    SECOND_STAGE, seed=4, rows=11, length=384, joint_steps=2400, decay_share=0.5, first_questions=0.3, difficult=0.3,
    tool_chats=0.5,
)  # fmt: skip
"""Teaches chats with tools, which are longer than others. The shipped weights have not been through it."""
STAGES = {2: SECOND_STAGE, 3: THIRD_STAGE, 4: FOURTH_STAGE}


class Batches(Dataset[Batch]):
    """The batches of a run from step `first` on, each made when it is asked for; see make_batch for shapes."""

    def __init__(self, recipe: Recipe, tokenizer_file: Path, first: int) -> None:
        self.recipe, self.tokenizer_file, self.first = recipe, tokenizer_file, first
        self.tokenizer: Tokenizer | None = None

    def __len__(self) -> int:
        return self.recipe.steps - self.first

    def __getitem__(self, index: int) -> Batch:
        if self.tokenizer is None:  # made in the worker: a fork with tokenizer threads in it may hang
            self.tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        step, recipe = self.first + index, self.recipe
        joint = step >= recipe.causal_steps
        shares = Shares(recipe.tool_chats, recipe.first_questions, recipe.difficult)
        return make_batch(recipe.seed, step, self.tokenizer, recipe.rows, recipe.length, joint, shares)


def losses(network: Network, batch: Batch, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal and masked cross-entropy, in nats a token, weighted means; the second is 0 without a noised half."""
    hidden = network(batch.token_ids, batch.positions, batch.visible, length)
    logits = network.logits(hidden).float()
    each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view_as(batch.weights)
    each = each * batch.weights
    causal = each[:, :length].sum() / batch.weights[:, :length].sum()
    if batch.token_ids.shape[1] == length:
        return causal, torch.zeros(())
    return causal, each[:, length:].sum() / batch.weights[:, length:].sum()


class Trainer:
    """One run in `work`, which holds tokenizer.json and receives checkpoint.pt and log.jsonl.

    Starts from the parameters of `network` where it is given, else from random ones.
    """

    def __init__(
        self, recipe: Recipe, shape: Shape, work: Path, compile_: bool = False, network: Network | None = None
    ) -> None:
        self.recipe, self.work = recipe, work
        self.network = network or Network(shape, recipe.seed)
        matrices = [p for n, p in self.network.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.network.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=0.01),
            torch.optim.AdamW(others, lr=recipe.embedding_learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = [recipe.learning_rate, recipe.embedding_learning_rate]
        self.step = 0
        self.half = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        self.losses = torch.compile(losses, dynamic=False) if compile_ else losses
        self.resume()

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint.pt"

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one. Raises ValueError if another recipe made it."""
        if not self.checkpoint.exists():
            return
        saved: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        if saved["recipe"] != asdict(self.recipe) or saved["shape"] != self.network.shape.as_dict():
            raise ValueError(f"{self.checkpoint} was made with other settings; use them, or another --work.")
        self.step = saved["step"]
        self.network.load_state_dict(saved["network"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)

    def save(self) -> None:
        state = {
            "recipe": asdict(self.recipe), "shape": self.network.shape.as_dict(), "step": self.step,
            "network": self.network.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
        }  # fmt: skip
        torch.save(state, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)

    def train(self, until: int | None = None, save_every: int = 200) -> None:
        """Steps up to `until`, by default all, with a progress bar and a line of log.jsonl each 50 steps."""
        until = min(until or self.recipe.steps, self.recipe.steps)
        started, first = time.monotonic(), self.step
        with Progress(
            *Progress.get_default_columns()[:3], TimeRemainingColumn(), TextColumn("{task.fields[note]}")
        ) as bar:
            task = bar.add_task("training", total=until, completed=self.step, note="")
            for batch in self._batches():
                if self.step >= until:
                    break
                causal, masked = self.one_step(batch)
                if self.step % 50 == 0:
                    seconds = (time.monotonic() - started) / (self.step - first)
                    line = {"step": self.step, "causal": causal, "masked": masked, "seconds_a_step": round(seconds, 3)}
                    with (self.work / "log.jsonl").open("a", encoding="utf-8") as log:
                        log.write(json.dumps(line) + "\n")
                    bar.update(task, note=f"causal {causal:.3f}, masked {masked:.3f}")
                bar.update(task, completed=self.step)
                if self.step % save_every == 0:
                    self.save()
        self.save()

    def _batches(self) -> Iterator[Batch]:
        dataset = Batches(self.recipe, self.work / "tokenizer.json", self.step)
        yield from DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=4)

    def one_step(self, batch: Batch) -> tuple[float, float]:
        """One update; the two losses before it."""
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.recipe.factor(self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            causal, masked = self.losses(self.network, batch, self.recipe.length)
        torch.autograd.backward(causal + self.recipe.diffusion_weight * masked)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return causal.item(), masked.item()


def extended(source: Path, work: Path, stage: Recipe = SECOND_STAGE, compile_: bool = False) -> Trainer:
    """A run of `stage` in `work` that goes on from the exported model in `source`, with its tokenizer."""
    network, _ = load_network(source)
    network.train()
    trainer = Trainer(replace(stage, start=weights_digest(source)), network.shape, work, compile_, network)
    (work / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return trainer
