"""The decoder with canvases against transformers' DiffusionGemma, through pages, windows and packed passes. If one
fails, the model's answers are noise, or depend on who else is served."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import CAUSAL, BatchPlan, KVLimits, Phase, Span, StepGroup, canvas_slot
from engine.engine import Engine
from engine.sequence import Sequence
from tests.conftest import MakeEngine, engine_maker
from tests.engine.driving import ask
from tests.reference.refining.checkpoints import CANVAS, VOCABULARY, write_refining_checkpoint
from tests.reference.refining.module import RefiningReference

Pair = tuple[MakeEngine, RefiningReference]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The same weights in the engine and in transformers' module, in float64."""
    torch.set_num_threads(1)
    directory = write_refining_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    return engine_maker(directory, "float64"), RefiningReference(directory)


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


class Text:
    """One sequence that a test runs by hand in an engine's pages."""

    def __init__(self, engine: Engine, row: int, token_ids: list[int]) -> None:
        self.token_ids = token_ids
        request = ask(f"r{row}", token_ids, "diffusion", block_length=CANVAS)
        pages = engine.scheduler.allocator.allocate(-(-96 // engine.config.page_size))
        self.seq = Sequence(request, frozenset(), row, row=row, pages=pages)

    def encode(self, start: int, end: int) -> Span:
        return Span(self.seq, Phase.PREFILL, start, self.token_ids[start:end], CAUSAL, num_logits=0)

    def refine(self, start: int, canvas: list[int], step: int = 0) -> Span:
        limits = KVLimits.up_to(start + CANVAS)
        return Span(self.seq, Phase.DENOISE, start, canvas, limits, num_logits=CANVAS, step=step)


def run(engine: Engine, *spans: Span) -> torch.Tensor:
    """One pass. Returns the logits of its canvases, in order: [n, canvas length, V]."""
    groups = [
        StepGroup("diffusion", phase, CANVAS if phase is Phase.DENOISE else 0, [s for s in spans if s.phase is phase])
        for phase in (Phase.PREFILL, Phase.DENOISE)
    ]
    logits = engine.runner.forward(BatchPlan([group for group in groups if group.spans]))[-1]
    return torch.empty(0) if logits is None else logits


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("length", [1, 5, 6, 7, 13, 40])
def test_logits_of_a_canvas_equal_transformers(pair: Pair, length: int, page_size: int) -> None:
    """Texts shorter and longer than the window; a first step, and one that is told of the step before."""
    make, reference = pair
    engine, text = make(page_size=page_size, max_block_length=CANVAS), ids(length, length)
    ours, canvas = Text(engine, 0, text), ids(CANVAS, 1)
    run(engine, ours.encode(0, length))
    first = run(engine, ours.refine(length, canvas))[0]
    expected = reference.logits(text, [canvas])
    same(first, expected)
    assert first.abs().max() > 4  # the cap and the scale do something
    memory = engine.runner.device_pass.memory
    assert memory is not None
    memory.remember([canvas_slot(0, 1)], first[None] / 0.7)
    other = ids(CANVAS, 2)
    second = run(engine, ours.refine(length, other, step=1))[0]
    same(second, reference.logits(text, [other], expected / 0.7))
    assert not torch.allclose(second, reference.logits(text, [other]), atol=1e-2)


@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_encoded_canvases_and_chunks_equal_transformers(pair: Pair, data: st.DataObject) -> None:
    """A prompt in chunks, then canvases encoded one by one: what is cached is what transformers caches."""
    make, reference = pair
    length = data.draw(st.integers(1, 30))
    text, canvases = ids(length, length), [ids(CANVAS, n) for n in range(data.draw(st.integers(1, 3)))]
    engine = make(page_size=data.draw(st.sampled_from((1, 4, 16))), max_block_length=CANVAS)
    ours = Text(engine, 0, [*text, *(token for canvas in canvases for token in canvas)])
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(1, length), max_size=3))})
    for start, end in pairwise(cuts):
        run(engine, ours.encode(start, end))
    for n in range(len(canvases) - 1):
        run(engine, ours.refine(length + n * CANVAS, ids(CANVAS, 77)))  # leaves nothing behind
        run(engine, ours.encode(length + n * CANVAS, length + (n + 1) * CANVAS))
    found = run(engine, ours.refine(length + (len(canvases) - 1) * CANVAS, canvases[-1]))[0]
    same(found, reference.logits(text, canvases))


