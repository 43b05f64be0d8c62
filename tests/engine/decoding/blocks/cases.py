"""Families whose context is encoded by blocks, in the engine and as their published loops; random cases for both."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.conftest import MakeEngine, engine_maker
from tests.engine.decoding.harness import agrees, random_prompt, request_for
from tests.engine.driving import drive
from tests.reference.block_checkpoints import write_block_checkpoint
from tests.reference.block_loops import BlockReferenceModel, fast_dllm_v2, llada2, sdar, stable_diffcoder
from tests.reference.loops import Run, Task

Loop = Callable[[BlockReferenceModel, Task], Run]

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "sdar": {"logit_scale": 3.0},
    "sdar_8": {"logit_scale": 2.0, "block_size": 8, "seed": 1, "num_key_value_heads": 4},
    "stable_diffcoder": {"logit_scale": 3.0},
    "fast_dllm_v2": {"logit_scale": 3.0, "bd_size": 16},
    "fast_dllm_v2_32": {"logit_scale": 2.0, "bd_size": 32, "seed": 1, "tie_word_embeddings": False},
    "sdar_moe": {"logit_scale": 3.0},
    "llada2": {"logit_scale": 3.0, "block_length": 8},
    "llada2_1": {
        "logit_scale": 3.0, "block_length": 8, "seed": 2, "num_hidden_layers": 2, "num_experts": 8, "n_group": 2,
        "topk_group": 1, "num_experts_per_tok": 2,
    },
}  # fmt: skip
"""What `write_block_checkpoint` is told, by name. The family is what the name begins with."""
BLOCK_LENGTHS = {
    "sdar": 4, "sdar_8": 8, "stable_diffcoder": 4, "fast_dllm_v2": 16, "fast_dllm_v2_32": 32,
    "sdar_moe": 4, "llada2": 8, "llada2_1": 8,
}  # fmt: skip

LOOPS: dict[str, Loop] = {
    "sdar": sdar, "stable_diffcoder": stable_diffcoder, "fast_dllm_v2": fast_dllm_v2,
    "sdar_moe": sdar, "llada2": llada2, "llada2_1": llada2,
}  # fmt: skip
"""By family; without editing LLaDA2.1's is LLaDA2.0's."""
SAME_FILES = {"llada2_1": "llada2"}
"""Families whose checkpoints look like another one's: the operator says what they are."""


class Order(NamedTuple):
    """One way in which a family's loop unmasks, and what a request says for it."""

    thresholds: tuple[float | None, ...]
    steps: bool = False
    """Fewer steps a block may be asked for."""
    remasking: str = "low_confidence"


ORDERS: dict[str, dict[str, Order]] = {
    "sdar": {
        "dynamic": Order((0.2, 0.45, 0.85, 1.0), steps=True),
        "static": Order((None,), steps=True),
        "sequential": Order((None,), steps=True, remasking="sequential"),
    },
    "stable_diffcoder": {"even": Order((None,), steps=True), "threshold": Order((0.2, 0.6, 1.0))},
    "llada2": {"dynamic": Order((0.2, 0.5, 0.95, None), steps=True)},
    "fast_dllm_v2": {"threshold": Order((0.2, 0.5, 0.9)), "one_by_one": Order((1.0, None))},
}
"""By family, the orders that its loop offers."""
ORDERS["sdar_moe"], ORDERS["llada2_1"] = ORDERS["sdar"], ORDERS["llada2"]


def family_of(name: str) -> str:
    """The family of a checkpoint."""
    return max((family for family in ORDERS if name.startswith(family)), key=len)


@dataclass(frozen=True)
class BlockPair:
    """One checkpoint, in the engine and as a reference that does not compute anything twice."""

    name: str
    make: MakeEngine
    reference: BlockReferenceModel

    @property
    def block_length(self) -> int:
        return self.reference.block_length


def make_block_pair(root: Path, name: str, dtype: str) -> BlockPair:
    """Writes the checkpoint and loads it twice."""
    family = family_of(name)
    written = SAME_FILES.get(family, family)
    directory = write_block_checkpoint(root / f"{name}-{dtype}", written, **CHECKPOINTS[name])
    reference = BlockReferenceModel(directory, written, BLOCK_LENGTHS[name], getattr(torch, dtype))
    known: dict[tuple[int, ...], Any] = {}
    compute = reference.block_causal

    def remembering(ids: list[int]) -> Any:
        key = tuple(ids)
        if key not in known:
            known[key] = compute(ids)
        return known[key]

    reference.block_causal = remembering  # type: ignore[method-assign]
    said = family if family in SAME_FILES else None
    return BlockPair(name, engine_maker(directory, dtype, said), reference)


def random_tasks(count: int, block_length: int, order: Order) -> Iterator[Task]:
    """Prompts and limits around the boundaries of blocks; answers that end early, late, or only at their limit."""
    rng = random.Random(count)
    edges = sorted({1, 2, *(n * block_length + d for n in (1, 2) for d in (-1, 0, 1))})
    for _ in range(count):
        length = rng.choice((rng.choice(edges), rng.randint(1, 2 * block_length + 1)))
        ends = {
            "never": {"ignore_eos": True},
            "early": {"stop_token_ids": tuple(rng.sample(range(6, 95), 30))},
            "late": {},
        }
        yield Task(
            prompt=random_prompt(length, rng.randrange(3)),
            max_tokens=rng.choice((rng.choice(edges), rng.randint(1, 2 * block_length + 1))),
            block_length=block_length,
            threshold=rng.choice(order.thresholds),
            remasking=order.remasking,
            max_denoising_steps=rng.choice((None, *range(1, block_length + 1))) if order.steps else None,
            **ends[rng.choice(sorted(ends))],
        )


def check(pair: BlockPair, order: str, count: int, *, shared_commit: bool) -> Counter[str]:
    """Holds answers and passes of `count` random cases, run in one engine beside each other, against the loop's.

    Returns how often what could have gone wrong took place.
    """
    family = family_of(pair.name)
    tasks = list(random_tasks(count, pair.block_length, ORDERS[family][order]))
    requests = [request_for(task, "diffusion", f"r{i}") for i, task in enumerate(tasks)]
    answers = drive(pair.make(shared_commit=shared_commit, kv_cache_tokens=1024), requests)
    seen: Counter[str] = Counter()
    for i, task in enumerate(tasks):
        answer, run = answers[f"r{i}"], LOOPS[family](pair.reference, task)
        if not agrees(answer, run):
            seen["near ties"] += 1
            continue
        stats, commits = answer.finished.stats, run.passes - run.denoising_steps
        saved = commits if shared_commit and family != "fast_dllm_v2" else 0
        assert (stats.passes, stats.denoising_steps) == (run.passes - saved, run.denoising_steps), task
        seen.update({run.reason: 1, "commits": commits, "saved": saved, "blocks": stats.blocks})
    assert seen["near ties"] <= count // 10
    return seen
