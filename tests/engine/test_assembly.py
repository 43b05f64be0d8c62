"""Putting an engine together. If one fails, a part of it runs with other settings than the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.assembly import UNMEASURED, assemble, load_parts, parts_around
from engine.attention.sdpa import SdpaAttention
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import ConfigError
from engine.models.loader import LoadedModel, load_model
from engine.runner.device_pass import DevicePass
from engine.runner.kernels import make_kernels
from engine.runner.model_runner import ModelRunner
from engine.runner.pool_size import PoolSize
from engine.runner.rank_parts import captures, make_pool, warm_up
from tests.engine.driving import ask, drive
from tests.reference.block_checkpoints import write_block_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(tiny_checkpoint, device=CPU)


def config(**fields: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "device": "cpu", "threads": 1, "calibration_seconds": 0, "kv_cache_tokens": 512, "max_running": 4,
        "max_infill_window": 64,
    }  # fmt: skip
    return EngineConfig(**(settings | fields))


def test_every_part_has_the_size_of_the_pool(model: LoadedModel) -> None:
    """The scheduler would hand out pages that do not exist, or fewer than there are."""
    parts = assemble(config(page_size=32), model, CPU)
    pool = parts.runner.pool
    assert pool.num_pages == parts.info.num_pages == parts.scheduler.allocator.num_free == 16
    assert pool.page_size == parts.info.page_size == 32
    assert parts.runner.packer._page_table.shape == pool.host_page_table.shape == (4, 16)
    assert pool.dtype == model.decoder.dtype


def test_policies_are_those_of_the_model_and_unmeasured_is_zero(model: LoadedModel) -> None:
    parts = assemble(config(), model, CPU)
    assert set(parts.policies) == {*model.spec.decodings, "infill"}
    assert (parts.info.device_bandwidth, parts.info.device_rate) == UNMEASURED == (0.0, 0.0)
    measured = assemble(config(calibration_seconds=0.01), model, CPU)
    assert measured.info.device_bandwidth > 0
    assert measured.info.device_rate > 0


def test_an_engine_may_be_handed_a_runner(model: LoadedModel) -> None:
    """Tests and tools put their own kernels in, and nothing else of an engine changes."""
    settings, size = config(), PoolSize(24, 384)
    pool = make_pool(settings, model, size, CPU, padding_page=True)
    kernels = make_kernels("torch", pool, model.decoder, model.spec.banned_token_ids)
    runner = ModelRunner(DevicePass(model.decoder, pool, kernels))
    engine = Engine(parts_around(settings, model, size, runner))
    assert (engine.runner, engine.info.num_pages, engine.info.max_model_len) == (runner, 24, 384)
    request = ask("a", [8, 9, 10], "speculative", ignore_eos=True)
    expected = drive(Engine(assemble(settings, model, CPU)), [request])["a"]
    assert drive(engine, [request])["a"].outcome == expected.outcome


@pytest.mark.parametrize(
    ("fields", "device", "captured"),
    [
        ({"kernels": "triton"}, "cuda", True),
        ({"kernels": "triton", "enforce_eager": True}, "cuda", False),
        ({"kernels": "torch"}, "cuda", False),
        ({"kernels": "triton"}, "cpu", False),
    ],
)
def test_passes_are_captured_where_they_can_be(fields: dict[str, Any], device: str, captured: bool) -> None:
    assert captures(config(**fields), torch.device(device)) is captured


def test_a_cpu_warms_nothing_up(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(config(), model, PoolSize(8, 128), CPU, padding_page=False)
    kernels = make_kernels("torch", pool, model.decoder, ())
    monkeypatch.setattr(SdpaAttention, "warm_up", lambda self: pytest.fail("compiled for nothing"))
    assert warm_up(config(), model, pool, kernels) is None
    assert pool.k.shape[1] == 8 * 16


def test_a_bad_configuration_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model would be read for minutes first."""
    monkeypatch.setattr("engine.runner.rank_parts.load_model", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="page_size"):
        load_parts(config(page_size=3))


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"max_block_length": 16}, r"max_block_length \(16\) is less than this model's block length \(32\)"),
        ({"max_batch_tokens": 127, "max_block_length": 32}, r"max_batch_tokens \(127\) must be at least 128"),
    ],
)
def test_a_model_of_one_block_length_needs_room_for_a_block(fields: dict[str, Any], part: str, tmp_path: Path) -> None:
    """Its prompts would wait for ever in a server under load, or no request could be served at all."""
    blocks = load_model(write_block_checkpoint(tmp_path, "fast_dllm_v2"), device=CPU)
    with pytest.raises(ConfigError, match=part):
        assemble(config(**fields), blocks, CPU)
    parts = assemble(config(), blocks, CPU)
    assert set(parts.policies) == {"diffusion"}
    assert (parts.info.block_length, parts.info.fixed_block_length, parts.info.max_infill_window) == (32, True, 0)
    assert (parts.info.default_threshold, parts.info.limits_steps) == (0.9, False)
    assert parts.scheduler.allocator.group == 2
