"""What several ranks send each other, counted. If one fails, a pass sends what nobody has counted on.

docs/PERFORMANCE.md has the figures.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.measure.roofline import PassShape, WorkCounter
from engine.models.loader import load_model
from tests.engine.driving import ask, drive
from tests.engine.ranks.crew import Crew
from tests.engine.ranks.worker import CPU
from tests.reference.checkpoints import write_checkpoint

HIDDEN, LAYERS, ITEM = 32, 2, 8
"""Of the tiny checkpoints in float64."""


@pytest.mark.parametrize("vocabulary", [96, 960])
def test_a_plain_choice_sends_five_numbers_a_row_whatever_the_vocabulary(
    pair: Crew, tmp_path: Path, vocabulary: int
) -> None:
    """[rows, vocabulary] to one rank would be most of what a pass sends."""
    directory = write_checkpoint(tmp_path, vocab_size=vocabulary)
    base = pair.ranks.group.sent_bytes
    engine = pair.make(directory)
    drive(engine, [ask("r", [7] * 4, "ar", max_tokens=9, ignore_eos=True)])
    first = pair.end()
    # 4 tokens of the prompt, then 8 passes of one token; a sum after each attention and MLP, and one of the embedding.
    sums = (4 + 8) * (2 * LAYERS + 1) * HIDDEN * ITEM
    assert first[0].sent_bytes - base == sums
    drive(pair.make(directory), [ask("r", [7] * 4, "ar", max_tokens=9, ignore_eos=True)])
    second = pair.end()
    assert second[1].sent_bytes - first[1].sent_bytes == sums + 9 * 5 * 8


def test_what_needs_all_logits_sends_half_the_vocabulary(pair: Crew, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, vocab_size=960)
    request = ask("r", [7] * 4, "ar", max_tokens=9, ignore_eos=True, temperature=1.0, top_p=0.9)
    drive(pair.make(directory), [request])
    first = pair.end()
    drive(pair.make(directory), [request])
    second = pair.end()
    sums = (4 + 8) * (2 * LAYERS + 1) * HIDDEN * ITEM
    assert second[1].sent_bytes - first[1].sent_bytes == sums + 9 * 480 * ITEM


def test_a_pass_is_one_message_of_its_arrays(pair: Crew, tiny_checkpoint: Path) -> None:
    """Something that grows with the context, or with the pool, would be sent each time."""
    engine = pair.make(tiny_checkpoint)
    drive(engine, [ask("r", [7] * 40, "ar", max_tokens=100, ignore_eos=True)])
    messages = engine.runner.sent_bytes  # type: ignore[attr-defined]
    assert messages < 40 * 32 + 100 * 300
    pair.end()


def test_the_roofline_is_of_one_rank_and_the_parameters_are_of_all(pair: Crew, tiny_checkpoint: Path) -> None:
    """The metric would promise twice the speed that the machine has, or half."""
    engine = pair.make(tiny_checkpoint)
    whole = load_model(tiny_checkpoint, device=CPU).decoder
    assert engine.info.num_parameters == whole.num_parameters
    assert engine.info.tensor_parallel_size == 2
    own = engine.runner.decoder.num_bytes
    assert engine.info.weight_bytes == 2 * own < 2 * 2 * whole.num_bytes  # float64 is twice float32
    shape = PassShape(tokens=4, logit_rows=4, pairs=10)
    work = engine._work.count(shape)
    alone = WorkCounter(load_model(tiny_checkpoint, device=CPU, dtype=torch.float64).decoder, 8).count(shape)
    assert work.total.operations * 2 == alone.total.operations
    assert (work.attention.bytes * 2, work.head.bytes * 2) == (alone.attention.bytes, alone.head.bytes)
    assert work.norms == alone.norms
    pair.end()
