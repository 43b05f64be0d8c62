"""Bytes and operations of passes, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.batch import CAUSAL, BatchPlan, KVLimits, Phase, Span, StepGroup
from engine.measure.roofline import DeviceSpeed, PassShape, Work, WorkCounter, visible_pairs, windowed_pairs
from engine.models.adapter import DraftAdapter
from engine.models.decoder import Decoder
from engine.models.families.registry import describe_model
from engine.models.files import ConfigFile
from engine.models.linear.storages import Storage
from engine.models.mlp.config import ExpertConfig
from engine.models.refining.decoder import CanvasDecoder
from engine.request import Request
from engine.sequence import Sequence
from tests.conftest import MakeEngine
from tests.reference.checkpoints import tiny_config
from tests.reference.refining.checkpoints import published_config

# Of the tiny config: hidden 32, MLP 48, 2 layers, 4 query heads and 2 KV heads of 16, 96 tokens.
MATRICES = 2 * (32 * (64 + 32 + 32) + 64 * 32 + 3 * 32 * 48)  # q, k, v; o; gate, up, down
NORMS = 2 * 2 * 32 + 32
HEAD = 96 * 32
KV = 2 * 2 * 2 * 16  # K and V, layers, heads, head size
PAIR = 2 * 4 * 4 * 16  # layers, heads, and 4 operations an element: a multiply-add for the score, one for the sum


def counter(
    dtype: torch.dtype = torch.float32, rank: int = 0, kv_itemsize: int | None = None, **overrides: Any
) -> WorkCounter:
    """Counts for a decoder without memory."""
    config = describe_model(ConfigFile(Path(), tiny_config(**overrides)), ConfigFile(Path(), {})).config
    adapter = DraftAdapter(rank=rank, alpha=1.0) if rank else None
    decoder = Decoder(config, dtype=dtype, device=torch.device("meta"), num_positions=1, adapter=adapter)
    return WorkCounter(decoder, kv_itemsize or dtype.itemsize)


def sequence(name: str) -> Sequence:
    return Sequence(Request(request_id=name, prompt_token_ids=[7], max_tokens=1), frozenset(), 0)


def test_weights_and_kv() -> None:
    assert MATRICES == 21504
    assert counter().weight_bytes == 4 * (21504 + 160 + 3072)
    assert counter(torch.bfloat16).kv_bytes == 2 * 128


def test_kv_may_be_stored_in_another_type_than_the_weights() -> None:
    """A pool of half the size would be counted as one of the full size."""
    narrow = counter(kv_itemsize=1)
    assert (narrow.weight_bytes, narrow.kv_bytes) == (counter().weight_bytes, 128)
    work = narrow.count(PassShape(tokens=1, logit_rows=1, cached=10, pairs=11))
    assert work.attention == Work(KV * (10 + 1), 11 * PAIR)


def test_biases_are_read_and_norms_of_queries_and_keys_too() -> None:
    config = describe_model(ConfigFile(Path(), tiny_config()), ConfigFile(Path(), {})).config
    traits = replace(config, qkv_bias=True, qk_norm=True)
    decoder = Decoder(traits, dtype=torch.float32, device=torch.device("meta"), num_positions=1)
    assert WorkCounter(decoder, 4).weight_bytes == counter().weight_bytes + 4 * 2 * (128 + 2 * 16)


def test_one_decoding_step() -> None:
    work = counter().count(PassShape(tokens=1, logit_rows=1, cached=10, pairs=11))
    assert work.projections == Work(4 * MATRICES, 2 * MATRICES)
    assert work.attention == Work(4 * KV * (10 + 1), 11 * PAIR)
    assert work.norms == Work(4 * (NORMS + 32), 0)
    assert work.head == Work(4 * HEAD, 2 * HEAD)
    assert work.total == Work(4 * (21504 + 128 * 11 + 160 + 32 + 3072), 2 * (21504 + 3072) + 11 * 512)


def test_weights_are_read_once_and_products_done_for_every_token() -> None:
    one = counter().count(PassShape(tokens=8, logit_rows=8, cached=10, pairs=8 * 18))
    four = counter().count(PassShape(tokens=8, logit_rows=8, cached=10, pairs=8 * 18).times(4))
    assert four.projections.bytes == one.projections.bytes
    assert four.head.bytes == one.head.bytes
    assert four.attention.bytes == 4 * one.attention.bytes
    assert four.total.operations == 4 * one.total.operations


def test_a_draft_adapter_is_read_once_and_applied_to_the_drafting_tokens_alone() -> None:
    plain, adapted = counter(), counter(rank=4)
    shape = PassShape(tokens=24, drafting=8, logit_rows=24, cached=0, pairs=0)
    elements = 2 * 4 * (64 + 32)
    assert adapted.count(shape).projections.bytes - plain.count(shape).projections.bytes == 4 * elements
    assert adapted.count(shape).projections.operations - plain.count(shape).projections.operations == 2 * 8 * elements
    undrafted = PassShape(tokens=24, logit_rows=24)
    assert adapted.count(undrafted) == plain.count(undrafted)


def test_quantized_weights_are_read_as_they_are_stored_and_narrower_ones_draft() -> None:
    """The least time of a quantized model would be the float one's."""
    config = describe_model(ConfigFile(Path(), tiny_config()), ConfigFile(Path(), {})).config
    outputs = 2 * (64 + 32 + 32 + 32 + 2 * 48 + 32)
    for storage, head in ((Storage("int8", "int8"), 4 * 96), (Storage("dense", "int8", "int8"), 4 * 96)):
        decoder = Decoder(config, dtype=torch.float32, device=torch.device("meta"), num_positions=1, storage=storage)
        work = WorkCounter(decoder, 4)
        draft = work.count(PassShape(tokens=8, drafting=8, logit_rows=8))
        verify = work.count(PassShape(tokens=8, logit_rows=8))
        mixed = work.count(PassShape(tokens=16, drafting=8, logit_rows=16))
        narrow = MATRICES + 4 * outputs  # a byte an element, and a scale an output
        full = narrow if storage.layers == "int8" else 4 * MATRICES
        assert draft.projections == Work(narrow, 8 * 2 * MATRICES)
        assert verify.projections == Work(full, 8 * 2 * MATRICES)
        assert mixed.projections.bytes == full
        assert verify.head == Work(HEAD + head, 8 * 2 * HEAD)


