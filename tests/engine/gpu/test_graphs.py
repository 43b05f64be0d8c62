"""Captured passes, with a tape in place of a CUDA graph. If one fails, a GPU answers with some other pass's data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("tests.engine.gpu.interpreted", exc_type=ImportError)

from engine.assembly import parts_around
from engine.batch import CAUSAL, BatchPlan, Phase, Span, StepGroup
from engine.engine import Engine
from engine.events import TokensSettled
from engine.gpu import attention as triton_paged
from engine.gpu import graphs
from engine.gpu.attention import TritonAttention
from engine.gpu.elementwise import TritonElementwise
from engine.gpu.graphs import Bucket, PassGraphs
from engine.models.loader import LoadedModel, load_model
from engine.request import DecodingParams, Request, SamplingParams
from engine.runner.device_pass import DevicePass
from engine.runner.kernels import Kernels
from engine.runner.model_runner import ModelRunner
from engine.runner.pool_size import PoolSize
from engine.runner.rank_parts import make_pool
from engine.sequence import Sequence
from tests.conftest import MakeEngine, engine_maker
from tests.engine.gpu.tape import TapeCapturer
from tests.reference.checkpoints import write_checkpoint

torch.set_num_threads(1)
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a draft adapter and heads that the kernel knows."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "wide", lora_rank=4, head_dim=32)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LoadedModel:
    return load_model(checkpoint, device=CPU)


@pytest.fixture(scope="module")
def make_engine(checkpoint: Path) -> MakeEngine:
    """Engines of that model whose passes are not captured."""
    return engine_maker(checkpoint, "float32")


class Captured:
    """Two engines of one model: one runs its passes captured, in the triton backend, the other as they come."""

    def __init__(self, model: LoadedModel, eager: Engine, monkeypatch: pytest.MonkeyPatch, programs: int = 24) -> None:
        monkeypatch.setattr("engine.gpu.attention.MIN_SPLIT", 32)
        # Tiles of several sizes, as the kernel has them in bfloat16.
        monkeypatch.setitem(triton_paged.TILE_SHAPES, 4, dict.fromkeys((16, 32, 64), triton_paged.TileShape(16, 4)))
        self.eager = eager
        decoder, config = model.decoder, eager.config
        size = PoolSize(eager.info.num_pages, eager.info.max_model_len)
        pool = make_pool(config, model, size, CPU, padding_page=True)
        attention = TritonAttention(pool, model.config.num_heads, programs=programs)
        kernels = Kernels(attention, TritonElementwise(model.config.rms_norm_eps, decoder.dtype, CPU), None)
        self.capturer = TapeCapturer(monkeypatch)
        self.graphs = PassGraphs(decoder, attention, kernels.elementwise, pool, self.capturer)
        runner = ModelRunner(DevicePass(decoder, pool, kernels, self.graphs))
        self.engine = Engine(parts_around(config, model, size, runner))


@pytest.fixture
def captured(model: LoadedModel, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> Captured:
    return Captured(model, make_engine(prefix_caching=False), monkeypatch)


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
    assert engine.runner.device_pass.graphs is None
    assert engine.runner.pool.num_pages == engine.info.num_pages
