"""The transformers loops answer as the engine does: else comparing their speeds would mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.loops.blocks import BLOCK_LOOPS
from bench.loops.one_request import LOOPS
from bench.loops.padded_batch import BATCH_LOOPS
from bench.loops.transformers_model import Limits, TransformersModel
from bench.loops.whole import WHOLE_LOOPS
from bench.modes import Cell, closed_loop
from bench.prompts import BUILTIN_PROMPTS, Text, read_prompts
from engine.config import EngineInfo
from engine.engine import Engine
from engine.errors import ConfigError
from engine.models.files import model_directory
from tests.conftest import MakeEngine, engine_maker
from tests.engine.decoding.blocks.cases import make_block_pair
from tests.engine.decoding.harness import random_prompt
from tests.reference.bidirectional.checkpoints import dream_config, llada_config, write_whole_checkpoint

MODES = ("ar", "diffusion", "speculative")
LIMITS = Limits(max_tokens=21, block_length=8, threshold=0.9)
PROMPTS = [[1, 20, 21, 22], [1, 30], [1, 40, 41, 42, 43, 44, 45, 46, 47, 48], [1, 50, 51], [1, 60, 61, 62, 63], [1, 9]]


@pytest.fixture(scope="module")
def tiny(tiny_engine: MakeEngine) -> tuple[Engine, TransformersModel]:
    """Random weights in float64, a draft adapter, YaRN and query scaling that are active."""
    engine = tiny_engine(shared_commit=False)
    return engine, TransformersModel(engine)


@pytest.fixture(scope="module")
def builtin(builtin_engine: MakeEngine) -> tuple[Engine, TransformersModel]:
    engine = builtin_engine(shared_commit=False)
    return engine, TransformersModel(engine)


def visible_tokens(answer: list[int], info: EngineInfo) -> list[int]:
    """An answer without its end token."""
    return answer[:-1] if answer and answer[-1] in info.end_token_ids else answer


def engine_answers(engine: Engine, prompts: list[list[int]], mode: str, limits: Limits) -> list[list[int]]:
    cell = Cell(mode, 4, limits.block_length, limits.threshold)
    _, answers, _ = closed_loop(engine, prompts, cell, f"{mode}-{limits}", 0.0, limits.max_tokens)
    return answers


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limits", [LIMITS, Limits(max_tokens=1, block_length=8, threshold=0.9), Limits(18, 16, 0.4)])
def test_loops_answer_as_the_engine(tiny: tuple[Engine, TransformersModel], mode: str, limits: Limits) -> None:
    engine, plain = tiny
    answers = [visible_tokens(LOOPS[mode](plain, prompt, limits), engine.info) for prompt in PROMPTS]
    assert answers == engine_answers(engine, PROMPTS, mode, limits)
    assert any(answers)


@pytest.mark.parametrize("mode", MODES)
def test_padded_batches_answer_as_the_engine(tiny: tuple[Engine, TransformersModel], mode: str) -> None:
    engine, plain = tiny
    answers = [visible_tokens(answer, engine.info) for answer in BATCH_LOOPS[mode](plain, PROMPTS, LIMITS)]
    assert answers == engine_answers(engine, PROMPTS, mode, LIMITS)


@pytest.mark.parametrize("mode", MODES)
def test_built_in_model(builtin: tuple[Engine, TransformersModel], mode: str) -> None:
    """Real answers, which end at different lengths: rows leave the padded batch while others go on."""
    engine, plain = builtin
    limits = Limits(max_tokens=48, block_length=32, threshold=0.9)
    text = Text(model_directory("builtin"), engine.info.bos_token_id)
    prompts = [text.encode(prompt.prompt) for prompt in read_prompts(BUILTIN_PROMPTS)[3:8]]
    expected = engine_answers(engine, prompts, mode, limits)
    assert [visible_tokens(LOOPS[mode](plain, prompt, limits), engine.info) for prompt in prompts] == expected
    assert [visible_tokens(a, engine.info) for a in BATCH_LOOPS[mode](plain, prompts, limits)] == expected
    assert len({len(answer) for answer in expected}) > 1


def test_the_weights_are_the_engine_s_in_the_layout_of_a_loader(tiny: tuple[Engine, TransformersModel]) -> None:
    engine, plain = tiny
    tensors, module = engine.runner.decoder.tensors(), plain.model.model.layers[0]
    assert torch.equal(plain.model.lm_head.weight, tensors["lm_head.weight"])
    assert torch.equal(module.mlp.down_proj.weight, tensors["layers.0.mlp.down_proj.weight"])
    assert all(weight.is_contiguous() for weight in plain.model.parameters())


def test_the_adapter_is_off_again_after_a_draft(tiny: tuple[Engine, TransformersModel]) -> None:
    engine, plain = tiny
    before = plain.model.model.layers[0].self_attn.o_proj.weight.data_ptr()
    LOOPS["speculative"](plain, PROMPTS[0], LIMITS)
    assert plain.model.model.layers[0].self_attn.o_proj.weight.data_ptr() == before
    assert engine.runner.decoder.adapter is not None


def test_another_family_is_refused(tiny_engine: MakeEngine, tiny_checkpoint: Path) -> None:
    from dataclasses import replace

    from bench.loops.transformers_model import module_config

    config = tiny_engine().runner.decoder.config
    with pytest.raises(ConfigError, match="plain transformers loop"):
        module_config(replace(config, qkv_bias=True, qk_norm=True))


@pytest.mark.parametrize("name", ["sdar", "sdar_8", "stable_diffcoder", "fast_dllm_v2"])
def test_loops_over_blocks_answer_as_the_engine(name: str, tmp_path: Path) -> None:
    """Prompts shorter and longer than a block, and of whole blocks."""
    engine = make_block_pair(tmp_path, name, "float64").make()
    plain = TransformersModel(engine)
    length = engine.info.block_length
    prompts = [random_prompt(count, count) for count in (1, length - 1, length, 2 * length, 2 * length + 3)]
    for limits in (Limits(21, length, 0.9), Limits(1, length, 0.4), Limits(40, length, 0.4)):
        loop = BLOCK_LOOPS[engine.info.family]
        answers = [visible_tokens(loop(plain, prompt, limits), engine.info) for prompt in prompts]
        assert answers == engine_answers(engine, prompts, "diffusion", limits)


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_loops_over_whole_texts_answer_as_the_engine(name: str, tmp_path: Path) -> None:
    """Answers that end within a block, at its end, in the second one, and that are one block."""
    config = {"llada": llada_config, "dream": dream_config}[name]()
    engine = engine_maker(write_whole_checkpoint(tmp_path, config, logit_scale=3.0), "float64")()
    plain = TransformersModel(engine)
    prompts = [random_prompt(count, count) for count in (1, 7, 8, 19)]
    for limits in (Limits(21, 8, 0.9), Limits(8, 8, 0.4), Limits(1, 4, 0.4), Limits(13, 13, 0.2)):
        answers = [visible_tokens(WHOLE_LOOPS[name](plain, prompt, limits), engine.info) for prompt in prompts]
        assert answers == engine_answers(engine, prompts, "diffusion", limits)