def test_of_experts_a_pass_reads_those_that_it_is_expected_to_touch() -> None:
    """The least time of one token would be that of a whole mixture model: thirty times too much."""
    config = describe_model(ConfigFile(Path(), tiny_config()), ConfigFile(Path(), {})).config
    experts = ExpertConfig(
        num_experts=8, per_token=2, intermediate_size=16, scoring="softmax", renormalised=True, shared_size=24,
        num_dense_layers=1,
    )  # fmt: skip
    mixed = replace(config, experts=experts)
    decoder = Decoder(mixed, dtype=torch.bfloat16, device=torch.device("meta"), num_positions=1)
    always = MATRICES - 3 * 32 * 48 + 3 * 32 * 24  # the second layer's MLP is the shared one's
    one = 3 * 32 * 16
    counts = WorkCounter(decoder, 2)
    assert counts.weight_bytes == decoder.num_bytes - 2 * HEAD  # the embedding is looked up
    for tokens, share in ((1, 0.25), (2, 1 - 0.75**2), (64, 1 - 0.75**64)):
        work = counts.count(PassShape(tokens=tokens, logit_rows=tokens)).projections
        assert work.bytes == 2 * always + 4 * 8 * 32 + round(2 * 8 * one * share)  # the router is float32
        assert work.operations == tokens * 2 * (always + 8 * 32 + 2 * one)


def test_a_pass_without_logits_does_not_read_the_head_and_an_empty_one_reads_nothing() -> None:
    assert counter().count(PassShape(tokens=16, pairs=136)).head == Work(0, 0)
    assert counter().count(PassShape()).total == Work(0, 0)


@pytest.mark.parametrize(
    ("tokens", "start", "limits", "pairs"),
    [
        (1, 9, CAUSAL, 10),
        (3, 2, CAUSAL, 3 + 4 + 5),
        (4, 6, KVLimits.up_to(10), 40),
        (2, 0, KVLimits.up_to(2), 4),
        (8, 0, KVLimits.block_ends(4), 4 * 4 + 4 * 8),
        (7, 3, KVLimits.block_ends(4), 1 * 4 + 4 * 8 + 2 * 12),
        (6, 5, KVLimits.block_ends(4, origin=3), 2 * 7 + 4 * 11),
    ],
)
def test_visible_pairs(tokens: int, start: int, limits: KVLimits, pairs: int) -> None:
    """By formula, and token by token."""
    assert visible_pairs(tokens, start, limits) == pairs == sum(limits.at(start + i) for i in range(tokens))


