"""Captured passes, with a tape in place of a CUDA graph. If one fails, a GPU answers with some other pass's data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("tests.engine.gpu.interpreted", exc_type=ImportError)

from engine.batch import CAUSAL, BatchPlan, Phase, Span, StepGroup
from engine.engine import Engine
from engine.events import TokensSettled
from engine.gpu import attention as triton_paged
from engine.gpu import graphs
from engine.gpu.attention import TritonAttention
from engine.gpu.elementwise import TritonElementwise
from engine.gpu.graphs import Bucket, PassGraphs
from engine.kv_cache.pages import PageAllocator
from engine.request import DecodingParams, Request, SamplingParams
from engine.sequence import Sequence
from tests.conftest import MakeEngine, engine_maker
from tests.engine.gpu.tape import TapeCapturer
from tests.reference.checkpoints import write_checkpoint

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@pytest.fixture(scope="module")
def make_engine(tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    """Engines of a tiny random model with a draft adapter and heads that the kernel knows."""
    directory = write_checkpoint(tmp_path_factory.mktemp("models") / "wide", lora_rank=4, head_dim=32)
    return engine_maker(directory, "float32")


class Captured:
    """Two engines of one model: one runs its passes captured, in the triton backend, the other as they come."""

    def __init__(self, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, programs: int = 24) -> None:
        monkeypatch.setattr("engine.gpu.attention.MIN_SPLIT", 32)
        # Tiles of several sizes, as the kernel has them in bfloat16.
        monkeypatch.setitem(triton_paged.TILE_SHAPES, 4, dict.fromkeys((16, 32, 64), triton_paged.TileShape(16, 4)))
        self.eager = make_engine(prefix_caching=False)
        self.engine = make_engine(prefix_caching=False)
        runner = self.engine.runner
        # The last page is padding's: only on a GPU has the engine's pool one more.
        runner.pool.num_pages -= 1
        self.engine.scheduler.allocator = PageAllocator(runner.pool.num_pages, runner.pool.page_size, False)
        config = runner.decoder.config
        runner.attention = TritonAttention(runner.pool, config.num_heads, programs=programs)
        runner.elementwise = TritonElementwise(config.rms_norm_eps, runner.pool.dtype, runner.device)
        self.capturer = TapeCapturer(monkeypatch)
        self.graphs = PassGraphs(runner.decoder, runner.attention, runner.elementwise, runner.pool, self.capturer)
        runner.graphs = self.graphs


@pytest.fixture
def captured(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Captured]:
    return Captured(make_engine, monkeypatch)


WIDE = [
    Bucket(64, tiles, rows, drafting) for tiles, rows in ((32, 16), (16, 32), (8, 64)) for drafting in (False, True)
]
"""Whatever the requests below run: the prompts' longer spans need larger tiles."""


def requests() -> list[Request]:
    modes = [("ar", 8, 0.0), ("diffusion", 8, 0.0), ("speculative", 8, 0.0), ("speculative", 4, 0.8)]
    return [
        Request(
            request_id=str(i), prompt_token_ids=[1, *range(20, 20 + length)], max_tokens=6, ignore_eos=True,
            sampling=SamplingParams(temperature=temperature, seed=i),
            decoding=DecodingParams(mode=decoding, block_length=block),
        )
        for i, ((decoding, block, temperature), length) in enumerate(zip(modes, (3, 9, 17, 1), strict=True))
    ]  # fmt: skip


def answers(engine: Engine) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    waiting = requests()
    while waiting or engine.has_work:
        if waiting:  # one joins with each pass, so that prompts, drafts and decodes share passes
            engine.add(waiting.pop(0))
        for event in engine.step()[0]:
            if isinstance(event, TokensSettled):
                found.setdefault(event.request_id, []).extend(event.token_ids)
    return found


def test_one_capture_serves_any_mix_of_requests(captured: Captured) -> None:
    for bucket in (*WIDE, Bucket(8, 8, 16, False)):
        captured.graphs.capture(bucket)
    passes = 0
    forward = captured.graphs.forward

    def counting(packed: object) -> torch.Tensor | None:
        nonlocal passes
        passes += 1
        return forward(packed)  # type: ignore[arg-type]

    captured.graphs.forward = counting  # type: ignore[method-assign]
    assert answers(captured.engine) == answers(captured.eager)
    assert captured.capturer.replays == passes > 6


def test_a_pass_that_fits_no_capture_runs_eagerly(captured: Captured) -> None:
    captured.graphs.capture(Bucket(4, 4, 16, False))  # decodes; not the prompts, canvases and drafts
    assert answers(captured.engine) == answers(captured.eager)
    assert captured.capturer.replays > 0


def span_of(engine: Engine, tokens: list[int]) -> BatchPlan:
    """One causal pass over a fresh sequence, whose page is the first one."""
    span = Span(Sequence.placeholder(0, [0]), Phase.VERIFY, 0, tokens, CAUSAL, num_logits=len(tokens))
    return BatchPlan([StepGroup("ar", Phase.VERIFY, len(tokens), [span])])


def test_padding_writes_to_the_page_that_is_nobodys(captured: Captured) -> None:
    pool = captured.engine.runner.pool
    captured.graphs.capture(Bucket(8, 4, 16, False))
    pool.k.fill_(7.0)
    captured.engine.runner.forward(span_of(captured.engine, [20, 21, 22]))
    changed = (pool.k != 7.0).flatten(2).any(-1).any(0).nonzero().flatten().tolist()
    assert changed == [0, 1, 2, pool.padding_slot]
    assert captured.capturer.replays == 1


def test_a_replay_leaves_nothing_to_the_next(captured: Captured) -> None:
    """A long pass, then a short one: what the first left in the buffers is padding to the second."""
    captured.graphs.capture(Bucket(8, 4, 16, False))
    for tokens in ([20, 21, 22, 23, 24, 25], [30], [31, 32]):
        for engine in (captured.engine, captured.eager):
            engine.runner.pool.k.zero_()
        found = captured.engine.runner.forward(span_of(captured.engine, tokens))[0]
        expected = captured.eager.runner.forward(span_of(captured.eager, tokens))[0]
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert captured.capturer.replays == 3


def test_warming_up_keeps_to_its_seconds_and_its_tokens(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    captured.graphs.warm_up(512, seconds=0.0)
    assert captured.graphs.buckets == []
    monkeypatch.setattr(graphs, "TOKENS", (1, 4, 512))
    captured.graphs.warm_up(8, seconds=600.0)
    assert {bucket.num_tokens for bucket in captured.graphs.buckets} == {1, 4}
    assert {bucket.drafting for bucket in captured.graphs.buckets} == {False, True}
    assert captured.capturer.replays == 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_too_little_memory_leaves_what_was_captured(
    captured: Captured, monkeypatch: pytest.MonkeyPatch, error: type[RuntimeError]
) -> None:
    capture = captured.capturer.capture

    def full(run: object) -> object:
        if len(captured.graphs.buckets) == 2:
            raise error("no room")
        return capture(run)  # type: ignore[arg-type]

    monkeypatch.setattr(captured.capturer, "capture", full)
    captured.graphs.warm_up(8)
    assert len(captured.graphs.buckets) == 2


def test_a_cpu_captures_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert engine.runner.graphs is None
    assert engine.runner.pool.num_pages == engine.info.num_pages
