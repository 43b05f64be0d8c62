"""The tables of the model card: exact answers, tokens a pass and calibration of confidence on held-out questions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from bench.modes import Cell, closed_loop
from bench.prompts import Prompt, Text
from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import GenerationStats
from engine.grammar.structure import Exact, structure_grammar
from engine.request import Grammar
from server.formats.json_calls import HermesCalls
from server.formats.tools import Tool as ServedTool
from tools.builtin_model.calling.measured import CALLED, prompts_with_tools
from tools.builtin_model.calling.tool import Tool
from tools.builtin_model.export import held_out_prompts, load_network
from tools.builtin_model.network import Network
from tools.builtin_model.windows import MASK

BINS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Quality:
    """One way to decode, over all prompts."""

    cell: Cell
    exact: dict[str, float]
    """Share of exact answers by category."""
    same_as_ar: float
    tokens_per_pass: float

    @property
    def macro(self) -> float:
        """Mean over the categories, each counting the same."""
        return mean(self.exact.values())


def measure(directory: Path, lines: list[dict[str, Any]], cells: list[Cell]) -> list[Quality]:
    """Answers prompts, as `held_out_prompts` gives them, in every way of `cells`, the first being ar."""
    engine = Engine.load(EngineConfig(model=str(directory)))
    text = Text(directory, engine.info.bos_token_id)
    prompts = [Prompt(**line) for line in lines]
    encoded = [text.encode(prompt.prompt) for prompt in prompts]
    results: list[Quality] = []
    reference: list[str] = []
    for cell in cells:
        _, tokens, stats = closed_loop(engine, encoded, cell, str(cell), temperature=0.0, max_tokens=160)
        answers = [text.decode(ids) for ids in tokens]
        reference = reference or answers
        results.append(_quality(cell, prompts, answers, reference, stats))
    return results


def _quality(
    cell: Cell, prompts: list[Prompt], answers: list[str], reference: list[str], stats: list[GenerationStats]
) -> Quality:
    right: dict[str, list[bool]] = defaultdict(list)
    for prompt, answer in zip(prompts, answers, strict=True):
        right[prompt.category].append(answer == prompt.answer)
    same = mean(a == b for a, b in zip(answers, reference, strict=True))
    passes = sum(one.passes for one in stats)
    generated = sum(one.completion_tokens for one in stats)
    return Quality(cell, {name: mean(values) for name, values in right.items()}, same, generated / max(1, passes))


def cells() -> list[Cell]:
    """Every row of the table."""
    lengths, thresholds = (8, 16, 32), (0.7, 0.9, 0.95)
    rows = [Cell("ar", 16, 32)]
    rows += [Cell("speculative", 16, length) for length in lengths]
    rows += [Cell("diffusion", 16, length, threshold) for length in lengths for threshold in thresholds]
    return rows


def call_table(directory: Path, each: int) -> str:
    """Tokens a pass in Markdown: of stories, and of calls with and without the grammar that makes them valid."""
    engine = Engine.load(EngineConfig(model=str(directory)))
    text = Text(directory, engine.info.bos_token_id)
    calls = [one for one in prompts_with_tools(each) if one.category in CALLED]
    stories = [line["prompt"] for line in held_out_prompts(each, stories=True) if line["category"] == "story"]
    form = HermesCalls(line_end="")
    held = [structure_grammar(form.calls([_served(tool) for tool in one.tools], False, Exact)) for one in calls]
    prompts = [one.prompt for one in calls]
    rows: list[tuple[str, list[str], list[Grammar] | None]] = [
        ("stories", stories, None), ("calls", prompts, None), ("calls that are required", prompts, held),
    ]  # fmt: skip
    lines = ["| tokens a pass | " + " | ".join(cell.decoding for cell in tool_cells()) + " |", "|---|---|---|---|"]
    for name, asked, grammars in rows:
        shown = []
        for cell in tool_cells():
            encoded = [text.encode(prompt) for prompt in asked]
            stats = closed_loop(engine, encoded, cell, f"{name}{cell}", 0.0, 160, grammars)[2]
            passes, generated = sum(one.passes for one in stats), sum(one.completion_tokens for one in stats)
            shown.append(f"{generated / max(1, passes):.1f}")
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _served(tool: Tool) -> ServedTool:
    """The tool as a request gives it."""
    return ServedTool(tool.name, tool.definition["function"]["parameters"])


def tool_cells() -> list[Cell]:
    """Every row of the table of chats with tools."""
    return [Cell("ar", 16, 32), Cell("speculative", 16, 32), Cell("diffusion", 16, 32, 0.9)]


def table(results: list[Quality], number: int, what: str = "prompts") -> str:
    """Two Markdown tables: one row a way, and one row a category."""
    lines = [f"{number} held-out {what}.", "", "| mode | block | threshold | exact | same as ar | tokens a pass |"]
    lines.append("|---|---|---|---|---|---|")
    for one in results:
        mode, length, threshold = one.cell.way
        lines.append(
            f"| {mode} | {'' if mode == 'ar' else length} | {threshold if mode == 'diffusion' else ''} "
            f"| {one.macro:.2f} | {one.same_as_ar:.2f} | {one.tokens_per_pass:.1f} |"
        )
    shown = [one for one in results if one.cell.block_length == 32]
    names = [f"{r.cell.decoding}{f' {r.cell.threshold}' if r.cell.decoding == 'diffusion' else ''}" for r in shown]
    lines += ["", f"| exact by category, block 32 | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for category in shown[0].exact:
        lines.append(f"| {category} | {' | '.join(f'{one.exact[category]:.2f}' for one in shown)} |")
    return "\n".join(lines)


@torch.inference_mode()
def calibration(directory: Path, each: int, block_length: int = 32) -> list[tuple[float, float, int, float]]:
    """Share of right predictions at the masked positions of a fresh canvas, by confidence.

    The canvas is [first token of the answer, masks]; rows are (from, to, positions, share right). Positions after the
    end token do not count.
    """
    network, tokenizer = load_network(directory)
    found: list[tuple[float, bool]] = []
    for line in held_out_prompts(each):
        prompt = [1, *tokenizer.encode(line["prompt"], add_special_tokens=False).ids]
        answer = [*tokenizer.encode(line["answer"], add_special_tokens=False).ids, 2]
        found += _confidences(network, prompt, answer, block_length)
    return [
        (low, high, len(inside), mean(inside) if inside else 0.0)
        for low, high in pairwise(BINS)
        for inside in [[right for value, right in found if low <= value < high or value == high == 1.0]]
    ]


def _confidences(network: Network, prompt: list[int], answer: list[int], length: int) -> list[tuple[float, bool]]:
    canvas = [answer[0]] + [MASK] * (length - 1)
    ids = torch.tensor([prompt + canvas])
    total = ids.shape[1]
    visible = torch.ones(total, total, dtype=torch.bool).tril()
    visible[len(prompt) :] = True
    hidden = network(ids, torch.arange(total)[None], visible[None, None], total)
    logits = network.logits(hidden[0, len(prompt) :])
    logits[:, [0, MASK]] = -torch.inf
    confidence, chosen = logits.softmax(-1).max(-1)
    places = range(1, min(length, len(answer)))
    return [(float(confidence[i]), int(chosen[i]) == answer[i]) for i in places]


def calibration_table(rows: list[tuple[float, float, int, float]]) -> str:
    """The calibration in Markdown."""
    lines = ["| confidence | positions | right |", "|---|---|---|"]
    lines += [f"| {low} to {high} | {count} | {share:.2f} |" for low, high, count, share in rows if count]
    return "\n".join(lines)