@pytest.mark.parametrize("window", [1, 4, 9, 100])
@pytest.mark.parametrize(("tokens", "start"), [(1, 0), (1, 12), (8, 0), (8, 2), (8, 6), (8, 40), (3, 200)])
def test_windowed_pairs(tokens: int, start: int, window: int) -> None:
    """Token by token: of a text the window ends with the token, of a canvas it is counted from the first one."""
    causal = sum(min(start + i + 1, window) for i in range(tokens))
    assert windowed_pairs(tokens, start, CAUSAL, window) == causal
    canvas = KVLimits.up_to(start + tokens)
    assert windowed_pairs(tokens, start, canvas, window) == tokens * (min(start, window - 1) + tokens)


def test_layers_with_a_window_read_no_more_than_that() -> None:
    """A long text would be counted in full in layers that see the last thousand tokens of it."""
    config = describe_model(ConfigFile(Path(), published_config()), ConfigFile(Path(), {})).config
    decoder = CanvasDecoder(config, dtype=torch.float32, device=torch.device("meta"), num_positions=1)
    work = WorkCounter(decoder, 4)
    a = sequence("a")
    span = Span(a, Phase.DENOISE, 40, [1] * 8, KVLimits.up_to(48), 8, step=0)
    shape = PassShape.of(BatchPlan([StepGroup("diffusion", Phase.DENOISE, 8, [span])]), work.window)
    assert (work.window, shape.window_cached, shape.window_pairs) == (6, 5, 8 * 13)
    # Two sliding layers of 2 KV heads of 8, one full layer of 1 of 16; 4 query heads.
    sliding, full = 2 * 2 * 2 * 8 * 4, 2 * 16 * 4
    assert work.count(shape).attention == Work(13 * sliding + 48 * full, 4 * (2 * 4 * 8 * 8 * 13 + 4 * 16 * 8 * 48))
    assert work.count(shape).head.bytes > 2 * 96 * 32 * 4, "the embedding is read again for the next step"


def test_the_shape_of_a_mixed_plan() -> None:
    """An AR step, a prefill chunk without logits, and a shared pass whose draft sees what its verification writes."""
    a, b, c = sequence("a"), sequence("b"), sequence("c")
    plan = BatchPlan(
        [
            StepGroup("", Phase.PREFILL, 0, [Span(b, Phase.PREFILL, 16, [1] * 8, CAUSAL, 0)]),
            StepGroup("ar", Phase.DECODE, 1, [Span(a, Phase.DECODE, 5, [1], CAUSAL, 1)]),
            StepGroup("ar", Phase.VERIFY, 4, [Span(c, Phase.VERIFY, 20, [1] * 4, CAUSAL, 4)]),
            StepGroup("ar", Phase.DRAFT, 4, [Span(c, Phase.DRAFT, 24, [1] * 4, KVLimits.up_to(28), 4, second=True)]),
        ]
    )
    assert PassShape.of(plan) == PassShape(
        tokens=8 + 1 + 4 + 4,
        drafting=4,
        logit_rows=0 + 1 + 4 + 4,
        cached=16 + 5 + 20,
        pairs=(8 * 16 + 36) + 6 + (4 * 20 + 10) + 4 * 28,
    )


def test_least_time_is_the_longer_of_moving_and_computing() -> None:
    speed = DeviceSpeed(bandwidth=100.0, rate=1000.0)
    assert Work(200, 1000).seconds(speed) == 2.0
    assert Work(200, 4000).seconds(speed) == 4.0


def test_the_8b_of_the_published_family() -> None:
    """Its published figures: 15.9 GB of weights a pass in bf16, 139 KB of KV a token."""
    large = counter(
        torch.bfloat16, vocab_size=131072, hidden_size=4096, intermediate_size=14336, num_hidden_layers=34,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=262144,
    )  # fmt: skip
    assert large.weight_bytes / 1e9 == pytest.approx(15.9, abs=0.05)
    assert large.kv_bytes == 139_264
    step = large.count(PassShape(tokens=1, logit_rows=1, cached=0, pairs=1)).total
    assert step.seconds(DeviceSpeed(4.3e12, 790e12)) == pytest.approx(3.7e-3, rel=0.01)


def test_counted_weights_are_the_decoder_s_parameters(tiny_engine: MakeEngine, builtin_engine: MakeEngine) -> None:
    """All but the embeddings, of which a pass reads a row a token."""
    for engine in (tiny_engine(), builtin_engine()):
        decoder = engine.runner.decoder
        read = decoder.num_parameters - decoder.embedding.numel()
        assert WorkCounter(decoder, decoder.dtype.itemsize).weight_bytes == read * decoder.dtype.itemsize