def test_a_pass_of_texts_and_canvases_equals_each_alone(pair: Pair) -> None:
    """Factors, windows and what is told belong to each token: a request's answer would depend on its company."""
    make, reference = pair
    engine = make(page_size=4, max_block_length=CANVAS)
    texts = [ids(length, length) for length in (3, 11, 24)]
    canvases = [ids(CANVAS, 30 + n) for n in range(3)]
    ours = [Text(engine, row, text) for row, text in enumerate(texts)]
    run(engine, ours[0].encode(0, 3))
    run(engine, ours[0].refine(3, canvases[1]), ours[1].encode(0, 11))
    told = torch.stack([reference.logits(text, [canvas]) for text, canvas in zip(texts[:2], canvases[:2], strict=True)])
    memory = engine.runner.device_pass.memory
    assert memory is not None
    memory.remember([canvas_slot(row, step) for row, step in ((0, 1), (1, 4))], told)
    found = run(
        engine, ours[1].refine(11, canvases[1], step=4), ours[2].encode(0, 24), ours[0].refine(3, canvases[0], 1)
    )
    same(found[0], reference.logits(texts[1], [canvases[1]], told[1]))
    same(found[1], reference.logits(texts[0], [canvases[0]], told[0]))
    found = run(engine, ours[2].refine(24, canvases[2]), ours[0].refine(3, canvases[0]))
    same(found[0], reference.logits(texts[2], [canvases[2]]))
    same(found[1], reference.logits(texts[0], [canvases[0]]))
    # A commit and the canvas after it, in one pass.
    longer = Text(engine, 3, [*texts[0], *canvases[0]])
    run(engine, longer.encode(0, 3))
    found = run(engine, longer.encode(3, 3 + CANVAS), longer.refine(3 + CANVAS, canvases[1]))
    same(found[0], reference.logits(texts[0], [canvases[0], canvases[1]]))


@pytest.fixture
def watched(pair: Pair) -> Iterator[list[torch.Tensor]]:
    """The experts that transformers' routers choose, in the order of layers."""
    chosen: list[torch.Tensor] = []
    handles = [
        layer.router.register_forward_hook(lambda _module, _inputs, out: chosen.append(out[2]))
        for layer in pair[1].model.model.decoder.layers
    ]
    yield chosen
    for handle in handles:
        handle.remove()


def test_routers_choose_what_transformers_routers_choose(
    pair: Pair, watched: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, reference = pair
    engine, text, canvas = make(max_block_length=CANVAS), ids(9, 1), ids(CANVAS, 2)
    found: list[torch.Tensor] = []
    for layer in engine.runner.decoder.layers:
        router = layer.mlp.router  # type: ignore[union-attr]

        def watching(x: torch.Tensor, own: object = router.choose) -> tuple[torch.Tensor, torch.Tensor]:
            weights, experts = own(x)  # type: ignore[operator]
            found.append(experts)
            return weights, experts

        monkeypatch.setattr(router, "choose", watching)
    ours = Text(engine, 0, text)
    run(engine, ours.encode(0, 9))
    found.clear()
    run(engine, ours.refine(9, canvas))
    reference.logits(text, [canvas])
    assert len(found) == len(watched) == 3
    for own, theirs in zip(found, watched, strict=True):
        assert torch.equal(own.sort().values, theirs.sort().values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrower_types_stay_near_float64(pair: Pair, dtype: str) -> None:
    """Norms, routers and the cap are computed in float32 at least."""
    make, reference = pair
    engine = engine_maker(Path(make().config.model), dtype)(max_block_length=CANVAS)
    text, canvas = ids(20, 4), ids(CANVAS, 5)
    ours = Text(engine, 0, text)
    run(engine, ours.encode(0, 20))
    found = run(engine, ours.refine(20, canvas))[0]
    assert found.dtype == torch.float32
    difference = (found.double() - reference.logits(text, [canvas])).abs()
    assert difference.mean() < {"float32": 1e-5, "bfloat16": 0.4}[dtype]
